"""How near trainings come to dense in their first steps: small trainings, each with one setting after the other.

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/convergence/study.py --ranks 4 --steps 300 --seeds 1

Ranks are threads of this process. A row is a training: task, setting, ranks, seed, the test loss at the start and after 100,
300 and 1000 steps as far as it went, and the bytes that a rank sent until then. It is written when the training has ended, and
rows that are there are skipped: start it again to go on, or with other tasks, ranks, steps and seeds. --table prints what is
there: (loss - that of dense) / (loss at the start - that of dense), the part of dense's drop that is missing.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ranks import on_ranks
from tasks import SOUNDS, TASKS, Part, Task

import gtopk
from gtopk.torch.warmup import at_least, default_density, grown_share

from report import machine  # isort: skip  # tasks has put examples/ on the path

RESULTS = Path(__file__).resolve().parents[1] / "results" / "convergence.json"
MARKS = (100, 300, 1000)

Options = dict[str, Any]


def falling(start: float, steps: int, end: float = 0.001) -> Callable[[int], float]:
    """A density that falls from `start` by the same factor in each step, and is `end` after so many."""
    return lambda step: max(end, start * (end / start) ** (step / steps))


def hyperbola(share: float, dense_steps: int = 39, most: float = 1.0, last: float = 0.001) -> Callable[[int], float]:
    """gtopk's default with other numbers: everything in so many steps, then `share` over the number of the step, at most `most`
    and at least `last`."""

    def density(step: int) -> float:
        wanted = default_density(step, share, dense_steps, most, last)
        return 1.0 if wanted is None else wanted

    return density


def falling_default(share: float, most: float = 0.1) -> Options:
    """All of the default with another share: its least number of entries and its growth."""
    return {"warmup": hyperbola(share, 39, most, 0.0005), "merge_growth": 2.0, "least": True}


# What is given to DistributedOptimizer, by name. "correction" is momentum correction where SGD has momentum.
SETTINGS: dict[str, Options] = {
    "dense": {"algorithm": "dense"},
    "default": {},
    ".001": {"density": 0.001},
    ".01": {"density": 0.01},
    ".001, correction": {"density": 0.001, "correction": True},
    "1 to .001 in 1000": {"warmup": falling(1.0, 1000)},
    "1 to .001 in 1000, correction": {"warmup": falling(1.0, 1000), "correction": True},
    ".1 to .001 in 1000": {"warmup": falling(0.1, 1000)},
    ".1 to .001 in 1000, correction": {"warmup": falling(0.1, 1000), "correction": True},
    ".1 to .001 in 1000, dense_1d": {"warmup": falling(0.1, 1000), "dense_1d": True},
    "2/t": {"warmup": hyperbola(2, 7)},
    "5/t": {"warmup": hyperbola(5, 19)},
    "20/t": {"warmup": hyperbola(20, 79)},
    "10/t": {"warmup": hyperbola(10)},
    "10/t, at most .1, 39 dense steps": {"warmup": hyperbola(10, 39, 0.1)},
    "20/t, at most .1": {"warmup": hyperbola(20, 39, 0.1)},
    "50/t, at most .1": {"warmup": hyperbola(50, 39, 0.1)},
    "10/t, 19 dense steps": {"warmup": hyperbola(10, 19, 0.1)},
    "10/t, no dense step": {"warmup": hyperbola(10, 0, 0.1)},
    "10/t, dense_1d": {"warmup": hyperbola(10), "dense_1d": True},
    "10/t, merge_growth 1.41": {"warmup": hyperbola(10), "merge_growth": 1.41},
    "growth 2: 14/t to .0005, at most .1, 9 dense steps": {
        "warmup": hyperbola(14, 9, 0.1, 0.0005),
        "merge_growth": 2.0,
    },
    "growth 2: 10/t, at most .06, 9 dense steps": {"warmup": hyperbola(10, 9, 0.06), "merge_growth": 2.0},
    "growth 2: 20/t, at most .1, 9 dense steps": {"warmup": hyperbola(20, 9, 0.1), "merge_growth": 2.0},
    "growth 2: .15": {"warmup": lambda _: 0.15, "merge_growth": 2.0},
    "growth 2: .0005": {"warmup": lambda _: 0.0005, "merge_growth": 2.0},
    # 50 is the default of optimizers other than SGD; 14 was, too.
    "share 14": falling_default(14),
    "share 30": falling_default(30),
    "share 50": falling_default(50),
    "share 100, at most .2": falling_default(100, 0.2),
    ".1": {"density": 0.1},
    ".3": {"density": 0.3},
    ".03": {"density": 0.03},
}


def options_of(setting: str, task: Task, ranks: int, entries: int) -> Options:
    """Of an optimizer of so many entries."""
    options = dict(SETTINGS[setting])
    if options.pop("least", False):
        falls = options["warmup"]
        options["warmup"] = lambda step: at_least(falls(step), entries) or 1.0
    if "warmup" in options and "merge_growth" in options:  # with as many bytes as without growth
        wanted, part = options["warmup"], grown_share(ranks, options["merge_growth"])
        options["warmup"] = lambda step: 1.0 if wanted(step) == 1.0 else part * wanted(step)
    if options.pop("correction", False):
        options["momentum_correction"] = task.momentum
    return options


def distributed(
    task: Task, part: Part, model: torch.nn.Module, comm: gtopk.Comm, setting: str
) -> torch.optim.Optimizer:
    mine = part.of(model)
    options = options_of(setting, task, comm.size, sum(parameter.numel() for parameter in mine.parameters()))
    return gtopk.DistributedOptimizer(part.optimizer(mine), mine.named_parameters(), comm=comm, **options)


def train(task: Task, setting: str, ranks: int, steps: int, seed: int) -> dict[str, Any]:
    """A row."""
    torch.manual_seed(seed)
    start, test, began = task.model(), task.test(), time.monotonic()

    def evaluate(model: torch.nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            loss = float(task.measure(model, test))
        model.train()
        return loss

    def rank_main(comm: gtopk.Comm) -> tuple[list[float], list[int]]:
        model = copy.deepcopy(start)
        optimizers: list[Any] = [distributed(task, part, model, comm, setting) for part in task.parts]
        draw = torch.Generator().manual_seed(seed * 1_000_003 + comm.rank)
        losses, sent = [], [0]
        for step in range(1, steps + 1):
            batch = task.draw(draw, task.batch)
            for part, optimizer in zip(task.parts, optimizers, strict=True):
                optimizer.zero_grad()
                part.loss(model, batch).backward()
                optimizer.step()
                sent[-1] += optimizer.stats()["bytes_sent"]
            if step in MARKS and comm.rank == 0:
                losses.append(evaluate(model))
                sent.append(sent[-1])
        return losses, sent[:-1]

    losses, sent = on_ranks(ranks, rank_main)[0]
    return {
        "task": task.name,
        "setting": setting,
        "ranks": ranks,
        "seed": seed,
        "batch": task.batch,
        "parameters": sum(parameter.numel() for parameter in start.parameters()),
        "start": evaluate(start),
        "losses": dict(zip(map(str, MARKS), losses, strict=False)),
        "bytes_sent": dict(zip(map(str, MARKS), sent, strict=False)),
        "seconds": round(time.monotonic() - began, 1),
    }


# ---- the file -------------------------------------------------------------------------------------------------------


def load(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": []}
    return found


def save(file: Path, study: dict[str, Any]) -> None:
    """The file is whole at every moment."""
    study["machine"] = machine()
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(study, indent=1, allow_nan=False) + "\n")
    fresh.replace(file)


def without_nan(value: Any) -> Any:
    """JSON has neither Inf nor NaN: what diverged is null."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["task"], row["setting"], row["ranks"], row["seed"]


def same_data(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """A row of other data than those that are there (speech with another --an4) is not to be compared with them."""
    for start in (other["start"] for other in rows if (other["task"], other["seed"]) == (row["task"], row["seed"])):
        if not math.isclose(start, row["start"], rel_tol=0.01):
            raise SystemExit(
                f"{row['task']} starts at {row['start']:.3f}, and in the file at {start:.3f}: these are other data; give the "
                "same --an4, or another --out"
            )


def table(rows: list[dict[str, Any]]) -> str:
    """Of each setting, at each mark: in how many trainings at most 5 % of dense's drop are missing, and how much is."""
    lines = [
        "| setting | ranks | steps | within 5 % | median missing | worst |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    found = missing(rows)
    for setting in SETTINGS:
        for ranks in sorted({row["ranks"] for row in rows}):
            for mark in map(str, MARKS):
                parts = [part for name, part in found.items() if (name[1], name[2], name[4]) == (setting, ranks, mark)]
                if parts:
                    good = sum(part <= 0.05 for part in parts)
                    lines.append(
                        f"| {setting} | {ranks} | {mark} | {good} of {len(parts)} | {statistics.median(parts):.0%} | "
                        f"{max(parts):.0%} |".replace("inf%", "diverged")
                    )
    return "\n".join(lines)


def by_task(rows: list[dict[str, Any]]) -> str:
    """Of each training: what is missing with each setting, the median over ranks and seeds, and the worst."""
    found = missing(rows)
    lines = ["| task | steps | median missing; worst |", "| --- | --- | --- |"]
    for task in dict.fromkeys(name[0] for name in found):
        for mark in map(str, MARKS):
            texts = []
            for setting in SETTINGS:
                parts = [part for name, part in found.items() if (name[0], name[1], name[4]) == (task, setting, mark)]
                if parts:
                    texts.append(f"{setting}: {statistics.median(parts):.1%}; {max(parts):.1%} ({len(parts)})")
            if texts:
                lines.append(f"| {task} | {mark} | {', '.join(texts)} |".replace("inf%", "diverged"))
    return "\n".join(lines)


def missing(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int, int, str], float]:
    """By task, setting, ranks, seed and mark, where dense is known, too."""
    known = {key(row): row for row in rows}
    return {
        (*key(row), mark): missing_part(row, dense, mark)
        for row in rows
        if row["setting"] != "dense" and (dense := known.get((row["task"], "dense", row["ranks"], row["seed"])))
        for mark in row["losses"]
        if mark in dense["losses"]
    }


def missing_part(row: dict[str, Any], dense: dict[str, Any], mark: str) -> float:
    """Negative where it is better than dense; above 1 where it is worse than at the start."""
    best, loss = dense["losses"][mark], row["losses"][mark]
    return math.inf if loss is None else float((loss - best) / (row["start"] - best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1, help="seeds 1 to this")
    parser.add_argument("--tasks", default="", help="those with this in their name")
    parser.add_argument("--settings", default=";".join(SETTINGS), help="names, with ; between (all)")
    parser.add_argument("--an4", help="CMU's archive of AN4, or its folder (the repository's sixteen utterances)")
    parser.add_argument("--seconds", type=float, help="start no training after so many")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and train nothing")
    options = parser.parse_args()
    SOUNDS.where = options.an4
    study = load(options.out)
    began = time.monotonic()
    for seed in range(1, options.seeds + 1):
        for task in [] if options.table else TASKS:
            for setting in SETTINGS:
                late = options.seconds is not None and time.monotonic() - began > options.seconds
                if late or options.tasks not in task.name or setting not in options.settings.split(";"):
                    continue
                known = {key(row): row for row in study["rows"]}
                last = str(max(mark for mark in MARKS if mark <= options.steps))
                if last in known.get((task.name, setting, options.ranks, seed), {"losses": {}})["losses"]:
                    continue
                row = without_nan(train(task, setting, options.ranks, options.steps, seed))
                same_data(row, study["rows"])
                known[key(row)] = row
                study["rows"] = list(known.values())
                save(options.out, study)
                print(
                    f"{task.name}; {setting}; seed {seed}: {row['start']:.3f} {row['losses']} {row['seconds']} s",
                    flush=True,
                )
    print(table(study["rows"]))
    if options.table:
        print(by_task(study["rows"]))


if __name__ == "__main__":
    main()
