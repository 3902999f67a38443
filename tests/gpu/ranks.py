"""Ranks that share one GPU: their steps have the CPU's bits, and all ranks the same. For scripts/gpu_check.py.

    mpirun -np 2 python tests/gpu/ranks.py --transport mpi       torchrun ... --transport torch

Each rank makes the same steps twice, with reducers on the GPU and on the CPU: gradients of three types, one reducer for all
parameters, skewed against each other; then the updates, the residuals and what was counted are compared, and a hash of the
updates between ranks. --hierarchy node --each-node 2: every two of them are a node.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

import gtopk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))


def gradients(lengths: list[int], dtype: torch.dtype, rank: int, step: int) -> list[torch.Tensor]:
    maker = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(length, generator=maker).pow(3).to(dtype) for length in lengths]


def steps(device: str, lengths: list[int], dtype: torch.dtype, options: Any) -> tuple[list[torch.Tensor], float]:
    """Updates, counts and residuals of all steps, on the CPU, and seconds of the last step."""
    reducer = gtopk.Reducer(
        lengths,
        density=options.density,
        algorithm=options.algorithm,
        hierarchy=options.hierarchy,
        device=device,
    )
    seen, seconds = [], 0.0
    for step in range(options.steps):
        moved = [gradient.to(device) for gradient in gradients(lengths, dtype, gtopk.rank(), step)]
        begin = time.perf_counter()
        for segment, gradient in enumerate(moved):
            reducer.accumulate(segment, gradient, zero_input=True)
        stats = reducer.reduce(moved, outputs_are_zero=True)
        seen += [update.cpu() for update in moved]
        seconds = time.perf_counter() - begin
        seen.append(torch.tensor([stats["count"], stats["selected"], stats["nonfinite"]]))
    seen += [torch.as_tensor(reducer.residual(segment)) for segment in range(len(lengths))]
    reducer.close()
    return seen, seconds


def compare(on_gpu: list[torch.Tensor], on_cpu: list[torch.Tensor]) -> None:
    for number, (got, expected) in enumerate(zip(on_gpu, on_cpu, strict=True)):
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
        wrong = (got.view(kind) != expected.view(kind)).nonzero().flatten()
        if len(wrong):
            at = int(wrong[0])
            raise SystemExit(
                f"rank {gtopk.rank()}: error: result {number} differs in {len(wrong)} of {len(got)} entries, the first is "
                f"{at}: {got[at].item()} on the GPU, {expected[at].item()} on the CPU"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", choices=("mpi", "torch"), required=True)
    parser.add_argument("--entries", type=int, default=3_000_001)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--algorithm", default="gtopk")
    parser.add_argument("--hierarchy", default="off")
    parser.add_argument("--each-node", type=int, default=0, help="so many ranks share a node, by its name")
    options = parser.parse_args()
    if options.each_node:
        rank = int(os.environ.get("RANK") or os.environ["OMPI_COMM_WORLD_RANK"])
        os.environ["GTOPK_NODE"] = f"node-{rank // options.each_node}"
    if not torch.cuda.is_available():
        import torch_cuda

        if not torch_cuda.available():
            print("skipped: this PyTorch finds no GPU, and nothing stands in for one")
            return
        torch_cuda.install()
    if options.transport == "torch":
        torch.distributed.init_process_group("gloo")
    gtopk.init(transport=options.transport)
    n = options.entries
    lengths = [n // 3, 1, n // 5, 63, n - n // 3 - n // 5 - 64]
    digest = hashlib.sha256()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        on_gpu, seconds = steps("cuda:0", lengths, dtype, options)
        on_cpu, _ = steps("cpu", lengths, dtype, options)
        compare(on_gpu, on_cpu)
        for update in on_gpu[: len(lengths)]:
            digest.update(update.view(torch.uint8).numpy().tobytes())
        if gtopk.rank() == 0:
            print(
                f"{gtopk.size()} ranks, {options.transport}, hierarchy {options.hierarchy}, {dtype}: the CPU's bits; the last "
                f"step took {seconds:.4f} s"
            )
    hashed = int.from_bytes(digest.digest()[:4], "little")
    mine = torch.tensor([float(hashed >> 16), float(hashed & 0xFFFF)], dtype=torch.float64)
    mean = torch.as_tensor(gtopk.allreduce(mine.clone()))
    if not torch.equal(mean, mine):
        raise SystemExit(f"rank {gtopk.rank()}: error: ranks have other updates: {mine} here, {mean} in the mean")
    gtopk.shutdown()


if __name__ == "__main__":
    main()
