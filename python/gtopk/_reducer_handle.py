"""A reducer between two steps: made, set to something else, read, saved, given to other ranks, closed.

What a step is, and what users call, is in `reducer`.
"""

from __future__ import annotations

import ctypes
import operator
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _c_api, _devices, _reducer_state, _tensors
from . import comm as _comm
from ._chosen import Choice, find_hierarchy
from ._tensors import TensorLike
from .errors import InvalidError, StateError, UnsupportedError

if TYPE_CHECKING:
    from typing_extensions import Self


class ReducerHandle:
    """The library's reducer, and what it is between two steps. Making one is collective."""

    def __init__(
        self, segment_lengths: list[int], algorithm: str, config: _c_api.ReducerConfig, comm: _comm.Comm
    ) -> None:
        self._handle: int | None = None
        self._pid = os.getpid()
        self.segment_lengths, self.algorithm, self.density = segment_lengths, algorithm, config.density
        self._config, self._library = config, _c_api.library()
        self._done = 0  # steps, with other ranks before `attach`, too
        self._before = config.steps_before
        self._momentum = (0.0, 0)
        self._open(comm)
        self._device = _devices.of_name(self._library.gtopk_reducer_device(self.handle).decode())
        self._kind: _tensors.Kind = _tensors.default_kind()
        self._segments = array("I", bytes(4 * max(1, len(segment_lengths))))
        _comm.register_dependent(self)

    def _open(self, comm: _comm.Comm) -> None:
        """Makes the library's reducer, for the ranks of `comm`. What there was stays where that fails."""
        lengths = array("Q", self.segment_lengths)
        handle = ctypes.c_void_p()
        _c_api.check(
            self._library.gtopk_reducer_create(
                ctypes.byref(handle),
                comm.handle,
                ctypes.byref(self._config),
                lengths.buffer_info()[0],
                len(self.segment_lengths),
            )
        )
        self._handle, self.comm = handle.value, comm
        self.dim: int = self._library.gtopk_reducer_dim(handle)
        found = find_hierarchy(self.handle, comm.rank, self.dim)
        self.hierarchy, self.nodes, self.hierarchy_seconds = found
        self._choice = Choice(self.handle, comm, self.dim)

    # ---- settings ----

    @property
    def device(self) -> str:
        """Where the gradients must be: "cpu", "cuda:0"."""
        return self._device.name

    @property
    def next_algorithm(self) -> str:
        """The one of the next step, or of one that failed: with "auto", what was chosen."""
        return self._choice.algorithm

    def wait(self) -> None:
        """Waits until everything that was queued for this reducer on its GPU has been done. On the CPU nothing is queued."""
        _c_api.check(self._library.gtopk_reducer_wait(self.handle, None))

    def set_density(self, density: float) -> None:
        """Another density from the next step on. Collective, between steps, the same on all ranks."""
        value = number(density, "density")
        _c_api.check(self._library.gtopk_reducer_set_density(self._talking(), value))
        self.density = value
        self._choice.look()

    def set_algorithm(self, algorithm: str) -> None:
        """Another algorithm from the next step on, not "auto", which ends. Collective, between steps, the same on all ranks.

        The residual stays as it is: what one algorithm has left is for the next one to send.
        """
        code = _c_api.code(_c_api.ALGORITHMS, algorithm, "algorithm")
        _c_api.check(self._library.gtopk_reducer_set_algorithm(self._talking(), code))
        self.algorithm = algorithm
        self._choice.look()

    def set_momentum(self, momentum: float, nesterov: bool = False) -> None:
        """The momentum of a reducer made with ``momentum_correction=True``. Between steps, the same on all ranks."""
        value = number(momentum, "momentum")
        _c_api.check(self._library.gtopk_reducer_set_momentum(self.handle, value, int(bool(nesterov))))
        self._momentum = (value, int(bool(nesterov)))

    # ---- residual ----

    def residual(self, segment: int) -> TensorLike:
        """A float32 copy of one segment's residual: what this rank has not sent yet."""
        return self._read(self._library.gtopk_reducer_residual, segment)

    def set_residual(self, segment: int, values: TensorLike) -> None:
        """Overwrites one segment's residual with finite float32 values. Between steps."""
        self._write(self._library.gtopk_reducer_set_residual, segment, values, "residual")

    def velocity(self, segment: int) -> TensorLike:
        """A float32 copy of one segment's velocity, of a reducer made with ``momentum_correction=True``."""
        return self._read(self._library.gtopk_reducer_velocity, segment)

    def set_velocity(self, segment: int, values: TensorLike) -> None:
        """Overwrites one segment's velocity with finite float32 values. Between steps."""
        self._write(self._library.gtopk_reducer_set_velocity, segment, values, "velocity")

    def residual_norm(self) -> float:
        """Euclidean norm of this rank's whole residual: one pass over it."""
        norm = ctypes.c_double()
        _c_api.check(self._library.gtopk_reducer_residual_norm(self.handle, ctypes.byref(norm)))
        return norm.value

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """This rank's residual (and velocity), to go on from bit for bit. Between steps.

        Returns
        -------
        dict
            Integers that say what it is (format, rank, size, step, run, dim) and ``state``, a uint8 array of the kind
            (numpy or torch) of the gradients. With torch it can be loaded with ``weights_only=True``.
        """
        return _reducer_state.save(self.handle, self._kind)

    def consolidate(self, root: int = 0) -> dict[str, Any] | None:
        """The sum of all ranks' states on rank `root`, None elsewhere. Collective, between steps.

        It can be loaded into any number of ranks: each takes the mean over those that there were, so that the update that
        waits stays as it is.
        """
        return _reducer_state.consolidate(self._talking(), self._kind, self.comm.rank, root)

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = False) -> None:
        """Takes over a state of `state_dict` or `consolidate`. To be done on every rank before the next step.

        Parameters
        ----------
        state : mapping
            This rank's own state, or a consolidated one.
        strict : bool
            A state of another rank or number of ranks is an error. Otherwise its step is taken, the residual is set to
            zero, and a warning says so.

        Raises
        ------
        CorruptError
            It is no state, or damaged.
        MismatchError
            It belongs to other segments; the text names the first that differs.
        """
        _reducer_state.load(self.handle, state, self.comm, strict)

    # ---- life ----

    def cancel(self) -> None:
        """Ends the step that `accumulate` opened, without an exchange: after an interruption, on this rank alone.

        What was accumulated stays in the residual, and segments may be accumulated anew.
        """
        _c_api.check(self._library.gtopk_reducer_cancel(self.handle))

    def attach(self, comm: _comm.Comm | None = None) -> int:
        """Goes on after ranks were lost, with those that are left. Collective among these.

        Residual and velocity stay, and so do density, algorithm and momentum. The library's own count of steps begins anew.

        Parameters
        ----------
        comm : Comm, optional
            The ranks that are left. Default: those of ``gtopk.init()``, which was called again.

        Returns
        -------
        int
            A rank for which the latest step happened, if there is one. What the updates are applied to the others, which
            are a step behind, take from it. In their residuals what they had sent in that step stays.
        """
        comm = _comm.current() if comm is None else comm

        def prepare() -> tuple[list[list[TensorLike]], Any]:
            check_survives(self.comm, comm)
            if self._config.hierarchy != _c_api.HIERARCHIES["off"]:
                raise UnsupportedError(
                    "attach() of a reducer with a hierarchy: other ranks have other shares of the residual. Make a new one, "
                    'with hierarchy="off", and give its set_residual() what residual() of this one says'
                )
            self.cancel()
            return [self._values(segment) for segment in range(len(self.segment_lengths))], self.segment_lengths

        kept = comm.together("attach()", prepare)
        done = comm.allgather_json(self._done)
        old = self._handle
        self._config.density = self.density
        self._config.steps_before = self._before + max(done)
        self._config.algorithm = _c_api.code(_c_api.ALGORITHMS | _c_api.AUTO, self.algorithm, "algorithm")
        self._config.stream = self._device.stream()
        self._open(comm)
        self._library.gtopk_reducer_destroy(old)
        for segment, values in enumerate(kept):
            self.set_residual(segment, values[0])
            if len(values) > 1:
                self.set_velocity(segment, values[1])
        if self._momentum != (0.0, 0):
            self.set_momentum(self._momentum[0], bool(self._momentum[1]))
        self._done = max(done)
        return done.index(self._done)

    def _values(self, segment: int) -> list[TensorLike]:
        found = [self.residual(segment)]
        return [*found, self.velocity(segment)] if self._config.momentum_correction else found

    @property
    def handle(self) -> int:
        """The C handle; `StateError` after `close`."""
        if self._handle is None:
            raise StateError("this reducer was closed: make a new one")
        return self._handle

    def _talking(self) -> int:
        """The C handle, for calls of a step: the library would go on exchanging after `gtopk.shutdown`."""
        self.comm.handle  # noqa: B018 - `StateError` after its close
        return self.handle

    def close(self) -> None:
        """Frees the residual. Not collective; may be called twice."""
        handle, self._handle = self._handle, None
        if handle is not None and os.getpid() == self._pid:
            self._library.gtopk_reducer_destroy(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def __repr__(self) -> str:
        state = f"{self.algorithm}, density {self.density:g}" if self._handle is not None else "closed"
        return f"<gtopk.Reducer of {len(self.segment_lengths)} segments, {state}>"

    def _choose(self, segments: Sequence[int]) -> list[int]:
        """Checks the numbers, writes them to the reusable array, and gives the lengths."""
        lengths, count = self.segment_lengths, len(self.segment_lengths)
        if len(segments) > count:
            raise InvalidError(f"{len(segments)} segments were named, but the reducer has {count}")
        try:
            chosen = array("I", segments)
        except (TypeError, OverflowError):
            raise InvalidError(f"segments must be integers from 0 to {count - 1}, not {list(segments)!r}") from None
        if chosen and max(chosen) >= count:
            raise InvalidError(f"segment {max(chosen)} does not exist: the reducer has {count}, numbered from 0")
        self._segments[: len(chosen)] = chosen
        return [lengths[i] for i in chosen]

    def _read(self, function: Callable[..., int], segment: int) -> TensorLike:
        length = self._choose((segment,))[0]
        out = _tensors.empty(self._kind, length, "float32")
        _c_api.check(function(self.handle, segment, _tensors.pointer(out), length))
        return out

    def _write(self, function: Callable[..., int], segment: int, values: TensorLike, what: str) -> None:
        length = self._choose((segment,))[0]
        if _tensors.is_torch(values):
            values = values.detach().to("cpu")
        described = _tensors.describe(values, f"{what} of segment {segment}", length=length)
        if described.dtype != _c_api.F32:
            raise InvalidError(f"{what} of segment {segment} is {_tensors.dtype_name(values)}, but must be float32")
        _c_api.check(function(self.handle, segment, described.address, length))


def check_survives(before: _comm.Comm, after: _comm.Comm) -> None:
    """`UnsupportedError` where what was exchanged over one communicator cannot go on over the other."""
    if before.over_nccl or after.over_nccl:
        raise UnsupportedError(
            "attach() over NCCL: when a rank is lost NCCL is of no more use in the other processes: go on from a "
            "checkpoint in new ones"
        )


def number(value: float, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidError(f"{what} is {value!r}, but must be a number") from None


def lengths_of(segment_lengths: Sequence[int]) -> list[int]:
    try:
        lengths = [operator.index(length) for length in segment_lengths]
    except TypeError:
        raise InvalidError("segment_lengths must be a sequence of integers: the entries of each segment") from None
    for segment, length in enumerate(lengths):
        if not 0 <= length < 1 << 32:
            raise InvalidError(
                f"segment {segment} has length {length}, but must have 0 to 2**32 - 1 entries: use more reducers"
            )
    return lengths
