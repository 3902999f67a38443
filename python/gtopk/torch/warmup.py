"""Density warm-up: which density a step is exchanged with (Lin et al., Deep Gradient Compression, ICLR 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch

from ..errors import InvalidError

Warmup: TypeAlias = Iterable[tuple[int, float]] | Callable[[int], float]
Density: TypeAlias = float | None  # None: everything is sent

AFTER = 0.001  # the density after a warm-up that was given alone
GROWTH = 2.0  # the merge_growth of the default: without it most of what is selected is dropped on its way

# Of the default density, as it would be without growth:
SHARE = 14.0  # it is this over the number of the step,
ADAPTIVE = 50.0  # or this, for optimizers that are not linear in the gradient,
LAST = 0.0005  # to this.
DENSE_STEPS = 39  # Everything is sent in so many steps,
MOST = 0.1  # and then at most this, for sets of entries take memory.
LEAST = 3000  # Of so many entries it is never less: they are 8 kB, .07 ms at 1 Gb/s.
DENSE = 0.35  # Where these are more than this, everything is sent.
CORRECTED = 0.05  # Below it SGD's momentum is applied before entries are selected.


def default_density(
    step: int, share: float = SHARE, dense_steps: int = DENSE_STEPS, most: float = MOST, last: float = LAST
) -> Density:
    """The density of a step where neither density nor warm-up was given: 14 / step, until it is 0.0005.

    With density d what is not sent waits in the order of 1 / d steps: here, for the same part of the training's age all the
    time. 39 steps are dense, then it is 0.1 until that is more than 14 / step. It changes by at most a quarter at once. Where
    sets grow while they are merged, `grown_share` of it is as many bytes. See `share_of` for the 14.
    """
    number = step + 1
    low = max(0, number.bit_length() - 3)
    wanted = share / (number >> low << low)
    return None if step < dense_steps else min(most, max(last, wanted))


def share_of(optimizer: torch.optim.Optimizer | None) -> float:
    """14 for SGD, and 50 for the others: Adam moves a parameter less by a sum that is late than by its parts in time.

    None is an optimizer that is not known.
    """
    return SHARE if isinstance(optimizer, torch.optim.SGD) else ADAPTIVE


def at_least(density: Density, entries: int) -> Density:
    """The default density of so many entries: that of 3000 at least, and everything where that is most of them."""
    if density is None:
        return None
    wanted = max(density, LEAST / max(1, entries))
    return None if wanted > DENSE else wanted


def grown_share(ranks: int, growth: float) -> float:
    """The part of a density with which a rank of gtopk's butterfly sends as many entries with `growth` as without."""
    rounds = ranks.bit_length() - 1
    sent = rounds + (ranks > 1 << rounds)  # messages; the last goes back to a rank beyond a power of two
    return 1.0 if sent == 0 else sent / sum(min(4.0, growth**level) for level in range(sent))


def growth_of(given: float | None, algorithm: str, residual_policy: str, schedule: DensitySchedule) -> float:
    """`merge_growth` where a user gave none: `GROWTH` with the default density, and else the paper's."""
    if given is not None:
        return given
    return GROWTH if schedule.is_default and (algorithm, residual_policy) == ("gtopk", "share") else 1.0


class DensitySchedule:
    """The density of each step.

    Parameters
    ----------
    density : float or None
        The density after the warm-up. None: `default_density`, or where there is a warm-up 0.001 after it.
    warmup : list of (steps, density), callable or None
        Each density is used for so many steps, one after the other; or a function of the number of steps done.
    share : float
        Of the default density.

    Examples
    --------
    >>> from gtopk.torch.warmup import DensitySchedule
    >>> schedule = DensitySchedule(0.001, [(100, 0.25), (100, 0.015)])
    >>> schedule(0), schedule(150), schedule(200)
    (0.25, 0.015, 0.001)
    """

    def __init__(self, density: float | None, warmup: Warmup | None, share: float = SHARE) -> None:
        self.density = AFTER if density is None else _density(density, "density")
        self.is_default = density is None and warmup is None
        self._share = share
        self._function = warmup if callable(warmup) else None
        self._stages: list[tuple[int, float]] = []
        if warmup is None or callable(warmup):
            return
        end = 0
        for stage in warmup:
            steps, stage_density = _stage(stage)
            end += steps
            self._stages.append((end, stage_density))

    def __call__(self, step: int) -> Density:
        if self.is_default:
            return default_density(step, self._share)
        if self._function is not None:
            return _density(self._function(step), f"warmup({step})")
        for end, density in self._stages:
            if step < end:
                return density
        return self.density


def _stage(stage: Sequence[float]) -> tuple[int, float]:
    try:
        steps, density = stage
    except (TypeError, ValueError):
        raise InvalidError(f"warmup holds {stage!r}, but must be a list of (steps, density) or a function") from None
    if int(steps) != steps or steps < 0:
        raise InvalidError(f"warmup holds ({steps!r}, {density!r}), but steps must be a whole number")
    return int(steps), _density(density, "a density of warmup")


def _density(value: float, what: str) -> float:
    try:
        density = float(value)
    except (TypeError, ValueError):
        raise InvalidError(f"{what} is {value!r}, but must be a number") from None
    if not 0 < density <= 1:
        raise InvalidError(f"{what} is {density:g}, but must be above 0 and at most 1")
    return density
