"""The options of cifar_resnet20.py, and the plan made of them: how long to train, with which learning rate and density.

The defaults are the recipe of Shi et al., "A distributed synchronous SGD algorithm with global top-k sparsification for
low bandwidth networks", ICDCS 2019. Knows neither gtopk nor PyTorch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

__all__ = ["Plan", "parse_arguments"]


def parse_arguments(description: str, arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    numbers = partial(_numbers, parser)
    exchange = parser.add_argument_group("exchange")
    exchange.add_argument(
        "--algorithm", choices=("gtopk", "gtopk-split", "gtopk-tree", "topk", "dense"), default="gtopk"
    )
    exchange.add_argument("--density", type=float, default=0.001, help="share of the gradient sent (%(default)s)")
    exchange.add_argument(
        "--density-warmup",
        type=numbers,
        default="0.25,0.0725,0.015,0.004",
        help="densities during warm-up, each for an equal part of it (%(default)s); '' for none",
    )
    exchange.add_argument("--value-type", choices=("fp32", "bf16", "fp16", "int8"), default="bf16")
    exchange.add_argument("--momentum-correction", action="store_true", help="momentum before compression (DGC)")
    exchange.add_argument(
        "--hierarchy",
        choices=("off", "node", "auto"),
        default="off",
        help="with several processes a machine (%(default)s)",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=float, default=160.0, help="(%(default)s)")
    recipe.add_argument("--steps", type=int, help="train for so many steps instead of --epochs")
    recipe.add_argument("--batch-size", type=int, default=32, help="images a worker and step (%(default)s)")
    recipe.add_argument("--lr", type=float, default=0.1, help="learning rate (%(default)s)")
    recipe.add_argument(
        "--lr-drops", type=numbers, default="81,122,155", help="epochs at which it is divided by 10 (%(default)s)"
    )
    recipe.add_argument("--warmup-epochs", type=float, default=4.0, help="(%(default)s)")
    recipe.add_argument("--momentum", type=float, default=0.9, help="(%(default)s)")
    recipe.add_argument("--weight-decay", type=float, default=1e-4, help="(%(default)s)")
    recipe.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    inputs = parser.add_argument_group("input and device")
    inputs.add_argument("--data", help="a folder with CIFAR-10 or Fashion-MNIST; or cifar10; or fashion-mnist")
    inputs.add_argument("--subset", type=int, help="train on so many images only, the same in every run")
    inputs.add_argument("--test-images", type=int, help="test on so many images only, the same in every run")
    inputs.add_argument("--device", default="auto", help="auto, cpu, cuda (a GPU a process) or cuda:N (%(default)s)")
    inputs.add_argument("--threads", type=int, help="CPU threads a process (cores / processes on this host)")
    output = parser.add_argument_group("output")
    output.add_argument("--report-every", type=int, help="steps between lines (an epoch, or a tenth of --steps)")
    output.add_argument("--time-limit", type=float, help="stop at the first line after so many seconds")
    output.add_argument("--plot", type=Path, help="write a picture (PNG, PDF or SVG)")
    output.add_argument("--json", type=Path, help="write what was measured")
    options = parser.parse_args(arguments)
    if options.batch_size < 1 or (options.steps is not None and options.steps < 1):
        parser.error("--batch-size and --steps must be at least 1")
    return options


def _numbers(parser: argparse.ArgumentParser, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers with commas between") from None


@dataclass(frozen=True)
class Plan:
    """How long to train, and what the learning rate and the density are on the way."""

    steps: int
    steps_an_epoch: int
    report_every: int
    warmup_steps: int
    density_warmup: list[tuple[int, float]] | None
    lr: float
    lr_drops: list[float]

    @staticmethod
    def make(options: argparse.Namespace, images: int, ranks: int) -> Plan:
        images = min(images, options.subset or images)
        epoch = images // (options.batch_size * ranks)
        if epoch == 0:
            raise SystemExit(f"{images} images are too few for {ranks} ranks with batches of {options.batch_size}")
        steps = options.steps or max(1, round(options.epochs * epoch))
        warmup = round(options.warmup_epochs * epoch)
        parts = options.density_warmup if options.algorithm != "dense" else []
        ends = [warmup * (i + 1) // len(parts) for i in range(len(parts))]
        stages = [(end - begin, part) for begin, end, part in zip([0, *ends], ends, parts, strict=False)]
        return Plan(
            steps=steps,
            steps_an_epoch=epoch,
            report_every=options.report_every or min(epoch, max(1, steps // 10)),
            warmup_steps=warmup,
            density_warmup=[stage for stage in stages if stage[0] > 0] or None,
            lr=options.lr,
            lr_drops=options.lr_drops,
        )

    def learning_rate(self, step: int) -> float:
        """Rises evenly to `lr` during warm-up, then falls to a tenth at each drop."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        drops = sum(step >= drop * self.steps_an_epoch for drop in self.lr_drops)
        return float(self.lr * rise * 0.1**drops)
