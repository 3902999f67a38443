"""The reducers of a model: which parameter goes through which, one exchange of all gradients, and residuals by name.

Knows parameters and reducers; knows nothing of optimizers, schedules and checkpoints' formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..comm import Comm
from ..reducer import Reducer, reduce_together
from ..step_stats import merged
from .parameters import Slot, hand_over


@dataclass(frozen=True)
class Options:
    """How gradients are exchanged; the same on all ranks. See `gtopk.DistributedOptimizer`."""

    algorithm: str = "gtopk"
    value_type: str = "bf16"
    residual_policy: str = "share"
    merge_growth: float = 1.0
    momentum_correction: bool = False
    dense_below: int = 0
    dense_1d: bool = False

    def is_dense(self, slot: Slot) -> bool:
        """Whether a parameter is sent dense."""
        return slot.numel < self.dense_below or (self.dense_1d and slot.parameter.dim() <= 1)

    def describe(self) -> list[Any]:
        """For the comparison of ranks: what the library does not compare by itself."""
        names = ("dense_below", "dense_1d", "momentum_correction")
        return ["the options", *(f"{name}={getattr(self, name)}" for name in names)]


class Part(NamedTuple):
    """A reducer and the parameters that are its segments."""

    reducer: Reducer
    slots: list[Slot]
    dense: bool


class Waiting(NamedTuple):
    """What belongs to one parameter outside of the reducers: float32, in the parameter's shape."""

    residual: Tensor
    velocity: Tensor | None


class Exchange:
    """Moves the gradients of a changing set of parameters.

    Those that are to be sent dense go through a reducer of their own. Both reducers take each step together: it happens
    in both or in none.
    """

    def __init__(self, comm: Comm, options: Options) -> None:
        self.comm = comm
        self.options = options
        self.parts: list[Part] = []
        self.waiting: dict[str, Waiting] = {}
        self._density = 0.0
        self._momentum = (0.0, False)

    # ---- set-up ----

    def build(self, slots: Sequence[Slot], density: float) -> None:
        """Makes the reducers for `slots`. Collective. Residuals follow their parameters; those left out wait."""
        self.park()
        dense = [slot for slot in slots if self.options.is_dense(slot)]
        sparse = [slot for slot in slots if not self.options.is_dense(slot)]
        parts: list[Part] = []
        try:
            if dense:
                parts.append(Part(self._reducer(dense, density, dense=True), dense, True))
            if sparse or not dense:
                parts.append(Part(self._reducer(sparse, density, dense=False), sparse, False))
        except BaseException:
            for part in parts:
                part.reducer.close()
            raise
        self.parts = parts
        self._density, self._momentum = density, (0.0, False)
        for part in self.parts:
            for segment, slot in enumerate(part.slots):
                self._unpark(part, segment, self.waiting.pop(slot.name, None))

    def park(self) -> None:
        """Takes every residual out of the reducers and closes them."""
        for part in self.parts:
            for segment, slot in enumerate(part.slots):
                self.waiting[slot.name] = self._read(part, segment)
        self.close()

    def close(self) -> None:
        """Frees the reducers with all that is in them."""
        for part in self.parts:
            part.reducer.close()
        self.parts = []

    def set_density(self, density: float) -> None:
        """The density of the steps to come. Collective when it changes."""
        if density == self._density:
            return
        for part in self.parts:
            if not part.dense:
                part.reducer.set_density(density)
        self._density = density

    def set_momentum(self, momentum: float, nesterov: bool) -> None:
        """The momentum of the velocity, where there is one. A dense part has none: its optimizer does it as always."""
        if (momentum, nesterov) == self._momentum:
            return
        for part in self.parts:
            if not part.dense:
                part.reducer.set_momentum(momentum, nesterov)
        self._momentum = (momentum, nesterov)

    # ---- one step ----

    def run(self, scale: float, found_inf: bool) -> dict[str, Any]:
        """Adds every gradient, times `scale`, to the residuals, exchanges, and puts the mean update into the gradients.

        One C call accumulates all gradients of a part, and zeroes them on the way, so that writing the update takes
        time for the sent entries only.
        """
        handed = [hand_over(part.slots) for part in self.parts]
        try:
            for part, (blocks, _) in zip(self.parts, handed, strict=True):
                part.reducer.accumulate_many(None, blocks, scale, zero_input=not found_inf, found_inf=found_inf)
            stats = self.reduce([blocks for blocks, _ in handed], are_zero=not found_inf)
        except BaseException:  # Ctrl-C in between: what was accumulated is sent in a later step
            for part in self.parts:
                part.reducer.cancel()
            raise
        for _, copied in handed:
            for slot, grad in copied:
                slot.put_back(grad)
        return stats

    def reduce(self, blocks: list[list[Tensor]], *, are_zero: bool) -> dict[str, Any]:
        """After everything was accumulated: exchanges, and writes the mean update to one block for each slot of each
        part."""
        return merged(reduce_together([part.reducer for part in self.parts], blocks, outputs_are_zero=are_zero))

    def run_joined(self) -> dict[str, Any]:
        """Takes part in a step of the others without a gradient. The update is not for this rank."""
        return merged(reduce_together([part.reducer for part in self.parts], None, joined=True))

    # ---- residuals ----

    def state(self) -> dict[str, Waiting]:
        """A copy of what every parameter has, in reducers and waiting."""
        found = {name: _copied(entry) for name, entry in self.waiting.items()}
        for part in self.parts:
            for segment, slot in enumerate(part.slots):
                found[slot.name] = self._read(part, segment)
        return found

    def residual_norm(self) -> float:
        """Euclidean norm of this rank's residual."""
        norms = [part.reducer.residual_norm() for part in self.parts]
        norms += [float(entry.residual.double().norm()) for entry in self.waiting.values()]
        return float(sum(norm**2 for norm in norms) ** 0.5)

    def _reducer(self, slots: Iterable[Slot], density: float, *, dense: bool) -> Reducer:
        options = self.options
        return Reducer(
            [slot.numel for slot in slots],
            density=density,
            algorithm="dense" if dense else options.algorithm,
            value_type="fp32" if dense else options.value_type,
            residual_policy=options.residual_policy,
            merge_growth=1.0 if dense else options.merge_growth,
            momentum_correction=options.momentum_correction and not dense,
            comm=self.comm,
        )

    def _has_velocity(self, part: Part) -> bool:
        return self.options.momentum_correction and not part.dense

    def _read(self, part: Part, segment: int) -> Waiting:
        slot = part.slots[segment]
        velocity = part.reducer.velocity(segment) if self._has_velocity(part) else None
        return Waiting(
            slot.shaped(_torch(part.reducer.residual(segment))),
            None if velocity is None else slot.shaped(_torch(velocity)),
        )

    def _unpark(self, part: Part, segment: int, entry: Waiting | None) -> None:
        if entry is None:
            return
        slot = part.slots[segment]
        part.reducer.set_residual(segment, slot.flattened(entry.residual))
        if entry.velocity is not None and self._has_velocity(part):
            part.reducer.set_velocity(segment, slot.flattened(entry.velocity))


def _copied(entry: Waiting) -> Waiting:
    return Waiting(entry.residual.clone(), None if entry.velocity is None else entry.velocity.clone())


def _torch(array: Any) -> Tensor:
    """A reducer that has not seen a tensor yet may answer with numpy."""
    return array if isinstance(array, Tensor) else torch.from_numpy(array)
