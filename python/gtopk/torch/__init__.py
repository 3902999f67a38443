"""gtopk for PyTorch: `DistributedOptimizer`, broadcasts, and the DDP hook in `gtopk.torch.ddp_hook`."""

from __future__ import annotations

import importlib
from typing import Any

from .broadcast import allreduce_buffers, broadcast_optimizer_state, broadcast_parameters
from .optimizer import DistributedOptimizer

__all__ = ["DistributedOptimizer", "allreduce_buffers", "broadcast_optimizer_state", "broadcast_parameters"]

_SUBMODULES = ("ddp_hook", "operators", "tensorboard")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
