"""A rank of a small job, however it is started: job_rank.py SECONDS [MODE].

SECONDS is the deadline; with MEET=FOLDER and PROCESSES it begins when so many have come. "steps" (the default) takes ten
steps and prints a digest of the last update, the same on all ranks of a job and another for each JOB in the environment;
"wait": the last rank sleeps, the others wait for it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time

import numpy as np
import signs

import gtopk

DIM = 20000


def say(text):
    """One line, in one piece: several ranks write to one file, and print() may send the end of a line by itself."""
    os.write(1, f"{text}\n".encode())


def fail(error):
    say(f"failed {type(error).__name__}: {error}")
    os._exit(3)


def take_steps(reducer, seed):
    random = np.random.default_rng([seed, gtopk.rank()])
    for _ in range(10):
        x = random.standard_normal(DIM).astype(np.float32)
        reducer.accumulate(0, x)
        reducer.reduce([x])
    say(f"rank {gtopk.rank()} of {gtopk.size()} digest {hashlib.sha256(x.tobytes()).hexdigest()[:16]}")


def wait_for_the_last(reducer):
    x = np.ones(DIM, np.float32)
    if gtopk.rank() == gtopk.size() - 1:
        time.sleep(600)
    reducer.accumulate(0, x)
    before = reducer.residual(0)
    try:
        say(f"rank {gtopk.rank()} waits")
        reducer.reduce([x])
    except BaseException as error:
        kept = int(np.array_equal(before, reducer.residual(0)))
        say(f"rank {gtopk.rank()} stopped by {type(error).__name__} kept {kept}")
        raise


def main(timeout, mode):
    if "MEET" in os.environ:
        import torch.distributed  # noqa: F401  # which takes different times on ranks that start together

        signs.meet(os.environ["MEET"], int(os.environ["PROCESSES"]))
    try:
        gtopk.init(timeout=timeout)
        reducer = gtopk.Reducer([DIM])
        say(f"rank {gtopk.rank()} pid {os.getpid()}")
        if mode == "wait":
            wait_for_the_last(reducer)
        else:
            take_steps(reducer, int(os.environ.get("JOB", "0")))
    except gtopk.GtopkError as error:
        fail(error)


main(float(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "steps")
