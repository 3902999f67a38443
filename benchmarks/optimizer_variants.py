"""AdamW in ways that the library does not have, or as options, to say what its choices cost: the runs of `VARIANTS`.

    OMP_NUM_THREADS=1 mpirun -n 4 python benchmarks/optimizer_variants.py --json build/optimizer_variants.json

Task, settings and the way to start it are those of `optimizer_curves.py`; runs that are in the file are skipped.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gtopk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from characters import batches, evaluate, load_text
from optimizer_curves import Trainer, learning_rate
from optimizer_runs import Run, local

BEST = local("Local 4, .08, beta1 .8", beta1=0.8)
RESUMED_AT = BEST.steps // 2
EVALUATED = (10, 20, 50, 100, 500)  # steps after that


def exchanged(trainer: Trainer) -> bool:
    return trainer.optimizer.stats()["local_steps"] == 0


class DecayOutside(Trainer):
    """Weight decay of the weights that all ranks have, after each exchange, as much as the local steps would have had."""

    def __init__(self, run: Run) -> None:
        super().__init__(replace(run, weight_decay=0.0))
        self.factor = 1.0

    def step(self, number: int, batch: Tensor) -> float:
        loss = super().step(number, batch)
        self.factor *= 1 - BEST.weight_decay * self.lr * learning_rate(number, self.run.steps)
        if exchanged(self):
            with torch.no_grad():
                for parameter in self.parameters:
                    if parameter.ndim == 2:
                        parameter.mul_(self.factor)
            self.factor = 1.0
        return loss


class RoundedStart(Trainer):
    """theta0 rounded to the nearest bf16 after each exchange, and what that takes away is lost."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.copy_(parameter.bfloat16())

    def step(self, number: int, batch: Tensor) -> float:
        loss = super().step(number, batch)
        if exchanged(self):
            with torch.no_grad():
                for parameter in self.parameters:
                    parameter.copy_(parameter.bfloat16())
        return loss


class FrozenThenWarmUp(Trainer):
    """The density falls after the dense steps whose denominators are kept."""

    def wrap(self, optimizer: torch.optim.Optimizer, algorithm: str, stages: list[tuple[int, float]]) -> None:
        super().wrap(optimizer, algorithm, stages or self.run.stages()[1:])


def train(kind: type[Trainer], run: Run, train_text: Tensor, validation_text: Tensor) -> dict[str, Any]:
    trainer, sent = kind(run), 0
    for number, batch in enumerate(islice(batches(train_text, run.seed), run.steps)):
        trainer.step(number, batch)
        sent += trainer.bytes_sent()
    return {"validation": evaluate(trainer.model, validation_text), "bytes_sent": sent}


# ---- the optimizer's state in a consolidated checkpoint ----


def own(moment: Tensor) -> Tensor:
    """Each rank goes on with its own, as from a state of every rank."""
    return moment


def one_ranks(moment: Tensor) -> Tensor:
    """What `consolidate_state_dict` keeps."""
    return gtopk.broadcast(moment, root_rank=0)


def mean(moment: Tensor) -> Tensor:
    return gtopk.allreduce(moment)


def none(moment: Tensor) -> Tensor:
    """As if optimizer states were not saved."""
    return torch.zeros_like(moment)


@torch.no_grad()
def resume(trainer: Trainer, saved: tuple[Any, Any], moments: Callable[[Tensor], Tensor]) -> None:
    """After an exchange; residuals become their mean, but where each rank goes on with its own."""
    weights, state = copy.deepcopy(saved)
    trainer.model.load_state_dict(weights)
    trainer.optimizer.load_state_dict(state)
    if moments is own:
        return
    waiting = trainer.optimizer._gtopk.session.exchange.waiting
    for name in sorted(waiting):
        waiting[name].residual.copy_(gtopk.allreduce(waiting[name].residual))
    for parameter in trainer.parameters:
        entries = trainer.optimizer.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            entries[name].copy_(moments(entries[name]))
        if moments is none:
            entries["step"].zero_()


def train_resumed(train_text: Tensor, validation_text: Tensor) -> dict[str, Any]:
    """One training to half, and from there one for each way to go on."""
    trainer = Trainer(BEST)
    every = list(islice(batches(train_text, BEST.seed), BEST.steps))
    for number in range(RESUMED_AT):
        trainer.step(number, every[number])
    assert exchanged(trainer)
    saved = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict()))
    found: dict[str, Any] = {"at": RESUMED_AT, "validation": evaluate(trainer.model, validation_text)}
    for moments in (own, one_ranks, mean, none):
        resume(trainer, saved, moments)
        curve = found[moments.__name__] = {}
        for number in range(RESUMED_AT, BEST.steps):
            trainer.step(number, every[number])
            after = number + 1 - RESUMED_AT
            if after in EVALUATED:
                curve[str(after)] = evaluate(trainer.model, validation_text)
        if gtopk.rank() == 0:
            print(moments.__name__, curve, flush=True)
    return found


# Recipes for gradients, with what AdamW on the mean update trains best with at this density.
WARM: dict[str, Any] = {"density_warmup": True, "lr": 4e-3}
BALANCED = Run("balanced", prepare="balance", clip="none", **WARM)
BEFORE = Run("Adam before the exchange", optimizer="sgd", momentum=0.0, prepare="adam", **WARM)
FROZEN = Run("frozen Adam", prepare="freeze", dense_steps=200, **WARM)

VARIANTS: dict[str, Callable[[Tensor, Tensor], dict[str, Any]]] = {
    "resumed": train_resumed,
    "start_dtype bf16": lambda *texts: train(Trainer, replace(BEST, start_dtype="bf16"), *texts),
    "theta0 in bf16": lambda *texts: train(RoundedStart, BEST, *texts),
    "weight decay outside": lambda *texts: train(DecayOutside, BEST, *texts),
    BALANCED.name: lambda *texts: train(Trainer, BALANCED, *texts),
    BEFORE.name: lambda *texts: train(Trainer, BEFORE, *texts),
    FROZEN.name: lambda *texts: train(FrozenThenWarmUp, FROZEN, *texts),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="VARIANT", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    gtopk.init()
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    train_text, validation_text, _ = load_text()
    for name in gtopk.broadcast_object([name for name in options.only if name not in results]):
        results[name] = VARIANTS[name](train_text, validation_text)
        if gtopk.rank() == 0:
            print(name, results[name], flush=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
