"""Runs an example for several seeds, one after the other in the same processes, so that PyTorch starts once:

    mpirun -n 4 python benchmarks/examples_ranks.py [--frozen] FIRST_SEED LAST_SEED FILE EXAMPLE [ARGUMENT...]

FILE gets a line for each seed, in JSON: the losses that the example printed, and whether all ranks ended with the same weights,
bit for bit. With --frozen nothing is learned: the learning rate of the wrapped optimizer is 0. {seed} in an argument is the
seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch

import gtopk

STEP = re.compile(r"^step .*?\bloss +([\d.]+|nan|inf)", re.MULTILINE)
wrap, shut_down = gtopk.DistributedOptimizer, gtopk.shutdown


class Watch:
    """What the example wraps, and its weights when it ends."""

    def __init__(self, frozen: bool) -> None:
        self.frozen = frozen
        self.optimizer: Any = None
        self.same = True

    def wrap(self, optimizer: Any, *arguments: Any, **options: Any) -> Any:
        if self.frozen:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        self.optimizer = wrap(optimizer, *arguments, **options)
        return self.optimizer

    def shut_down(self) -> None:
        self.compare()
        shut_down()

    def compare(self) -> None:
        """Of a model in shards, the whole of each parameter."""
        if self.optimizer is None:
            return
        digest = hashlib.sha256()
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                values = parameter.detach()
                values = values.full_tensor() if hasattr(values, "full_tensor") else values
                digest.update(values.cpu().numpy().tobytes())
        mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8).float()[None]
        everywhere = gtopk.allgather(mine)
        self.same = bool((everywhere == everywhere[0]).all())
        self.optimizer = None


def train(script: Path, arguments: list[str], seed: int, frozen: bool) -> dict[str, Any]:
    watch, printed, began = Watch(frozen), io.StringIO(), time.perf_counter()
    gtopk.DistributedOptimizer, gtopk.shutdown = watch.wrap, watch.shut_down
    sys.argv = [str(script), *(argument.replace("{seed}", str(seed)) for argument in arguments)]
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(script), run_name="__main__")
    watch.compare()
    if gtopk.is_initialized():
        shut_down()
    losses = [float(loss) for loss in STEP.findall(printed.getvalue())]
    return {"seed": seed, "losses": losses, "same": watch.same, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    frozen = sys.argv[1] == "--frozen"
    first, last, file, example, *arguments = sys.argv[1 + frozen :]
    script = Path(example)
    sys.path.insert(0, str(script.parent))
    torch.set_num_threads(1)
    for seed in range(int(first), int(last) + 1):
        row = train(script, arguments, seed, frozen)
        if row["losses"]:  # rank 0 prints them
            with Path(file).open("a") as lines:
                lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
