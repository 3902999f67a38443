"""DDP, which exchanges buckets while backward goes on, against our hook, which exchanges after it: where is the break-even?

    make bench-overlap ARGS="--case 2:1gbit:25000000 --json FILE"      over an emulated network; needs root
    torchrun ... benchmarks/network_overlap.py --worker --entries 25000000 --json FILE     within it

The model is that of network_gloo.py, whose backward takes a given time: it sleeps before each of its gradients, as a
processor waits for a GPU. A row for each of these times: milliseconds of a step, of the slowest rank, with no exchange
("alone"), with DDP's exchange in fp32 and fp16, and with our hook. Medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from network_bench import Case
from network_gloo import COLUMNS, Matrices, highest, register
from torch import nn

import gtopk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

CASES = ("2:1gbit:25000000", "4:100mbit:14700000")
METHODS = ("ddp", "ddp fp16", "ddp gtopk")
BACKWARD_MS = "0,50,100,200,500,1000,2000,5000"


class Wait(torch.autograd.Function):
    """Nothing forward; backward waits."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, seconds: list[float]) -> torch.Tensor:
        ctx.seconds = seconds
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        time.sleep(ctx.seconds[0])
        return gradients[0], None


class Waiting(Matrices):
    """Its gradients come one after the other, each after `seconds[0]`."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.seconds = [0.0]

    def weight(self, part: nn.Parameter) -> torch.Tensor:
        waited: torch.Tensor = Wait.apply(part.flatten(), self.seconds)  # type: ignore[no-untyped-call]
        return waited


def work(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    gtopk.init()
    n = options.entries // COLUMNS * COLUMNS
    gradient = torch.randn(n, generator=torch.Generator().manual_seed(dist.get_rank())) ** 5
    models = {}
    for method in METHODS:
        models[method] = nn.parallel.DistributedDataParallel(Waiting(n), gradient_as_bucket_view=True)
        register(models[method], method, options.density)
    rows = []
    for backward in [-1.0, *map(float, options.backward_ms.split(","))]:
        seconds: dict[str, list[float]] = {"alone": [], **{method: [] for method in METHODS}}
        for _ in range(options.turns):
            for method in seconds:
                ddp = models[METHODS[0] if method == "alone" else method]
                ddp.module.seconds[0] = 1e-3 * max(0.0, backward) / len(ddp.module.parts)
                dist.barrier()
                start = time.perf_counter()
                ddp.zero_grad()
                with ddp.no_sync() if method == "alone" else contextlib.nullcontext():
                    ddp(gradient).backward()
                seconds[method].append(time.perf_counter() - start)
        slowest = {method: highest(values) for method, values in seconds.items()}
        if backward >= 0:  # DDP builds its buckets anew after its first steps
            median = {method: round(1e3 * statistics.median(values), 3) for method, values in slowest.items()}
            rows.append(
                {"backward_ms": backward, "ms": median, "ddp / hook": round(median["ddp"] / median["ddp gtopk"], 4)}
            )
    if dist.get_rank() == 0:
        options.json.write_text(json.dumps(rows))
    dist.barrier()
    gtopk.shutdown()
    dist.destroy_process_group()


def measure(text: str, options: argparse.Namespace) -> dict[str, Any]:
    case = Case(text, options)
    ranks = str(case.ranks)
    try:
        links = json.loads(case.call("up", ranks, case.rate).splitlines()[0])
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            given = ["--worker", "--entries", str(case.entries), "--density", str(options.density)]
            given += ["--turns", str(options.turns), "--backward-ms", options.backward_ms, "--json", file.name]
            case.call("torchrun", ranks, str(Path(__file__).resolve()), *given, limit=options.limit)
            rows = json.loads(Path(file.name).read_text())
    finally:
        case.call("down")
    return {"ranks": case.ranks, "rate": case.rate, "entries": case.entries, "links": links, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="RANKS:RATE:ENTRIES, several times")
    parser.add_argument("--entries", type=int)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--backward-ms", default=BACKWARD_MS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900, help="seconds that a case may take")
    parser.add_argument("--cluster", default="bench", help="name of the emulated cluster")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    if options.worker:
        work(options)
        return

    from report import machine

    cases = []
    for text in options.case or CASES:
        cases.append(measure(text, options))
        for row in cases[-1]["rows"]:
            print(text, row)
        command = f"python benchmarks/network_overlap.py {' '.join(sys.argv[1:])}"
        result = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "command": command, "cases": cases}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
