"""One step: an exchange of a block of memory for each segment, through the reducers of `Parts`.

Knows tensors and how they lie in memory; knows nothing of what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

from torch import Tensor

from .._tensors import TensorTable
from ..comm import Comm
from ..reducer import Reducer, reduce_together
from ..step_stats import NOTHING, merged, remember
from .agreement import any_of
from .options import Options
from .parts import Parts
from .segments import all_flat, disjoint, flat_view, sharing


class _Step:
    """What was given in the step that is going on, by place."""

    def __init__(self, count: int) -> None:
        self.tensors: list[Tensor | None] = [None] * count
        self.blocks: list[Tensor | None] = [None] * count
        self.tables: list[TensorTable] | None = None  # of all blocks, where they were described already
        self.described = 0  # tensors, by `accumulate_some`
        self.copied: list[int] = []
        self.fixed: set[int] = set()  # copied, and not to be written: they share memory
        self.found_inf = False


class Exchange(Parts):
    """Moves blocks of memory, one for each segment. All reducers take each step together: it happens in all or in none.

    In a step `hand_over` and `accumulate` are called, or `accumulate_some` several times; then `reduce`.
    """

    def __init__(self, comm: Comm, options: Options, is_default: bool = False) -> None:
        super().__init__(comm, options, is_default)
        self._buffers: dict[int, Tensor] = {}  # for what has to be copied, by place
        self._step: _Step | None = None

    def close(self) -> None:
        """As there, with the step that is going on."""
        super().close()
        self._buffers, self._step = {}, None

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """What `accumulate` is going to take: a tensor for each segment, in its shape or flat, in the order of its memory.

        Raises
        ------
        UnsupportedError, StateError
            One of them cannot be exchanged. Nothing was changed.
        """
        step = _Step(len(self.segments))
        step.tensors = list(tensors)
        tables = self._describe(tensors) if self.plain else None
        if tables is not None and disjoint(
            [start for table in tables for start in table.starts], chain(*(table.sizes for table in tables))
        ):
            step.blocks = step.tensors
        else:
            blocks = self._blocks(step, range(len(self.segments)), tensors)
            step.blocks = list(blocks)
            tables = self._describe(blocks)
            assert tables is not None  # what could not be described has raised an error
        step.tables = tables
        self._step = step

    def accumulate(self, scale: float = 1.0, *, found_inf: bool = False) -> None:
        """Adds every tensor, times `scale`, to its segment's residual, and sets it to zero.

        With `found_inf` they are left as they are, and the step is non-finite on all ranks. After an error `cancel` is
        to be called.
        """
        step = self._step
        assert step is not None
        assert step.tables is not None
        step.found_inf = found_inf
        # One C call accumulates a part, and zeroes its blocks on the way, so that writing the update takes time for the
        # sent entries only.
        for part, table in zip(self.parts, step.tables, strict=True):
            part.reducer.accumulate_many(
                None, table, scale, zero_input=not found_inf, found_inf=found_inf, input_stays=True
            )

    def accumulate_some(self, places: Sequence[int], tensors: Sequence[Tensor], scale: float = 1.0) -> None:
        """Both at once for some of the segments, each at most once a step."""
        step = self._step = self._step or _Step(len(self.segments))
        blocks: Sequence[Tensor] = tensors
        given: Sequence[Sequence[Tensor] | TensorTable] | None = self._describe_some(places, tensors)
        if given is None:
            blocks = self._blocks(step, places, tensors)
            given = [mine for _, _, mine in self._by_part(places, blocks)]
        else:
            step.described += len(places)
        for (reducer, segments, _), mine in zip(self._by_part(places, blocks), given, strict=True):
            reducer.accumulate_many(segments, mine, scale, zero_input=True, input_stays=True)
        for place, tensor, block in zip(places, tensors, blocks, strict=True):
            step.tensors[place], step.blocks[place] = tensor, block

    def reduce(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Exchanges, and gives the statistics and the mean update, a tensor for each segment.

        These are the tensors that were accumulated, overwritten; or new ones where those share memory with others or
        have gaps.
        """
        step = self._step
        assert step is not None
        outputs: Sequence[Any] | None = step.tables
        if step.described == len(self.segments):
            outputs = [part.reducer.described for part in self.parts]
        if outputs is None:
            for place, segment in enumerate(self.segments):
                if step.blocks[place] is None:  # it was left out
                    step.tensors[place] = step.blocks[place] = segment.new_block().zero_()
            outputs = [part.of(cast(list[Tensor], step.blocks)) for part in self.parts]
        stats = self._reduce(outputs, joined=False, are_zero=not step.found_inf)
        self._step = None
        for place in step.copied:
            tensor, block = step.tensors[place], step.blocks[place]
            assert tensor is not None
            assert block is not None
            step.tensors[place] = self.segments[place].copy_out(block, tensor, place in step.fixed)
        return stats, cast(list[Tensor], step.tensors)

    def reduce_joined(self, updates: Sequence[Tensor] | None = None) -> dict[str, Any]:
        """Takes part in a step of the others without a tensor. `updates`: flat ones to overwrite with the mean update."""
        outputs = None if updates is None else [part.of(updates) for part in self.parts]
        return self._reduce(outputs, joined=True, are_zero=False)

    def cancel(self) -> None:
        """Ends a step that was begun, after an error or an interruption. What was accumulated is sent in a later step."""
        self._step = None
        for part in self.parts:
            part.reducer.cancel()

    def _reduce(self, outputs: Sequence[Any] | None, *, joined: bool, are_zero: bool) -> dict[str, Any]:
        if not self.parts:  # nothing to exchange but whether all ranks have joined
            stats = {**NOTHING, "all_joined": int(not any_of(self.comm, not joined))}
            return remember([stats])[0]
        reducers = [part.reducer for part in self.parts]
        return merged(reduce_together(reducers, outputs, outputs_are_zero=are_zero, joined=joined))

    def _describe(self, tensors: Sequence[Tensor]) -> list[TensorTable] | None:
        """For each part what its reducer is to be given; None where some tensor cannot be handed over as it is."""
        tables = []
        for part in self.parts:
            table = part.reducer.describe(part.of(tensors))
            if table is None:
                return None
            tables.append(table)
        return tables

    def _by_part(
        self, places: Sequence[int], tensors: Sequence[Tensor]
    ) -> list[tuple[Reducer, Sequence[int], Sequence[Tensor]]]:
        """For each part that has some of the places: its reducer, their segments in it, and their tensors."""
        if len(self.parts) == 1:  # then places are segments
            return [(self.parts[0].reducer, places, tensors)]
        found: list[tuple[Reducer, Sequence[int], Sequence[Tensor]]] = []
        for p, part in enumerate(self.parts):
            chosen = [i for i, place in enumerate(places) if self._where[place][0] == p]
            if chosen:
                segments = [self._where[places[i]][1] for i in chosen]
                found.append((part.reducer, segments, [tensors[i] for i in chosen]))
        return found

    def _describe_some(self, places: Sequence[int], tensors: Sequence[Tensor]) -> list[TensorTable] | None:
        """As `_describe`, of some tensors; None where they share memory, too."""
        if not self.plain and any(x.dim() != 1 for x in tensors):
            return None
        tables = []
        for reducer, segments, mine in self._by_part(places, tensors):
            table = reducer.describe_some(segments, mine)
            if table is None:
                return None
            tables.append(table)
        starts = [start for table in tables for start in table.starts]
        return tables if disjoint(starts, chain(*(table.sizes for table in tables))) else None

    def _blocks(self, step: _Step, places: Sequence[int], tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor's memory in the order of its segment; a copy where it lies otherwise, or shares it with another."""
        segments = [self.segments[i] for i in places]
        if all_flat(tensors, segments):
            return list(tensors)
        for segment, tensor in zip(segments, tensors, strict=True):
            segment.check(tensor)
        right = [segment.lies_right(tensor) for segment, tensor in zip(segments, tensors, strict=True)]
        direct = [i for i, one in enumerate(right) if one]
        shared = {direct[i] for i in sharing([tensors[i] for i in direct])}
        blocks = []
        for i, (place, segment, tensor) in enumerate(zip(places, segments, tensors, strict=True)):
            if right[i] and i not in shared:
                blocks.append(flat_view(tensor))
                continue
            block = self._buffers.get(place)
            if block is None:
                block = self._buffers[place] = segment.new_block()
            segment.copy_in(tensor, block)
            step.copied.append(place)
            if i in shared:
                step.fixed.add(place)
            blocks.append(block)
        return blocks
