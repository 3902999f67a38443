"""Trains examples with several seeds, one after the other in the same processes, so that PyTorch starts once:

    mpirun -n 4 python benchmarks/examples_ranks.py [--frozen] JOBS FILE

JOBS has a list of [name, script, arguments, seeds]. FILE gets a line for each training, in JSON: the losses that it printed,
and whether all ranks ended with the same weights, bit for bit. With --frozen nothing is learned: the learning rate of the
wrapped optimizer is 0. Data are read once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
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

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
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


def train(script: str, arguments: list[str], frozen: bool) -> dict[str, Any]:
    watch, printed, began = Watch(frozen), io.StringIO(), time.perf_counter()
    gtopk.DistributedOptimizer, gtopk.shutdown = watch.wrap, watch.shut_down
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    with contextlib.redirect_stdout(printed):
        runpy.run_path(script, run_name="__main__")
    del sys.path[0]
    watch.compare()
    if gtopk.is_initialized():
        shut_down()
    losses = [float(loss) for loss in STEP.findall(printed.getvalue())]
    return {"losses": losses, "same": watch.same, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    *frozen, jobs, file = sys.argv[1:]
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    for reader in map(importlib.import_module, ("data", "speech", "text")):
        reader.load = functools.cache(reader.load)
    for name, script, arguments, seeds in json.loads(Path(jobs).read_text()):
        for seed in seeds:
            own = [*(argument.replace("{seed}", str(seed)) for argument in arguments), "--seed", str(seed)]
            row = {"example": name, "seed": seed, **train(script, own, bool(frozen))}
            if row["losses"]:  # rank 0 prints them
                with Path(file).open("a") as lines:
                    lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
