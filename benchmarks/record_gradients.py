"""Records the gradients of a training script, unchanged, for `select_bench --trace`.

    python benchmarks/record_gradients.py trace.bin 300 examples/cifar_resnet20.py --algorithm dense --steps 300
    build/benchmarks/select_bench --n 272474 --trace trace.bin

The file holds, for each step of the first optimizer that steps, all gradients one after the other as float32. Recording
ends after the given number of steps; the script goes on to its end.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Recorder:
    """Writes the gradients of one optimizer, before each of its steps."""

    def __init__(self, path: Path, steps: int) -> None:
        self.file = path.open("wb")
        self.left = steps
        self.optimizer: torch.optim.Optimizer | None = None
        self.entries = 0

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.optimizer = self.optimizer or optimizer
        if optimizer is not self.optimizer or self.left == 0:
            return
        self.left -= 1
        self.entries = 0
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                self.entries += gradient.numel()
                gradient.detach().float().cpu().contiguous().numpy().tofile(self.file)


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    out, steps, script = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    recorder = Recorder(out, steps)
    register_optimizer_step_pre_hook(recorder)
    sys.argv = sys.argv[3:]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
    recorder.file.close()
    print(f"{out}: {steps - recorder.left} steps of {recorder.entries} entries (select_bench --n {recorder.entries})")


if __name__ == "__main__":
    main()
