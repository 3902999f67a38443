"""ResNet-20 and VGG-16 on one GPU, dense beside gtopk. For scripts/gpu_check.py.

Images are drawn around ten fixed patterns, so that no file is needed and there is something to learn. One process; a step is
all of a training step. Dense is PyTorch's SGD alone. Of each: images a second (the median of steps, from CUDA events), the
loss at the end, and whether it fell.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gtopk

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from resnet20 import ResNet20
from vgg16 import VGG16


class Clock:
    """Milliseconds of a step: of GPU time by events, of the host's on a CPU."""

    def __init__(self, device: str) -> None:
        self.marks: list[Any] = []
        self.on_gpu = device != "cpu"

    def mark(self) -> None:
        if self.on_gpu:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def took(self) -> float:
        """Between the last two marks."""
        begin, end = self.marks[-2:]
        if not self.on_gpu:
            return (end - begin) * 1e3
        end.synchronize()
        return float(begin.elapsed_time(end))


def train(make: Any, sparse: bool, until: float, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(1)
    device, batch, steps = options.device, options.batch, options.steps
    model = make().to(device)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    if sparse:
        optimizer = gtopk.DistributedOptimizer(
            optimizer, model.named_parameters(), density=0.01, momentum_correction=True
        )
    patterns = torch.randn(10, 3, 32, 32, device=device)
    clock, untimed = Clock(device), min(10, steps // 2)
    loss_of, losses, times = nn.CrossEntropyLoss(), [], []
    for step in range(steps):
        labels = torch.randint(10, (batch,), device=device)
        images = patterns[labels] + 2.0 * torch.randn(batch, 3, 32, 32, device=device)
        clock.mark()
        optimizer.zero_grad()
        loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        clock.mark()
        losses.append(loss.detach())
        if step >= untimed:
            times.append(clock.took())
        if times and time.monotonic() > until:
            break
    curve = [float(value) for value in losses]
    return {
        "images_per_s": batch * 1e3 / statistics.median(times),
        "step_ms": statistics.median(times),
        "steps": len(curve),
        "first_loss": statistics.fmean(curve[:5]),
        "last_loss": statistics.fmean(curve[-20:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=75.0, help="for all of it")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cuda:0", help="cpu: to see that it runs")
    options = parser.parse_args()
    gtopk.init(transport="self")
    begin, rows = time.monotonic(), []
    jobs = [
        ("ResNet-20", ResNet20, False),
        ("ResNet-20", ResNet20, True),
        ("VGG-16", VGG16, False),
        ("VGG-16", VGG16, True),
    ]
    for number, (name, make, sparse) in enumerate(jobs):
        until = begin + options.seconds * (number + 1) / len(jobs)
        row = {
            "model": name,
            "algorithm": "gtopk" if sparse else "dense",
            **train(make, sparse, until, options),
        }
        rows.append(row)
        print(
            f"{name:10} {row['algorithm']:6} {row['images_per_s']:9.0f} images/s, {row['step_ms']:.2f} ms a step; loss "
            f"{row['first_loss']:.3f} to {row['last_loss']:.3f} in {row['steps']} steps"
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    gtopk.shutdown()
    still = [row for row in rows if not row["last_loss"] < 0.7 * row["first_loss"]]
    if still and options.steps >= 100:
        raise SystemExit(f"error: these did not learn: {still}")


if __name__ == "__main__":
    main()
