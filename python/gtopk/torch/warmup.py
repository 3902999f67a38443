"""Density warm-up: which density a step is exchanged with (Lin et al., Deep Gradient Compression, ICLR 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from ..errors import InvalidError

Warmup: TypeAlias = Iterable[tuple[int, float]] | Callable[[int], float]


class DensitySchedule:
    """The density of each step.

    Parameters
    ----------
    density : float
        The density after the warm-up.
    warmup : list of (steps, density), callable or None
        Each density is used for so many steps, one after the other; or a function of the number of steps done.

    Examples
    --------
    >>> from gtopk.torch.warmup import DensitySchedule
    >>> schedule = DensitySchedule(0.001, [(100, 0.25), (100, 0.015)])
    >>> schedule(0), schedule(150), schedule(200)
    (0.25, 0.015, 0.001)
    """

    def __init__(self, density: float, warmup: Warmup | None) -> None:
        self.density = _density(density, "density")
        self._function = warmup if callable(warmup) else None
        self._stages: list[tuple[int, float]] = []
        if warmup is None or callable(warmup):
            return
        end = 0
        for stage in warmup:
            steps, stage_density = _stage(stage)
            end += steps
            self._stages.append((end, stage_density))

    def __call__(self, step: int) -> float:
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
