"""Statistics of steps: of several reducers as one, and of the latest step of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["stats"]

# What adds up when one step takes several reducers.
_SUMMED = (
    "k",
    "selected",
    "count",
    "bytes_sent",
    "bytes_received",
    "candidates",
    "hint_misses",
    "rounds",
    "accumulate_s",
    "select_s",
    "exchange_s",
    "commit_s",
    "wait_s",
)


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
    return {**results[-1], **{name: sum(result[name] for result in results) for name in _SUMMED}}


def remember(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Makes them those of the latest step, and returns them."""
    _LatestStep.stats = merged(results)
    return results
