"""Hugging Face Accelerate: `register` puts gtopk's hook into the model that `Accelerator.prepare` gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..torch.ddp_hook import GTopKState, register_hook
from ._files import load, save

__all__ = ["register"]


def register(accelerator: Any, model: Any, **options: Any) -> GTopKState:
    """Exchanges the gradients of a prepared model by gtopk. Collective, after ``accelerator.prepare``.

    ``accelerator.save_state`` and ``load_state`` then save and load each process's residual, too, in a file of its own.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
        With several processes.
    model : DistributedDataParallel
        What its ``prepare`` returned.
    **options
        Of `gtopk.torch.ddp_hook.GTopKState`: density, algorithm, ... Its ``grad_scaler`` is the accelerator's.

    Raises
    ------
    UnsupportedError
        The model is not inside DistributedDataParallel.
    """
    state = register_hook(model, **{"grad_scaler": accelerator.scaler, **options})
    accelerator.register_save_state_pre_hook(lambda _models, _weights, folder: save(state, Path(folder)))
    accelerator.register_load_state_pre_hook(lambda _models, folder: load(state, Path(folder)))
    return state
