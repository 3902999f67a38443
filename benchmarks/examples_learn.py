"""Does every example learn? Each is trained with one to four ranks and ten seeds, in its first steps:

    nice python benchmarks/examples_learn.py --json benchmarks/results/examples_learn.json

The models are the published ones in full size, on real data, and so are all settings but those that LEARN gives: batches
are small, for two cores. The loss of the first part of a training is compared with that of its last part, both means over
ranks and steps. It has to fall by the example's `margin` in every run, and replicas have to be the same to the bit.

That it is no noise is shown by the same ten seeds with a learning rate of 0, on one rank, where a mean has the fewest samples.
What the loss does then is what batches and dropout do, and it has to stay below half of the margin. Examples that print the
loss on a fixed set of data have no noise, and nothing to run for it.

A row is a launch. What is in the file already is not run again: start it again to go on.
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
    noisy: bool = True
    torchrun: bool = False
    nodes: tuple[int, ...] = ()
    """With one, two, ... ranks."""

    @property
    def file(self) -> Path:
        return EXAMPLES / f"{self.script or self.name}.py"


FASHION = "--data fashion-mnist --batch-size 8 --test-images 1"
FOLDERS = "--data {images} --workers 0 --batch-size 8 --test-images 1"
DEMO = shlex.join([*SPARSE, *schedule(20, 80)])
LEARN = [
    Example("cifar_resnet20", f"--steps 20 --report-every 5 --lr 0.01 {FASHION}", 0.1),
    Example("cifar_vgg16", f"--steps 10 --report-every 2 --lr 0.005 {FASHION}", 0.1),
    Example("imagenet_alexnet", f"--steps 6 --report-every 2 --lr 0.05 --image-size 64 {FOLDERS}", 0.1),
    Example("imagenet_resnet50", f"--steps 10 --report-every 2 --lr 0.002 --image-size 32 {FOLDERS}", 0.1),
    Example("ptb_lstm", "--steps 6 --report-every 2 --lr 4 --batch-size 1 --test-words 40", 0.01),
    Example("an4_deepspeech", "--steps 8 --report-every 2 --batch-size 2", 0.3),
    Example("fsdp", "--steps 31 --nodes {nodes}", 0.2, torchrun=True, nodes=(1, 2, 3, 2)),
    Example("losing_a_rank/train", "--steps 60 --timeout 60 --checkpoint {file}", 0.5, noisy=False),
    Example("losing_a_rank/go_on", "--steps 60", 0.5, noisy=False, torchrun=True),
    Example("run_demo", f"--steps 20 --report-every 5 {DEMO} {FASHION}", 0.1, "cifar_resnet20"),
]


def write_images(folder: Path) -> None:
    """Fashion-MNIST's ten classes, as files in folders. One has 256 images, the next half as many, and so on: how frequent a
    class is can be learned in a few steps."""
    import data
    from PIL import Image

    images = data.load(data.locate("fashion-mnist"))
    for part, split, most in (("train", images.train, 256), ("val", images.test, 1)):
        for label in range(10):
            count = max(1, most >> label)
            place = folder / part / str(label)
            place.mkdir(parents=True)
            for number in (split.labels == label).nonzero().flatten()[:count].tolist():
                Image.fromarray(split.images[number, 0].numpy()).save(place / f"{number}.png")


def launches_of(example: Example, ranks: Iterable[int] = (1, 2, 3, 4)) -> list[tuple[int, bool]]:
    """Numbers of ranks, and whether nothing is to be learned."""
    return [(1, True)] * example.noisy + [(size, False) for size in ranks]


def launch(example: Example, ranks: int, seeds: range, folder: Path, *, frozen: bool = False, limit: float) -> Row:
    """Trains with each seed, all in the same processes."""
    nodes = example.nodes[ranks - 1] if example.nodes else 1
    places = {"images": folder / "images", "file": folder / f"{ranks}-{{seed}}.pt", "nodes": nodes}
    if "{images}" in example.arguments and not (folder / "images").exists():
        write_images(folder / "images")
    lines = folder / "lines.json"
    lines.unlink(missing_ok=True)
    arguments = [*example.arguments.format(**places).split(), "--seed", "{seed}"]
    if frozen and "--batch-size" in arguments:  # the trainer's scripts set the learning rate in each step
        arguments += ["--lr", "0"]
    script = [str(ROOT / "benchmarks" / "examples_ranks.py"), *(["--frozen"] if frozen else [])]
    script += [str(seeds[0]), str(seeds[-1]), str(lines), str(example.file), *arguments]
    if example.torchrun:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *script]
    else:
        command = [mpirun(), "-n", str(ranks), "--oversubscribe", "--bind-to", "none"]
        command += ["--mca", "mpi_yield_when_idle", "1", sys.executable, *script]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    began = time.monotonic()
    status, output = run_to_end(command, {**os.environ, **as_root, "OMP_NUM_THREADS": "1"}, limit)
    if status != 0:
        raise SystemExit(f"{example.name} on {ranks} ranks ended with {status}:\n{output[-6000:]}")
    trained = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["seed"] for one in trained] == list(seeds), trained
    return {
        "example": example.name,
        "arguments": example.arguments,
        "ranks": ranks,
        "frozen": frozen,
        "seeds": f"{seeds[0]} to {seeds[-1]}",
        "first": [one["losses"][0] for one in trained],
        "last": [one["losses"][-1] for one in trained],
        "replicas_identical": all(one["same"] for one in trained),
        "seconds": round(time.monotonic() - began),
    }


def falls(row: Row) -> list[float]:
    """The part of the first loss that is gone at the end, seed by seed."""
    return [1 - last / first for first, last in zip(row["first"], row["last"], strict=True)]


def wrong(example: Example, row: Row) -> list[str]:
    """What a launch has not kept of what is asked of it."""
    found = [] if row["replicas_identical"] else ["replicas differ"]
    for seed, fall in enumerate(falls(row)):
        if row["frozen"] and not abs(fall) < example.margin / 2:
            found.append(f"run {seed + 1}: the loss changes by {fall:.1%} and nothing is learned")
        if not row["frozen"] and not fall > example.margin:
            found.append(f"run {seed + 1}: the loss falls by {fall:.1%} only")
    return [f"{example.name} on {row['ranks']} ranks: {text}" for text in found]


# ---- the file and the table -------------------------------------------------------------------------------------------


def text_of(row: Row) -> str:
    fall = falls(row)
    return (
        f"| {row['example']}{', nothing learned' if row['frozen'] else ''} | {row['ranks']} | "
        f"{min(row['first']):.3g} to {max(row['first']):.3g} | {min(row['last']):.3g} to {max(row['last']):.3g} | "
        f"{min(fall):.1%} to {max(fall):.1%} | {row['seconds']} |"
    )


def save(file: Path, rows: list[Row]) -> None:
    """The file is whole at every moment."""
    study = {"machine": machine(), "date": str(date.today()), "rows": rows}
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(study, indent=1) + "\n")
    fresh.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="examples with one of these in their name")
    parser.add_argument("--ranks", default="1,2,3,4")
    parser.add_argument("--seeds", type=int, default=10, help="1 to this (%(default)s)")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds a launch (%(default)s)")
    parser.add_argument("--json", type=Path, help="keep the rows here, and skip those that it has")
    options = parser.parse_args()
    rows: list[Row] = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    known = {(row["example"], row["ranks"], row["frozen"]) for row in rows}
    complaints = []
    print(
        "| example | ranks | loss at first | at last | it falls by | seconds |\n| --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for example in LEARN:
            if not any(part in example.name for part in options.only.split(",")):
                continue
            for ranks, frozen in launches_of(example, map(int, options.ranks.split(","))):
                if (example.name, ranks, frozen) in known:
                    continue
                seeds, folder = range(1, options.seeds + 1), Path(temporary)
                row = launch(example, ranks, seeds, folder, frozen=frozen, limit=options.limit)
                rows.append(row)
                complaints += wrong(example, row)
                print(text_of(row), flush=True)
                if options.json:
                    save(options.json, rows)
    for complaint in complaints:
        print(complaint)
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
