"""Runs select_bench, the same step in torch and the published merge in numpy, and writes a JSON file and a picture.

    python benchmarks/select_report.py --bench build/benchmarks/select_bench

Everything is measured in one run on one machine; the torch and numpy rows are ratios to the rows of select_bench with
the same n and k. The published merge is re-created from its description: sets in order of magnitude, indices as
integers; np.intersect1d finds those in common, their values are added, and a full argsort of |value| keeps k.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import pyplot as plt

Row = dict[str, Any]


def median_ms(work: Callable[[], object], prepare: Callable[[], object], repeat: int) -> float:
    """Median time of `work`, with `prepare` called before each and not counted."""
    times = []
    for _ in range(repeat + 1):
        prepare()
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[1:])


def torch_step_ms(n: int, k: int, threads: int, repeat: int) -> float:
    """The whole step in torch: add, abs, topk, take, clear, zero the gradient, write the update."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(n, generator=generator)
    gradient, residual = torch.empty(n), torch.zeros(n)

    def step() -> None:
        residual.add_(gradient)
        index = residual.abs().topk(k, sorted=False).indices
        values = residual[index]
        residual[index] = 0.0
        gradient.zero_()
        gradient[index] = values

    return median_ms(step, lambda: gradient.copy_(source), repeat)


def numpy_merge(own: tuple[np.ndarray, np.ndarray], received: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The published merge, re-created from its description (see the module's text).

    `received` is a message: k indices, then k values, all as float.
    """
    index, value = own[0], own[1].copy()
    other_index, other_value = received[:k].astype(np.int64), received[k:].copy()
    _, here, there = np.intersect1d(index, other_index, return_indices=True)
    value[here] += other_value[there]
    other_value[there] = 0.0
    order = np.abs(np.concatenate([value, other_value])).argsort()[-k:]
    mine, theirs = order[order < k], order[order >= k] - k
    return (
        np.concatenate([index[mine], other_index[theirs]]),
        np.concatenate([value[mine], other_value[theirs]]),
    )


def numpy_merge_ms(n: int, k: int, repeat: int) -> float:
    """Two sets of k that share a quarter of their entries, in order of magnitude as the published code has them."""
    random = np.random.default_rng(1)
    drawn = random.choice(n, 2 * k - k // 4, replace=False).astype(np.int64)
    index, other = random.permutation(drawn[:k]), random.permutation(drawn[-k:])
    value, other_value = (np.sort(random.standard_normal(k).astype(np.float32)) for _ in range(2))
    message = np.concatenate([other.astype(np.float32), other_value])
    return median_ms(lambda: numpy_merge((index, value), message, k), lambda: None, repeat)


def run_bench(bench: Path, arguments: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        subprocess.run([bench, *arguments, "--json", out], check=True)
        result: dict[str, Any] = json.loads(out.read_text())
    result["command"] = " ".join(["select_bench", *arguments])
    return result


def compare(rows: list[Row], density: float, limit: float, repeat: int) -> list[Row]:
    """Adds what torch and numpy need for the same step and merge, for one density."""
    compared = []
    for row in rows:
        if row["density"] != density or row["n"] > limit:
            continue
        ours = row["accumulate_ms"] + row["select_ms"] + row["commit_ms"]
        step = torch_step_ms(row["n"], row["k"], row["threads"], repeat)
        new = {"n": row["n"], "k": row["k"], "threads": row["threads"], "step_ms": ours, "torch_step_ms": step}
        new["torch_to_step"] = step / ours
        if row["threads"] == 1 and row["k"] >= 2:
            new["merge_ms"] = row["merge_ms"]
            new["numpy_merge_ms"] = numpy_merge_ms(row["n"], row["k"], repeat)
            new["numpy_to_merge"] = new["numpy_merge_ms"] / row["merge_ms"]
        print(" ".join(f"{name}={value:.4g}" for name, value in new.items()), flush=True)
        compared.append(new)
    return compared


def draw(result: dict[str, Any], density: float, path: Path) -> None:
    rows = [r for r in result["rows"] if r["density"] == density and r["threads"] == 1]
    n = [r["n"] for r in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))

    def per_entry(*names: str) -> list[float]:
        return [1e6 * sum(r[name] for name in names) / r["n"] for r in rows]

    left.plot(n, per_entry("bare_ms"), "k--", label="bare r += g (12 bytes an entry)")
    left.plot(n, per_entry("accumulate_ms"), "o-", label="accumulate, zeroing, candidates (16 bytes)")
    left.plot(n, per_entry("accumulate_ms", "select_ms", "commit_ms"), "s-", label="whole step")
    left.plot(n, per_entry("miss_ms"), "v:", label="accumulate + select, hint 4 times too high")
    compared = [c for c in result["compared"] if c["threads"] == 1]
    left.plot([c["n"] for c in compared], [1e6 * c["torch_step_ms"] / c["n"] for c in compared], "x-", label="torch")
    # What memory gives is taken from the bare loop where nothing fits a cache: 12 bytes an entry. (memcpy of large blocks
    # goes around the cache, which was slower on the machines that were tried.)
    bandwidth = max(12e-6 * r["n"] / r["bare_ms"] for r in rows if r["n"] >= 10_000_000)
    left.axhline(16 / bandwidth, color="grey", lw=1)
    left.text(n[-1], 16 / bandwidth, f"16 bytes at {bandwidth:.0f} GB/s ", va="bottom", ha="right", color="grey")
    left.set(
        xscale="log", yscale="log", xlabel="entries n", ylabel="ns an entry", title=f"density {density}, one thread"
    )
    left.legend(fontsize=8, loc="upper right")

    biggest = max(r["n"] for r in result["rows"])
    rows = [r for r in result["rows"] if r["n"] == biggest and r["threads"] == 1]
    bottom = np.zeros(len(rows))
    for name in ("accumulate_ms", "select_ms", "commit_ms"):
        height = np.array([r[name] / r["bare_ms"] for r in rows])
        right.bar([str(r["density"]) for r in rows], height, bottom=bottom, label=name.removesuffix("_ms"))
        bottom += height
    right.axhline(1, color="k", ls="--", lw=1, label="bare r += g")
    right.set(xlabel="density", ylabel="time / bare loop", title=f"parts of a step, n = {biggest:,}")
    right.legend(fontsize=8)
    figure.suptitle(f"{result['machine']['cpu']}, {result['machine']['cores']} cores, {result['machine']['isa']}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True, help="the program built from select_bench.c")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/select_cpu"), help="without suffix")
    parser.add_argument("--compare-density", type=float, default=0.001)
    parser.add_argument("--compare-limit", type=float, default=25e6, help="largest n for torch")
    parser.add_argument("--compare-repeat", type=int, default=5)
    parser.add_argument("arguments", nargs="*", help="for select_bench, after --")
    options = parser.parse_args()

    result = run_bench(options.bench, options.arguments)
    result["versions"] = {"torch": torch.__version__, "numpy": np.__version__}
    result["compared"] = compare(result["rows"], options.compare_density, options.compare_limit, options.compare_repeat)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.compare_density, options.out.with_suffix(".png"))
    print(f"wrote {options.out}.json and .png")


if __name__ == "__main__":
    main()
