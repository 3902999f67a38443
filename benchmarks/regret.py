"""How much slower what algorithm="auto" takes is than the best single choice: the table in results/README.md.

    python benchmarks/regret.py --simulated --json benchmarks/results/regret.json
    mpirun -n 4 python benchmarks/regret.py --name "4 ranks, shared memory" --json benchmarks/results/regret.json

--simulated: over the rows of results/scale.json. The prediction gets the rows' bandwidth, the mean latency of a butterfly's
rounds (what gtopk_comm_measure finds), and no costs of a machine, as computing takes no time there. Regret is the time of what
it picks over the least.

Under a launcher: every algorithm and auto take steps of one gradient in turns, so that a loaded machine slows all of them. Of
each step the slowest rank's time counts. `settled`: medians of the second half, auto over the best single algorithm. `all`:
means over all steps, so that what auto tries on its way counts. A single algorithm that takes longer than --budget seconds in
all is given up, with at least three steps.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import gtopk
from gtopk.advise import WORTH_A_CHANGE

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "scale"))
import scale  # noqa: E402

RESULTS = HERE / "results"
ALGORITHMS = ("dense", "topk", "gtopk", "gtopk-split", "gtopk-tree")


def pick(costs: gtopk.Costs, entries: int, ranks: int, density: float, among: list[str]) -> str:
    """What auto begins with."""
    name, seconds = costs.best(entries, ranks=ranks, density=density, among=among)
    if "gtopk" not in among:
        return name
    return name if seconds < WORTH_A_CHANGE * costs.predict(entries, ranks=ranks, density=density) else "gtopk"


def simulated() -> list[dict[str, Any]]:
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in json.loads((RESULTS / "scale.json").read_text())["rows"]:
        if row["algorithm"] in ALGORITHMS:  # nodes are other machines
            groups[row["network"], row["job"], row["ranks"]].append(row)
    rows = []
    for (network, job, ranks), found in groups.items():
        seconds = {row["algorithm"]: row["seconds"] for row in found}
        if len(seconds) < 2:
            continue
        first = found[0]
        place = next(one for one in scale.NETWORKS if one.name == network)
        latency = scale.way(place, ranks, "gtopk")
        costs = gtopk.Costs(gathers=True).with_network(latency=latency, bandwidth=1 / first["seconds_a_byte"])
        chosen = pick(costs, first["n"], ranks, first["k"] / first["n"], list(seconds))
        best = min(seconds, key=lambda one: seconds[one])
        rows.append(
            {"network": network, "job": job, "ranks": ranks, "chosen": chosen, "best": best}
            | {"regret": seconds[chosen] / seconds[best] - 1, "seconds": seconds}
        )
    return rows


def slowest(seconds: float) -> float:
    return float(np.max(np.frombuffer(gtopk.allgather(np.array([seconds])).tobytes(), np.float64)))


def take_step(reducer: gtopk.Reducer, gradient: np.ndarray, output: np.ndarray) -> float:
    gtopk.barrier()
    start = time.perf_counter()
    reducer.accumulate(0, gradient)
    reducer.reduce([output])
    return slowest(time.perf_counter() - start)


def measured(entries: int, density: float, steps: int, budget: float) -> dict[str, Any]:
    names = [*ALGORITHMS, "auto"]
    reducers = {name: gtopk.Reducer([entries], density=density, algorithm=name) for name in names}
    random = np.random.default_rng(gtopk.rank())
    gradient = (random.standard_normal(entries) ** 3).astype(np.float32)
    output = np.empty_like(gradient)
    times: dict[str, list[float]] = {name: [] for name in names}
    taken = []
    for step in range(steps):
        for name in names[step % len(names) :] + names[: step % len(names)]:
            mine = times[name]
            if name == "auto" or len(mine) < 3 or sum(mine) < budget:
                mine.append(take_step(reducers[name], gradient, output))
        taken.append(reducers["auto"].stats()["algorithm"])
    settled = {name: statistics.median(mine[len(mine) // 2 :]) for name, mine in times.items()}
    mean = {name: statistics.fmean(mine) for name, mine in times.items()}
    best = min(ALGORITHMS, key=lambda one: settled[one])
    known = reducers["auto"].stats()
    for reducer in reducers.values():
        reducer.close()
    return {
        "entries": entries,
        "density": density,
        "best": best,
        "first": taken[0],
        "last": taken[-1],
        "tried": sorted(set(taken)),
        "predicted": known["predicted_seconds"],
        "measured": known["measured_seconds"],
        "settled": settled["auto"] / settled[best] - 1,
        "same": settled["auto"] / settled[taken[-1]] - 1,  # what two reducers of one algorithm differ in: the noise
        "all": mean["auto"] / min(mean[one] for one in ALGORITHMS) - 1,
        "milliseconds": {name: 1e3 * seconds for name, seconds in settled.items()},
    }


def keep(path: Path | None, name: str, part: dict[str, Any]) -> None:
    if path is None:
        return
    report = json.loads(path.read_text()) if path.exists() else {}
    report[name] = part | {"date": datetime.now(timezone.utc).date().isoformat(), "machine": platform.machine()}
    path.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--name", default="ranks", help="of what is run, in the file")
    parser.add_argument("--entries", default="10000,270000,2500000")
    parser.add_argument("--densities", default="0.001,0.01,0.1")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds for one algorithm")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gtopk.init()
    if options.simulated:
        rows = simulated()
        for row in rows:
            if row["regret"] > 0:
                print(
                    f"{row['network']:>9} n {row['job']:>3} P {row['ranks']:4}: {row['chosen']} in place of {row['best']}, "
                    f"{100 * row['regret']:.1f} % slower"
                )
        worst = max(row["regret"] for row in rows)
        right = sum(row["regret"] == 0 for row in rows)
        print(f"{right} of {len(rows)} picked the fastest; {100 * worst:.1f} % slower at worst")
        keep(options.json, "simulated", {"rows": rows})
        return
    costs = gtopk.Costs.measure()
    rows = []
    for entries in map(int, options.entries.split(",")):
        for density in map(float, options.densities.split(",")):
            row = measured(entries, density, options.steps, options.budget)
            rows.append(row)
            if gtopk.rank() == 0:
                times = "  ".join(f"{name} {ms:.2f}" for name, ms in row["milliseconds"].items())
                print(
                    f"n {entries:8} d {density:g}: best {row['best']}, auto {row['first']} -> {row['last']}: settled "
                    f"{100 * row['settled']:+.0f} %, noise {100 * row['same']:+.0f} %, all {100 * row['all']:+.0f} %   {times}",
                    flush=True,
                )
    if gtopk.rank() == 0:
        whole = math.exp(statistics.fmean(math.log1p(row["settled"]) for row in rows)) - 1
        print(f"geometric mean of settled: {100 * whole:+.1f} %")
        keep(options.json, options.name, {"ranks": gtopk.size(), "costs": vars(costs), "rows": rows})


if __name__ == "__main__":
    main()
