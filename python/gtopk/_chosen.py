"""What "auto" has chosen for a reducer, and why: its algorithm, and its hierarchy."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence

from . import _c_api
from ._communicator import Comm

_log = logging.getLogger("gtopk")

_NAMES = {code: name for name, code in _c_api.ALGORITHMS.items()}


class Choice:
    """The algorithm of the next step, and what is known of all of them."""

    algorithm: str
    predicted: dict[str, float]  # seconds of a step, by algorithm
    measured: dict[str, float]

    def __init__(self, handle: int, comm: Comm, dim: int) -> None:
        self._handle, self._comm, self._dim = handle, comm, dim
        self._info = _c_api.ChoiceInfo(struct_size=ctypes.sizeof(_c_api.ChoiceInfo))
        self.algorithm = ""
        self.look()

    def look(self) -> None:
        """Asks the library."""
        info = self._info
        _c_api.check(_c_api.library().gtopk_reducer_choice(self._handle, ctypes.byref(info)))
        self.predicted, self.measured = _seconds(info.predicted_s), _seconds(info.measured_s)
        before, self.algorithm = self.algorithm, _NAMES[info.algorithm]
        if self.algorithm != before and info.is_auto and self._comm.size > 1:
            known = self.predicted | self.measured
            _log.info(
                "rank %d: algorithm auto: a step of %d entries takes, in ms, %s: %s is taken",
                self._comm.rank,
                self._dim,
                ", ".join(f"{name} {1e3 * seconds:.3f}" for name, seconds in known.items()),
                self.algorithm,
            )


def find_hierarchy(handle: int, rank: int, dim: int) -> tuple[str, int, dict[str, float]]:
    """Which one is in use, between how many nodes, and the seconds of a step with each where "auto" has tried both."""
    info = _c_api.HierarchyInfo(struct_size=ctypes.sizeof(_c_api.HierarchyInfo))
    _c_api.check(_c_api.library().gtopk_reducer_hierarchy(handle, ctypes.byref(info)))
    hierarchy = "node" if info.hierarchy else "off"
    seconds: dict[str, float] = {}
    if info.off_s > 0 and info.node_s > 0:
        seconds = {"off": info.off_s, "node": info.node_s}
        _log.info(
            "rank %d: hierarchy auto: a step of %d entries takes %.3f ms with off, %.3f ms with node: %s is kept",
            rank,
            dim,
            1e3 * info.off_s,
            1e3 * info.node_s,
            hierarchy,
        )
    return hierarchy, info.nodes, seconds


def _seconds(by_algorithm: Sequence[float]) -> dict[str, float]:
    return {name: by_algorithm[code] for name, code in _c_api.ALGORITHMS.items() if by_algorithm[code] > 0}
