"""The reducers of a list of segments, and residuals by name: made, parked when the list changes, read and written.

Knows segments and reducers; knows nothing of parameters, optimizers, schedules and checkpoints' formats, nor of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import _devices
from ..comm import Comm, Sum
from ..errors import StateError
from ..reducer import Reducer
from .agreement import any_of
from .options import Options
from .segments import Segment, resized_text
from .warmup import CORRECTED, MOST, Density, at_least, grown_share


class Part(NamedTuple):
    """A reducer, its segments, and the places of these among all."""

    reducer: Reducer
    segments: list[Segment]
    places: list[int]
    dense: bool
    corrected: bool  # momentum correction

    def of(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """What belongs to this part of a list that has something for every segment."""
        return tensors if len(tensors) == len(self.places) else [tensors[i] for i in self.places]


class Waiting(NamedTuple):
    """What belongs to one segment outside of the reducers: float32, in the segment's shape."""

    residual: Tensor
    velocity: Tensor | None


class Momentum(Protocol):
    """What an optimizer has of it, by the names of segments: correction goes on from there where it begins by itself.

    And the other way round, where a segment with a velocity is sent dense.
    """

    def has(self, name: str) -> bool:
        """Whether there is any."""

    def with_velocity(self, name: str, residual: Tensor) -> Waiting:
        """The residual in the form that it has with a velocity, and this. Changes nothing."""

    def without_velocity(self, name: str, residual: Tensor, velocity: Tensor) -> Tensor:
        """The residual that both go on in, where the optimizer applies momentum itself. Changes nothing."""

    def forget(self, name: str) -> None:
        """It has gone on as a velocity."""


VELOCITY_TEXT = (
    "the state has a velocity, as momentum correction has: wrap the optimizer with momentum_correction=True before "
    "loading it"
)


def _entries(segments: Sequence[Segment]) -> int:
    return sum(segment.numel for segment in segments)


class Parts:
    """Reducers for a changing list of segments, and what waits by name of those that have none.

    Segments that are to be sent dense go through a reducer of their own, and so do those that are whole where others are
    shards.
    """

    def __init__(self, comm: Comm, options: Options, is_default: bool = False) -> None:
        self.comm = comm
        self.options = options
        self.is_default = is_default  # the density, which then depends on the number of entries and ranks, too
        self.declines = False  # this rank wants momentum to stay with the optimizer: it clips updates, for example
        self.as_gradients = False  # some rank does, so momentum does not come into updates by itself
        self.segments: list[Segment] = []
        self.parts: list[Part] = []
        self.plain = False  # all segments: their tensors can be handed over as they are
        self.waiting: dict[str, Waiting] = {}
        self._where: list[tuple[int, int]] = []  # by place: part and segment in it
        self._density: Density = 0.0
        self._momentum = (0.0, False)

    # ---- set-up ----

    def build(
        self, segments: Sequence[Segment], density: Density, steps: int = 0, momentum: Momentum | None = None
    ) -> None:
        """Makes the reducers, after so many steps. Collective. Residuals follow their names; those left out wait.

        Momentum correction that begins by itself takes over `momentum`, and gives velocities of what is dense back to it. After
        an error nothing is lost.

        Raises
        ------
        StateError
            A residual has another shape than its segment. Nothing was changed.
        """
        self._check_shapes(segments)
        if self.options.momentum_correction is None:
            self.as_gradients = any_of(self.comm, self.as_gradients or self.declines)
        self.park()
        kinds: dict[tuple[bool, bool], list[int]] = {(True, False): [], (False, False): [], (False, True): []}
        for i, segment in enumerate(segments):
            is_dense = self.options.is_dense(segment)
            kinds[is_dense, segment.whole and not is_dense].append(i)
        parts: list[Part] = []
        try:
            for (is_dense, _), places in kinds.items():
                if places:
                    mine = [segments[i] for i in places]
                    corrected = not is_dense and (self._is_due(_entries(mine), density) or self._has_velocities(mine))
                    reducer = self._reducer(mine, density, is_dense, corrected, steps)
                    parts.append(Part(reducer, mine, places, is_dense, corrected))
        except BaseException:
            for part in parts:
                part.reducer.close()
            raise
        self.segments, self.parts = list(segments), parts
        places_of = {i: (p, s) for p, part in enumerate(parts) for s, i in enumerate(part.places)}
        self._where = [places_of[i] for i in range(len(segments))]
        self.plain = all(segment.plain for segment in segments)
        self._density, self._momentum = density, (0.0, False)
        try:
            begun = self._unpark_all(momentum)
        except BaseException:
            self.close()  # all of it still waits
            raise
        for place, segment in enumerate(segments):
            self.waiting.pop(segment.name, None)
            if momentum is not None and place in begun:
                momentum.forget(segment.name)

    def _check_shapes(self, segments: Sequence[Segment]) -> None:
        shapes = {segment.name: segment.shape for segment in self.segments}
        shapes |= {name: entry.residual.shape for name, entry in self.waiting.items()}
        for segment in segments:
            if shapes.get(segment.name, segment.shape) != segment.shape:
                raise StateError(resized_text(segment.name, segment.shape, shapes[segment.name]))

    def _unpark_all(self, momentum: Momentum | None) -> set[int]:
        """Puts a copy of what waits into the reducers, and gives the places whose momentum has become a velocity there."""
        begun = set() if momentum is None else self._to_begin(momentum)
        found = [self.waiting.get(segment.name) for segment in self.segments]
        for place, (segment, entry) in enumerate(zip(self.segments, found, strict=True)):
            if momentum is not None and place in begun:
                residual = (
                    torch.zeros(segment.shape, dtype=torch.float32, device="cpu") if entry is None else entry.residual
                )
                self._unpark(place, momentum.with_velocity(segment.name, residual))
            else:
                self._unpark(place, self._fitting(place, entry, momentum))
        self._share_again(found)
        return begun

    def _fitting(self, place: int, entry: Waiting | None, momentum: Momentum | None) -> Waiting | None:
        """An entry without a velocity where the reducer has none: a state came from a run that sent less of it dense."""
        if entry is None or entry.velocity is None or self.parts[self._where[place][0]].corrected:
            return entry
        if momentum is None:
            raise StateError(VELOCITY_TEXT)
        name = self.segments[place].name
        return Waiting(momentum.without_velocity(name, entry.residual, entry.velocity), None)

    def _to_begin(self, momentum: Momentum) -> set[int]:
        """Places whose momentum becomes a velocity here. Collective.

        Not where some rank has both: it has begun, and that momentum, the same on all ranks, is the weight decay's. So it is
        in a state of rank 0 alone. A rank with a velocity only may have begun in a step that failed.
        """
        names = {i: self.segments[i].name for part in self.parts if part.corrected for i in part.places}
        if not names or self.options.momentum_correction is not None or self.options.hierarchy != "off":
            return set()
        begun = {i for i, name in names.items() if name in self.waiting and self.waiting[name].velocity is not None}
        mine = [i for i in sorted(begun) if momentum.has(names[i])]
        not_here = begun.union(*self.comm.allgather_json(mine))
        return {i for i, name in names.items() if i not in not_here and (name in self.waiting or momentum.has(name))}

    def corrects_otherwise(self, density: Density) -> bool:
        """Whether momentum correction begins with this density: `build` is to be called."""
        return any(
            not part.dense and not part.corrected and self._is_due(part.reducer.dim, density) for part in self.parts
        )

    def _has_velocities(self, segments: Sequence[Segment]) -> bool:
        """Whether correction has begun, on some rank: then it goes on, whatever the density. Collective."""
        if self.options.momentum_correction is not None:
            return False
        found = [self.waiting.get(segment.name) for segment in segments]
        return any_of(self.comm, any(entry is not None and entry.velocity is not None for entry in found))

    @property
    def stays_gradient(self) -> bool:
        """Whether a training that goes on from here leaves momentum with the optimizer."""
        return (self.declines or self.as_gradients) and not any(part.corrected for part in self.parts)

    def _is_due(self, entries: int, density: Density) -> bool:
        """Whether momentum is applied before entries are selected: of the default, where they wait for long."""
        if self.options.momentum_correction is not None:
            return self.options.momentum_correction
        wanted = self._density_of(entries, density)
        return not self.as_gradients and self.options.hierarchy == "off" and wanted is not None and wanted < CORRECTED

    def park(self) -> None:
        """Takes every residual out of the reducers and closes them."""
        for place, segment in enumerate(self.segments):
            self.waiting[segment.name] = self._read(place)
        self.close()

    def close(self) -> None:
        """Frees the reducers with all that is in them."""
        for part in self.parts:
            part.reducer.close()
        self.segments, self.parts, self._where = [], [], []

    def set_density(self, density: Density) -> None:
        """The density of the steps to come. Collective when it changes."""
        if density == self._density:
            return
        for part in self.parts:
            if not part.dense:
                wanted = self._density_of(part.reducer.dim, density)
                then = self._density_of(part.reducer.dim, self._density)
                before, after = (self._algorithm(part.segments, one, part.corrected) for one in (then, wanted))
                if before != after == "dense":
                    part.reducer.set_algorithm(after)
                part.reducer.set_density(self._of_entries(wanted))
                if before != after != "dense":  # not before, as it makes room for the entries of that density
                    part.reducer.set_algorithm(after)
        self._density = density

    def set_momentum(self, momentum: float, nesterov: bool) -> None:
        """The momentum of the steps to come."""
        if (momentum, nesterov) != self._momentum:
            for part in self.parts:
                if part.corrected:
                    part.reducer.set_momentum(momentum, nesterov)
            self._momentum = (momentum, nesterov)

    # ---- residuals ----

    def state(self) -> dict[str, Waiting]:
        """A copy of what every segment has, in reducers and waiting."""
        found = {name: _copied(entry) for name, entry in self.waiting.items()}
        for place, segment in enumerate(self.segments):
            found[segment.name] = self._read(place)
        return found

    def residuals(self) -> list[Tensor]:
        """A flat copy for each segment."""
        return [_torch(self.parts[p].reducer.residual(s)) for p, s in self._where]

    def set_residuals(self, residuals: Sequence[Tensor]) -> None:
        """Overwrites them. Between steps."""
        for (p, s), residual in zip(self._where, residuals, strict=True):
            self.parts[p].reducer.set_residual(s, residual)

    def forget_dense(self) -> None:
        """Of a step that failed here, but has happened on other ranks: what is sent dense was sent as a whole."""
        for part in self.parts:
            if part.reducer.next_algorithm == "dense":
                for segment, length in enumerate(part.reducer.segment_lengths):
                    part.reducer.set_residual(segment, torch.zeros(length, device="cpu"))

    def residual_norm(self) -> float:
        """Euclidean norm of this rank's residual."""
        norms = [part.reducer.residual_norm() for part in self.parts]
        norms += [float(entry.residual.double().norm()) for entry in self.waiting.values()]
        return float(sum(norm**2 for norm in norms) ** 0.5)

    def give_back(self, place: int, update: Tensor) -> None:
        """Puts a mean update (flat, in the order of the segment) that no rank applies back into the residual.

        When every rank does so, the mean times the number of ranks is what all of them had taken out. Between steps.
        """
        part, segment = self._where[place]
        reducer = self.parts[part].reducer
        ranks = 1 if reducer.hierarchy == "off" else self.comm.size // reducer.nodes  # whose values lie here
        reducer.set_residual(segment, _torch(reducer.residual(segment)).add_(update.to("cpu"), alpha=ranks))

    def _algorithm(self, segments: Sequence[Segment], density: Density, corrected: bool) -> str:
        """Of a part that is not dense for good."""
        options = self.options
        if options.algorithm == "auto":
            # What is measured may differ between peers, whose updates must not.
            return "gtopk" if segments[0].whole else "auto"
        # Dense is no choice where shares are exchanged, and it would clear all velocities.
        chosen = options.hierarchy != "off" or corrected
        return "dense" if density is None and not chosen else options.algorithm

    def _density_of(self, entries: int, density: Density) -> Density:
        """Of a part, which may be a small one."""
        return at_least(density, entries) if self.is_default else density

    def _of_entries(self, density: Density) -> float:
        """Of a rank, with as many bytes as without growth. Where everything is wanted, but the algorithm sends entries: as
        many as there is memory for."""
        if density is not None and not self.is_default:
            return density
        return (MOST if density is None else density) * grown_share(self.comm.size, self.options.merge_growth)

    def _reducer(
        self, segments: Sequence[Segment], density: Density, dense: bool, corrected: bool, steps: int
    ) -> Reducer:
        options, density = self.options, self._density_of(_entries(segments), density)
        return Reducer(
            [segment.numel for segment in segments],
            density=self._of_entries(density),
            algorithm="dense" if dense else self._algorithm(segments, density, corrected),
            value_type="fp32" if dense else options.value_type,
            residual_policy=options.residual_policy,
            merge_growth=1.0 if dense else options.merge_growth,
            momentum_correction=corrected,
            hierarchy="off" if dense else options.hierarchy,
            rollback=options.rollback,
            residual_dtype="fp32" if dense else options.residual_dtype,
            steps_before=steps,
            device=_devices.of_torch(segments[0].device),
            comm=self.comm,
        )

    def _read(self, place: int) -> Waiting:
        p, s = self._where[place]
        part, segment = self.parts[p], self.segments[place]
        velocity = part.reducer.velocity(s) if part.corrected else None
        return Waiting(
            segment.shaped(_torch(part.reducer.residual(s))),
            None if velocity is None else segment.shaped(_torch(velocity)),
        )

    def _unpark(self, place: int, entry: Waiting | None) -> None:
        if entry is None:
            return
        p, s = self._where[place]
        part, segment = self.parts[p], self.segments[place]
        part.reducer.set_residual(s, segment.flattened(entry.residual))
        if entry.velocity is not None:
            part.reducer.set_velocity(s, segment.flattened(entry.velocity))

    def _share_again(self, found: Sequence[Waiting | None]) -> None:
        """Residual and velocity of shares that lie with another rank than before, from what all ranks have. Collective."""
        for part in self.parts:
            if part.reducer.hierarchy == "off":
                continue
            given = [
                _flat(segment, found[place], part.corrected)
                for segment, place in zip(part.segments, part.places, strict=True)
            ]
            taken = [
                [part.reducer.residual(s), *([part.reducer.velocity(s)] if part.corrected else [])]
                for s in range(len(given))
            ]
            lost = any(
                not torch.equal(_torch(mine), values)
                for pair, entry in zip(taken, given, strict=True)
                for mine, values in zip(pair, entry, strict=True)
            )
            if not any_of(self.comm, lost):
                continue
            for s, entry in enumerate(given):
                part.reducer.set_residual(s, self.comm.allreduce(entry[0], Sum).div_(part.reducer.nodes))
                if part.corrected:
                    part.reducer.set_velocity(s, self.comm.allreduce(entry[1], Sum).div_(part.reducer.nodes))


def _flat(segment: Segment, entry: Waiting | None, with_velocity: bool) -> list[Tensor]:
    """Residual, and velocity, as memory in order; zeros where there is none."""
    values = [None if entry is None else entry.residual]
    if with_velocity:
        values.append(None if entry is None else entry.velocity)
    return [
        torch.zeros(segment.numel, dtype=torch.float32, device="cpu") if one is None else segment.flattened(one)
        for one in values
    ]


def _copied(entry: Waiting) -> Waiting:
    return Waiting(entry.residual.clone(), None if entry.velocity is None else entry.velocity.clone())


def _torch(array: Any) -> Tensor:
    """A reducer that has not seen a tensor yet may answer with numpy."""
    return array if isinstance(array, Tensor) else torch.from_numpy(array)
