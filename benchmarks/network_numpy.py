"""The exchange of the published gTop-k code, written anew from its description, over mpi4py: what to be faster than.

    mpirun -n 4 python benchmarks/network_numpy.py --entries 25000000 --k 25000 --turns 3 --json FILE

Values and indices travel as pairs of float64. In each of log2 P rounds half of the ranks that are left send their set to a
partner, which finds common indices (``intersect1d``), adds up, sorts all by magnitude (``argsort``) and keeps k; rank 0 then
broadcasts. P must be a power of two. Sets are given, so that selection is not in the time; sets of different ranks have half of
their indices in common. Writes the seconds of each turn on the slowest rank, those from when the last rank came to it until the
last one had the result (all hosts are one machine, with one clock), and the CPU time of a rank (mean).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

Pairs = NDArray[np.float64]  # k values, then k indices


def merge(mine: Pairs, other: Pairs, k: int) -> Pairs:
    values, indices = mine[:k].copy(), mine[k:]
    more, places = other[:k], other[k:]
    _, here, there = np.intersect1d(indices, places, assume_unique=True, return_indices=True)
    values[here] += more[there]
    alone = np.ones(k, dtype=bool)
    alone[there] = False
    values, indices = np.concatenate([values, more[alone]]), np.concatenate([indices, places[alone]])
    order = np.argsort(-np.abs(values))[:k]
    return np.concatenate([values[order], indices[order]])


def exchange(pairs: Pairs, k: int) -> Pairs:
    world = MPI.COMM_WORLD
    distance = 1
    received = np.empty_like(pairs)
    while distance < world.size:
        if world.rank % (2 * distance) == distance:
            world.Send(pairs, world.rank - distance)
            break
        world.Recv(received, world.rank + distance)
        pairs = merge(pairs, received, k)
        distance *= 2
    world.Bcast(pairs, 0)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--interface")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    world, k = MPI.COMM_WORLD, options.k
    common = np.random.default_rng(0).choice(options.entries, 3 * k, replace=False)
    own = np.random.default_rng(1 + world.rank)
    values = own.standard_normal(k)
    pairs = np.concatenate([values, own.choice(common, k, replace=False).astype(np.float64)])
    counter = Path(f"/sys/class/net/{options.interface}/statistics/tx_bytes")
    seconds, exchanges, sent, cpu = [], [], 0, 0.0
    for turn in range(-1, options.turns):
        world.Barrier()
        before = int(counter.read_text()) if options.interface else 0
        used, start = time.process_time(), time.perf_counter()
        result = exchange(pairs, k)
        end, used = time.perf_counter(), time.process_time() - used
        slowest = world.allreduce(end - start, MPI.MAX)
        last = world.allreduce(end, MPI.MAX) - world.allreduce(start, MPI.MAX)
        world.Barrier()
        if turn >= 0:
            seconds.append(slowest)
            exchanges.append(last)
            cpu += used / options.turns
            sent += (int(counter.read_text()) - before if options.interface else 0) // options.turns
    same = world.allreduce(int(result.tobytes() == world.bcast(result.tobytes())), MPI.MIN)
    sent, cpu = world.allreduce(sent, MPI.MAX), world.allreduce(cpu) / world.size
    if world.rank == 0:
        row = {
            "method": "published",
            "seconds": seconds,
            "exchange_s": exchanges,
            "cpu_ms": round(1e3 * cpu, 3),
            "counted_bytes": sent,
            "same_everywhere": bool(same),
        }
        options.json.write_text(json.dumps([row]))


if __name__ == "__main__":
    main()
