"""A step of each algorithm between 2 to 1024 simulated ranks, on Ethernet fat trees, beside the formulas: make bench-scale.

scale.c is what runs, under SimGrid's SMPI. Simulated are the messages: each link has a latency and a bandwidth in each
direction, messages that meet on a link share it. Computing takes no time, so the load of this machine does not matter.
The network is a fat tree of 32 switches with 32 hosts each and 32 links up (full bisection); ranks are placed in order, one
a host. "gtopk, 8 a host" has 8 ranks on each, which share its link and exchange messages at 50 GB/s and 2 us there, and
"gtopk, nodes" the same with hierarchy "node". SimGrid's corrections for TCP and cross-traffic are off: what is compared with
the formula is the algorithm.

Rows are kept as they come, and those that the file has already are not run again (--again: all are). dense and topk need
memory that grows with P on each rank: beyond the sizes of LIMITS their formula stands in the picture alone.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # pictures.py

RESULTS = Path(__file__).resolve().parents[1] / "results"
NODES = "gtopk, nodes"  # between nodes of EACH_NODE ranks, with hierarchy "node"
SHARED = "gtopk, 8 a host"  # as many ranks on a host, without it
EACH_NODE = 8
ON_NODES = (NODES, SHARED)
ALGORITHMS = ("dense", "topk", "gtopk", "gtopk-tree", "gtopk-split", *ON_NODES)
JOBS = {"1M": (1_000_000, 0.025), "25M": (25_000_000, 0.001)}
# The most ranks that fit into 24 GiB together, for each job.
LIMITS = {"dense": {"1M": 128, "25M": 8}, "topk": {"1M": 64, "25M": 64}, NODES: {"1M": 1024, "25M": 64}}
COLOURS = {
    "dense": "#555555",
    "topk": "#E69F00",
    "gtopk": "#0072B2",
    "gtopk-tree": "#009E73",
    "gtopk-split": "#CC79A7",
    NODES: "#D55E00",
    SHARED: "#56B4E9",
}
VALUE_BYTES = 2  # bf16
OPTIONS = (
    "smpi/simulate-computation:no",
    "smpi/privatization:no",
    "network/model:CM02",
    "network/crosstraffic:0",
    "network/TCP-gamma:0",
    "smpi/coll-selector:ompi",
)


@dataclass(frozen=True)
class Network:
    """Bandwidth of a link in bytes a second, and its latency; the longest way has four links."""

    name: str
    bandwidth: float
    latency: float


NETWORKS = (
    Network("1 Gb/s", 125e6, 12.5e-6),
    Network("10 Gb/s", 1250e6, 5e-6),
    Network("100 Gb/s", 12500e6, 1.25e-6),
)


PIECE = 2**18  # floats: those of a message of a node's sum, as csrc/exchange/scatter.c has it
INSIDE = Network("within a node", 50e9, 2e-6)  # of each message; about PCIe 5


def bytes_an_entry(n: int, k: int) -> float:
    """A message's bytes without its header, by its entries: Elias-Fano and bf16."""
    width = int(math.log2(n // k))
    index = -(-k * width // 64) * 8 + -(-(k + ((n - 1) >> width)) // 64) * 8
    return index / k + VALUE_BYTES


def formula(algorithm: str, ranks: int, n: int, k: int, a: float, b: float) -> float:
    """The README's: latency a of a message, b seconds a byte."""
    if algorithm == NODES:
        between = formula("gtopk", ranks // EACH_NODE, n, k, a, b)
        messages = math.ceil(n / EACH_NODE / PIECE) + 1
        return between + (EACH_NODE - 1) * (messages * INSIDE.latency + bytes_inside(n, k) / INSIDE.bandwidth)
    rounds = math.log2(ranks)
    message = k * bytes_an_entry(n, k) * b
    if algorithm == SHARED:
        inside = INSIDE.latency + message / b / INSIDE.bandwidth
        return math.log2(EACH_NODE) * inside + (rounds - math.log2(EACH_NODE)) * (a + EACH_NODE * message)
    return {
        "dense": 2 * a * (ranks - 1) + 2 * (ranks - 1) / ranks * 4 * n * b,
        "topk": a * rounds + (ranks - 1) * message,
        "gtopk": (a + message) * rounds,
        "gtopk-tree": 2 * (a + message) * rounds,
        "gtopk-split": 2 * a * rounds + 2 * (ranks - 1) / ranks * message,
    }[algorithm]


def bytes_inside(n: int, k: int) -> float:
    """What a rank sends another one of its node: a share's gradient, and the update of its own share, both in float."""
    return 4 * n / EACH_NODE + k / EACH_NODE * (bytes_an_entry(n, k) - VALUE_BYTES + 4)


def way(network: Network, ranks: int, algorithm: str) -> float:
    """The latency of a round, on average: partners in one switch are two links apart, others four. Each round of a ring
    waits for the longest way."""
    if algorithm in ON_NODES:
        return way(network, ranks // EACH_NODE, "gtopk")
    rounds = int(math.log2(ranks))
    if rounds == 0:
        return 0.0
    far = max(0, rounds - 5)
    if algorithm == "dense":
        return network.latency * (4 if far else 2)
    return network.latency * (2 * (rounds - far) + 4 * far) / rounds


def write_platform(network: Network, each_node: int, folder: Path) -> None:
    (folder / "platform.xml").write_text(
        f"""<?xml version="1.0"?>
<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">
<platform version="4.1">
<zone id="world" routing="Full">
<cluster id="tree" prefix="n" suffix="" radical="0-1023" speed="1Gf" bw="{network.bandwidth:.0f}Bps"
    lat="{network.latency * 1e6:g}us" loopback_bw="{INSIDE.bandwidth:.0f}Bps" loopback_lat="{INSIDE.latency * 1e6:g}us"
    sharing_policy="SPLITDUPLEX" topology="FAT_TREE" topo_parameters="2;32,32;1,32;1,1"/>
</zone>
</platform>
"""
    )
    (folder / "hosts").write_text("".join(f"n{i // each_node}\n" for i in range(1024)))


def simulate(
    options: argparse.Namespace, network: Network, ranks: int, n: int, density: float, algorithm: str
) -> dict[str, Any]:
    each_node = EACH_NODE if algorithm in ON_NODES else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_platform(network, each_node, folder)
        command = [str(options.smpirun.resolve()), "-np", str(ranks), "-platform", f"{folder}/platform.xml"]
        command += ["-hostfile", f"{folder}/hosts", *(f"--cfg={option}" for option in OPTIONS)]
        command += ["--log=root.thres:warning", str(options.program.resolve()), str(n), str(density)]
        command += {NODES: ["gtopk", str(EACH_NODE)], SHARED: ["gtopk"]}.get(algorithm, [algorithm])
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=options.limit)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode != 0 or len(lines) != 2:
        sys.exit(f"{network.name}, {ranks} ranks, {algorithm}: {run.stdout[-1000:]}{run.stderr[-2000:]}")
    a, b = lines[0]["latency"], lines[0]["seconds_a_byte"]
    row = lines[1] | {
        "algorithm": algorithm,
        "network": network.name,
        "k": round(n * density),
        "latency": a,
        "seconds_a_byte": b,
    }
    row["formula"] = formula(algorithm, ranks, n, row["k"], way(network, ranks, algorithm), 1 / network.bandwidth)
    row["ratio"] = row["seconds"] / row["formula"]
    return row


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from pictures import pyplot as plt

    figure, axes = plt.subplots(
        len(JOBS), len(NETWORKS), figsize=(13, 7.5), sharex=True, sharey="row", layout="constrained"
    )
    sizes = [2**e for e in range(1, 11)]
    for line, (job, (n, density)) in zip(axes, JOBS.items(), strict=True):
        for plot, network in zip(line, NETWORKS, strict=True):
            for algorithm in ALGORITHMS:
                seen = [r for r in rows if (r["algorithm"], r["network"], r["job"]) == (algorithm, network.name, job)]
                those = [p for p in sizes if algorithm not in ON_NODES or p >= 2 * EACH_NODE]
                times = [
                    1e3
                    * formula(algorithm, p, n, round(n * density), way(network, p, algorithm), 1 / network.bandwidth)
                    for p in those
                ]
                plot.plot(those, times, color=COLOURS[algorithm], linewidth=1, label=algorithm)
                plot.plot(
                    [r["ranks"] for r in seen],
                    [1e3 * r["seconds"] for r in seen],
                    "o",
                    markersize=4,
                    color=COLOURS[algorithm],
                )
            plot.set(xscale="log", yscale="log", title=f"{network.name}, n = {job}")
            plot.set_xticks(sizes, [str(p) for p in sizes], fontsize=7)
            plot.minorticks_off()
            plot.grid(alpha=0.3)
    for plot in axes[-1]:
        plot.set_xlabel("ranks")
    for line in axes:
        line[0].set_ylabel("exchange, ms")
    axes[0][0].legend(fontsize=8)
    figure.suptitle("Exchange of 25,000 entries (bf16): simulated (dots) and by the formulas (lines)")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, type=Path, help="scale.so, as make bench-scale builds it")
    parser.add_argument("--smpirun", required=True, type=Path)
    parser.add_argument("--ranks", default="2,4,8,16,32,64,128,256,512,1024")
    parser.add_argument("--networks", default="1,10,100", help="Gb/s")
    parser.add_argument("--jobs", default=",".join(JOBS), help="entries")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one simulation")
    parser.add_argument("--again", action="store_true", help="run also what the file has")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args()

    report: dict[str, Any] = {"rows": []}
    if options.out.exists() and not options.again:
        report = json.loads(options.out.read_text())
    have = {(r["network"], r["ranks"], r["job"], r["algorithm"]) for r in report["rows"]}
    for ranks in map(int, options.ranks.split(",")):
        for job in options.jobs.split(","):
            for network in (x for x in NETWORKS if x.name.split()[0] in options.networks.split(",")):
                for algorithm in options.algorithms:
                    too_large = ranks > LIMITS.get(algorithm, {}).get(job, 1024)
                    too_small = algorithm in ON_NODES and ranks < 2 * EACH_NODE
                    if too_large or too_small or (network.name, ranks, job, algorithm) in have:
                        continue
                    row = simulate(options, network, ranks, *JOBS[job], algorithm) | {"job": job}
                    wrong = " WRONG" if row["wrong_ranks"] or row["mass_lost"] else ""
                    print(
                        f"{network.name:>8}  n {job:>3}  P {ranks:4}  {algorithm:11}  {1e3 * row['seconds']:9.3f} ms  "
                        f"{row['ratio']:.3f} of the formula  {row['bytes']} bytes{wrong}",
                        flush=True,
                    )
                    report["rows"].append(row)
                    report |= {
                        "date": datetime.now(timezone.utc).date().isoformat(),
                        "machine": platform.processor() or platform.machine(),
                        "command": "make bench-scale",
                        "options": OPTIONS,
                    }
                    options.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(report["rows"], options.out.with_suffix(".png"))
    if any(r["wrong_ranks"] or r["mass_lost"] for r in report["rows"]):
        sys.exit("some results are wrong")


if __name__ == "__main__":
    main()
