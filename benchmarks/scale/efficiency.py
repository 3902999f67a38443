"""Scaling efficiency of the published workloads at 1 Gb/s, beside the published one: make bench-efficiency.

A step of a worker is the computing time of the publication's GPU (P102-100), replayed, plus the exchange, which is simulated
as in scale.py: the unchanged library under SimGrid. The efficiency is the first by their sum. Nothing overlaps, as in the
publication. The exchange of "dense" is the formula of a ring. What the library's kernels would take on such a GPU is an
estimate: 16 bytes an entry at the card's nominal 440 GB/s, and a millisecond (66 us and 59 us a round on an H200).

Published: Shi et al., A Distributed Synchronous SGD Algorithm with Global Top-k Sparsification for Low Bandwidth Networks,
ICDCS 2019, and its authors' scripts (github.com/hclhkbu/gtopkssgd, scripts/icdcs2019/communication.py), which have the seconds
of computing for each batch ("Compu.") and the throughputs that the efficiencies are made of. For LSTM-PTB they have the
throughput alone (392 samples a second); a batch of 100 is our assumption.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import scale

DENSITY = 0.001
BANDWIDTH, REST = 440e9, 1e-3  # of the GPU's memory, bytes a second; seconds of the other kernels
RANKS = (4, 8, 16, 32)
ALGORITHMS = ("dense", "topk", "gtopk", "gtopk-split")
# Entries, seconds of computing, and the published efficiency in percent with 4, 8, 16 and 32 workers.
MODELS = {
    "ResNet-20": (
        270_000,
        0.146005,
        {"dense": (89, 77, 57, 31), "topk": (99, 82, 80, 76), "gtopk": (99.5, 94, 88, 86)},
    ),
    "AlexNet": (
        61_000_000,
        0.257205,
        {"dense": (8, 7, 2.8, 0.7), "topk": (8, 8, 7.7, 5.3), "gtopk": (9.5, 9.5, 9.4, 9.1)},
    ),
    "ResNet-50": (
        25_600_000,
        4.882041,
        {"dense": (74, 70, 44, 20), "topk": (71, 68, 65, 58), "gtopk": (75, 75, 74, 74)},
    ),
    "VGG-16": (
        14_700_000,
        0.139536,
        {"dense": (7.9, 7, 3, 1), "topk": (8.4, 8.3, 7.4, 4.8), "gtopk": (9.9, 9.9, 9.6, 9.4)},
    ),
    "LSTM-PTB": (
        66_000_000,
        100 / 392,
        {"dense": (3.2, 2.2, 1, 0.5), "topk": (5.1, 4.7, 3.8, 1.4), "gtopk": (4.5, 4.5, 3.9, 2.8)},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, type=Path, help="scale.so, as make bench-efficiency builds it")
    parser.add_argument("--smpirun", required=True, type=Path)
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one simulation")
    parser.add_argument("--out", type=Path, default=scale.RESULTS / "efficiency.json")
    options = parser.parse_args()

    network = scale.NETWORKS[0]
    rows = []
    for model, (n, computing, published) in MODELS.items():
        for algorithm in ALGORITHMS:
            for place, ranks in enumerate(RANKS):
                if algorithm == "dense":
                    way = scale.way(network, ranks, algorithm)
                    seconds = scale.formula(algorithm, ranks, n, round(n * DENSITY), way, 1 / network.bandwidth)
                else:
                    row = scale.simulate(options, network, ranks, n, DENSITY, algorithm)
                    seconds = row["seconds"]
                    if row["wrong_ranks"] or row["mass_lost"]:
                        sys.exit(f"{model}, {algorithm}, {ranks} ranks: the result is wrong")
                kernels = 0.0 if algorithm == "dense" else 16 * n / BANDWIDTH + REST
                efficiency = round(100 * computing / (computing + kernels + seconds), 2)
                theirs = published[algorithm][place] if algorithm in published else None
                rows.append({"model": model, "n": n, "algorithm": algorithm, "ranks": ranks, "computing_s": computing})
                rows[-1] |= {"exchange_s": seconds, "kernels_s": kernels, "efficiency": efficiency, "published": theirs}
                print(
                    f"{model:10} {algorithm:12} P {ranks:3}  {1e3 * seconds:9.2f} ms  {efficiency} % ({theirs})",
                    flush=True,
                )
    report = {"date": datetime.now(timezone.utc).date().isoformat(), "command": "make bench-efficiency", "rows": rows}
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
