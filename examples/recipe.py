"""The options that all workloads share, and the plan made of them: how long to train, with which learning rate and density.

A workload's `Recipe` gives the defaults. Everything is counted in epochs and in samples a worker, so that a recipe reads
the same whatever the number of ranks. Knows neither gtopk nor PyTorch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Plan", "Recipe", "make_parser", "parse"]

DENSITY_WARMUP = "0.25,0.0725,0.015,0.004"


@dataclass(frozen=True)
class Recipe:
    """How a workload was published. The learning rate rises from `lr / ranks` to `lr` during `warmup_epochs`."""

    epochs: float
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 10.0
    lr_drops: str = ""
    lr_divisor: float = 1.0
    clip: float | None = None


def make_parser(description: str, recipe: Recipe, unit: str) -> argparse.ArgumentParser:
    """`unit` is what a batch consists of: "images"."""
    parser = argparse.ArgumentParser(description=description)
    exchange = parser.add_argument_group("exchange")
    exchange.add_argument(
        "--algorithm", choices=("gtopk", "gtopk-split", "gtopk-tree", "topk", "dense", "auto"), default="gtopk"
    )
    exchange.add_argument(
        "--density",
        type=_density,
        default=0.001,
        help="share of the gradient sent (%(default)s); default: what gtopk does where none is given, without a warm-up",
    )
    exchange.add_argument(
        "--density-warmup",
        type=_numbers,
        help=f"densities to begin with, each for an equal part of --density-warmup-epochs ({DENSITY_WARMUP}); '' for none",
    )
    exchange.add_argument("--density-warmup-epochs", type=float, default=4.0, help="(%(default)s)")
    exchange.add_argument("--value-type", choices=("fp32", "bf16", "fp16", "int8"), default="bf16")
    exchange.add_argument(
        "--momentum-correction",
        action=argparse.BooleanOptionalAction,
        help="momentum before compression (DGC); by itself only with --density default, late",
    )
    exchange.add_argument(
        "--merge-growth", type=float, help="how sets may grow in a merge (1; with --density default 2)"
    )
    exchange.add_argument("--dense-1d", action="store_true", help="send biases and normalisation layers dense")
    exchange.add_argument(
        "--hierarchy",
        choices=("off", "node", "auto"),
        default="off",
        help="with several processes a machine (%(default)s)",
    )
    plan = parser.add_argument_group("recipe")
    plan.add_argument("--epochs", type=float, default=recipe.epochs, help="(%(default)s)")
    plan.add_argument("--steps", type=int, help="train for so many steps instead of --epochs")
    plan.add_argument(
        "--batch-size", type=int, default=recipe.batch_size, help=f"{unit} a worker and step (%(default)s)"
    )
    plan.add_argument("--lr", type=float, default=recipe.lr, help="learning rate (%(default)s)")
    plan.add_argument(
        "--lr-drops", type=_numbers, default=recipe.lr_drops, help="epochs at which it is divided by 10 (%(default)s)"
    )
    plan.add_argument(
        "--lr-divisor", type=float, default=recipe.lr_divisor, help="it is divided by this each epoch (%(default)s)"
    )
    plan.add_argument(
        "--warmup-epochs",
        type=float,
        default=recipe.warmup_epochs,
        help="in which it rises from lr / ranks (%(default)s)",
    )
    plan.add_argument("--momentum", type=float, default=recipe.momentum, help="(%(default)s)")
    plan.add_argument("--weight-decay", type=float, default=recipe.weight_decay, help="(%(default)s)")
    plan.add_argument("--clip", type=float, default=recipe.clip, help="largest norm of a gradient (%(default)s)")
    plan.add_argument(
        "--clip-of",
        choices=("update", "gradient"),
        default="update",
        help="the mean update, as published, or each rank's own gradient (%(default)s)",
    )
    plan.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    device = parser.add_argument_group("input and device")
    device.add_argument("--device", default="auto", help="auto, cpu, cuda (a GPU a process) or cuda:N (%(default)s)")
    device.add_argument("--threads", type=int, help="CPU threads a process (cores / processes on this host)")
    output = parser.add_argument_group("output")
    output.add_argument("--report-every", type=int, help="steps between lines (an epoch, or a tenth of --steps)")
    output.add_argument("--time-limit", type=float, help="stop after so many seconds")
    output.add_argument("--checkpoint", type=Path, help="file that is written after each epoch and at the end")
    output.add_argument("--save-every", type=int, help="steps between checkpoints (an epoch)")
    output.add_argument(
        "--resume", action="store_true", help="go on from --checkpoint, if it is there, on any number of ranks"
    )
    output.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="write curves for TensorBoard")
    output.add_argument("--plot", type=Path, help="write a picture (PNG, PDF or SVG)")
    output.add_argument("--json", type=Path, help="write what was measured")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """Ends with a message where options contradict each other. With the library's default, `density` is None."""
    options = parser.parse_args(arguments)
    for name in ("batch_size", "steps", "report_every", "save_every"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.resume and not options.checkpoint:
        parser.error("--resume needs --checkpoint FILE")
    if options.density_warmup is None:
        options.density_warmup = [] if options.density is None else _numbers(DENSITY_WARMUP)
    elif options.density_warmup and options.density is None:
        parser.error("--density-warmup is for a --density in numbers: the default one has its own first steps")
    return options


def _density(text: str) -> float | None:
    """None is the library's default."""
    if text == "default":
        return None
    try:
        density = float(text)
    except ValueError:
        density = 0.0
    if not 0 < density <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither above 0 and at most 1 nor 'default'")
    return density


def _numbers(text: str) -> list[float]:
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
    save_every: int
    warmup_steps: int
    density_warmup: list[tuple[int, float]] | None
    lr: float
    lr_drops: list[float]
    lr_divisor: float
    ranks: int

    @staticmethod
    def make(options: argparse.Namespace, epoch: int, ranks: int) -> Plan:
        """`epoch` is its number of steps."""
        steps = options.steps or max(1, round(options.epochs * epoch))
        parts = options.density_warmup if options.algorithm != "dense" else []
        warmup = round(options.density_warmup_epochs * epoch)
        ends = [warmup * (i + 1) // len(parts) for i in range(len(parts))]
        stages = [(end - begin, part) for begin, end, part in zip([0, *ends], ends, parts, strict=False)]
        return Plan(
            steps=steps,
            steps_an_epoch=epoch,
            report_every=options.report_every or min(epoch, max(1, steps // 10)),
            save_every=options.save_every or epoch,
            warmup_steps=round(options.warmup_epochs * epoch),
            density_warmup=[stage for stage in stages if stage[0] > 0] or None,
            lr=options.lr,
            lr_drops=options.lr_drops,
            lr_divisor=options.lr_divisor,
            ranks=ranks,
        )

    def learning_rate(self, step: int) -> float:
        """Rises evenly during warm-up, from that for one rank's batch (Goyal et al., 2017, section 2.2); falls to a tenth at
        each drop, and by `lr_divisor` each epoch."""
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        rise = (1.0 + (self.ranks - 1) * warm) / self.ranks
        drops = sum(step >= drop * self.steps_an_epoch for drop in self.lr_drops)
        return float(self.lr * rise * 0.1**drops / self.lr_divisor ** (step // self.steps_an_epoch))
