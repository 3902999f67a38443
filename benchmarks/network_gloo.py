"""One size over gloo, under torchrun: all-reduce, our algorithms, and DistributedDataParallel with its hooks, in turns.

    torchrun --nproc-per-node 4 benchmarks/network_gloo.py --entries 25000000 --turns 3 --json FILE

A row a method: seconds of each turn on the slowest rank; those of the exchange alone, from when the last rank came to it until
the last one had the result (all hosts are one machine, with one clock); the CPU time of a rank (mean), and the bytes
that the interface counted (--interface), as ``allreduce_bench`` does. A turn of an algorithm is accumulate and reduce; one of
DDP is forward and backward of a model of n parameters in matrices of 1000 columns that computes next to nothing.
"ddp power R" is PowerSGD of rank R.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

import gtopk
from gtopk.torch.ddp_hook import GTopKState, gtopk_hook

Stats = dict[str, Any]
Turn = Callable[[], tuple[float, float, Stats]]  # when the exchange began and ended; of a reducer what the library says

COLUMNS = 1000
ALGORITHMS = ("dense", "topk", "gtopk", "gtopk-tree", "gtopk-split")
METHODS = ("gloo", *ALGORITHMS, "ddp", "ddp fp16", "ddp power 1", "ddp power 2", "ddp gtopk")


class Matrices(nn.Module):
    """n parameters and the least possible to compute: the gradient of each is a constant."""

    def __init__(self, n: int) -> None:
        super().__init__()
        rows = max(1, n // COLUMNS // 25)
        sizes = [min(rows, n // COLUMNS - at) for at in range(0, n // COLUMNS, rows)]
        self.parts = nn.ParameterList(nn.Parameter(torch.zeros(size, COLUMNS)) for size in sizes)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        at = 0
        for part in self.parts:
            total = total + torch.dot(self.weight(part), given[at : at + part.numel()])
            at += part.numel()
        return total

    def weight(self, part: nn.Parameter) -> torch.Tensor:
        return part.flatten()


def register(ddp: nn.parallel.DistributedDataParallel, method: str, density: float) -> None:
    """The hook that `method` names."""
    if method == "ddp fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif method == "ddp gtopk":
        ddp.register_comm_hook(GTopKState(named_parameters=ddp.module.named_parameters(), density=density), gtopk_hook)
    elif method.startswith("ddp power"):
        rank = int(method.split()[-1])
        state = power.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
        ddp.register_comm_hook(state, power.powerSGD_hook)


def of_ddp(method: str, n: int, density: float, gradient: torch.Tensor) -> Turn:
    # PowerSGD waits for a second all-reduce in the callback of its first one, which runs on one of gloo's two threads: with
    # two buckets under way nobody is left to do it. So it gets all parameters in one.
    megabytes = 4 * n / 2**20 + 1 if method.startswith("ddp power") else None
    ddp = nn.parallel.DistributedDataParallel(Matrices(n), bucket_cap_mb=megabytes, gradient_as_bucket_view=True)
    register(ddp, method, density)

    def turn() -> tuple[float, float, Stats]:
        begin = time.perf_counter()
        ddp.zero_grad()
        ddp(gradient).backward()
        return begin, time.perf_counter(), {}

    return turn


def of_reducer(method: str, n: int, density: float, gradient: torch.Tensor) -> Turn:
    reducer = gtopk.Reducer([n], density=density, algorithm=method)
    work = torch.empty(n)

    def turn() -> tuple[float, float, Stats]:
        work.copy_(gradient)
        reducer.accumulate(0, work, zero_input=True)
        accumulated = time.perf_counter()
        stats = reducer.reduce([work], outputs_are_zero=True)
        begin = accumulated + stats["select_s"]
        return begin, begin + stats["exchange_s"], stats

    return turn


def of_gloo(n: int, gradient: torch.Tensor) -> Turn:
    work = torch.empty(n)

    def turn() -> tuple[float, float, Stats]:
        work.copy_(gradient)
        begin = time.perf_counter()
        dist.all_reduce(work)
        return begin, time.perf_counter(), {}

    return turn


def counted(interface: str | None) -> int:
    dist.barrier()
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text()) if interface else 0


def highest(seconds: list[float]) -> list[float]:
    """Each value on the rank where it is highest."""
    values = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [round(value, 6) for value in values.tolist()]


def mean(value: float) -> float:
    values = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(values)
    return float(values) / dist.get_world_size()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, required=True)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--interface")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    n = options.entries // COLUMNS * COLUMNS

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    gtopk.init()
    generator = torch.Generator().manual_seed(dist.get_rank())
    gradient = torch.randn(n, generator=generator) ** 5
    turns: dict[str, Turn] = {}
    for method in options.methods.split(","):
        if method == "gloo":
            turns[method] = of_gloo(n, gradient)
        elif method.startswith("ddp"):
            turns[method] = of_ddp(method, n, options.density, gradient)
        else:
            turns[method] = of_reducer(method, n, options.density, gradient)
    seconds: dict[str, list[float]] = {method: [] for method in turns}
    cpu: dict[str, float] = dict.fromkeys(turns, 0.0)
    sent: dict[str, int] = dict.fromkeys(turns, 0)
    begins: dict[str, list[float]] = {method: [] for method in turns}
    ends: dict[str, list[float]] = {method: [] for method in turns}
    bytes_sent: dict[str, int] = {}
    # DDP builds its buckets anew after its first step, and PowerSGD starts after its second.
    warm_up = 3 if any(method.startswith("ddp power") for method in turns) else 2
    for index in range(-warm_up, options.turns):
        for method, turn in turns.items():
            before = counted(options.interface)
            used, start = time.process_time(), time.perf_counter()
            begin, end, stats = turn()
            took, used = time.perf_counter() - start, time.process_time() - used
            after = counted(options.interface)
            if index >= 0:
                seconds[method].append(took)
                cpu[method] += used / options.turns
                sent[method] += round((after - before) / options.turns)
                begins[method].append(begin)
                ends[method].append(end)
                bytes_sent[method] = stats.get("bytes_sent", 0)
    rows = []
    for method in turns:
        row = {
            "method": method,
            "seconds": highest(seconds[method]),
            "cpu_ms": round(1e3 * mean(cpu[method]), 3),
            "counted_bytes": sent[method],
        }
        if bytes_sent[method]:
            row["bytes"] = bytes_sent[method]
        if not method.startswith("ddp"):
            pairs = zip(highest(ends[method]), highest(begins[method]), strict=True)
            row["exchange_s"] = [round(end - begin, 6) for end, begin in pairs]
        rows.append(row)
    if dist.get_rank() == 0:
        options.json.write_text(json.dumps(rows))
    dist.barrier()
    gtopk.shutdown()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
