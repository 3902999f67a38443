"""Selection by gtopk's reducer beside the same work by PyTorch's operators, on one GPU. For scripts/gpu_check.py.

PyTorch: ``residual.add_(gradient)``, ``abs``, ``topk``, what was chosen becomes zero in the residual, the gradient is zeroed.
gtopk: accumulate with zeroing, and all of the rest of a step of one rank. Times are from CUDA events, the median of repeats
between which the L2 cache is overwritten. Also: bytes that a reducer has from PyTorch's pool, and which calls of the CUDA
runtime and driver that wait PyTorch's profiler sees in a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import gtopk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
DENSITY = 0.001


class Clock:
    """Microseconds of GPU time; of the host's where there is no GPU."""

    def __init__(self, flush_bytes: int) -> None:
        self.real = torch.cuda.is_available() and torch.version.cuda is not None
        self.flush = torch.empty(flush_bytes, dtype=torch.uint8, device="cuda:0")

    def measure(self, prepare: Callable[[], Any], work: Callable[[], Any], repeats: int) -> float:
        times = []
        for repeat in range(repeats + 3):
            prepare()
            self.flush.zero_()
            torch.cuda.synchronize()
            if self.real:
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                work()
                end.record()
                torch.cuda.synchronize()
                took = begin.elapsed_time(end) * 1e3
            else:
                start = time.perf_counter()
                work()
                torch.cuda.synchronize()
                took = (time.perf_counter() - start) * 1e6
            if repeat >= 3:
                times.append(took)
        return statistics.median(times)


def by_torch(n: int, k: int, fresh: torch.Tensor, clock: Clock, repeats: int) -> dict[str, float]:
    residual = torch.zeros(n, device="cuda:0")
    gradient = fresh.clone()

    def work() -> None:
        residual.add_(gradient)
        _, indices = torch.topk(residual.abs(), k, sorted=False)
        residual[indices] = 0.0
        gradient.zero_()

    return {
        "torch_us": clock.measure(lambda: gradient.copy_(fresh), work, repeats),
        "torch_add_us": clock.measure(lambda: gradient.copy_(fresh), lambda: residual.add_(gradient), repeats),
        "torch_copy_us": clock.measure(lambda: None, lambda: gradient.copy_(fresh), repeats),
    }


def by_gtopk(n: int, fresh: torch.Tensor, clock: Clock, repeats: int) -> dict[str, float]:
    before = torch.cuda.memory_allocated() if clock.real else 0
    reducer = gtopk.Reducer([n], density=DENSITY, device="cuda:0")
    taken = (torch.cuda.memory_allocated() if clock.real else 0) - before
    gradient, misses, step = fresh.clone(), [], 0

    def prepare() -> None:  # another gradient for each step, as in training: the same values from another place on
        nonlocal step
        if step > 0:
            misses.append(reducer.stats()["hint_misses"])
        step += 1
        at = step * 7919 * 64 % n
        gradient[: n - at].copy_(fresh[at:])
        gradient[n - at :].copy_(fresh[:at])

    def work() -> None:
        reducer.accumulate(0, gradient, zero_input=True)
        reducer.reduce([gradient], outputs_are_zero=True)

    found = {"gtopk_us": clock.measure(prepare, work, repeats), "reducer_bytes": taken}
    found["misses"] = sum(misses)
    if clock.real:
        found.update(profile(work, prepare))
    reducer.close()
    return found


def profile(work: Callable[[], None], prepare: Callable[[], Any]) -> dict[str, Any]:
    """Calls that wait, and kernels, in one step, as PyTorch's profiler sees them."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    prepare()
    torch.cuda.synchronize()
    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
    torch.cuda.synchronize()
    names: dict[str, int] = {}
    for event in seen.key_averages():
        if event.key.startswith(("cu", "gtopk_cuda", "Memcpy", "Memset")):
            names[event.key] = event.count
    return {"profile": names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--standin", action="store_true", help="small sizes")
    options = parser.parse_args()
    sizes, repeats, flush = [1_000_000, 25_000_000, 100_000_000], options.repeats, 256 << 20
    if not torch.cuda.is_available():
        import torch_cuda

        if not torch_cuda.available():
            print("skipped: this PyTorch finds no GPU, and nothing stands in for one")
            return
        torch_cuda.install()
    if options.standin:
        sizes, repeats, flush = [20_000], 1, 1 << 16
    gtopk.init(transport="self")
    clock, rows = Clock(flush), []
    for n in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            fresh = torch.randn(n).pow(3).to(dtype).to("cuda:0")
            row: dict[str, Any] = {"n": n, "dtype": str(dtype).removeprefix("torch."), "k": max(1, round(DENSITY * n))}
            row.update(by_torch(n, row["k"], fresh, clock, repeats))
            row.update(by_gtopk(n, fresh, clock, repeats))
            row["ratio"] = row["torch_us"] / row["gtopk_us"]
            rows.append(row)
            print(
                f"n {n:>11,} {row['dtype']:8} PyTorch {row['torch_us']:10.1f} us, gtopk {row['gtopk_us']:9.1f} us: "
                f"{row['ratio']:5.1f} x; {row['misses']} wrong hints; {row['reducer_bytes'] / n:.3f} bytes an entry"
            )
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(rows[-1].get("profile", "no profile"))
    gtopk.shutdown()


if __name__ == "__main__":
    main()
