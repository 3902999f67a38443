"""The arguments of `gtopk.DistributedOptimizer` that are for local steps, and what they say together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, ClassVar, TypeAlias

import torch

from ..errors import InvalidError, UnsupportedError
from .options import Options

Period: TypeAlias = int | Callable[[int], int]


@dataclass(frozen=True)
class LocalOptions(Options):
    """How differences of weights are exchanged; the same on all ranks. See `gtopk.DistributedOptimizer`."""

    local_steps: Period = 1
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    residual_decay: float = 1.0
    start_dtype: str = "fp32"

    exchanged: ClassVar[str] = "weights"

    def describe(self) -> list[Any]:
        """For the comparison of ranks."""
        length = "a function" if callable(self.local_steps) else self.local_steps
        own = (f"{name}={getattr(self, name)}" for name in OWN if name != "local_steps")
        return [*super().describe(), f"local_steps={length}", *own]

    def period(self, step: int) -> int:
        """How many steps the period has that begins after `step` steps."""
        if callable(self.local_steps):
            return _length(self.local_steps(step), f"local_steps({step})")
        return self.local_steps


OWN = tuple(field.name for field in fields(LocalOptions) if field not in fields(Options))
"""Names of the arguments that are for local steps only; beside them `exchange`, which chooses `LocalOptions`."""


def exchanges_weights(local_steps: Any, exchange: Any) -> bool:
    """Whether differences of weights are exchanged in place of gradients."""
    if exchange not in (None, "gradients", "weights"):
        raise InvalidError(f'exchange is {exchange!r}, but must be "gradients" or "weights"')
    local = callable(local_steps) or _length(local_steps, "local_steps") > 1
    if local and exchange == "gradients":
        raise InvalidError('gradients are exchanged in every step: leave out local_steps, or exchange="gradients"')
    return local or exchange == "weights"


def check_outer(weights: bool, outer_lr: Any, outer_momentum: Any, residual_decay: Any, start_dtype: Any) -> None:
    """Three numbers and a type, which without an exchange of weights stay what they are."""
    if start_dtype not in ("fp32", "bf16"):
        raise InvalidError(f'start_dtype is {start_dtype!r}, but must be "fp32" or "bf16"')
    if not weights and start_dtype != "fp32":
        raise InvalidError(
            f'start_dtype={start_dtype} is for weights: give local_steps=..., or exchange="weights", too'
        )
    given = {"outer_lr": outer_lr, "outer_momentum": outer_momentum, "residual_decay": residual_decay}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidError(f"{name} is {value!r}, but must be a number")
        if not weights and value != getattr(LocalOptions, name):
            raise InvalidError(f'{name}={value} is for weights: give local_steps=..., or exchange="weights", too')
    if not (outer_lr > 0 and isfinite(outer_lr)):
        raise InvalidError(f"outer_lr is {outer_lr}, but must be above 0")
    if not 0 <= outer_momentum < 1:
        raise InvalidError(f"outer_momentum is {outer_momentum}, but must be at least 0 and below 1")
    if not 0 <= residual_decay <= 1:
        raise InvalidError(f"residual_decay is {residual_decay}, but must be from 0 to 1")


def check_local(optimizer: torch.optim.Optimizer, momentum_correction: bool | None) -> None:
    """What cannot be had with local steps."""
    if momentum_correction:
        raise UnsupportedError(
            "momentum_correction=True is for exchanges of gradients, and with local steps each rank applies its own "
            "momentum: leave it out"
        )
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        raise UnsupportedError(
            "a step of ZeroRedundancyOptimizer is one of all ranks together, so there are no local steps: wrap an optimizer "
            "of the class that it was made with, or leave out local_steps"
        )


def _length(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidError(f"{what} is {value!r}, but must be a whole number, 1 or more")
    return value
