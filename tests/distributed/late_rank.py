"""Rank 0 comes to the exchange after the deadline of rank 1. Both print the first error that they meet."""

import time

import numpy as np

import gtopk

gtopk.init(timeout=1.5)
reducer = gtopk.Reducer([100], density=0.1)
grad = np.arange(100, dtype=np.float32)
reducer.accumulate(0, grad)
before = reducer.residual(0)
if gtopk.rank() == 0:
    time.sleep(4)
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
        assert str(first) in str(error), "later calls fail with the first error"
assert first is not None
assert gtopk.rank() == 0 or (reducer.residual(0) == before).all()
time.sleep(0.5 if gtopk.rank() == 0 else 4)  # mpirun ends the others when the first one leaves
