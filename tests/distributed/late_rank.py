"""Rank 0 comes to the exchange when rank 1 has waited until its deadline: late_rank.py FOLDER, for signs. Both print the first
error that they meet."""

import sys

import numpy as np
import signs

import gtopk

FOLDER = sys.argv[1]
gtopk.init(timeout=3.0, setup_timeout=120.0)
reducer = gtopk.Reducer([100], density=0.1)
grad = np.arange(100, dtype=np.float32)
reducer.accumulate(0, grad)
before = reducer.residual(0)
if gtopk.rank() == 0:
    signs.wait_for(FOLDER, "rank 1 has given up")
first = None
# Rank 0 may find the message of rank 1 and end its first step: it learns of the error in its second.
for call in (lambda: reducer.reduce([grad]), gtopk.barrier, gtopk.barrier):
    try:
        call()
        assert gtopk.rank() == 0, "a call of rank 1 went through"
        assert first is None, "a call went through after an error"
    except gtopk.GtopkError as error:
        if first is None:
            print(f"rank {gtopk.rank()}: {type(error).__name__}: {error}", flush=True)
            first = error
            signs.leave(FOLDER, f"rank {gtopk.rank()} has given up")
        assert str(first) in str(error), "later calls fail with the first error"
assert first is not None
assert gtopk.rank() == 0 or (reducer.residual(0) == before).all()
signs.leave(FOLDER, f"rank {gtopk.rank()} is done")
signs.wait_for(FOLDER, "rank 0 is done", "rank 1 is done")  # mpirun ends the others when the first one leaves
