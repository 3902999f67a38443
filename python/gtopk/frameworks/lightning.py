"""Lightning: a callback puts gtopk's hook into the model of its DDPStrategy, on CPUs too."""

from __future__ import annotations

import importlib
from typing import Any

from ..torch.ddp_hook import GTopKState, register_hook

__all__ = ["GTopKCallback"]

_Callback: Any = importlib.import_module("lightning").Callback


class GTopKCallback(_Callback):  # type: ignore[misc]
    """Exchanges gradients by gtopk: ``Trainer(callbacks=[GTopKCallback(density=0.001)], ...)``.

    Lightning's own ``DDPStrategy(ddp_comm_hook=...)`` is for GPUs, and ignored without a word elsewhere. Its checkpoints
    have the sum of all residuals, which fits any number of processes: saving one is collective, as in Lightning anyway.

    Parameters
    ----------
    **options
        Of `gtopk.torch.ddp_hook.GTopKState`: density, algorithm, ...
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._loaded: dict[str, Any] = {}
        self.state: GTopKState | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Registers the hook, and gives it what a checkpoint had."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.state = register_hook(trainer.strategy.model, **{"grad_scaler": scaler, **self._options})
        if self._loaded:
            self.state.load_state_dict(self._loaded)

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint, which rank 0 writes. Collective."""
        if self.state is None or not self.state.stats():
            return {}
        return self.state.consolidate_state_dict(to=0) or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of Lightning's checkpoint, before the model is inside DDP."""
        self._loaded = state_dict
