"""Does every example learn? Each is trained with one to four ranks and ten seeds, in its first steps:

    nice python benchmarks/examples_learn.py --json benchmarks/results/examples_learn.json

The models are the published ones in full size, on real data, and so are all settings but those that LEARN gives: batches
are small, for two cores. The first loss that a training prints is compared with its last, both means over ranks and steps. It
has to fall by the example's `margin` in every run, and replicas have to be the same to the bit.

That it is no noise is shown by the same ten seeds with a learning rate of 0, on one rank, where a mean has the fewest samples.
What the loss does then is what batches and dropout do, and it has to stay below half of the margin. Examples that print the
loss on a fixed set of data have no noise, and nothing to run for it.

What is in the file already is not run again: start it again to go on.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
sys.path[:0] = [str(EXAMPLES), str(ROOT / "tests" / "distributed")]

from jobs import mpirun, run_to_end  # noqa: E402
from report import machine  # noqa: E402
from run_demo import SPARSE, schedule  # noqa: E402

Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    name: str
    arguments: str
    margin: float
    """The part of the loss by which it has to fall."""
    script: str = ""
    """Where it is another one than the name."""
    end: int = 1
    """So many of the last lines are the end of a training; the first line is its start."""
    noisy: bool = True
    torchrun: bool = False
    nodes: tuple[int, ...] = ()
    """With one, two, ... ranks."""

    @property
    def file(self) -> Path:
        return EXAMPLES / f"{self.script or self.name}.py"


ONE = "--threads 1 --test-images 1"
# The same few images in every step, which can be learned by heart in some steps.
FEW = f"{ONE} --batch-size 8 --warmup-epochs 0 --density 0.01 --density-warmup= --momentum-correction"
FASHION = f"--data fashion-mnist --subset {{images}} {FEW}"
FOLDERS = f"--workers 0 --image-size 64 {FEW}"
DEMO = shlex.join([*SPARSE, *schedule(48, 80)])
LEARN = [
    Example("losing_a_rank/train", "--steps 60 --timeout 60 --checkpoint {file}", 0.5, noisy=False),
    Example("losing_a_rank/go_on", "--steps 60", 0.4, noisy=False, torchrun=True),
    Example("fsdp", "--steps 31 --nodes {nodes}", 0.2, torchrun=True, nodes=(1, 2, 3, 2)),
    Example("cifar_resnet20", f"--steps 12 --report-every 2 --lr 0.01 {FASHION}", 0.2),
    Example("cifar_vgg16", f"--steps 16 --report-every 2 --lr 0.002 {FASHION}", 0.2),
    Example("imagenet_alexnet", f"--data {{two}} --steps 6 --report-every 2 --lr 0.05 {FOLDERS}", 0.1),
    Example(
        "imagenet_resnet50",
        f"--data {{ten}} --steps 20 --report-every 1 --lr 0.0003 {FOLDERS} --batch-size {{batch}}",
        0.25,
        end=4,
    ),
    Example("ptb_lstm", "--steps 5 --report-every 1 --lr 4 --batch-size 1 --test-words 4 --threads 1", 0.01),
    Example(
        "an4_deepspeech", "--steps 4 --report-every 1 --lr 0.001 --density 0.05 --density-warmup= --threads 1", 0.3
    ),
    Example(
        "run_demo",
        f"--steps 48 --report-every 12 {DEMO} --data fashion-mnist --batch-size 32 {ONE}",
        0.2,
        "cifar_resnet20",
    ),
]


def write_images(folder: Path, shares: list[int]) -> None:
    """Images of Fashion-MNIST as files in folders, so many of each class: how frequent a class is can be learned in a few
    steps, and a model without batch normalisation learns little else in them."""
    import data
    from PIL import Image

    images = data.load(data.locate("fashion-mnist"))
    for part, split in (("train", images.train), ("val", images.test)):
        for label, share in enumerate(shares if part == "train" else [1] * len(shares)):
            place = folder / part / str(label)
            place.mkdir(parents=True)
            for number in (split.labels == label).nonzero().flatten()[:share].tolist():
                Image.fromarray(split.images[number, 0].numpy()).save(place / f"{number}.png")


@dataclass(frozen=True)
class Launch:
    """Examples that are trained one after the other by the same processes."""

    ranks: int
    torchrun: bool
    frozen: bool
    """Nothing is learned."""


def launches(ranks: Iterable[int] = (1, 2, 3, 4)) -> list[Launch]:
    kinds = [(1, True), *((size, False) for size in ranks)]
    return [Launch(size, torchrun, frozen) for torchrun in (True, False) for size, frozen in kinds]


def examples_of(launch: Launch) -> list[Example]:
    return [one for one in LEARN if one.torchrun == launch.torchrun and (one.noisy or not launch.frozen)]


def run(launch: Launch, jobs: list[tuple[Example, list[int]]], folder: Path, limit: float) -> None:
    """Trains each example with its seeds."""
    folder.mkdir(exist_ok=True)
    two, ten = folder / "two", folder / "ten"
    lines, plan = folder / "lines.json", folder / "jobs.json"
    if any("{two}" in example.arguments for example, _ in jobs):
        write_images(two, [launch.ranks, 7 * launch.ranks])
    if any("{ten}" in example.arguments for example, _ in jobs):
        write_images(ten, [*[1] * 9, 23])
    listed = []
    for example, seeds in jobs:
        nodes = example.nodes[launch.ranks - 1] if example.nodes else 1
        places = {
            "images": 8 * launch.ranks,
            "two": two,
            "ten": ten,
            "batch": 32 // launch.ranks,
            "file": folder / "{seed}.pt",
            "nodes": nodes,
        }
        arguments = example.arguments.format(**places).split()
        if launch.frozen and not example.torchrun:  # the trainer sets the learning rate in each step
            arguments += ["--lr", "0"]
        listed.append([example.name, str(example.file), arguments, seeds])
    plan.write_text(json.dumps(listed))
    script = [str(ROOT / "benchmarks" / "examples_ranks.py"), *["--frozen"] * launch.frozen, str(plan), str(lines)]
    if launch.torchrun:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={launch.ranks}", *script]
    else:
        command = [mpirun(), "-n", str(launch.ranks), "--oversubscribe", "--bind-to", "none"]
        command += ["--mca", "mpi_yield_when_idle", "1", sys.executable, *script]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    status, output = run_to_end(command, {**os.environ, **as_root, "OMP_NUM_THREADS": "1"}, limit)
    if status != 0:
        raise RuntimeError(f"{launch} ended with {status}:\n{output[-6000:]}")


def rows_of(launch: Launch, folder: Path) -> list[Row]:
    """What was trained so far."""
    lines = folder / "lines.json"
    return [
        {
            "example": row["example"],
            "ranks": launch.ranks,
            "frozen": launch.frozen,
            "seed": row["seed"],
            "first": row["losses"][0],
            "last": round(fmean(row["losses"][-example_of(row).end :]), 4),
            "same": row["same"],
            "seconds": row["seconds"],
        }
        for row in map(json.loads, lines.read_text().splitlines() if lines.exists() else [])
    ]


def example_of(row: Row) -> Example:
    return next(one for one in LEARN if one.name == row["example"])


def wrong(row: Row) -> str | None:
    """What a training has not kept of what is asked of it."""
    example = example_of(row)
    place = f"{example.name} on {row['ranks']} ranks, seed {row['seed']}"
    fall = 1 - row["last"] / row["first"]
    if not row["same"]:
        return f"{place}: replicas differ"
    if row["frozen"] and not abs(fall) < example.margin / 2:
        return f"{place}: the loss changes by {fall:.1%} though nothing is learned"
    if not row["frozen"] and not fall > example.margin:
        return f"{place}: the loss falls by {fall:.1%} only, from {row['first']} to {row['last']}"
    return None


# ---- the file and the table -----------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    lines = [
        "| example | ranks | seeds | loss at first | at last | it falls by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for example in LEARN:
        for ranks, frozen in sorted({(row["ranks"], row["frozen"]) for row in rows}, key=lambda one: (not one[1], one)):
            its = [
                row for row in rows if (row["example"], row["ranks"], row["frozen"]) == (example.name, ranks, frozen)
            ]
            if its:
                falls = [1 - row["last"] / row["first"] for row in its]
                first, last = [row["first"] for row in its], [row["last"] for row in its]
                lines.append(
                    f"| {example.name}{', nothing learned' if frozen else ''} | {ranks} | {len(its)} | "
                    f"{min(first):.3g} to {max(first):.3g} | {min(last):.3g} to {max(last):.3g} | "
                    f"{min(falls):.1%} to {max(falls):.1%} |"
                )
    return "\n".join(lines)


def save(file: Path, rows: list[Row]) -> None:
    """The file is whole at every moment."""
    arguments = {example.name: example.arguments for example in LEARN}
    study = {"machine": machine(), "date": str(date.today()), "arguments": arguments, "rows": rows}
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(study).replace(' {"example', '\n{"example') + "\n")
    fresh.replace(file)


def load(file: Path | None) -> list[Row]:
    rows: list[Row] = json.loads(file.read_text())["rows"] if file and file.exists() else []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="examples with one of these in their name")
    parser.add_argument("--ranks", default="1,2,3,4")
    parser.add_argument("--seeds", type=int, default=10, help="1 to this (%(default)s)")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds a launch (%(default)s)")
    parser.add_argument("--json", type=Path, help="keep the rows here, and skip those that it has")
    options = parser.parse_args()
    rows = load(options.json)
    with tempfile.TemporaryDirectory() as temporary:
        for number, launch in enumerate(launches(map(int, options.ranks.split(",")))):
            known = {
                (row["example"], row["seed"])
                for row in rows
                if (row["ranks"], row["frozen"]) == (launch.ranks, launch.frozen)
            }
            jobs = []
            for example in examples_of(launch):
                seeds = [seed for seed in range(1, options.seeds + 1) if (example.name, seed) not in known]
                if seeds and any(part in example.name for part in options.only.split(",")):
                    jobs.append((example, seeds))
            if not jobs:
                continue
            began = time.monotonic()
            folder = Path(temporary) / str(number)
            try:
                run(launch, jobs, folder, options.limit)
            finally:  # also when it was cut off
                new = rows_of(launch, folder)
                rows += new
                print(f"{launch}: {time.monotonic() - began:.0f} s\n{table(new)}", flush=True)
                if options.json:
                    save(options.json, rows)
    print(table(rows))
    complaints = [text for row in rows if (text := wrong(row))]
    print("\n".join(complaints))
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
