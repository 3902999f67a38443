"""One rank over NCCL, by gtopk.init: exchanges of a reducer on the GPU and of one on the CPU give the same bits.

Says so on rank 0. For the stand-ins for driver and NCCL, whose GPUs reach the host's memory: what the reducer on the GPU adds
up is put into its residual, and comes back as a set, so that no tensor on a GPU is needed.
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
        results = []
        for device in ("cuda", "cpu"):
            with gtopk.Reducer([ENTRIES], algorithm=algorithm, density=0.05, device=device) as reducer:
                results.append(steps(reducer, algorithm == "dense"))
        for there, here in zip(*results, strict=True):
            assert there.tobytes() == here.tobytes(), algorithm
    gtopk.barrier()
    if gtopk.rank() == 0:
        print(f"the same bits on {gtopk.size()} ranks: {text}")
    gtopk.shutdown()


main()
