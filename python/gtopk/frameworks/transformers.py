"""Hugging Face's Trainer: a callback puts gtopk's hook into the DistributedDataParallel that the trainer makes."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from typing import Any

from ..torch.ddp_hook import GTopKState, register_hook
from ._files import load, save

__all__ = ["GTopKCallback"]

_Callback: Any = importlib.import_module("transformers").TrainerCallback


class GTopKCallback(_Callback):  # type: ignore[misc]
    """Exchanges gradients by gtopk: ``trainer.add_callback(GTopKCallback(trainer, density=0.05))``.

    Checkpoints of the trainer have each process's residual, too, in a file of its own; a run that is resumed from one goes on
    with it.

    Parameters
    ----------
    trainer : transformers.Trainer
        It makes its DDP model when training begins, and tells no callback of it.
    **options
        Of `gtopk.torch.ddp_hook.GTopKState`: density, algorithm, ...
    """

    def __init__(self, trainer: Any, **options: Any) -> None:
        self._trainer = trainer
        self._options = options
        self._resumed: Any = None  # what train() was called with: callbacks are not told
        self.state: GTopKState | None = None
        train = trainer.train

        @functools.wraps(train)
        def noted(resume_from_checkpoint: Any = None, *rest: Any, **named: Any) -> Any:
            self._resumed = resume_from_checkpoint
            return train(resume_from_checkpoint, *rest, **named)

        trainer.train = noted

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Registers the hook, and loads the residual where training is resumed."""
        scaler = self._trainer.accelerator.scaler
        self.state = register_hook(self._trainer.model_wrapped, **{"grad_scaler": scaler, **self._options})
        if state.global_step > 0:
            named = isinstance(self._resumed, str | os.PathLike)
            load(self.state, Path(self._resumed) if named else _folder(args, state))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Beside the trainer's checkpoint of this step."""
        if self.state is not None:
            save(self.state, _folder(args, state))


def _folder(args: Any, state: Any) -> Path:
    """The trainer's checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
