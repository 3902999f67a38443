"""Two builds of gtopk side by side: the time of a step, one build after the other in turns, so that a change in the
machine's load meets both.

    python benchmarks/compare_builds.py OLD_TREE NEW_TREE [--json FILE]

Each is a source tree in which `make build build/benchmarks/step_bench` was run (step_bench.c can be copied into an older
one). Each turn gives the median time of a step. Prints, for each case and build, the lowest of these medians, as other load
only ever adds to it; their ratio new / old; and, to show the noise, the ratio of the medians over the turns. `wrapper` is
`DistributedOptimizer` in Python: 200 parameters of 100 entries, two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

# name, transport, entries, steps, ranks
CASES = [
    ("P = 1", "self", 10_000, 2000, 1),
    ("P = 1", "self", 270_000, 500, 1),
    ("P = 1", "self", 25_000_000, 12, 1),
    ("P = 4, threads", "thread", 10_000, 400, 4),
    ("P = 4, threads", "thread", 270_000, 200, 4),
    ("P = 4, threads", "thread", 25_000_000, 8, 4),
    ("P = 4, mpirun", "mpi", 10_000, 400, 4),
    ("P = 4, mpirun", "mpi", 270_000, 200, 4),
    ("P = 4, mpirun", "mpi", 25_000_000, 8, 4),
]
MPI = ["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]

WRAPPER = """
import statistics, time, torch, gtopk
gtopk.init()
torch.set_num_threads(1)
parameters = [torch.nn.Parameter(torch.zeros(100)) for _ in range(200)]
optimizer = gtopk.DistributedOptimizer(torch.optim.SGD(parameters, lr=0.1), density=0.01)
gradients = [torch.randn(100) for _ in parameters]
times = []
for step in range(220):
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient.clone()
    gtopk.barrier()
    start = time.perf_counter()
    optimizer.step()
    times.append((time.perf_counter() - start) * 1e6)
if gtopk.rank() == 0:
    print(min(times[20:]), statistics.median(times[20:]))
gtopk.shutdown()
"""


def environment(tree: Path) -> dict[str, str]:
    """Variables with which a program uses that tree's library, module and package."""
    return {
        **os.environ,
        "GTOPK_MPI_MODULE": str(tree / "build/libgtopk_mpi.so"),
        "GTOPK_LIBRARY": str(tree / "build/libgtopk.so"),
        "PYTHONPATH": str(tree / "python"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }


def run(tree: Path, command: list[str], mpirun: list[str]) -> float:
    """Median time of a step, microseconds."""
    done = subprocess.run([*mpirun, *command], env=environment(tree), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return float(done.stdout.split()[-1])


def mpirun_of(ranks: int) -> list[str]:
    found = Path(sys.prefix) / "bin/mpirun"
    return [str(found if found.exists() else "mpirun"), "-n", str(ranks), *MPI]


def command_of(tree: Path, transport: str, entries: int, steps: int, ranks: int) -> tuple[list[str], list[str]]:
    if transport == "wrapper":
        return [sys.executable, "-c", WRAPPER], mpirun_of(ranks)
    command = [str(tree / "build/benchmarks/step_bench"), transport, str(entries), str(steps)]
    if transport == "thread":
        command.append(str(ranks))
    return command, mpirun_of(ranks) if transport == "mpi" else []


def measure(trees: list[Path], case: tuple[str, str, int, int, int], turns: int) -> dict[str, Any]:
    name, *job = case
    times: list[list[float]] = [[], []]
    for turn in range(turns):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            command, mpirun = command_of(trees[which], *job)
            times[which].append(run(trees[which], command, mpirun))
    old, new = (min(values) for values in times)
    middle = statistics.median(times[1]) / statistics.median(times[0])
    return {
        "case": name,
        "entries": job[1],
        "old_us": round(old, 2),
        "new_us": round(new, 2),
        "ratio": round(new / old, 3),
        "ratio_of_medians": round(middle, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    trees = [arguments.old.resolve(), arguments.new.resolve()]
    rows = []
    for case in [*CASES, ("wrapper, 200 parameters, P = 2", "wrapper", 20_000, 0, 2)]:
        row = measure(trees, case, arguments.turns)
        rows.append(row)
        print(
            "{case:32} {entries:>10}  {old_us:>10} {new_us:>10} us  {ratio:.3f} ({ratio_of_medians:.3f})".format(**row)
        )
    if arguments.json:
        commits = [
            subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=tree, capture_output=True, text=True, check=False
            ).stdout.strip()
            for tree in trees
        ]
        result = {
            "machine": platform.processor() or platform.machine(),
            "commits": commits,
            "turns": arguments.turns,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
