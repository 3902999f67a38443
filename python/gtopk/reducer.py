"""The reducer: one training step of sparse gradient exchange, on numpy arrays, torch tensors and arrays on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import _c_api, _devices, _tensors, _threads
from . import comm as _comm
from ._reducer_handle import ReducerHandle, lengths_of, number
from ._tensors import TensorLike
from .errors import InvalidError
from .step_stats import NAMES, remember

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Reducer", "reduce_together"]


class Reducer(ReducerHandle):
    """Adds up gradients over the ranks by exchanging the largest entries only. Making one is collective.

    What is not sent stays in a residual on this rank, one float32 an entry, and is sent in a later step.

    Parameters
    ----------
    segment_lengths : sequence of int
        Entries of each segment (usually one for each parameter), the same on all ranks.
    density : float
        Part of all entries that a rank sends in a step, in (0, 1].
    algorithm : {"gtopk", "gtopk-split", "gtopk-tree", "topk", "dense", "auto"}
        ``gtopk``: the largest entries of the sum, in log2 P rounds. ``gtopk-split``: the largest of each of P ranges, 2k
        entries in all however many ranks there are. ``gtopk-tree``: the paper's tree and broadcast.
        ``topk``: the union of all ranks' entries. ``dense``: everything, as a baseline. ``auto``: the fastest of these, by
        what is measured between these ranks when the first such reducer is made, and by the times of steps; see `stats`.
    value_type : {"bf16", "fp16", "int8", "fp32"}
        How values travel. What rounding takes away stays in the residual.
    residual_policy : {"share", "paper"}
        ``share``: what a merge drops goes back to the residuals of its ranks. ``paper``: as published, which loses the
        value of entries that one branch dropped and another kept.
    merge_growth : float
        At least 1: each round may keep this many times the entries of the one before.
    momentum_correction : bool
        Keep a velocity, 4 more bytes an entry; see `set_momentum`.
    rollback : bool
        A non-finite step leaves the residual (and velocity) as it was before `accumulate`, bit for bit. Takes 4 more
        bytes an entry (8 with a velocity).
    residual_dtype : {"fp32", "bf16"}
        ``bf16``: the residual takes 2 bytes an entry in place of 4, and where it changes it is rounded up or down at random, so
        that the mean is right. On a GPU: emulated only. See the guide on memory.
    device : {"cpu", "cuda", "cuda:1", "reference"} or torch.device, optional
        Where the gradients are, and all that is computed on them. "cuda": PyTorch's current GPU. ``reference`` is slow and
        obvious. Default: GTOPK_DEVICE, else "cpu". Ranks may differ.
    hierarchy : {"off", "node", "auto"}
        What goes over the network where several ranks share a machine. ``node``: they add up their gradients first, each of
        them a share; the algorithm then runs on every share between machines. A machine sends what one rank would send
        alone, and a rank keeps the residual of its share only. Every machine must have as many ranks. ``auto`` tries both
        when the reducer is made, and keeps the faster one; see `stats`. Dense reducers stay as they are. Not on a GPU yet.
    comm : Comm, optional
        Default: the one that ``gtopk.init()`` made.
    steps_before : int
        Steps of the same training that other reducers did: where roundings are random, they are others in each step, and the
        same ones when training is resumed.

    Raises
    ------
    InvalidError
        An argument is wrong.
    MismatchError
        Ranks gave different lengths or options; raised on every rank.

    Notes
    -----
    A step is any number of `accumulate` calls, each segment at most once, and one `reduce` or `reduce_sparse`, which
    are collective. Used by one thread at a time.

    On a GPU everything is queued on PyTorch's current stream there (of other packages' arrays, on the stream that they name),
    and memory comes from PyTorch's pool. Arrays are torch tensors, or have ``__cuda_array_interface__`` or DLPack.
    Residuals and states are copied to host memory. See the guide on GPUs.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.init()
    >>> reducer = gtopk.Reducer([4, 2], density=0.5, value_type="fp32")
    >>> reducer.accumulate(0, numpy.array([1, -8, 2, 0], dtype=numpy.float32))
    >>> reducer.accumulate(1, numpy.array([4, 0], dtype=numpy.float32))
    >>> update = [numpy.empty(4, dtype=numpy.float32), numpy.empty(2, dtype=numpy.float32)]
    >>> reducer.reduce(update)["count"]
    3
    >>> update
    [array([ 0., -8.,  2.,  0.], dtype=float32), array([4., 0.], dtype=float32)]
    >>> reducer.residual(0)
    array([1., 0., 0., 0.], dtype=float32)
    """

    def __init__(
        self,
        segment_lengths: Sequence[int],
        *,
        density: float = 0.001,
        algorithm: str = "gtopk",
        value_type: str = "bf16",
        residual_policy: str = "share",
        merge_growth: float = 1.0,
        momentum_correction: bool = False,
        rollback: bool = False,
        residual_dtype: str = "fp32",
        device: Any = None,
        hierarchy: str = "off",
        comm: _comm.Comm | None = None,
        steps_before: int = 0,
    ) -> None:
        lengths = lengths_of(segment_lengths)
        comm = _comm.current() if comm is None else comm
        named = _devices.wanted(device)
        config = _c_api.ReducerConfig(
            struct_size=ctypes.sizeof(_c_api.ReducerConfig),
            device=None if named is None else named.encode(),
            density=number(density, "density"),
            algorithm=_c_api.code(_c_api.ALGORITHMS | _c_api.AUTO, algorithm, "algorithm"),
            value_type=_c_api.code(_c_api.VALUE_TYPES, value_type, "value_type"),
            residual_policy=_c_api.code(_c_api.RESIDUAL_POLICIES, residual_policy, "residual_policy"),
            momentum_correction=int(bool(momentum_correction)),
            merge_growth=number(merge_growth, "merge_growth"),
            parallel_for=_threads.parallel_for(),
            hierarchy=_c_api.code(_c_api.HIERARCHIES, hierarchy, "hierarchy"),
            rollback=int(bool(rollback)),
            residual_dtype=_c_api.code(_c_api.RESIDUAL_DTYPES, residual_dtype, "residual_dtype"),
            steps_before=steps_before,
            allocator=_devices.allocator(named),
            stream=None if named is None else _devices.of_name(named).stream(),
        )
        super().__init__(lengths, algorithm, config, comm)
        self.value_type = value_type
        self._inputs = _tensors.TensorTable(len(lengths), self._device)
        self._outputs = _tensors.TensorTable(len(lengths), self._device)
        self._stats = _c_api.Stats(struct_size=ctypes.sizeof(_c_api.Stats))
        self._latest: dict[str, Any] = {}

    # ---- one step ----

    def accumulate(
        self,
        segment: int,
        grad: TensorLike,
        scale: float = 1.0,
        *,
        zero_input: bool = False,
        found_inf: bool = False,
    ) -> None:
        """Adds ``scale * grad`` to the residual of one segment. See `accumulate_many`."""
        self.accumulate_many((segment,), (grad,), scale, zero_input=zero_input, found_inf=found_inf)

    def accumulate_many(
        self,
        segments: Sequence[int] | None,
        grads: Sequence[TensorLike] | _tensors.TensorTable,
        scale: float = 1.0,
        *,
        zero_input: bool = False,
        found_inf: bool = False,
        input_stays: bool = False,
    ) -> None:
        """Adds ``scale * grad`` to the residual of several segments, in one pass over memory.

        Parameters
        ----------
        segments : sequence of int, or None
            Which segment each gradient belongs to; each at most once a step. None: all, in order.
        grads : sequence of numpy.ndarray or torch.Tensor
            float32, float16 or bfloat16, contiguous, as long as their segments.
        scale : float
            1 / loss scale, 1 / number of accumulated batches, or 1.
        zero_input : bool
            Set the gradients to zero while reading them.
        found_inf : bool
            The gradients overflowed: touch nothing and make this a non-finite step on all ranks.
        input_stays : bool
            The gradients stay what and where they are until `reduce` of this step has returned. With ``hierarchy="node"``
            they are then read (and with ``zero_input=True`` cleared) there, in place of being copied here.

        Notes
        -----
        Segments that are left out in a step count as zero. An entry that would become Inf or NaN stays as it was and
        makes the step non-finite: see `reduce`.
        """
        lengths: Sequence[int] = self.segment_lengths
        address = None
        if segments is not None:
            lengths, address = self._choose(segments), self._segments.buffer_info()[0]
        if len(grads) != len(lengths):
            raise InvalidError(
                f"{len(grads)} gradients for {len(lengths)} segments: give one tensor for each segment, or name the segments"
            )
        if isinstance(grads, _tensors.TensorTable):
            table = self._own(grads) if segments is None else self._inputs
        else:
            table = self._inputs
            table.fill(grads, lengths, _name("gradient", segments), write=zero_input)
            if grads and (_tensors.is_torch(grads[0]) or _tensors.is_numpy(grads[0])):
                self._kind = _tensors.kind_of(grads[0], "gradient")
        flags = (_c_api.ZERO_INPUT if zero_input else 0) | (_c_api.FOUND_INF if found_inf else 0)
        flags |= _c_api.INPUT_STAYS if input_stays else 0
        status = self._library.gtopk_reducer_accumulate(
            self._talking(), address, table.address, len(grads), number(scale, "scale"), flags, table.stream()
        )
        _c_api.check(status)

    def describe(self, tensors: Sequence[Tensor]) -> _tensors.TensorTable | None:
        """Torch tensors of all segments, in order, for `accumulate_many` and then `reduce` of one step in their place.

        Neither looks at them again, so they must stay what and where they are until then. None where one of them is no
        contiguous tensor on the reducer's device, of its segment's length and of a type that can be exchanged.
        """
        if len(tensors) != len(self.segment_lengths) or not self._outputs.fill_torch(tensors, self.segment_lengths):
            return None
        self._kind = "torch"
        return self._outputs

    def describe_some(self, segments: Sequence[int], tensors: Sequence[Tensor]) -> _tensors.TensorTable | None:
        """The same for some of the segments: for `accumulate_many` of these, and nothing else before it.

        When all segments were described so in a step, `described` is what its `reduce` takes.
        """
        if not self._inputs.fill_torch(tensors, self._choose(segments)):
            return None
        self._outputs.copy_rows(self._inputs, segments)
        self._kind = "torch"
        return self._inputs

    @property
    def described(self) -> _tensors.TensorTable:
        """The tensors that `describe` or `describe_some` has seen."""
        return self._outputs

    def reduce(
        self,
        outputs: Sequence[TensorLike] | _tensors.TensorTable,
        *,
        outputs_are_zero: bool = False,
        joined: bool = False,
    ) -> dict[str, Any]:
        """Exchanges with the other ranks and overwrites `outputs` with the mean update. Collective.

        Parameters
        ----------
        outputs : sequence of numpy.ndarray or torch.Tensor
            One for each segment, in order: float32, float16 or bfloat16, contiguous, writable. Usually the gradients.
        outputs_are_zero : bool
            They hold zeros already (after ``zero_input=True``), so writing takes time for the sent entries only.
        joined : bool
            This rank has no more data. When that is so on all ranks nobody takes an update: ``all_joined`` is 1, outputs
            are zero, and the residual keeps what was accumulated.

        Returns
        -------
        dict
            Statistics of this step on this rank; see `stats`.

        Notes
        -----
        When an entry overflowed on any rank the step is non-finite on all: ``nonfinite`` is 1, outputs are NaN, and
        the residual keeps what was accumulated, or with ``rollback=True`` is what it was before.

        After an error other than `InvalidError` and `StateError` the step did not happen on this rank, the residual is
        as it was after accumulate, and the communicator is broken.
        """
        self._take_outputs(outputs)
        status = self._library.gtopk_reducer_reduce(
            self._talking(),
            self._outputs.address,
            len(outputs),
            _flags(outputs_are_zero, joined),
            self._outputs.stream(),
            ctypes.byref(self._stats),
        )
        _c_api.check(status)
        return remember([self._keep_stats()])[0]

    def reduce_sparse(self, *, joined: bool = False) -> tuple[TensorLike, TensorLike]:
        """As `reduce`, the mean update given as (indices, values). Collective, also with ranks that call `reduce`.

        Returns
        -------
        indices : uint32 array
            Places in the concatenation of all segments, increasing. torch indexes with ``indices.long()``.
        values : float32 array
            Of the kind (numpy or torch) of the gradients. Both are empty after a non-finite step; see `stats`.
        """
        if self._device.is_gpu and self._kind != "torch":
            raise InvalidError("reduce_sparse on a GPU gives torch tensors: import torch first, or call reduce")
        capacity = int(self._library.gtopk_reducer_max_count(self.handle))
        indices = _tensors.empty(self._kind, capacity, "uint32", self._device.place)
        values = _tensors.empty(self._kind, capacity, "float32", self._device.place)
        out = _c_api.Set(_tensors.pointer(indices), _tensors.pointer(values), capacity, 0)
        _c_api.check(
            self._library.gtopk_reducer_reduce_sparse(
                self._talking(),
                ctypes.byref(out),
                _flags(False, joined),
                self._device.stream(),
                ctypes.byref(self._stats),
            )
        )
        remember([self._keep_stats()])
        return indices[: out.count], values[: out.count]

    def stats(self) -> dict[str, Any]:
        """Statistics of the latest step on this rank, {} before the first.

        step, k (entries a rank selects), selected, count (entries of the update), bytes_sent, bytes_received,
        candidates, hint_misses, rounds, nonfinite, all_joined, slowest_peer (-1: none), network_bytes_sent (of bytes_sent,
        those to other nodes), and seconds: accumulate_s, select_s, exchange_s (wait_s is part of it), commit_s.
        hierarchy is the one in use, "off" or "node", and hierarchy_seconds what "auto" found: the time of a step with each.
        algorithm is the one of this step; with "auto" predicted_seconds and measured_seconds are what is known of each.
        """
        return dict(self._latest)

    def _take_outputs(self, outputs: Sequence[TensorLike] | _tensors.TensorTable) -> None:
        if len(outputs) != len(self.segment_lengths):
            raise InvalidError(
                f"{len(outputs)} outputs for {len(self.segment_lengths)} segments: reduce needs one for each"
            )
        if isinstance(outputs, _tensors.TensorTable):
            self._own(outputs)
        else:
            self._outputs.fill(outputs, self.segment_lengths, _name("output", None), write=True)

    def _own(self, table: _tensors.TensorTable) -> _tensors.TensorTable:
        if table is not self._outputs:
            raise InvalidError("the tensors were described by another reducer: call describe of this one")
        return table

    def _keep_stats(self) -> dict[str, Any]:
        raw = self._stats
        self._done += 1
        self._latest = {name: getattr(raw, name) for name in NAMES}
        self._latest |= {"hierarchy": self.hierarchy, "hierarchy_seconds": dict(self.hierarchy_seconds)}
        self._latest["algorithm"] = self._choice.algorithm
        if self.algorithm == "auto":
            self._choice.look()
        self._latest |= {
            "predicted_seconds": dict(self._choice.predicted),
            "measured_seconds": dict(self._choice.measured),
        }
        return dict(self._latest)


def reduce_together(
    reducers: Sequence[Reducer],
    outputs: Sequence[Sequence[TensorLike] | _tensors.TensorTable] | None,
    *,
    outputs_are_zero: bool = False,
    joined: bool = False,
) -> list[dict[str, Any]]:
    """One step of several reducers, as one: it happens in all of them, or after an error in none. Collective.

    Parameters
    ----------
    reducers : sequence of Reducer
        1 to 16, of one communicator; the same in the same order on all ranks.
    outputs : sequence of sequences of numpy.ndarray or torch.Tensor
        For each reducer what `Reducer.reduce` takes. None with ``joined=True``: this rank has no use for the update.
    outputs_are_zero, joined
        See `Reducer.reduce`.

    Returns
    -------
    list of dict
        Statistics of each reducer; see `stats`. A step that is non-finite in one of them is so in all.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.init()
    >>> reducers = [gtopk.Reducer([2], algorithm="dense"), gtopk.Reducer([100], density=0.01)]
    >>> gradients = [numpy.ones(2, dtype=numpy.float32), numpy.ones(100, dtype=numpy.float32)]
    >>> for reducer, gradient in zip(reducers, gradients):
    ...     reducer.accumulate(0, gradient)
    >>> [stats["count"] for stats in gtopk.reduce_together(reducers, [[gradient] for gradient in gradients])]
    [2, 1]
    """
    reducers = list(reducers)
    lists = None
    if outputs is not None:
        lists = [tensors if isinstance(tensors, _tensors.TensorTable) else list(tensors) for tensors in outputs]
    for reducer in reducers:
        if not isinstance(reducer, Reducer):
            raise InvalidError(
                f"reduce_together takes reducers, not {type(reducer).__name__}: make them with gtopk.Reducer"
            )
    if lists is None and not joined:
        raise InvalidError(
            "reduce_together without outputs is for ranks that have joined: give one list for each reducer"
        )
    if lists is not None and len(lists) != len(reducers):
        raise InvalidError(f"{len(lists)} lists of outputs for {len(reducers)} reducers: give one for each")
    for reducer, tensors in zip(reducers, lists or (), strict=False):
        reducer._take_outputs(tensors)
    count = len(reducers)
    handles = (ctypes.c_void_p * count)(*[reducer._talking() for reducer in reducers])
    tables = counts = None
    if lists is not None:
        tables = (ctypes.c_void_p * count)(*[reducer._outputs.address for reducer in reducers])
        counts = (ctypes.c_size_t * count)(*[len(tensors) for tensors in lists])
    places = (ctypes.c_void_p * count)(*[ctypes.addressof(reducer._stats) for reducer in reducers])
    stream = reducers[0]._outputs.stream() if reducers else None
    status = _c_api.library().gtopk_reducers_reduce(
        handles, tables, counts, count, _flags(outputs_are_zero, joined), stream, places
    )
    _c_api.check(status)
    return remember([reducer._keep_stats() for reducer in reducers])


def _flags(outputs_are_zero: bool, joined: bool) -> int:
    return (_c_api.OUTPUT_IS_ZERO if outputs_are_zero else 0) | (_c_api.JOINED if joined else 0)


def _name(word: str, segments: Sequence[int] | None) -> Callable[[int], str]:
    return lambda i: f"{word} of segment {i if segments is None else segments[i]}"
