"""What gtopk costs a training step, beside PyTorch's own DistributedDataParallel over gloo in the same processes.

    mpirun -n 2 python benchmarks/training_bench.py --json benchmarks/results/training.json

Prints and keeps: (1) accumulate + select + commit of 25M entries against a bare ``r.add_(g)``, interleaved, one thread a
rank; (2) what the wrapper adds to the library's own time for a model of 200 parameters; (3) images a second of ResNet-20
and of a fully connected model of 25M parameters with gtopk and with DDP, taking turns; (4) how much of a training step of
ResNet-50, 8 images a rank, is accumulate + select + commit; (5) the time of ``import gtopk``. The figures of rank 0; ratios
are medians of pairs, shares medians of steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import gtopk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from report import machine
from resnet20 import ResNet20
from resnet50 import ResNet50

ENTRIES = 25_000_000


def seconds(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def own_seconds(stats: dict[str, Any]) -> float:
    """What the library computes in a step: all of it but the exchange, most of which is waiting for other ranks."""
    return float(stats["accumulate_s"] + stats["select_s"] + stats["commit_s"])


def accumulate_against_add(repeats: int) -> dict[str, float]:
    """The library's part of a step, without the exchange, in units of one bare addition of the same length."""
    reducer = gtopk.Reducer([ENTRIES], density=0.001)
    residual, gradient = torch.zeros(ENTRIES), torch.empty(ENTRIES)
    fresh = torch.randn(ENTRIES) * torch.rand(ENTRIES)
    adds, parts = [], []
    for step in range(repeats + 3):
        gradient.copy_(fresh)
        gtopk.barrier()
        added = seconds(lambda: residual.add_(fresh))
        gtopk.barrier()
        reducer.accumulate(0, gradient, zero_input=True)
        stats = reducer.reduce([gradient], outputs_are_zero=True)
        if step >= 3:  # the hint has settled
            adds.append(added)
            parts.append(own_seconds(stats))
    reducer.close()
    ratio = statistics.median(part / add for part, add in zip(parts, adds, strict=True))
    return {"add_ms": statistics.median(adds) * 1e3, "gtopk_ms": statistics.median(parts) * 1e3, "ratio": ratio}


def wrapper_overhead(repeats: int) -> dict[str, float]:
    """Time of synchronize() beyond what the library reports, for 200 small parameters."""
    parameters = [nn.Parameter(torch.randn(50)) for _ in range(200)]
    optimizer = gtopk.DistributedOptimizer(torch.optim.SGD(parameters, lr=0.0))
    beyond = []
    for step in range(repeats):
        for parameter in parameters:
            parameter.grad = torch.randn(50)
        gtopk.barrier()
        took = seconds(optimizer.synchronize)
        with optimizer.skip_synchronize():
            optimizer.step()
        stats = optimizer.stats()
        if step >= 3:
            inside = sum(stats[name] for name in ("accumulate_s", "select_s", "exchange_s", "commit_s"))
            beyond.append(took - inside)
    return {"parameters": 200, "beyond_the_library_ms": statistics.median(beyond) * 1e3}


def wide_model() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(3 * 32 * 32, 2500), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(2500, 2500), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Linear(2500, 10))


class Side:
    """One way of training one model."""

    def __init__(self, model: nn.Module, with_gtopk: bool) -> None:
        self.model: nn.Module = model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        if with_gtopk:
            gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
            optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
        else:
            self.model = nn.parallel.DistributedDataParallel(model)
        self.optimizer = optimizer

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()


def throughput(build: Any, batch: int, turns: int, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    sides = {"gtopk": Side(build(), True), "ddp": Side(build(), False)}
    inputs, targets = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            gtopk.barrier()
            took = seconds(lambda side=side: [side.step(inputs, targets) for _ in range(steps)])
            if turn > 0:
                times[name].append(took)
    images = batch * steps * gtopk.size()
    return {
        "gtopk_images_per_s": images / statistics.median(times["gtopk"]),
        "ddp_images_per_s": images / statistics.median(times["ddp"]),
        "ratio": statistics.median(d / g for g, d in zip(times["gtopk"], times["ddp"], strict=True)),
    }


def share_of_a_step(batch: int, steps: int) -> dict[str, float]:
    """Of ResNet-50, 1000 classes, on images of noise. A step is forward, backward and the optimizer's step."""
    torch.manual_seed(0)
    model = ResNet50()
    gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    def forward_backward(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()

    columns: dict[str, list[float]] = {name: [] for name in ("step", "forward_backward", "own", "exchange", "share")}
    for step in range(steps + 3):
        inputs, targets = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
        gtopk.barrier()
        computed = seconds(lambda inputs=inputs, targets=targets: forward_backward(inputs, targets))
        whole = computed + seconds(optimizer.step)
        stats = optimizer.stats()
        own = own_seconds(stats)
        if step >= 3:  # the hint has settled
            row = (whole, computed, own, stats["exchange_s"], own / whole)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    found: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters()), "images_a_rank": batch}
    found |= {f"{name}_ms": statistics.median(columns[name]) * 1e3 for name in columns if name != "share"}
    return found | {"share": statistics.median(columns["share"]), "largest_share": max(columns["share"])}


def import_ms() -> float:
    """Of the package itself, the best of five: python -X importtime."""
    best = float("inf")
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import gtopk"], capture_output=True, text=True
        )
        line = [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() == "gtopk"][-1]
        best = min(best, float(line.split("|")[1]) / 1e3)
    return best


def parts(repeats: int) -> dict[str, Callable[[], dict[str, float]]]:
    """By their names in the file of figures. All ranks take part in each."""
    return {
        "accumulate_select_commit_25m": lambda: accumulate_against_add(repeats),
        "wrapper": lambda: wrapper_overhead(60),
        "resnet20": lambda: throughput(ResNet20, 32, 6, 3),
        "fully_connected_25m": lambda: throughput(wide_model, 32, 6, 2),
        "resnet50": lambda: share_of_a_step(8, 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--part", choices=parts(0), help="this one only; the others' figures in the file stay")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gtopk.init()
    port = gtopk.broadcast_object(29500 + os.getpid() % 1000, root_rank=0)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=gtopk.rank(), world_size=gtopk.size())
    chosen = {name: run for name, run in parts(options.repeats).items() if options.part in (None, name)}
    found: dict[str, Any] = {name: run() for name, run in chosen.items()}
    if gtopk.rank() == 0:
        if options.part is None:
            found["import_gtopk_ms"] = import_ms()
        print(json.dumps(found, indent=1))
        if options.json:
            keep(options.json, found, whole=options.part is None)
    gtopk.barrier()
    dist.destroy_process_group()


def keep(file: Path, found: dict[str, Any], whole: bool) -> None:
    command = f"mpirun -n {gtopk.size()} python benchmarks/training_bench.py"
    before = {} if whole or not file.exists() else json.loads(file.read_text())
    figures = {"machine": {**machine(), "torch": torch.__version__}, "command": command} | before | found
    file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
