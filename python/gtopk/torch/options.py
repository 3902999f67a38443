"""How gradients are exchanged: what all ranks must give alike.

Knows segments; knows nothing of reducers, of densities and their schedule, and of what is an optimizer's own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .agreement import OPTIONS
from .segments import Segment


@dataclass(frozen=True)
class Options:
    """How gradients are exchanged; the same on all ranks. See `gtopk.DistributedOptimizer`."""

    algorithm: str = "gtopk"
    value_type: str = "bf16"
    residual_policy: str = "share"
    merge_growth: float = 1.0
    momentum_correction: bool | None = False  # None: where the default density is low
    dense_below: int = 0
    dense_1d: bool = False
    rollback: bool = False
    residual_dtype: str = "fp32"
    hierarchy: str = "off"

    exchanged: ClassVar[str] = "gradients"

    def is_dense(self, segment: Segment) -> bool:
        """Whether a segment is sent dense."""
        return segment.numel < self.dense_below or (self.dense_1d and len(segment.shape) <= 1)

    def describe(self) -> list[Any]:
        """For the comparison of ranks, by the names that users know."""
        names = [field.name for field in fields(Options)]
        return [OPTIONS, f"exchange={self.exchanged}", *(f"{name}={getattr(self, name)}" for name in names)]
