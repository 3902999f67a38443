"""What the exchange does, as curves in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..step_stats import CURVES


class Writer(Protocol):
    """The part of torch.utils.tensorboard.SummaryWriter that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> object:
        """Adds one point."""


def write_stats(
    writer: Writer, stats: Mapping[str, Any], global_step: int | None = None, prefix: str = "gtopk"
) -> None:
    """Writes the statistics of one step.

    Parameters
    ----------
    writer : torch.utils.tensorboard.SummaryWriter
        Or anything with its ``add_scalar``.
    stats : mapping
        ``optimizer.stats()``, or ``optimizer.stats(residual_norm=True)``, or ``gtopk.stats()``.
    global_step : int, optional
        Default: the step of the statistics.
    prefix : str
        The group of curves.

    Examples
    --------
    >>> from gtopk.torch.tensorboard import write_stats
    >>> class Printer:
    ...     def add_scalar(self, tag, value, step):
    ...         print(tag, value, step)
    >>> write_stats(Printer(), {"step": 7, "k": 1000, "wait_s": 0.25})
    gtopk/k 1000.0 7
    gtopk/wait_s 0.25 7
    """
    step = stats.get("step") if global_step is None else global_step
    for name in (*CURVES, "residual_norm"):
        if name in stats:
            writer.add_scalar(f"{prefix}/{name}", float(stats[name]), step)
