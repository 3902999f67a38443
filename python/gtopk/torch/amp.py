"""What a torch.amp.GradScaler tells an optimizer: whether gradients overflowed, and their scale.

A scaler that finds ``_step_supports_amp_scaling`` calls ``step()`` on every rank, also after an overflow, and leaves
``found_inf`` and ``grad_scale`` on the optimizer for the time of the call.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

_log = logging.getLogger("gtopk")

_ATTRIBUTES = ("found_inf", "grad_scale")


class Scaled(NamedTuple):
    """One scaler's message."""

    present: bool  # a scaler called step()
    found_inf: bool
    scale: float  # gradients are to be multiplied by it


def read(optimizer: torch.optim.Optimizer) -> Scaled:
    """What the scaler that calls ``optimizer.step()`` left there."""
    found_inf, grad_scale = (optimizer.__dict__.get(name) for name in _ATTRIBUTES)
    found, scale = _numbers(found_inf, grad_scale)
    return Scaled(
        present=found_inf is not None,
        found_inf=found_inf is not None and found != 0.0,
        scale=1.0 if grad_scale is None else 1.0 / scale,
    )


def _numbers(*values: Any) -> list[float]:
    """On the host; several that are on one GPU come in one copy, as each waits for the GPU. None counts as 0."""
    tensors = [value.detach().reshape(()).double() for value in values if isinstance(value, Tensor)]
    if len(tensors) > 1 and tensors[0].is_cuda and len({tensor.device for tensor in tensors}) == 1:
        brought = iter(torch.stack(tensors).tolist())
        return [next(brought) if isinstance(value, Tensor) else float(value or 0.0) for value in values]
    return [0.0 if value is None else float(value) for value in values]


@contextmanager
def hidden(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keeps the two from the wrapped optimizer, whose fused kernels would apply them a second time."""
    attributes = optimizer.__dict__
    kept = {name: attributes.pop(name) for name in _ATTRIBUTES if name in attributes}
    try:
        yield
    finally:
        attributes.update(kept)


def unscaled(scaler: Any, optimizer: torch.optim.Optimizer) -> Scaled:
    """Unscales the gradients unless that was done in this step already, and says whether they overflowed."""
    if scaler is None or not scaler.is_enabled():
        return Scaled(present=False, found_inf=False, scale=1.0)
    state = scaler._per_optimizer_states[id(optimizer)]
    if state["stage"].name == "READY":
        scaler.unscale_(optimizer)
    _fill_in(state)
    return Scaled(
        present=True,
        found_inf=any(found != 0.0 for found in _numbers(*state["found_inf_per_device"].values())),
        scale=1.0,
    )


def note_no_gradients(scaled: Scaled, scaler: Any, optimizer: torch.optim.Optimizer, rank: int) -> None:
    """A scaler that found no gradient at all raises an AssertionError in update(), unless it is told what to note."""
    if not scaled.present or isinstance(optimizer.__dict__.get("found_inf"), Tensor):
        return
    if scaler is not None:
        _fill_in(scaler._per_optimizer_states[id(optimizer)])
        return
    _log.warning(
        'rank %d had no gradient in this step, so scaler.update() fails there with "No inf checks were recorded": wrap '
        "the optimizer with gtopk.DistributedOptimizer(..., grad_scaler=scaler)",
        rank,
    )


def _fill_in(state: Any) -> None:
    if not state["found_inf_per_device"]:
        state["found_inf_per_device"][torch.device("cpu")] = torch.zeros((), device="cpu")
