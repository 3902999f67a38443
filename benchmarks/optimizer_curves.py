"""Training curves of AdamW, SGD and Adadelta: dense beside gtopk, with the same batches in the same order. "Local" runs
exchange differences of weights after so many steps.

    OMP_NUM_THREADS=1 mpirun -n 4 python benchmarks/optimizer_curves.py

A character-level transformer of 0.8M parameters learns the sources and docstrings of the installed PyTorch (`characters.py`;
the last tenth of each file is for validation). Runs with the same seed start from the same weights. A run's entry in the
JSON file is written when it has ended, and runs that are there are skipped: start it again to go on. --list names the
runs, --only chooses some, --draw makes the picture of what is there. With fewer cores than ranks give Open MPI's mpirun
--oversubscribe --bind-to none --mca mpi_yield_when_idle 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gtopk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from characters import BATCH, CONTEXT, Transformer, batches, evaluate, load_text
from optimizer_runs import BETA1, RUNS, STEPS, Run
from report import STYLE, machine

RESULTS = Path(__file__).resolve().parent / "results"

WARMUP_STEPS = 100  # of the learning rate; it then follows a cosine to a tenth
REFRESH_EVERY = 100  # steps; of the second moments that all ranks have in common
REFRESH_EARLY = (1, 2, 4, 8, 16, 32, 64)
EVALUATE_EVERY = 100


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
        self.model = Transformer(run.layers, run.width, heads=run.width // 32)
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
            start_dtype=self.run.start_dtype,
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
    """Curves of the runs in `SHOWN`, or of all if none of those is there, and where every run ended."""
    from pictures import pyplot

    runs = results["runs"]
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, max(5.4, 0.2 * len(runs))), layout="constrained")
        shown = {name: style for name, style in SHOWN.items() if name in runs}
        for name, (colour, dashes) in (shown or dict.fromkeys(runs, (None, "-"))).items():
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
        figure.suptitle(title(results), x=0.01, ha="left", fontsize=12)
        figure.savefig(file, dpi=110)
        pyplot.close(figure)


def whole(run: dict[str, Any]) -> dict[str, Any]:
    """With the settings that there were not yet when it ran."""
    return {**asdict(Run(run["name"])), **run}


def title(results: dict[str, Any]) -> str:
    run = whole(next(iter(results["runs"].values())))
    parameters = sum(p.numel() for p in Transformer(run["layers"], run["width"]).parameters())
    return f"Transformer of {parameters / 1e6:.1f}M parameters on characters, {results['ranks']} ranks"


def draw_bytes(results: dict[str, Any], file: Path) -> None:
    """Where every training with AdamW ended, over what it sent, with a line along those that none beats in both."""
    from pictures import pyplot

    runs = [whole(run) for run in results["runs"].values()]
    adamw = [run for run in runs if run["optimizer"] == "adamw" and run["prepare"] == "nothing"]
    lengths = sorted({run["steps"] for run in adamw})
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            1, len(lengths), figsize=(6.5 * len(lengths), 5.5), layout="constrained", squeeze=False
        )
        for steps, axes in zip(lengths, panels[0], strict=True):
            ended = [(sent_in_a_step(run), run["validation"], run) for run in adamw if run["steps"] == steps]
            ended.sort(key=lambda end: end[:2])
            best = min(loss for _, loss, _ in ended)
            shown = [end for end in ended if end[1] < best + LOSS_RANGE]
            for kind, colour in KINDS.items():
                points = [(sent, loss) for sent, loss, run in shown if kind_of(run) == kind]
                if points:
                    axes.plot(*zip(*points, strict=True), "o", color=colour, label=kind, alpha=0.8)
            front = [end for i, end in enumerate(shown) if end[1] < min((e[1] for e in shown[:i]), default=math.inf)]
            axes.plot([end[0] for end in front], [end[1] for end in front], "-", color="#999999", zorder=0)
            for i, (sent, loss, run) in enumerate(front):
                last = i + 1 == len(front)
                offset, align = ((-6, -3), "right") if last else ((2, -12), "left")
                axes.annotate(
                    run["name"].removesuffix(f", {steps} steps"), (sent, loss), xytext=offset, ha=align, **SMALL
                )
            axes.set_xscale("log")
            left_out = f", {len(ended) - len(shown)} worse ones left out" if len(shown) < len(ended) else ""
            axes.set(xlabel="sent by rank 0, kB a step", title=f"After {steps} steps{left_out}")
        panels[0][0].set_ylabel("validation loss, nats a character")
        panels[0][0].legend()
        figure.suptitle(title(results), x=0.01, ha="left", fontsize=12)
        figure.savefig(file, dpi=110)
        pyplot.close(figure)


def sent_in_a_step(run: dict[str, Any]) -> float:
    """In kB, the mean over the training."""
    return float(run["bytes_sent"]) / run["steps"] / 1e3


FEW = 5  # runs, which need no picture of bytes
LOSS_RANGE = 0.25  # above the best
SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6.5}
KINDS = {"dense": "#555555", "sparse gradients": "#0072B2", "local steps": "#CC79A7"}


def kind_of(run: dict[str, Any]) -> str:
    if run["local_steps"] > 1:
        return "local steps"
    return "dense" if run["algorithm"] == "dense" else "sparse gradients"


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
        if len(results["runs"]) > FEW:
            draw_bytes(results, options.json.with_name(f"{options.json.stem}_bytes.png"))


if __name__ == "__main__":
    main()
