"""Each process's residual as a file beside what a framework saves."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..torch.ddp_hook import GTopKState

_log = logging.getLogger("gtopk")


def save(state: GTopKState, folder: Path) -> None:
    """Writes this process's, whole at every moment."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _file(state, folder)
    part = file.with_suffix(".part")
    torch.save(state.state_dict(), part)
    part.rename(file)


def load(state: GTopKState, folder: Path) -> None:
    """Reads this process's; where there is none the residual starts at zero, with a warning."""
    file = _file(state, folder)
    if file.exists():
        state.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    else:
        _log.warning("%s has no %s: the residual of this process starts at zero", folder, file.name)


def _file(state: GTopKState, folder: Path) -> Path:
    return folder / f"gtopk-{state.session.comm.rank}.pt"
