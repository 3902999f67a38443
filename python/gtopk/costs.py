"""What the parts of a step cost between these ranks, and how long a step takes by that."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from . import _c_api, _devices, _threads
from . import comm as _comm
from .errors import InvalidError

__all__ = ["Costs"]


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of a step take; `measure` finds them, `predict` puts them together.

    Attributes
    ----------
    message_s, byte_s : float
        A message between two ranks takes ``message_s + bytes * byte_s`` while all others exchange one, too.
    near_message_s, near_byte_s : float
        The same between ranks on one machine.
    sum_message_s, sum_byte_s : float
        The same for each of the 2 (P - 1) messages of an all-reduce.
    accumulate_s, select_s, merge_s, dense_s : float
        An entry that is added up; that is selected and committed; that is encoded, decoded and merged; in a dense step.
    each_node : int
        Ranks on a machine, where they are equally many and numbered machine by machine, else 1.
    gathers : bool
        The transport has an all-gather of its own.

    Examples
    --------
    >>> import gtopk
    >>> gtopk.init()
    >>> costs = gtopk.Costs.measure()  # of this machine alone: there is one rank
    >>> slow = costs.with_network(latency=50e-6, bandwidth=125e6)  # 1 Gb/s
    >>> slow.predict(25_000_000, ranks=4, algorithm="dense") > 2 * 3 / 4 * 100e6 / 125e6
    True
    >>> slow.best(25_000_000, ranks=4)[0] == "dense"
    False
    """

    message_s: float = 0.0
    byte_s: float = 0.0
    near_message_s: float = 0.0
    near_byte_s: float = 0.0
    sum_message_s: float = 0.0
    sum_byte_s: float = 0.0
    accumulate_s: float = 0.0
    select_s: float = 0.0
    merge_s: float = 0.0
    dense_s: float = 0.0
    each_node: int = 1
    gathers: bool = False

    @classmethod
    def measure(cls, *, device: Any = None, comm: _comm.Comm | None = None) -> Costs:
        """Times messages and sums between all ranks, and steps of each rank alone. Collective.

        Parameters
        ----------
        device : str or torch.device, optional
            As of `gtopk.Reducer`.
        comm : Comm, optional
            Default: the one that ``gtopk.init()`` made.

        Returns
        -------
        Costs
            The slowest rank's: the same on all.
        """
        named = _devices.wanted(device)
        config = _c_api.ReducerConfig(
            struct_size=ctypes.sizeof(_c_api.ReducerConfig),
            device=None if named is None else named.encode(),
            density=0.001,
            algorithm=_c_api.ALGORITHMS["gtopk"],
            merge_growth=1.0,
            parallel_for=_threads.parallel_for(),
            allocator=_devices.allocator(named),
            stream=None if named is None else _devices.of_name(named).stream(),
        )
        raw = _c_api.Costs(struct_size=ctypes.sizeof(_c_api.Costs))
        handle = (_comm.current() if comm is None else comm).handle
        _c_api.check(_c_api.library().gtopk_comm_measure(handle, ctypes.byref(config), ctypes.byref(raw)))
        found = {field.name: getattr(raw, field.name) for field in fields(cls)}
        return cls(**found | {"gathers": bool(raw.gathers)})

    def with_network(self, *, latency: float, bandwidth: float) -> Costs:
        """The same machine on another network, with one rank on each.

        Parameters
        ----------
        latency : float
            Seconds until a short message has arrived.
        bandwidth : float
            Bytes a second, in each direction at once.
        """
        if not (latency >= 0 and bandwidth > 0):
            raise InvalidError(
                f"latency {latency:g} s and bandwidth {bandwidth:g} bytes/s: give seconds, 0 or more, and a rate above 0"
            )
        return replace(
            self,
            message_s=latency,
            byte_s=1 / bandwidth,
            near_message_s=latency,
            near_byte_s=1 / bandwidth,
            sum_message_s=latency,
            sum_byte_s=1 / bandwidth,
            each_node=1,
        )

    def predict(
        self,
        entries: int,
        *,
        ranks: int,
        algorithm: str = "gtopk",
        density: float = 0.001,
        value_type: str = "bf16",
        merge_growth: float = 1.0,
        hierarchy: str = "off",
    ) -> float:
        """Seconds of a step: accumulate, select, exchange and commit.

        Parameters
        ----------
        entries : int
            Of all gradients.
        ranks : int
            How many exchange.
        algorithm, density, value_type, merge_growth, hierarchy
            As of `gtopk.Reducer`, but for "auto".
        """
        config = _c_api.ReducerConfig(
            struct_size=ctypes.sizeof(_c_api.ReducerConfig),
            density=density,
            algorithm=_c_api.code(_c_api.ALGORITHMS, algorithm, "algorithm"),
            value_type=_c_api.code(_c_api.VALUE_TYPES, value_type, "value_type"),
            merge_growth=merge_growth,
            hierarchy=_c_api.code({"off": 0, "node": 1}, hierarchy, "hierarchy"),
        )
        raw = _c_api.Costs(struct_size=ctypes.sizeof(_c_api.Costs))
        for field in fields(self):
            setattr(raw, field.name, getattr(self, field.name))
        seconds = ctypes.c_double()
        whole = _whole(entries, "entries", 2**32 - 1), _whole(ranks, "ranks", 2**31 - 1)
        _c_api.check(
            _c_api.library().gtopk_predict(ctypes.byref(raw), ctypes.byref(config), *whole, ctypes.byref(seconds))
        )
        return seconds.value

    def best(
        self,
        entries: int,
        *,
        ranks: int,
        density: float = 0.001,
        among: Sequence[str] = tuple(_c_api.ALGORITHMS),
        **rest: Any,
    ) -> tuple[str, float]:
        """The algorithm of the least predicted time, and that time. Arguments as of `predict`."""
        times = {name: self.predict(entries, ranks=ranks, algorithm=name, density=density, **rest) for name in among}
        name = min(times, key=lambda one: times[one])
        return name, times[name]


def _whole(value: int, what: str, most: int) -> int:
    if not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidError(f"{what} is {value!r}, but must be a whole number from 1 to {most}")
    return value
