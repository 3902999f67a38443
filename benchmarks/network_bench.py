"""Methods side by side over emulated networks: benchmarks/cluster, MPI and gloo. Needs root.

    make bench-network ARGS="--case 4:100mbit:25000000 --json FILE"

A case is RANKS:RATE:ENTRIES, one rank a host. In each round of a case three programs take turns, and in each of them its
methods do: ``allreduce_bench`` (MPI), ``network_gloo.py`` (torchrun) and ``network_numpy.py`` (the published exchange).
The time of a step is that of the slowest rank; that of the exchange alone is from when the last rank came to it until the last
one had the result. Medians over all rounds; ratios are taken within a case. Beside it stands what a method would take on links
of the latency and bandwidth that were measured, if nothing but messages took time. Where all methods of a program do not fit
into memory at once, it is started several times. The file has the load of the machine as well, and what the links gave before
and after; a case that it has is replaced, the others stay.
"""

from __future__ import annotations

import argparse
import json
import math
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
SIZES = (270_000, 14_700_000, 25_000_000)  # ResNet-20, VGG-16 for CIFAR-10, ResNet-50; AlexNet's 66M take hours
CASES = [
    f"{ranks}:{rate}:{n}"
    for ranks, rate in ((2, "1gbit"), (4, "1gbit"), (4, "100mbit"), (8, "100mbit"), (16, "100mbit"))
    for n in SIZES
]
DENSE = ("mpi dense", "mpi MPI_Allreduce", "mpi MPI ring", "gloo gloo")
NO_STEP = ("mpi bare", "mpi all-gather", "mpi published")  # an exchange only
A_METHOD = 16  # bytes an entry and rank that a method of network_gloo.py keeps
AT_MOST = 12e9  # bytes that those of one start may keep
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
        kept.update({key: row[key] for key in ("counted_bytes", "bytes", "cpu_ms", "wrong") if row.get(key)})

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
        from network_gloo import METHODS  # with torch

        gloo = [str(HERE / "network_gloo.py"), "--entries", str(self.entries), "--density", str(self.options.density)]
        turns = ["--turns", str(self.options.turns)]
        at_once = max(1, int(AT_MOST / (A_METHOD * self.entries * self.ranks)))
        for at in range(0, len(METHODS), at_once):
            methods = ["--methods", ",".join(METHODS[at : at + at_once])]
            for row in self.run("torchrun", gloo, [*turns, *methods], self.options.limit):
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
            **summary(self.rows, self.ranks, self.entries, self.k, self.rate, links),
        }


def formula(method: str, ranks: int, entries: int, k: int, message: float, link: dict[str, float]) -> float | None:
    """Seconds of the messages of an exchange that wait for each other; `message`: bytes of k entries, encoded. `ranks` is a
    power of two."""
    rounds = (ranks - 1).bit_length()
    share = 2 * (ranks - 1) / ranks  # of all bytes, there and back
    messages, sent = {
        **dict.fromkeys(("dense", "MPI_Allreduce", "MPI ring", "gloo"), (2 * (ranks - 1), share * 4 * entries)),
        "ring bf16": (2 * (ranks - 1), share * 2 * entries),
        "topk": (rounds, (ranks - 1) * message),
        **dict.fromkeys(("gtopk", "bare"), (rounds, rounds * message)),
        "gtopk-tree": (2 * rounds, 2 * rounds * message),
        "gtopk-split": (2 * rounds, share * message),
        "published": (2 * rounds, 2 * rounds * 16 * k),
        "all-gather": (rounds, (ranks - 1) * 8 * k),
    }.get(method.split(" ", 1)[1], (0, 0.0))
    seconds = messages * 1e-6 * link["latency_us"] + 8e-6 * sent / link["bandwidth_mbit"]
    return seconds if messages and ranks & (ranks - 1) == 0 else None


def summary(
    rows: dict[str, dict[str, Any]], ranks: int, entries: int, k: int, rate: str, links: list[dict[str, float]]
) -> dict[str, Any]:
    link = {key: statistics.mean(one[key] for one in links) for key in ("latency_us", "bandwidth_mbit")}
    message = float(rows["mpi gtopk"]["bytes"]) / (ranks - 1).bit_length()
    for row in rows.values():
        for key in ("ms", "exchange_ms"):
            if row.get(key):
                row[f"median_{key}"] = round(statistics.median(row[key]), 3)
                row[f"min_{key}"] = min(row[key])
        alone = formula(row["method"], ranks, entries, k, message, link)
        if alone is not None and row.get("median_exchange_ms"):
            row["formula_ms"] = round(1e3 * alone, 3)
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
    names = ("step, ms", "exchange", "by formula", "CPU, ms", "counted", "speed-up")
    print(f"  {'':18}" + "".join(f" {name:>11}" for name in names))
    for row in case["rows"]:
        keys = ("median_ms", "median_exchange_ms", "formula_ms", "cpu_ms", "counted_bytes", "speedup")
        print(
            f"  {row['method']:18}" + "".join(f" {format(row[key], '.9g') if key in row else '':>11}" for key in keys)
        )
    for name, value in case["ratios"].items():
        print(f"  {value:10}  {name}")
    sys.stdout.flush()


def print_tables(cases: list[dict[str, Any]]) -> None:
    """In Markdown: a table a network of exchanges, steps and bytes, and one of all ratios."""
    networks = list(dict.fromkeys((case["ranks"], case["rate"]) for case in cases))
    for ranks, rate in networks:
        own = [case for case in cases if (case["ranks"], case["rate"]) == (ranks, rate)]
        print(f"\n| {ranks} hosts, {rate}: exchange (by the formula); step, ms; bytes counted | ", end="")
        print(" | ".join(f"{case['entries'] / 1e6:g}M" for case in own), "|")
        print("| --- |" + " --- |" * len(own))
        rows = [{row["method"]: row for row in case["rows"]} for case in own]
        for method in rows[-1]:
            print(f"| {method} | " + " | ".join(cell(of.get(method)) for of in rows) + " |")
    print("\n| ratio | " + " | ".join(f"{c['ranks']}, {c['rate']}, {c['entries'] / 1e6:g}M" for c in cases) + " |")
    print("| --- |" + " --- |" * len(cases))
    for name in dict.fromkeys(name for case in cases for name in case["ratios"]):
        print(f"| {name} | " + " | ".join(short(case["ratios"].get(name, math.nan)) for case in cases) + " |")


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    parts = []
    if row.get("median_exchange_ms"):
        parts.append(f"{short(row['median_exchange_ms'])} ({short(row['formula_ms'])})")
    if row["method"] not in NO_STEP:
        parts.append(short(row["median_ms"]))
    parts.append(f"{row['counted_bytes'] / 1e6:.3g} MB")
    return "; ".join(parts)


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    from pictures import pyplot as plt

    columns = min(3, len(cases))
    lines = -(-len(cases) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 4.4 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(cases) :]:
        axis.remove()
    for axis, case in zip(axes.flat, cases, strict=False):
        rows = [row for row in reversed(case["rows"]) if row["method"] not in NO_STEP]
        colours = ["tab:blue" if "gtopk" in row["method"] else "tab:gray" for row in rows]
        axis.barh([row["method"] for row in rows], [row["median_ms"] for row in rows], color=colours)
        axis.set_xscale("log")
        axis.set_xlim(left=10 ** math.floor(math.log10(min(row["median_ms"] for row in rows))))
        axis.xaxis.set_minor_formatter(lambda *_: "")
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
    parser.add_argument("--tables", action="store_true", help="print what --json has in Markdown, and run nothing")
    options = parser.parse_args()
    if options.tables:
        print_tables(json.loads(options.json.read_text())["cases"])
        return

    from report import machine

    def key(case: dict[str, Any]) -> tuple[int, float, int]:
        return case["ranks"], BITS[case["rate"]], case["entries"]

    cases: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        cases = json.loads(options.json.read_text())["cases"]
    for text in options.case or CASES:
        case = Case(text, options)
        about = {
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "rounds": options.rounds,
            "turns": options.turns,
        }
        try:
            measured = {**case.measure(), **about}
        finally:
            case.call("down")
        print_case(measured)
        cases = sorted([other for other in cases if key(other) != key(measured)] + [measured], key=key)
        if options.json:
            command = "make bench-network, --rounds and --turns as in each case"
            options.json.write_text(json.dumps({"command": command, "cases": cases}, indent=1) + "\n")
            draw(cases, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
