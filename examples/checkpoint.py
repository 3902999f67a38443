"""A run's file: weights, the optimizer with the sum of all ranks' residuals, and what was measured so far."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from data import DataError
from torch import nn

__all__ = ["read", "restore", "write"]

KEYS = {"model", "weights", "optimizer", "epoch", "ranks", "history"}


def read(file: Path, resume: bool) -> dict[str, Any] | None:
    """What is in the file; None where there is none. A file that nobody wants to go on from is not overwritten."""
    if not file.exists():
        return None
    if not resume:
        raise DataError(f"{file} is there already: go on from it with --resume, or name another file")
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{file} is damaged or no checkpoint ({reason})") from error
    if not isinstance(saved, dict) or not saved.keys() >= KEYS:
        raise DataError(f"{file} is no checkpoint of these examples")
    return saved


def restore(saved: dict[str, Any], name: str, model: nn.Module, optimizer: Any) -> None:
    """Each rank takes the mean of the residuals."""
    if saved["model"] != name:
        raise DataError(f"the checkpoint is of {saved['model']}, not of {name}")
    model.load_state_dict(saved["weights"])
    optimizer.load_state_dict(saved["optimizer"])


def write(file: Path, state: dict[str, Any]) -> None:
    """The file is whole at every moment."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.new")
    torch.save(state, fresh)
    fresh.replace(file)
