"""A training script that can go on after a rank was lost: it saves a consolidated checkpoint every so many steps.

run.sh starts it. Each rank draws data of its own; a small network learns what another, random network does.

A consolidated checkpoint holds the model, the optimizer, and the sum of what all ranks had not sent yet. Any number of
ranks can load it: each takes the mean, so nothing is lost but the steps since it was saved.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gtopk

SAVE_EVERY = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="file to go on from, and to save to")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0, help="of the networks and of all data (%(default)s)")
    parser.add_argument("--timeout", type=float, default=8.0, help="seconds until a lost rank is noticed (%(default)s)")
    parser.add_argument("--lose", type=int, metavar="RANK", help="this rank kills itself ...")
    parser.add_argument("--at", type=int, metavar="STEP", default=50, help="... before this step (%(default)s)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one"
    )
    options = parser.parse_args()

    torch.set_num_threads(1)
    gtopk.init(timeout=options.timeout)
    torch.manual_seed(options.seed)
    device = choose_device(options.device)
    teacher = network().to(device)
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), density=0.01)

    first = load(options.checkpoint, model, optimizer) if options.checkpoint.exists() else 0
    gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
    say(f"step {first:3d}  ranks {gtopk.size()}  loss {evaluate(model, teacher):.4f}")
    for step in range(first, options.steps):
        if step == options.at and gtopk.rank() == options.lose:
            os.kill(os.getpid(), signal.SIGKILL)
        x, y = batch(teacher, seed=1 + step * 1000 + gtopk.rank() + options.seed * 1_000_000)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0:
            save(options.checkpoint, model, optimizer, step + 1)
            say(f"step {step + 1:3d}  ranks {gtopk.size()}  loss {evaluate(model, teacher):.4f}")
    gtopk.shutdown()


def save(file: Path, model: nn.Module, optimizer: Any, step: int) -> None:
    """All ranks take part, rank 0 writes. The file is whole at every moment."""
    state = optimizer.consolidate_state_dict(to=0)
    if gtopk.rank() == 0:
        fresh = file.with_suffix(".new")
        torch.save({"model": model.state_dict(), "optimizer": state, "step": step}, fresh)
        fresh.replace(file)


def load(file: Path, model: nn.Module, optimizer: Any) -> int:
    """All ranks read the same file; each takes the mean of the residuals."""
    saved = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])

    again = optimizer.consolidate_state_dict(to=0)
    if again is not None and saved["optimizer"]["gtopk"]["residual"]:  # one rank alone has none
        before, after = residual(saved["optimizer"]), residual(again)
        difference = float((before - after).abs().max() / before.abs().max())
        say(
            f"residual: a mean of {before.abs().sum():.4f} over the {saved['optimizer']['gtopk']['size']} ranks of the file, "
            f"of {after.abs().sum():.4f} over {gtopk.size()} ranks; largest difference {difference:.1e} of the largest"
        )
    return int(saved["step"])


def residual(state: dict[str, Any]) -> Tensor:
    """The mean over the ranks."""
    total = torch.cat([values.flatten() for values in state["gtopk"]["residual"].values()]).double()
    return total / state["gtopk"]["size"]


def choose_device(name: str) -> str:
    """Each process of a host has a GPU of its own, as far as they go."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("--device cuda: PyTorch sees no GPU")
        torch.cuda.set_device(gtopk.local_rank() % torch.cuda.device_count())
    return name


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 1))


def batch(teacher: nn.Module, seed: int, size: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 16, generator=torch.Generator().manual_seed(seed)).to(next(teacher.parameters()).device)
    with torch.no_grad():
        return x, 4 * teacher(2 * x)


def evaluate(model: nn.Module, teacher: nn.Module) -> float:
    x, y = batch(teacher, seed=0, size=2000)
    with torch.no_grad():
        return float(nn.functional.mse_loss(model(x), y))


def say(text: str) -> None:
    if gtopk.rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
