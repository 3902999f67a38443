"""The trainings that `optimizer_curves.py` compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STEPS = 1000
DENSITY_WARMUP_STEPS = 200  # in four stages, as in Deep Gradient Compression
BETA1 = 0.9


@dataclass(frozen=True)
class Run:
    """One training.

    `clip` says of which gradient the norm is kept below 1: "own" is each rank's before the exchange, "mean" the mean
    update after it. `prepare` is what a rank does to its gradient before the exchange, see `Trainer.prepare`.
    """

    name: str
    optimizer: str = "adamw"  # or "sgd" or "adadelta"
    lr: float = 2e-3
    weight_decay: float = 0.1
    beta1: float = BETA1
    beta2: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.9  # of SGD
    algorithm: str = "gtopk"
    density: float | None = 0.01  # None: the default
    dense_steps: int = 0  # to begin with, at density 1
    density_warmup: bool = False
    density_stages: tuple[tuple[int, float], ...] = ()  # (exchanges, density), before the run's own
    value_type: str = "bf16"
    dense_below: int = 0
    momentum_correction: bool = False
    clip: str = "own"  # or "mean" or "none"
    prepare: str = "nothing"  # or "balance", "adam", "freeze" or "moments"
    local_steps: int = 1  # more: differences of weights are exchanged
    exchange: str | None = None
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    residual_decay: float = 1.0
    start_dtype: str = "fp32"
    layers: int = 4
    width: int = 128
    steps: int = STEPS
    seed: int = 1

    @property
    def local(self) -> bool:
        """Whether weights are exchanged in place of gradients."""
        return self.local_steps > 1 or self.exchange == "weights"

    def stages(self) -> list[tuple[int, float]]:
        """What comes before the run's own density."""
        stages = [(self.dense_steps, 1.0)] if self.dense_steps else []
        stages += self.density_stages
        if self.density_warmup and self.density is not None:
            ratio = (self.density / 0.25) ** (1 / 4)
            stages += [(DENSITY_WARMUP_STEPS // 4, 0.25 * ratio**i) for i in range(4)]
        return stages


def local(name: str, **options: Any) -> Run:
    """AdamW with local steps; by default the best found at 1000 steps and 60 MB."""
    return Run(name, **{**LOCAL, **options})


def falling(share: float, highest: float, steps: int) -> tuple[tuple[int, float], ...]:
    """Stages of 50 steps: 50 of them dense, then at most `highest`, later `share` / step."""
    return ((50, 1.0), *((50, min(highest, share / step)) for step in range(75, steps, 50)))


def own_moments(name: str, **options: Any) -> Run:
    """Momentum correction for AdamW, see `Trainer.refresh`."""
    return Run(name, prepare="moments", weight_decay=0.0, momentum_correction=True, density_warmup=True, **options)


TEN_MILLION: dict[str, Any] = {"layers": 6, "width": 384, "beta1": 0.8}  # 10.7M parameters

LOCAL: dict[str, Any] = {"lr": 8e-3, "local_steps": 4, "outer_lr": 1.5, "density": 0.08, "value_type": "int8"}
# Of those that send three times as much, the best found.
EVERY_SECOND: dict[str, Any] = {**LOCAL, "local_steps": 2, "outer_lr": 1.0, "density": 0.12}

RUNS = [
    Run("AdamW, dense", algorithm="dense", clip="mean"),
    Run("AdamW, dense, seed 2", algorithm="dense", clip="mean", seed=2),
    Run("AdamW .1", density=0.1),
    Run("AdamW .05", density=0.05),
    Run("AdamW .01"),
    Run("AdamW .05, warm-up", density=0.05, density_warmup=True),
    Run("AdamW .01, warm-up", density_warmup=True),
    Run("AdamW .001, warm-up", density=0.001, density_warmup=True),
    Run("AdamW .05, 200 dense steps", density=0.05, dense_steps=200),
    Run("AdamW .01, 200 dense steps", dense_steps=200),
    Run("AdamW .01, warm-up, beta2 .999", density_warmup=True, beta2=0.999),
    Run("AdamW, dense, lr x 2", algorithm="dense", clip="mean", lr=4e-3),
    Run("AdamW .01, warm-up, seed 2", density_warmup=True, seed=2),
    Run("AdamW, dense, lr x 4", algorithm="dense", clip="mean", lr=8e-3),
    Run("AdamW .05, warm-up, lr x 2", density=0.05, density_warmup=True, lr=4e-3),
    Run("AdamW .01, warm-up, lr x 4", density_warmup=True, lr=8e-3),
    Run("AdamW .01, warm-up, lr x 2", density_warmup=True, lr=4e-3),
    Run("AdamW .01, warm-up, lr x 1/2", density_warmup=True, lr=1e-3),
    Run("AdamW .01, warm-up, mean clipped", density_warmup=True, clip="mean"),
    Run("AdamW .01, warm-up, dense_below 1024", density_warmup=True, dense_below=1024),
    Run("AdamW .01, lr x 3", lr=6e-3),
    Run("AdamW .01, balanced", prepare="balance", clip="none"),
    Run("Adam before the exchange .01", optimizer="sgd", momentum=0.0, prepare="adam"),
    Run("Frozen Adam .01, 200 dense steps", dense_steps=200, prepare="freeze"),
    Run("SGD, dense", optimizer="sgd", lr=0.3, weight_decay=1e-4, algorithm="dense", clip="mean"),
    Run(
        "SGD .01, correction, warm-up",
        optimizer="sgd",
        lr=0.3,
        weight_decay=1e-4,
        momentum_correction=True,
        density_warmup=True,
    ),
    local("Local 4, .08"),
    local("Local 4, .16 then .045", density=0.045, density_stages=((75, 0.16),)),
    local("Local 4, .08, decay .9", residual_decay=0.9),
    local("Local 4, .08, lr .010", lr=1e-2),
    local("Local 3, .062", local_steps=3, density=0.062),
    local("Local 4, .05 bf16", density=0.05, value_type="bf16"),
    local("Local 4, dense, outer lr 1", lr=4e-3, algorithm="dense", outer_lr=1.0),
    local("Local 4, .08, outer lr 1.25", outer_lr=1.25),
    local("Local 4, .08, seed 2", seed=2),
    local("Local 4, .08, dense_below 1024", dense_below=1024),
    local("Local 2, .04", local_steps=2, density=0.04),
    local("Local 6, .12", local_steps=6, density=0.12),
    local("Local 8, .16", local_steps=8, density=0.16),
    local("Local 4, .107, split", density=0.107, algorithm="gtopk-split"),
    local("Local 4, .08, beta1 .6", beta1=0.6),
    local("Local 4, .08, beta1 .8", beta1=0.8),
    local("Local 4, .08, beta1 .8, seed 2", beta1=0.8, seed=2),
    local("Local 4, .08, beta1 .8, seed 3", beta1=0.8, seed=3),
    local("Local 4, .08, beta1 .8, outer lr 1.25", beta1=0.8, outer_lr=1.25),
    local("Local 4, .08, beta1 .95", beta1=0.95),
    local("Local 4, .08, beta2 .95", beta2=0.95),
    local("Local 4, .08, beta2 .999", beta2=0.999),
    local("Local 4, .08, outer lr 2", outer_lr=2.0),
    local("Local 4, .08, weight decay .01", weight_decay=0.01),
    local("Local 4, .08, weight decay .3", weight_decay=0.3),
    local("Local 4, .08, not clipped", clip="none"),
    Run("AdamW, dense, lr x 2, beta1 .8", algorithm="dense", clip="mean", lr=4e-3, beta1=0.8),
    own_moments("AdamW .01, own moments, lr x 2", lr=4e-3),
    own_moments("AdamW .01, own moments, lr x 4", lr=8e-3),
    local("Local 4, .08, seed 3", seed=3),
    local("Local 4, dense, Nesterov .9, outer lr .7", lr=4e-3, algorithm="dense", outer_lr=0.7, outer_momentum=0.9),
    Run("AdamW, dense, lr x 2, 4000 steps", algorithm="dense", clip="mean", lr=4e-3, steps=4000),
    local("Local 4, .08, beta1 .8, 4000 steps", beta1=0.8, steps=4000),
    Run("AdamW, dense, lr x 2, beta1 .8, 4000 steps", algorithm="dense", clip="mean", lr=4e-3, beta1=0.8, steps=4000),
    local("Local 4, .36, beta1 .8, 4000 steps", density=0.36, beta1=0.8, steps=4000),
    local("Local 4, .16, beta1 .8, outer lr 1.25, 4000 steps", density=0.16, beta1=0.8, outer_lr=1.25, steps=4000),
    Run("AdamW, default density, lr x 2", density=None, lr=4e-3),
    Run("AdamW, default density, lr x 2, 4000 steps", density=None, lr=4e-3, steps=4000),
    local("Local 16, .32, beta1 .8", local_steps=16, density=0.32, beta1=0.8),
    local("Local 32, .64, beta1 .8", local_steps=32, density=0.64, beta1=0.8),
    Run("AdamW .07, int8, lr x 2, 4000 steps", density=0.07, value_type="int8", lr=4e-3, steps=4000),
    local(
        "Local 2, .12, beta1 .8, outer lr 1, 4000 steps",
        **EVERY_SECOND,
        beta1=0.8,
        steps=4000,
    ),
    Run(
        "AdamW, 80 / step, int8, lr x 2, beta1 .8, 4000 steps",
        density=0.02,
        density_stages=falling(80, 0.16, 4000),
        value_type="int8",
        lr=4e-3,
        beta1=0.8,
        steps=4000,
    ),
    local(
        "Local 2, .18, beta1 .8, outer lr 1, 4000 steps",
        **{**EVERY_SECOND, "density": 0.18, "beta1": 0.8},
        steps=4000,
    ),
    local("Local 4, .36, beta1 .8, outer lr 1, 4000 steps", density=0.36, beta1=0.8, outer_lr=1.0, steps=4000),
    local(
        "Local 2, .12, beta1 .8, outer lr 1, lr .006, 4000 steps",
        **{**EVERY_SECOND, "lr": 6e-3, "beta1": 0.8},
        steps=4000,
    ),
    local("Local 2, .12, beta1 .8, outer lr 1", **EVERY_SECOND, beta1=0.8),
    local("Local 2, .12, beta1 .8, outer lr 1, lr .006", **{**EVERY_SECOND, "lr": 6e-3, "beta1": 0.8}),
    local("Local 4, .08, beta1 .8, outer lr 1", beta1=0.8, outer_lr=1.0),
    local("Local 4, .08, beta1 .8, topk", beta1=0.8, algorithm="topk"),
    Run("10M: AdamW, dense", algorithm="dense", clip="mean", lr=1.5e-3, **TEN_MILLION),
    Run("10M: AdamW, dense, lr x 1.5", algorithm="dense", clip="mean", lr=2.25e-3, **TEN_MILLION),
    Run("10M: AdamW, dense, lr x .67", algorithm="dense", clip="mean", lr=1e-3, **TEN_MILLION),
    local("10M: Local 4, .08", **{**LOCAL, "lr": 3e-3, **TEN_MILLION}),
    local("10M: Local 4, .08, lr .0022", **{**LOCAL, "lr": 2.25e-3, **TEN_MILLION}),
    local("10M: Local 2, .12, outer lr 1", **{**EVERY_SECOND, "lr": 2.25e-3, **TEN_MILLION}),
    local(
        "Local 2, .18, beta1 .8, outer lr 1, lr .006, 4000 steps",
        **{**EVERY_SECOND, "lr": 6e-3, "density": 0.18, "beta1": 0.8},
        steps=4000,
    ),
    local(
        "Local 2, .12, beta1 .8, outer lr 1, lr .006, 4000 steps, seed 2",
        **{**EVERY_SECOND, "lr": 6e-3, "beta1": 0.8},
        steps=4000,
        seed=2,
    ),
    local(
        "Local 2, .12, beta1 .8, outer lr 1, lr .006, 4000 steps, seed 3",
        **{**EVERY_SECOND, "lr": 6e-3, "beta1": 0.8},
        steps=4000,
        seed=3,
    ),
    Run(
        "AdamW, dense, lr x 2, beta1 .8, 4000 steps, seed 2",
        algorithm="dense",
        clip="mean",
        lr=4e-3,
        beta1=0.8,
        steps=4000,
        seed=2,
    ),
    Run(
        "AdamW, dense, lr x 2, beta1 .8, 4000 steps, seed 3",
        algorithm="dense",
        clip="mean",
        lr=4e-3,
        beta1=0.8,
        steps=4000,
        seed=3,
    ),
    local("Local 4, .08, beta1 .8, 4000 steps, seed 2", beta1=0.8, steps=4000, seed=2),
    local("Local 4, .08, beta1 .8, 4000 steps, seed 3", beta1=0.8, steps=4000, seed=3),
    Run("AdamW, dense, lr x 2, 4000 steps, seed 2", algorithm="dense", clip="mean", lr=4e-3, steps=4000, seed=2),
    Run("AdamW, dense, lr x 2, 4000 steps, seed 3", algorithm="dense", clip="mean", lr=4e-3, steps=4000, seed=3),
]
