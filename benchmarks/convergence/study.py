"""How near trainings come to dense in their first steps: small trainings, each with one setting after the other.

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/convergence/study.py --ranks 4 --steps 300 --seeds 1
    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/convergence/study.py --factors --ranks 16 --steps 1000 --seeds 3

The second is the factor study: a base and what differs from it in one thing (factors.py), with three trainings.

Ranks are threads of this process. A row is a training: task, setting, ranks, seed, the test loss at the start and after --marks
steps as far as it went, the accuracy with it where there is one, and the bytes that rank 0 sent until then; `curve` has it
at each tenth of the training, too. It is written when the training has ended, and rows that are there are skipped: start it
again to go on, or with other tasks, ranks, steps and seeds. --table prints what is there: (loss - that of dense) / (loss at the
start - that of dense), the part of dense's drop that is missing. --plot draws it.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factors
import over_bytes
import torch
from ranks import on_ranks
from rows import commit, key, load, same_data, save, stamped, without_nan
from sparsity import Board, watch
from tasks import FACTOR_TASKS, SOUNDS, TASKS, Part, Task

import gtopk
from gtopk.torch.warmup import at_least, default_density, grown_share

from report import machine  # isort: skip  # tasks has put examples/ on the path

RESULTS = Path(__file__).resolve().parents[1] / "results" / "convergence.json"
MARKS = (100, 300, 1000)
POINTS = 10  # of a curve

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


# In the order in which they are trained.
NAMES = (*SETTINGS, *factors.FACTORS)


def options_of(setting: str, task: Task, ranks: int, entries: int) -> Options:
    """Of an optimizer of so many entries."""
    if setting in factors.FACTORS:
        return factors.options_of(setting, ranks, task.momentum)
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


def train(
    task: Task, setting: str, ranks: int, steps: int, seed: int, marks: tuple[int, ...], ratio: int = 0
) -> dict[str, Any]:
    """A row. With `ratio`, what `sparsity` finds every so many steps, of the first part."""
    torch.manual_seed(seed)
    start, test, began = task.model(), task.test(), time.monotonic()
    board = Board(ranks, ratio) if ratio and has_ratio(setting) else None
    a_node = factors.ranks_a_node(setting)
    counted = ("bytes_sent",) if a_node is None else ("bytes_sent", "network_bytes_sent")
    stops = {*(mark for mark in marks if mark <= steps), *(steps * i // POINTS for i in range(1, POINTS + 1))} - {0}

    def point(model: torch.nn.Module, step: int, sent: dict[str, int]) -> dict[str, Any]:
        model.eval()
        with torch.no_grad():
            found: dict[str, Any] = {"step": step, **sent, "loss": float(task.measure(model, test))}
            if task.accuracy is not None:
                found["accuracy"] = float(task.accuracy(model, test))
        model.train()
        return found

    def rank_main(comm: gtopk.Comm) -> list[dict[str, Any]]:
        model = copy.deepcopy(start)
        optimizers: list[Any] = [distributed(task, part, model, comm, setting) for part in task.parts]
        if board is not None:
            watch(optimizers[0], board)
        draw = torch.Generator().manual_seed(seed * 1_000_003 + comm.rank)
        curve, sent = [], dict.fromkeys(counted, 0)
        for step in range(1, steps + 1):
            batch = task.draw(draw, task.batch)
            for part, optimizer in zip(task.parts, optimizers, strict=True):
                optimizer.zero_grad()
                part.loss(model, batch).backward()
                optimizer.step()
                stats = optimizer.stats()
                sent = {name: sent[name] + stats[name] for name in counted}
            if step in stops and comm.rank == 0:
                curve.append(point(model, step, sent))
        return curve

    curve = on_ranks(ranks, rank_main, ranks_a_node=a_node)[0]
    curve.insert(0, point(start, 0, dict.fromkeys(counted, 0)))
    row = {
        "task": task.name,
        "setting": setting,
        "ranks": ranks,
        "seed": seed,
        "batch": task.batch,
        "parameters": sum(parameter.numel() for parameter in start.parameters()),
        "start": curve[0]["loss"],
        **at_marks(curve, marks),
        "curve": curve,
        "seconds": round(time.monotonic() - began, 1),
    }
    return row if board is None else {**row, "ratio": board.found}


def has_ratio(setting: str) -> bool:
    """Where all is sent there is nothing to compare, and ranks of a node have no residual of their own."""
    return setting != "dense" and factors.ranks_a_node(setting) is None


def at_marks(curve: list[dict[str, Any]], marks: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Losses, accuracies where there are any, and bytes, by step."""
    points = [point for point in curve if point["step"] in marks]
    names = {"losses": "loss", "accuracies": "accuracy", "bytes_sent": "bytes_sent"}
    return {
        name: {str(point["step"]): point[one] for point in points} for name, one in names.items() if one in curve[0]
    }


# ---- what is printed ------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Of each setting, at each mark: in how many trainings at most 5 % of dense's drop are missing, and how much is."""
    lines = [
        "| setting | ranks | steps | within 5 % | median missing | worst |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    found = missing(rows)
    for setting in NAMES:
        for ranks in sorted({row["ranks"] for row in rows}):
            for mark in marks_of(rows):
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
        for mark in marks_of(rows):
            texts = []
            for setting in NAMES:
                parts = [part for name, part in found.items() if (name[0], name[1], name[4]) == (task, setting, mark)]
                if parts:
                    texts.append(f"{setting}: {statistics.median(parts):.1%}; {max(parts):.1%} ({len(parts)})")
            if texts:
                lines.append(f"| {task} | {mark} | {', '.join(texts)} |".replace("inf%", "diverged"))
    return "\n".join(lines)


def marks_of(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({mark for row in rows for mark in row["losses"]}, key=int)


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


# ---- the command ----------------------------------------------------------------------------------------------------


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--marks", default=",".join(map(str, MARKS)), help="steps to look at, with , between (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="seeds 1 to this")
    parser.add_argument("--factors", action="store_true", help="the settings and tasks of the factor study")
    parser.add_argument("--tasks", default="", help="those with this in their name")
    parser.add_argument("--settings", help="names, with ; between (all of the study)")
    parser.add_argument(
        "--again", action="store_true", help="train those of --settings anew where there are rows of them"
    )
    parser.add_argument(
        "--ratio", type=int, default=0, metavar="N", help="every N steps: how good the sent entries are"
    )
    parser.add_argument("--an4", help="CMU's archive of AN4, or its folder (the repository's sixteen utterances)")
    parser.add_argument("--seconds", type=float, help="start no training after so many")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and train nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what is there of one task, and train nothing")
    options = parser.parse_args()
    for name, least in (("ranks", 2), ("steps", 1), ("seeds", 1), ("ratio", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}: give {least} or more")
    try:
        options.marks = tuple(sorted({int(mark) for mark in options.marks.split(",")}))
    except ValueError:
        parser.error(f"--marks is {options.marks!r}: give steps with , between")
    if options.again and options.settings is None:
        parser.error("--again trains anew what there is: name the settings, with --settings")
    if not options.table and options.plot is None and options.marks[0] > options.steps:
        parser.error(f"--steps is {options.steps}, and the first of --marks {options.marks[0]}: give a mark up to that")
    options.settings = chosen_settings(options, parser)
    options.tasks = [task for task in (FACTOR_TASKS if options.factors else TASKS) if options.tasks in task.name]
    if not options.tasks:
        parser.error("no task has what --tasks says in its name")
    return options


def chosen_settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """Those that are named, or else those of the study that so many ranks can have."""
    if options.settings is None:
        names = [*factors.REFERENCES, *factors.FACTORS] if options.factors else list(SETTINGS)
        return [name for name in names if factors.fits(name, options.ranks)]
    given = options.settings.split(";")
    for name in given:
        if name not in NAMES:
            parser.error(f"there is no setting {name!r}: give some of {'; '.join(NAMES)}")
        if not factors.fits(name, options.ranks):
            parser.error(f"{name!r} needs several nodes of {factors.NODE} ranks: --ranks is {options.ranks}")
    return [name for name in NAMES if name in given]


def run(options: argparse.Namespace, study: dict[str, Any]) -> None:
    """Trains what is not there yet."""
    began, where = time.monotonic(), machine()
    last = str(max(mark for mark in options.marks if mark <= options.steps))
    for seed in range(1, options.seeds + 1):
        for task in options.tasks:
            for setting in options.settings:
                if options.seconds is not None and time.monotonic() - began > options.seconds:
                    return
                known = {key(row): row for row in study["rows"]}
                there = known.get((task.name, setting, options.ranks, seed), {"losses": {}})
                if last in there["losses"] and not options.again:
                    continue
                row = train(task, setting, options.ranks, options.steps, seed, options.marks, options.ratio)
                row = without_nan(stamped(row, where))
                same_data(row, study["rows"])
                known[key(row)] = row
                study["rows"] = list(known.values())
                save(options.out, study)
                print(
                    f"{task.name}; {setting}; seed {seed}: {row['start']:.3f} {row['losses']} {row['seconds']} s",
                    flush=True,
                )


def plot(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    names = [task.name for task in options.tasks]
    if len(names) != 1:
        raise SystemExit(f"--plot draws one task: name it with --tasks ({'; '.join(names)})")
    mine = [row for row in rows if (row["task"], row["ranks"]) == (names[0], options.ranks) and "curve" in row]
    mine = [row for setting in options.settings for row in mine if row["setting"] == setting]
    if not mine:
        raise SystemExit(f"{options.out} has no curve of {names[0]} with {options.ranks} ranks and these settings")
    over_bytes.draw(mine, options.plot)


def main() -> None:
    options = parsed()
    commit()  # that of the sources which were read just now
    SOUNDS.where = options.an4
    study = load(options.out)
    if options.plot is not None:
        plot(options, study["rows"])
        return
    if not options.table:
        run(options, study)
    print(table(study["rows"]))
    if options.table:
        print(by_task(study["rows"]))


if __name__ == "__main__":
    main()
