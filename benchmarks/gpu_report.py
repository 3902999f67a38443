"""Keeps what a check of a GPU has measured: benchmarks/results/gpu_*.json, and a picture.

    make gpu-results OUT=FOLDER           FOLDER: the results of scripts/gpu_check.py

gpu_check.json   what passed and what failed, with the machine, the driver, PyTorch's version and the command
gpu_bench.json   the device by itself (benchmarks/gpu_bench.c)
gpu_torch.json   beside PyTorch's operators (tests/gpu/torch_bench.py)
gpu_training.json  ResNet-20 and VGG-16, dense beside gtopk (tests/gpu/training.py)
gpu_nccl_trace.json  what the host does in steps over NCCL (tests/distributed/trace_step.c)
gpu_bench.png    time of accumulate against the bytes that it moves, and that of a copy of as many

A rehearsal on what stands in for a GPU is refused: its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
KEPT = {
    "bench.json": "gpu_bench.json",
    "torch.json": "gpu_torch.json",
    "training.json": "gpu_training.json",
    "nccl_trace.json": "gpu_nccl_trace.json",
}
# What the design asks for at 25M entries and density .001: column, part of the benchmark, limit, whether less is better.
TARGETS = (
    ("step", "fp32", "of_copy", 0.85, False),
    ("step", "bf16", "of_copy", 0.85, False),
    ("step", "fp32", "miss_ratio", 1.6, True),
    ("step", "bf16", "miss_ratio", 1.6, True),
    ("step", "fp32", "select_to_commit_us", 60.0, True),
    ("round", None, "round_us", 40.0, True),
    ("many", "fp32", "host_us", 100.0, True),
)


def write(name: str, content: Any) -> None:
    (RESULTS / name).write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote benchmarks/results/{name}")


def targets(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each target, with what was measured."""
    lines = []
    for part, dtype, column, limit, less in TARGETS:
        for row in rows:
            if row["part"] == part and row.get("dtype") == dtype and row.get("n") == 25_000_000:
                value = float(row[column])
                reached = value <= limit if less else value >= limit
                skewed = ", skewed" if row.get("skewed") else ""
                lines.append(
                    f"{'reached' if reached else 'MISSED ':7} {part} {dtype or ''}{skewed} {column}: {value:.4g}, wanted "
                    f"{'at most' if less else 'at least'} {limit:g}"
                )
    return lines


def picture(rows: list[dict[str, Any]], gpu: str, to: Path) -> None:
    from pictures import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    steps = sorted((row for row in rows if row["part"] == "step"), key=lambda row: int(row["bytes"]))
    axes.loglog(
        [row["bytes"] for row in steps], [row["copy_us"] for row in steps], "k--", label="a copy that moves as many"
    )
    for dtype, mark in (("fp32", "o"), ("bf16", "s"), ("fp16", "^")):
        own = [row for row in steps if row["dtype"] == dtype]
        if own:
            axes.loglog([row["bytes"] for row in own], [row["accumulate_us"] for row in own], mark + "-", label=dtype)
    axes.loglog(
        [row["bytes"] for row in steps], [row["select_to_commit_us"] for row in steps], ":", label="select to commit"
    )
    axes.set_xlabel("bytes that accumulate must move")
    axes.set_ylabel("microseconds")
    axes.set_title(f"accumulate on {gpu}, density .001")
    axes.legend()
    axes.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(to, dpi=120)
    print(f"wrote {to}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--try-out", action="store_true", help="take a rehearsal, write nothing into results/ but a picture"
    )
    options = parser.parse_args()
    results = options.folder / "results.json"
    if not results.is_file():
        parser.error(f"{results} is not there: OUT= names the folder that scripts/gpu_check.py wrote")
    check = json.loads(results.read_text())
    if check["standin"] and not options.try_out:
        print(
            "this was a rehearsal on what stands in for a GPU: its times mean nothing, and are not kept",
            file=sys.stderr,
        )
        return 1
    check["command"] = re.sub(r" ?--out \S+", "", check["command"])  # a folder of that machine
    about = {"machine": check["machine"], "command": check["command"]}
    if not options.try_out:
        write("gpu_check.json", check)
    for name, kept in KEPT.items():
        file = options.folder / name
        if not file.is_file():
            print(f"{name} is not there")
            continue
        rows = json.loads(file.read_text())
        if not options.try_out:
            write(kept, {**about, "rows": rows})
        if name == "bench.json":
            to = options.folder if options.try_out else RESULTS
            picture(rows, str(rows[0]["name"]), to / "gpu_bench.png")
            print("\n".join(targets(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
