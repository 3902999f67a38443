"""What ranks say, and errors that all of them end with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from tqdm import tqdm

import gtopk

__all__ = ["on_every_rank", "say"]

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
