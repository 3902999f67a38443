"""One rank of a communicator over NCCL, by gtopk.init: says so on rank 0. For the stand-ins for driver and NCCL.

A reducer on the CPU exchanges over the control transport of the same communicator. Exchanges between GPUs, with tensors
there, are nccl_on_one_gpu.py's.
"""

from __future__ import annotations

import sys

import numpy as np

import gtopk

ENTRIES, STEPS = 400, 2


def steps(reducer, integers):
    """The updates of some steps, as dense arrays, and the residual after them."""
    random = np.random.default_rng(7 + gtopk.rank())
    found = []
    for _ in range(STEPS):
        gradient = random.integers(-500, 500, ENTRIES).astype(np.float32)
        residual = np.asarray(reducer.residual(0)) + (gradient if integers else gradient * np.float32(0.37))
        reducer.set_residual(0, residual)
        indices, values = reducer.reduce_sparse()
        after = np.asarray(reducer.residual(0))  # waits for what is queued, too
        update = np.zeros(ENTRIES, np.float32)
        update[np.asarray(indices)] = np.asarray(values)
        found += [update, after]
    return found


def main() -> None:
    gtopk.init(transport=sys.argv[1], timeout=60)
    gtopk.init(transport=sys.argv[1])  # changes nothing
    text = gtopk.comm.current().description
    assert text.startswith("nccl (NCCL "), text
    for algorithm in ("gtopk", "gtopk-tree", "topk", "dense"):
        with gtopk.Reducer([ENTRIES], algorithm=algorithm, density=0.05, device="cpu") as reducer:
            updates = np.stack(steps(reducer, algorithm == "dense")[::2])
        everywhere = gtopk.allgather(updates[None])
        assert all(other.tobytes() == updates.tobytes() for other in np.asarray(everywhere)), algorithm
    gtopk.barrier()
    if gtopk.rank() == 0:
        print(f"the same bits on {gtopk.size()} ranks: {text}")
    gtopk.shutdown()


main()
