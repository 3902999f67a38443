"""Lightning: a callback puts gtopk's hook into the model of its DDPStrategy, on CPUs too."""

from __future__ import annotations

import importlib
from typing import Any

from ..torch.ddp_hook import GTopKState, register_hook

__all__ = ["GTopKCallback"]

_Callback: Any = importlib.import_module("lightning").Callback


class GTopKCallback(_Callback):  # type: ignore[misc]
    """Exchanges gradients by gtopk: ``Trainer(callbacks=[GTopKCallback()], ...)``.

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
        self._module: Any = None  # that was trained last
        self.state: GTopKState | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Registers the hook, and gives it what a checkpoint had, or what the same module's ``fit`` before this one left."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        before = self.state.state_dict() if self.state is not None and pl_module is self._module else {}
        self.state = register_hook(trainer.strategy.model, **{"grad_scaler": scaler, **self._options})
        self.state.load_state_dict(self._loaded or before)
        self._loaded, self._module = {}, pl_module

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint, which rank 0 writes. Collective."""
        if self.state is None:
            return self._loaded
        if not self.state.stats():  # what it was given, for the first step
            return self.state.state_dict()
        return self.state.consolidate_state_dict(to=0) or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of Lightning's checkpoint, before the model is inside DDP."""
        self._loaded = state_dict
