"""Momentum correction (Lin et al., Deep Gradient Compression, ICLR 2018) around the user's own SGD.

The momentum of the gradients is a velocity in the reducer, on each rank. What stays with the optimizer is the momentum
of the weight decay, which is the same on all ranks, and that of parameters which are sent dense. It lives in SGD's own
``momentum_buffer``, so that checkpoints and broadcasts carry it, and a buffer from plain SGD goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidError, UnsupportedError


def check(optimizer: torch.optim.Optimizer) -> None:
    """Momentum correction is defined for SGD without dampening."""
    if not isinstance(optimizer, torch.optim.SGD):
        raise UnsupportedError(
            f"momentum_correction=True is for torch.optim.SGD, and this is {type(optimizer).__name__}: leave it out"
        )
    for g, group in enumerate(optimizer.param_groups):
        if group["dampening"] != 0:
            raise UnsupportedError(
                f"momentum_correction=True needs dampening=0, but group {g} has {group['dampening']}: leave one of them out"
            )
    settings(optimizer)


def settings(optimizer: torch.optim.Optimizer) -> tuple[float, bool]:
    """(momentum, nesterov) as the groups have them now: schedulers change momentum."""
    found = [(float(group["momentum"]), bool(group["nesterov"])) for group in optimizer.param_groups]
    for g, pair in enumerate(found):
        if pair != found[0]:
            raise UnsupportedError(
                f"momentum_correction=True needs one momentum for all groups, but group 0 has {found[0][0]} (nesterov "
                f"{found[0][1]}) and group {g} has {pair[0]} (nesterov {pair[1]})"
            )
    if not 0 <= found[0][0] < 1:
        raise InvalidError(
            f"momentum is {found[0][0]}, but must be at least 0 and below 1 for momentum_correction=True"
        )
    return found[0]


@contextmanager
def applied(optimizer: torch.optim.Optimizer, dense: set[int]) -> Iterator[None]:
    """For the time of the wrapped step: gradients are what is to be subtracted, and SGD adds no momentum to them.

    Parameters
    ----------
    optimizer : torch.optim.SGD
        Its gradients hold the mean update.
    dense : set of int
        ids of the parameters that were sent dense: their momentum is not in the update yet.
    """
    kept: list[dict[str, Any]] = []
    try:
        with torch.no_grad():
            for group in optimizer.param_groups:
                _decay(optimizer, group, dense)
                kept.append({name: group[name] for name in ("momentum", "weight_decay", "nesterov")})
                group.update(momentum=0.0, weight_decay=0.0, nesterov=False)
        yield
    finally:
        for group, old in zip(optimizer.param_groups, kept, strict=False):
            group.update(old)


def _decay(optimizer: torch.optim.Optimizer, group: dict[str, Any], dense: set[int]) -> None:
    """Adds the momentum of weight decay to the gradients, and replaces dense ones by their momentum."""
    sign = -1.0 if group["maximize"] else 1.0
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        state: dict[str, Any] = optimizer.state[parameter]
        is_dense = id(parameter) in dense
        buffer: Tensor | None = state.get("momentum_buffer")
        if group["weight_decay"] == 0 and buffer is None and not is_dense:
            continue
        force = parameter.detach() * group["weight_decay"]
        if is_dense:
            force.add_(parameter.grad, alpha=sign)
        if buffer is None:
            buffer = state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer.mul_(group["momentum"]).add_(force)
        total = force.add_(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        if is_dense:
            parameter.grad.copy_(total).mul_(sign)
        else:
            parameter.grad.add_(total, alpha=sign)
