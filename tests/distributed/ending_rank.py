"""Ranks of which the last one ends before the others: ending_rank.py HOW. The others print the error that they get.

HOW: "returns" (after exceptions in a thread and in an exit handler, neither of which gives it another status than 0),
"argparse", "text" (SystemExit), "shutdown" and goes on without gtopk, "caught" (a rank gives up, all catch it and end in
order), "together" (all end alike), "join" (it calls optimizer.join(), and the others something else than step()).
"""

import argparse
import atexit
import os
import sys
import threading
import time

import numpy as np

import gtopk

HOW = sys.argv[1]
gtopk.init(timeout=600)  # far longer than the test waits
reducer = gtopk.Reducer([100], density=0.1)
grad = np.ones(100, np.float32)


def step():
    reducer.accumulate(0, grad)
    reducer.reduce([grad])


def raise_only_here():
    raise ValueError("only here")


def end_early():
    if HOW == "argparse":
        argparse.ArgumentParser().parse_args(["--unknown"])
    if HOW == "text":
        raise SystemExit("a text")
    if HOW == "shutdown":
        reducer.close()
        gtopk.shutdown()
        time.sleep(600)
    worker = threading.Thread(target=raise_only_here)
    worker.start()
    worker.join()
    atexit.register(raise_only_here)
    sys.exit(0)


def have_a_child_that_fails():
    """It has all that this process has, but no part in the job."""
    child = os.fork()
    if child == 0:
        sys.exit(1)
    os.waitpid(child, 0)


step()
if HOW == "together":
    have_a_child_that_fails()
    for _ in range(3):
        other = gtopk.Comm(transport=gtopk.comm.current().transport)
        other.barrier()
        other.close()
elif HOW == "caught":
    if gtopk.rank() == 0:
        gtopk.barrier()  # when rank 1 has given up
    try:
        gtopk.Comm(transport="mpi", timeout=1).barrier()
    except gtopk.GtopkError as error:
        print(f"rank {gtopk.rank()}: {type(error).__name__}", flush=True)
    if gtopk.rank() == 1:
        gtopk.barrier()
    gtopk.barrier()  # they end together
elif HOW == "join":
    import torch

    optimizer = gtopk.DistributedOptimizer(torch.optim.SGD([torch.ones(9, requires_grad=True)], lr=1.0))
    try:
        optimizer.step()
        if gtopk.rank() == gtopk.size() - 1:
            optimizer.join()
        gtopk.allreduce(torch.ones(1))
    except gtopk.GtopkError as error:
        os.write(1, f"rank {gtopk.rank()}: {type(error).__name__}: {error}\n".encode())
elif gtopk.rank() == gtopk.size() - 1:
    end_early()
else:
    try:
        while True:
            step()
    except gtopk.GtopkError as error:
        os.write(1, f"rank {gtopk.rank()}: {type(error).__name__}: {error}\n".encode())
        raise
