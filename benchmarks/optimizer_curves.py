"""Training curves of AdamW, SGD and Adadelta: dense beside gtopk, with the same batches in the same order. "Local" runs
exchange differences of weights after so many steps.

    OMP_NUM_THREADS=1 mpirun -n 4 python benchmarks/optimizer_curves.py

A character-level transformer of 0.8M parameters learns the sources and docstrings of the installed PyTorch (`TEXT`; the
last tenth of each file is for validation). Runs with the same seed start from the same weights. A run's entry in the
JSON file is written when it has ended, and runs that are there are skipped: start it again to go on. --list names the
runs, --only chooses some, --draw makes the picture of what is there. With fewer cores than ranks give Open MPI's mpirun
--oversubscribe --bind-to none --mca mpi_yield_when_idle 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gtopk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from report import STYLE, machine

RESULTS = Path(__file__).resolve().parent / "results"

STEPS = 1000
WARMUP_STEPS = 100  # of the learning rate; it then follows a cosine to a tenth
DENSITY_WARMUP_STEPS = 200  # in four stages, as in Deep Gradient Compression
BETA1 = 0.9
REFRESH_EVERY = 100  # steps; of the second moments that all ranks have in common
REFRESH_EARLY = (1, 2, 4, 8, 16, 32, 64)
BATCH = 4  # sequences a rank and step
CONTEXT = 64
EVALUATE_EVERY = 100
EVALUATION_WINDOWS = 512  # of CONTEXT characters, the same ones each time, shared between the ranks
TEXT = ("_torch_docs.py", "_tensor_docs.py", "nn/functional.py", "nn/modules/*.py", "optim/*.py")


# ---- the runs -------------------------------------------------------------------------------------------------------


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


def own_moments(name: str, **options: Any) -> Run:
    """Momentum correction for AdamW, see `Trainer.refresh`."""
    return Run(name, prepare="moments", weight_decay=0.0, momentum_correction=True, density_warmup=True, **options)


LOCAL: dict[str, Any] = {"lr": 8e-3, "local_steps": 4, "outer_lr": 1.5, "density": 0.08, "value_type": "int8"}

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
]


# ---- the task -------------------------------------------------------------------------------------------------------


def load_text() -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Characters for training and for validation, as numbers below 97, and what they are."""
    root = Path(torch.__file__).parent
    train, validation = bytearray(), bytearray()
    for pattern in TEXT:
        for file in sorted(root.glob(pattern)):
            characters = file.read_bytes()
            train += characters[: len(characters) * 9 // 10]
            validation += characters[len(characters) * 9 // 10 :]
    about = {
        "files": [f"torch/{pattern}" for pattern in TEXT],
        "torch": torch.__version__,
        "training_characters": len(train),
        "validation_characters": len(validation),
        "sha256": hashlib.sha256(train + validation).hexdigest(),
    }
    return _numbers(train), _numbers(validation), about


def _numbers(characters: bytearray) -> Tensor:
    """0 for a line's end, 1 to 95 for printable ASCII, 96 for the rest."""
    found = torch.frombuffer(characters, dtype=torch.uint8).long()
    return torch.where(found == 10, 0, torch.where((found >= 32) & (found < 127), found - 31, 96))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return x


class Transformer(nn.Module):
    """Pre-norm and causal, with learned positions; the output's weights are the embedding's."""

    def __init__(self, layers: int = 4, width: int = 128, heads: int = 4, characters: int = 97) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_the_stream = name.endswith(("project.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if into_the_stream else 1.0))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, characters: Tensor) -> Tensor:
        x: Tensor = self.embedding(characters) + self.position.weight[: characters.shape[1]]
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(self.norm(x), self.embedding.weight)

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross entropy in nats a character."""
        logits = self.forward(windows[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def cut(text: Tensor, starts: Tensor) -> Tensor:
    """Windows of CONTEXT characters and the one that follows."""
    return text[starts[:, None] + torch.arange(CONTEXT + 1)]


def batches(text: Tensor, seed: int) -> Iterator[Tensor]:
    """This rank's: they depend on the seed and the rank, and on nothing else of a run."""
    generator = torch.Generator().manual_seed(1000 * seed + gtopk.rank())
    while True:
        yield cut(text, torch.randint(len(text) - CONTEXT, (BATCH,), generator=generator))


@torch.no_grad()
def evaluate(model: Transformer, text: Tensor) -> float:
    starts = torch.linspace(0, len(text) - CONTEXT - 1, EVALUATION_WINDOWS).long()[gtopk.rank() :: gtopk.size()]
    losses = torch.stack([model.loss(cut(text, part)) for part in torch.split(starts, 32)])
    return float(gtopk.allreduce(losses.mean()))


# ---- training -------------------------------------------------------------------------------------------------------


def make_optimizer(run: Run, model: Transformer, name: str) -> torch.optim.Optimizer:
    """Weight decay acts on matrices only, as is usual for transformers."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": run.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=run.lr, momentum=run.momentum)
    if name == "adadelta":
        return torch.optim.Adadelta(groups, lr=run.lr)
    return torch.optim.AdamW(groups, lr=run.lr, betas=(run.beta1, run.beta2), eps=run.eps)


def learning_rate(step: int, steps: int = STEPS) -> float:
    """In units of the highest."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class Trainer:
    """A model, its optimizer wrapped by gtopk, and one training step."""

    def __init__(self, run: Run) -> None:
        torch.manual_seed(run.seed)
        self.run, self.lr = run, run.lr
        self.model = Transformer()
        self.parameters = list(self.model.parameters())
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.denominators: list[Tensor] | None = None
        self.more_bytes = 0  # beside those of the optimizer
        if run.prepare == "moments":
            self.lr = run.lr * (1 - run.beta1)
            self.wrap(make_optimizer(run, self.model, "sgd"), run.algorithm, run.stages())
        elif run.prepare == "freeze":
            self.wrap(make_optimizer(run, self.model, "adamw"), "dense", [])
        else:
            self.wrap(make_optimizer(run, self.model, run.optimizer), run.algorithm, run.stages())

    def wrap(self, optimizer: torch.optim.Optimizer, algorithm: str, stages: list[tuple[int, float]]) -> None:
        self.optimizer: Any = gtopk.DistributedOptimizer(
            optimizer,
            named_parameters=self.model.named_parameters(),
            density=self.run.density,
            algorithm=algorithm,
            value_type=self.run.value_type,
            warmup=stages or None,
            momentum_correction=self.run.momentum_correction,
            dense_below=self.run.dense_below,
            local_steps=self.run.local_steps,
            exchange=self.run.exchange,
            outer_lr=self.run.outer_lr,
            outer_momentum=self.run.outer_momentum,
            residual_decay=self.run.residual_decay,
        )

    def step(self, number: int, batch: Tensor) -> float:
        """Step `number`, beginning with 0; returns this rank's loss before it."""
        run = self.run
        if run.prepare == "freeze" and number == run.dense_steps:
            self.freeze()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * learning_rate(number, run.steps)
        self.optimizer.zero_grad()
        loss = self.model.loss(batch)
        torch.autograd.backward(loss)
        if run.clip == "own":
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.prepare(number)
        if run.local:
            self.optimizer.step()
            return loss.item()
        self.optimizer.synchronize()
        if run.clip == "mean":
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
        with self.optimizer.skip_synchronize():
            self.optimizer.step()
        if run.prepare == "moments":
            self.decay(number)
        return loss.item()

    def bytes_sent(self) -> int:
        """Of the latest step."""
        stats = self.optimizer.stats()
        return 0 if stats.get("local_steps") else int(stats["bytes_sent"])

    @torch.no_grad()
    def prepare(self, number: int) -> None:
        """What is done to this rank's gradients before they are exchanged.

        "balance" gives every parameter's gradient the root mean square 1, so that none is sent more often than others
        because of its scale, to which Adam is blind. "adam" exchanges each rank's own update of Adam, for SGD without
        momentum to apply. "freeze" and "moments" divide by denominators, see `freeze` and `refresh`.
        """
        if self.run.prepare == "balance":
            for parameter in self.parameters:
                gradient(parameter).div_(gradient(parameter).square().mean().sqrt() + 1e-12)
        elif self.run.prepare == "adam":
            bias1, bias2 = (1 - beta ** (number + 1) for beta in (BETA1, self.run.beta2))
            for parameter, (first, second) in zip(self.parameters, self.moments, strict=True):
                first.lerp_(gradient(parameter), 1 - BETA1)
                second.lerp_(gradient(parameter).square(), 1 - self.run.beta2)
                gradient(parameter).copy_(first / bias1 / ((second / bias2).sqrt() + self.run.eps))
        if self.run.prepare == "moments":
            self.refresh(number)
        if self.denominators is not None:
            for parameter, denominator in zip(self.parameters, self.denominators, strict=True):
                gradient(parameter).div_(denominator)

    @torch.no_grad()
    def refresh(self, number: int) -> None:
        """Adam with momentum correction: what a rank accumulates and sends is its own first moment, divided.

        The denominators are the same on all ranks: each has second moments of its own gradients, and now and then all take
        the mean of them, by a dense exchange. SGD's momentum adds up what Adam's averages, hence its rate.
        """
        for parameter, (_, second) in zip(self.parameters, self.moments, strict=True):
            second.lerp_(gradient(parameter).square(), 1 - self.run.beta2)
        if number in REFRESH_EARLY or number % REFRESH_EVERY == 0:
            flat = gtopk.allreduce(torch.cat([second.flatten() for _, second in self.moments]))
            self.more_bytes += 2 * 4 * flat.numel() * (gtopk.size() - 1) // gtopk.size()
            bias = 1 - self.run.beta2 ** (number + 1)
            self.denominators = []
            for part, (_, second) in zip(flat.split([p.numel() for p in self.parameters]), self.moments, strict=True):
                second.copy_(part.view_as(second))
                self.denominators.append((second / bias).sqrt().add_(self.run.eps))

    @torch.no_grad()
    def decay(self, number: int) -> None:
        """Decoupled, of matrices, as AdamW's 0.1."""
        for parameter in self.parameters:
            if parameter.ndim == 2:
                parameter.mul_(1 - 0.1 * self.run.lr * learning_rate(number, self.run.steps))

    def freeze(self) -> None:
        """Goes on with Adam's denominators as they are now: the rest of Adam is SGD with momentum.

        The recipe of 1-bit Adam (Tang et al., ICML 2021), with gTop-k where that sends one bit. The denominators are the
        same on all ranks, as they come from dense steps. SGD's momentum adds up what Adam's averages, hence its rate.
        """
        adam, self.denominators = self.optimizer, []
        for parameter in self.parameters:
            state = adam.state[parameter]
            second_moment = state["exp_avg_sq"] / (1 - self.run.beta2 ** float(state["step"]))
            self.denominators.append(second_moment.sqrt().add_(self.run.eps))
        self.lr = self.run.lr * (1 - BETA1)
        self.wrap(make_optimizer(self.run, self.model, "sgd"), self.run.algorithm, [])


def train(run: Run, train_text: Tensor, validation_text: Tensor) -> dict[str, Any]:
    trainer = Trainer(run)
    curve = [{"step": 0, "validation": evaluate(trainer.model, validation_text)}]
    began, bytes_sent, recent = time.perf_counter(), 0, 0.0
    for step, batch in zip(range(run.steps), batches(train_text, run.seed), strict=False):
        recent += trainer.step(step, batch)
        bytes_sent += trainer.bytes_sent()
        if run.local and step + 1 == run.steps and trainer.optimizer.stats()["local_steps"]:
            trainer.optimizer.synchronize()
            bytes_sent += trainer.bytes_sent()
        if (step + 1) % EVALUATE_EVERY == 0:
            mean = float(gtopk.allreduce(torch.tensor(recent / EVALUATE_EVERY)))
            curve.append({"step": step + 1, "train": mean, "validation": evaluate(trainer.model, validation_text)})
            recent = 0.0
            if gtopk.rank() == 0:
                passed = f"{time.perf_counter() - began:.0f} s"
                print(f"{run.name}: step {step + 1}, validation {curve[-1]['validation']:.4f}, {passed}", flush=True)
    return {
        **asdict(run),
        "validation": curve[-1]["validation"],
        "bytes_sent": bytes_sent + trainer.more_bytes,
        "bytes_sent_in_the_last_step": trainer.optimizer.stats()["bytes_sent"],
        "seconds": time.perf_counter() - began,
        "curve": curve,
    }


def train_all(todo: list[Run], results: dict[str, Any], file: Path) -> None:
    """Rank 0 keeps the results; a file that is there is replaced by a whole one, or not at all."""
    train_text, validation_text, about = load_text()
    results |= {
        "machine": {**machine(), "torch": torch.__version__},
        "ranks": gtopk.size(),
        "text": about,
        "steps": STEPS,
    }
    results |= {"batch": BATCH, "context": CONTEXT}
    for run in todo:
        results["runs"][run.name] = train(run, train_text, validation_text)
        if gtopk.rank() == 0:
            unfinished = file.with_suffix(".part")
            unfinished.write_text(json.dumps(results, indent=1) + "\n")
            unfinished.replace(file)


# ---- the picture ----------------------------------------------------------------------------------------------------


def draw(results: dict[str, Any], file: Path) -> None:
    """Curves of the runs in `SHOWN`, and where every run ended."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = results["runs"]
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, max(5.4, 0.2 * len(runs))), layout="constrained")
        for name, (colour, dashes) in SHOWN.items():
            if name in runs:
                curve = runs[name]["curve"][1:]
                steps, losses = [point["step"] for point in curve], [point["validation"] for point in curve]
                left.plot(steps, losses, dashes, color=colour, label=name, linewidth=1.5)
        left.set(xlabel="step", ylabel="nats a character", title="Loss on the validation text")
        left.set_xlim(left=0)
        left.legend()

        ordered = sorted(runs.values(), key=lambda run: run["validation"], reverse=True)
        for place, run in enumerate(ordered):
            colour = SHOWN.get(run["name"], ("#BBBBBB", ""))[0]
            right.plot(run["validation"], place, "o", color=colour)
            sent = f"{run['validation']:.3f}, {run['bytes_sent'] / 1e6:,.0f} MB"
            right.annotate(sent, (run["validation"], place), xytext=(6, 0), textcoords="offset points", va="center")
        right.set_yticks(range(len(ordered)), [run["name"] for run in ordered])
        right.grid(visible=False, axis="y")
        right.margins(x=0.25)
        right.set(
            xlabel="nats a character", title=f"At the end ({results['steps']} steps, or as named), and sent by rank 0"
        )
        figure.suptitle(
            f"Transformer of 0.8M parameters on characters, {results['ranks']} ranks", x=0.01, ha="left", fontsize=12
        )
        figure.savefig(file, dpi=110)
        pyplot.close(figure)


# Okabe and Ito's colours, which colour-blind readers can tell apart.
SHOWN = {
    "AdamW, dense": ("#555555", "-"),
    "AdamW .05": ("#009E73", "--"),
    "AdamW .05, warm-up": ("#009E73", "-"),
    "AdamW .01": ("#0072B2", "--"),
    "AdamW .01, warm-up": ("#0072B2", "-"),
    "Local 4, .08": ("#CC79A7", "--"),
    "Local 4, .08, beta1 .8": ("#CC79A7", "-"),
    "SGD, dense": ("#D55E00", "-"),
    "SGD .01, correction, warm-up": ("#E69F00", "-"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "optimizer_curves.json", help="(%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="RUN", choices=[run.name for run in RUNS], help="names of runs")
    parser.add_argument("--list", action="store_true", help="print the names of the runs, with the losses there are")
    parser.add_argument("--draw", action="store_true", help="only make the picture of the results there are")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {"runs": {}}
    if options.list:
        for run in RUNS:
            print(f"{results['runs'].get(run.name, {}).get('validation', math.nan):.4f}  {run.name}")
        return
    if not options.draw:
        gtopk.init()
        wanted = [run for run in RUNS if options.only is None or run.name in options.only]
        # Rank 0's file counts; to the others it may look different by now.
        todo = gtopk.broadcast_object([run for run in wanted if run.name not in results["runs"]])
        train_all(todo, results, options.json)
    if options.draw or gtopk.rank() == 0:
        draw(results, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
