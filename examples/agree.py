"""What ranks say, errors that all of them end with, and when time is up for all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from tqdm import tqdm

import gtopk

__all__ = ["TimeLimit", "on_every_rank", "say"]

T = TypeVar("T")


def say(text: str) -> None:
    """Prints on rank 0, above the progress bar if there is one."""
    if gtopk.rank() == 0:
        tqdm.write(text)
        sys.stdout.flush()


def on_every_rank(part: Callable[[], T]) -> T:
    """Runs `part` on this rank. Where it fails on one, all end with the error of the first such rank. Collective."""
    error = ""
    try:
        result = part()
    except (gtopk.GtopkError, RuntimeError, ValueError, LookupError, OSError) as failure:
        error = f"{failure or type(failure).__name__}"
    failed = gtopk.allgather(np.array([bool(error)], np.int64)).nonzero()[0].tolist()
    if not failed:
        return result
    error = gtopk.broadcast_object(error, root_rank=failed[0])
    if gtopk.rank() == 0:
        print(f"rank {failed[0]}: {error}", file=sys.stderr, flush=True)
    gtopk.barrier()  # a launcher ends all ranks when the first one fails: the error is printed by then
    raise SystemExit(1)


class TimeLimit:
    """Training for so many seconds by rank 0's clock, which starts here: all ranks stop after the same step.

    Looking at that clock takes a broadcast. So rank 0 says after how many steps all look again: at most 16, and as take a
    second, or half of what is left, at the pace so far. At a steady pace the first step after the limit is the last one.

    Parameters
    ----------
    seconds : float, optional
        Default: no limit, and no broadcast.
    clock : callable
        What gives seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._began = self._looked = clock()
        self._steps, self._next = 0, 1  # since the last look; at the next one

    def passed(self) -> bool:
        """Whether this step is the last one: to be asked after each. Collective."""
        if self._seconds is None:
            return False
        self._steps += 1
        if self._steps < self._next:
            return False
        self._next = gtopk.broadcast_object(self._steps_to_the_next_look(), root_rank=0)
        self._steps = 0
        return self._next == 0

    def _steps_to_the_next_look(self) -> int:
        """None are left once the time has passed."""
        assert self._seconds is not None
        now = self._clock()
        left, pace = self._seconds - (now - self._began), (now - self._looked) / self._steps
        self._looked = now
        if left < 0:
            return 0
        return max(1, min(16, int(min(1.0, left / 2) / max(pace, 1e-6))))
