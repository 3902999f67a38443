"""A rank over gloo, started by hand with RANK and WORLD_SIZE, that takes steps until one fails: the torch counterpart of
step_until_error.c, with the same output."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

import gtopk

DIM = 20000


def say(text):
    """One line, in one piece: several ranks write to one file, and print() may send the end of a line by itself."""
    os.write(1, f"{text}\n".encode())


def main(timeout):
    gtopk.init(transport="torch", timeout=timeout, setup_timeout=120.0)
    rank = gtopk.rank()
    reducer = gtopk.Reducer([DIM])
    say(f"rank {rank} pid {os.getpid()}")
    random = np.random.default_rng(rank)
    for step in range(10**9):
        x = random.standard_normal(DIM).astype(np.float32)
        reducer.accumulate(0, x)
        before = reducer.residual(0)
        try:
            reducer.reduce([x])
        except gtopk.GtopkError as error:
            first, when = error, time.time()
            break
        if step % 50 == 0:
            say(f"rank {rank} step {step}")
    say(f"rank {rank}: {first}")
    kept = int(np.array_equal(before, reducer.residual(0)))
    later = 0
    try:
        gtopk.barrier()
    except gtopk.GtopkError as error:
        later = int(type(error) is type(first) and str(first) in str(error))  # so that it has waited for nobody
    say(f"rank {rank} failed {type(first).__name__} at {when:.6f} kept {kept} later {later}")
    os._exit(3)


main(float(sys.argv[1]))
