"""Momentum correction (Lin et al., Deep Gradient Compression, ICLR 2018) around the user's own SGD.

The momentum of the gradients is a velocity in the reducer, on each rank. What stays with the optimizer is the momentum
of the weight decay, which is the same on all ranks, and that of parameters which are sent dense. It lives in SGD's own
``momentum_buffer``, so that checkpoints and broadcasts carry it, and a buffer from plain SGD goes on as it would have.

With the default density it begins by itself, once that is below 0.05: see `is_automatic` and `Handover`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidError, UnsupportedError
from .parts import Waiting

_REMEDY = "change that, or train with momentum_correction=False from the start"


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
                f"momentum correction needs one momentum for all groups, but group 0 has {found[0][0]} (nesterov "
                f"{found[0][1]}) and group {g} has {pair[0]} (nesterov {pair[1]}): {_REMEDY}"
            )
    if not 0 <= found[0][0] < 1:
        raise InvalidError(
            f"momentum is {found[0][0]}, but must be at least 0 and below 1 for momentum correction: {_REMEDY}"
        )
    return found[0]


def is_automatic(optimizer: torch.optim.Optimizer) -> bool:
    """Whether correction may begin by itself: SGD's own momentum, which it applies as SGD does."""
    groups = optimizer.param_groups
    return type(optimizer) is torch.optim.SGD and bool(groups) and groups[0]["momentum"] > 0 and is_one(optimizer)


def is_one(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the groups of SGD have a momentum that can be corrected, as they are now: one, without dampening."""
    found = [[group[name] for name in ("momentum", "nesterov", "dampening")] for group in optimizer.param_groups]
    return all(entry == found[0] and 0 <= entry[0] < 1 and entry[2] == 0 for entry in found)


def groups(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The group of each parameter, by its id."""
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


def sign_of(group: dict[str, Any]) -> float:
    """Of a gradient in SGD's momentum."""
    return -1.0 if group.get("maximize") else 1.0


def as_gradient(residual: Tensor, velocity: Tensor, group: Mapping[str, Any]) -> Tensor:
    """What waits with a velocity, as the gradient that SGD, with its momentum, moves the parameter as far by.

    Momentum is in the residual already, so SGD's is to make no more of it: r (1 - m) (1 + m + m^2 + ...) = r. And a velocity
    goes on as if it were SGD's own, which the next steps move by m v, m^2 v, ...; with Nesterov's, by m^2 v, m^3 v, ...
    """
    factor: float = group["momentum"]
    return residual * (1 - factor) + velocity * (factor**2 if group["nesterov"] else factor)


class Handover:
    """How momentum passes between SGD and the velocities of the ranks, in the middle of a training: `exchange.Momentum`.

    Where correction begins, SGD's momentum goes on as the velocity of each rank, and begins at zero itself. What waits in the
    residual has not been multiplied by momentum yet: it comes to the velocity in such a way that the next step takes it for a
    part of its gradient. Where it ends, as a parameter is sent dense from now on, a residual has both again: `as_gradient`.

    Parameters
    ----------
    optimizer : torch.optim.SGD
    parameters : mapping of str to Tensor
    multiplier : float
        Of the mean update, in the gradients that SGD has seen.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], multiplier: float) -> None:
        self._optimizer, self._parameters, self._multiplier = optimizer, parameters, multiplier
        self._groups = groups(optimizer)

    def has(self, name: str) -> bool:
        """Whether there is any momentum."""
        return self._buffer(name) is not None

    def with_velocity(self, name: str, residual: Tensor) -> Waiting:
        """Residual (on the host, in the shape of the parameter) and velocity. Changes nothing."""
        momentum, nesterov = settings(self._optimizer)
        velocity = torch.zeros_like(residual)
        if momentum == 0:
            return Waiting(residual, velocity)
        buffer = self._buffer(name)
        if buffer is not None:
            sign = sign_of(self._groups[id(self._parameters[name])])
            velocity.add_(buffer.detach().to(velocity.device), alpha=sign / self._multiplier)
        velocity.add_(residual, alpha=1 / momentum)
        return Waiting(residual if nesterov else torch.zeros_like(residual), velocity)

    def without_velocity(self, name: str, residual: Tensor, velocity: Tensor) -> Tensor:
        """The residual that both go on in. Changes nothing."""
        return as_gradient(residual, velocity, self._groups[id(self._parameters[name])])

    def forget(self, name: str) -> None:
        """SGD's momentum begins at zero."""
        if self.has(name):
            self._optimizer.state[self._parameters[name]]["momentum_buffer"] = None

    def _buffer(self, name: str) -> Tensor | None:
        found: dict[str, Any] = self._optimizer.state.get(self._parameters[name], {})
        return found.get("momentum_buffer")


@contextmanager
def applied(optimizer: torch.optim.Optimizer, dense: set[int]) -> Iterator[None]:
    """For the time of the wrapped step: gradients are what is to be subtracted, and SGD adds no momentum to them.

    Parameters
    ----------
    optimizer : torch.optim.SGD
        Its gradients hold the mean update.
    dense : set of int
        ids of the parameters whose momentum is not in the update yet: it is applied here.
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
    sign = sign_of(group)
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        state: dict[str, Any] = optimizer.state[parameter]
        is_dense = id(parameter) in dense
        buffer: Tensor | None = state.get("momentum_buffer")
        if group["weight_decay"] == 0 and buffer is None and not is_dense:
            state["momentum_buffer"] = None  # torch.distributed.checkpoint looks for what SGD has had before
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
