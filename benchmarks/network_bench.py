"""Methods side by side over emulated networks: benchmarks/cluster, MPI and gloo. Needs root.

    make bench-network ARGS="--case 4:100mbit:25000000 --json FILE"

A case is RANKS:RATE:ENTRIES, one rank a host. In each round of a case three programs take turns, and in each of them its
methods do: ``allreduce_bench`` (MPI), ``network_gloo.py`` (torchrun) and ``network_numpy.py`` (the published exchange).
The time of a step is that of the slowest rank; that of the exchange alone is of the rank which came to it last, and waited
for nobody. Medians over all rounds; ratios are taken within a case. The file also has the load of the machine, and what the
links gave before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
CLUSTER = HERE / "cluster" / "cluster.sh"
CASES = ("4:100mbit:25000000", "2:1gbit:25000000", "4:100mbit:14700000", "4:1gbit:25000000", "8:100mbit:14700000")
DENSE = ("mpi dense", "mpi MPI_Allreduce", "mpi MPI ring", "gloo gloo")
NO_STEP = ("mpi bare", "mpi all-gather", "mpi published")  # an exchange only
BITS = {"100mbit": 1e8, "1gbit": 1e9, "10gbit": 1e10}


def call_cluster(name: str, *command: str, limit: float | None = None) -> str:
    """What `cluster.sh` prints, for the cluster of that name. RuntimeError: it failed. TimeoutError: after `limit` seconds."""
    return run_to_end([str(CLUSTER), *command], {"CLUSTER": name, "GTOPK_MPI_MODULE": ""}, limit)


def run_to_end(command: list[str], environment: dict[str, str], limit: float | None) -> str:
    """What a command prints. The processes that it started end with it, also where it is given up or interrupted."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with subprocess.Popen(
        command,
        env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except BaseException as error:
            end_group(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{' '.join(command)} took more than {limit:g} s") from None
            raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output[-2000:]}{errors[-2000:]}")
    return output


def end_group(process: subprocess.Popen[str]) -> None:
    """First by the signal at which torchrun and mpirun end their ranks, which are in groups of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=30)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


class Case:
    def __init__(self, text: str, options: argparse.Namespace) -> None:
        ranks, self.rate, entries = text.split(":")
        self.ranks, self.entries, self.options = int(ranks), int(entries), options
        self.k = max(1, round(options.density * self.entries))
        self.rows: dict[str, dict[str, Any]] = {}

    def call(self, *command: str, limit: float | None = None) -> str:
        return call_cluster(self.options.cluster, *command, limit=limit)

    def run(self, kind: str, program: list[str], turns: list[str], limit: float) -> list[dict[str, Any]]:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            extra = ["--interface", "e0", "--json", file.name]
            self.call(kind, str(self.ranks), *program, *turns, *extra, limit=limit)
            rows = json.loads(Path(file.name).read_text())
        return list(rows["rows"] if isinstance(rows, dict) else rows)

    def keep(self, name: str, seconds: list[float], row: dict[str, Any]) -> None:
        kept = self.rows.setdefault(name, {"method": name, "ms": [], "exchange_ms": []})
        kept["ms"] += [round(1e3 * value, 3) for value in seconds]
        kept["exchange_ms"] += [round(1e3 * value, 3) for value in row.get("exchange_s", [])]
        kept.update({key: row[key] for key in ("counted_bytes", "bytes", "cpu_s", "wrong") if row.get(key)})

    def round(self) -> None:
        for program in self.options.programs.split(","):
            {"mpi": self.mpi, "gloo": self.gloo, "published": self.published}[program]()

    def mpi(self) -> None:
        bench = [
            str(self.options.bench.resolve()),
            "--sizes",
            str(self.entries),
            "--density",
            str(self.options.density),
        ]
        turns = ["--iterations", str(self.options.turns), "--warmup", "1", "--check", "1"]
        for row in self.run("mpirun", bench, turns, self.options.limit):
            exchange = [1e-3 * row["exchange_ms"]]
            self.keep(f"mpi {row['algorithm']}", [1e-3 * row["median_ms"]], {**row, "exchange_s": exchange})

    def gloo(self) -> None:
        gloo = [str(HERE / "network_gloo.py"), "--entries", str(self.entries), "--density", str(self.options.density)]
        for row in self.run("torchrun", gloo, ["--turns", str(self.options.turns)], self.options.limit):
            self.keep(f"gloo {row['method']}", row["seconds"], row)

    def published(self) -> None:
        published = [sys.executable, str(HERE / "network_numpy.py"), "--entries", str(self.entries), "--k", str(self.k)]
        for row in self.run("mpirun", published, ["--turns", str(max(3, self.options.turns))], self.options.limit):
            self.keep("mpi published", row["seconds"], row)

    def measure(self) -> dict[str, Any]:
        load = [os.getloadavg()[0]]
        links = [json.loads(self.call("up", str(self.ranks), self.rate).splitlines()[0])]
        for _ in range(self.options.rounds):
            self.round()
            load.append(os.getloadavg()[0])
        links.append(json.loads(self.call("probe").splitlines()[0]))
        return {
            "ranks": self.ranks,
            "rate": self.rate,
            "entries": self.entries,
            "k": self.k,
            "load": [round(value, 1) for value in load],
            "links": links,
            **summary(self.rows, self.ranks, self.rate),
        }


def summary(rows: dict[str, dict[str, Any]], ranks: int, rate: str) -> dict[str, Any]:
    for row in rows.values():
        for key in ("ms", "exchange_ms"):
            if row.get(key):
                row[f"median_{key}"] = round(statistics.median(row[key]), 3)
                row[f"min_{key}"] = min(row[key])
    best = min((name for name in DENSE if name in rows), key=lambda name: float(rows[name]["median_ms"]))
    for row in rows.values():
        row["speedup"] = round(rows[best]["median_ms"] / row["median_ms"], 3)
    own = {name: float(row["median_exchange_ms"]) for name, row in rows.items() if row.get("median_exchange_ms")}
    ratios = {
        "mpi dense / best dense, exchange": ("mpi dense", best),
        "gloo dense / gloo, exchange": ("gloo dense", "gloo gloo"),
        "mpi gtopk / bare exchanges of its bytes": ("mpi gtopk", "mpi bare"),
        "published / mpi gtopk, exchange": ("mpi published", "mpi gtopk"),
        "all-gather of 8 bytes / mpi gtopk, exchange": ("mpi all-gather", "mpi gtopk"),
        "best dense / mpi gtopk, exchange": (best, "mpi gtopk"),
        "ring bf16 / mpi gtopk, exchange": ("mpi ring bf16", "mpi gtopk"),
    }
    values = {name: own[one] / own[other] for name, (one, other) in ratios.items() if one in own and other in own}
    gtopk = rows["mpi gtopk"]
    values["bare exchanges / their bytes at the rate"] = own["mpi bare"] / (8e3 * gtopk["bytes"] / BITS[rate])
    if "gloo ddp" in rows and "gloo ddp gtopk" in rows:
        step = {name: float(row["median_ms"]) for name, row in rows.items()}
        values["DDP / DDP with our hook, step"] = step["gloo ddp"] / step["gloo ddp gtopk"]
    values["counted / own bytes of mpi gtopk"] = gtopk["counted_bytes"] / gtopk["bytes"]
    return {
        "best_dense": best,
        "ratios": {name: round(value, 4) for name, value in values.items()},
        "rows": list(rows.values()),
    }


def print_case(case: dict[str, Any]) -> None:
    print(
        f"\n{case['ranks']} ranks, {case['rate']}, {case['entries']} entries, load {case['load']}, best {case['best_dense']}"
    )
    for row in case["rows"]:
        own = row.get("median_exchange_ms", "")
        print(
            f"  {row['method']:22} {row['median_ms']:11} {own:11} {row.get('counted_bytes', 0):12} {row['speedup']:8}"
        )
    for name, value in case["ratios"].items():
        print(f"  {value:10}  {name}")
    sys.stdout.flush()


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    from pictures import pyplot as plt

    figure, axes = plt.subplots(1, len(cases), figsize=(4.6 * len(cases), 5.2), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases, strict=True):
        rows = [row for row in reversed(case["rows"]) if row["method"] not in NO_STEP]
        colours = ["tab:blue" if "gtopk" in row["method"] else "tab:gray" for row in rows]
        axis.barh([row["method"] for row in rows], [row["median_ms"] for row in rows], color=colours)
        axis.set_xscale("log")
        axis.set_xlabel("ms a step, median")
        axis.set_title(f"{case['ranks']} ranks, {case['rate']}, {case['entries'] / 1e6:g}M entries", fontsize=10)
        axis.tick_params(axis="y", labelsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, default=Path("build/benchmarks/allreduce_bench"))
    parser.add_argument("--case", action="append", help="RANKS:RATE:ENTRIES, several times")
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--rounds", type=int, default=2, help="times that each program is run (2)")
    parser.add_argument("--turns", type=int, default=3, help="steps of each method in a run (3)")
    parser.add_argument("--programs", default="mpi,gloo,published", help="mpi is needed (mpi,gloo,published)")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a run may take")
    parser.add_argument("--cluster", default="bench", help="name of the emulated cluster")
    parser.add_argument("--json", type=Path, help="also writes a picture beside it")
    options = parser.parse_args()

    from report import machine

    cases: list[dict[str, Any]] = []
    started = time.strftime("%Y-%m-%d")
    for text in options.case or CASES:
        case = Case(text, options)
        try:
            cases.append(case.measure())
        finally:
            case.call("down")
        print_case(cases[-1])
        if options.json:
            command = f"python benchmarks/network_bench.py {' '.join(sys.argv[1:])}"
            result = {"machine": machine(), "date": started, "command": command, "cases": cases}
            options.json.write_text(json.dumps(result, indent=1) + "\n")
            draw(cases, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
