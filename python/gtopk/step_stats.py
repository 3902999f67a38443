"""Statistics of steps: their names, those of several reducers as one, and those of the latest step of all."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_double
from typing import Any

from . import _c_api

__all__ = ["stats"]

# Everything else of this package that needs these names takes them from here.
NAMES = tuple(name for name, _ in _c_api.Stats._fields_ if name != "struct_size")
# Of the whole step. The others add up when one step takes several reducers.
_COMMON = ("step", "nonfinite", "all_joined", "slowest_peer")
# Worth a curve over the steps.
CURVES = tuple(
    name
    for name in NAMES
    if name not in ("step", "selected", "bytes_received", "candidates", "rounds", "all_joined", "slowest_peer")
)
# A step in which nothing was exchanged.
NOTHING: Mapping[str, Any] = {
    name: 0.0 if kind is c_double else -1 if name == "slowest_peer" else 0
    for name, kind in _c_api.Stats._fields_
    if name in NAMES
}


class _LatestStep:
    stats: Mapping[str, Any] = {}


def stats() -> dict[str, Any]:
    """Statistics of the latest step on this rank, {} before the first. See `Reducer.stats`.

    Of the step of any reducer or optimizer. Where several reducers took it together (`reduce_together`, or an optimizer
    that sends small parameters dense), what adds up is added up.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.init()
    >>> reducer = gtopk.Reducer([1000], density=0.01)
    >>> reducer.accumulate(0, numpy.ones(1000, dtype=numpy.float32))
    >>> indices, values = reducer.reduce_sparse()
    >>> gtopk.stats()["count"]
    10
    """
    return dict(_LatestStep.stats)


def merged(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Those of one step of several reducers: the last one's, with what adds up added up."""
    if len(results) == 1:
        return dict(results[0])
    summed = (name for name in NAMES if name not in _COMMON)
    return {**results[-1], **{name: sum(result[name] for result in results) for name in summed}}


def remember(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Makes them those of the latest step, and returns them."""
    _LatestStep.stats = merged(results)
    return results
