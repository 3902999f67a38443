"""A communication hook for torch.nn.parallel.DistributedDataParallel.

DDP hands over buckets one at a time during backward, and builds them anew after the first iteration; so what is kept
from step to step is kept by parameter. A bucket is accumulated when it arrives and answered with a pending future; the
last one selects, exchanges, and completes all futures.
"""

import logging
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket

from .. import comm as _comm
from ..comm import Comm
from ..errors import StateError, UnsupportedError
from . import checkpoint
from .agreement import agree, agree_on_progress
from .exchange import Exchange, Options
from .nonfinite import NonfiniteWarning
from .parameters import Slot, check_types, sparse_text
from .profile import record
from .state_form import check_form
from .warmup import DensitySchedule, Warmup

__all__ = ["GTopKState", "gtopk_hook"]

_log = logging.getLogger("gtopk")


class _Bucket:
    """A bucket of the step that is going on. DDP keeps each gradient in it in the memory order of its parameter."""

    def __init__(self, bucket: GradBucket) -> None:
        self.buffer = bucket.buffer()
        if self.buffer.layout is not torch.strided:
            raise UnsupportedError(sparse_text("a parameter"))
        self.parameters = bucket.parameters()
        # What gradients() gives has the shape of the parameter but not its strides: as memory only is it right.
        self.gradients = [gradient.view(-1) for gradient in bucket.gradients()]
        self.future: torch.futures.Future[Tensor] = torch.futures.Future()
        self.accumulated = False
        self.places: list[tuple[int, int]] = []
        self.blocks: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []

    def block(self, slot: Slot, gradient: Tensor) -> Tensor:
        """The gradient's memory, or a copy of a type that can be exchanged."""
        if slot.direct:
            return gradient
        copy = gradient.float()
        self._copied.append((gradient, copy))
        return copy

    def finish(self, scale: float) -> None:
        """Puts the update where DDP looks for it, with the loss scale that the scaler is going to take out."""
        for gradient, copy in self._copied:
            gradient.copy_(copy)
        if scale != 1.0:
            self.buffer.mul_(scale)


class GTopKState:
    """What `gtopk_hook` needs to know and keeps from step to step, for one model. Making one is collective.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup, optional
        The one that DDP uses. Default: all ranks.
    named_parameters : iterable of (str, Tensor), optional
        The names for checkpoints and errors: ``model.named_parameters()`` of the model inside DDP. Default: numbers, in
        the order in which DDP hands parameters over in its first iteration.
    density, algorithm, value_type, residual_policy, merge_growth, warmup, dense_below, dense_1d
        See `gtopk.DistributedOptimizer`.
    grad_scaler : torch.amp.GradScaler, optional
        Needed in mixed precision with a scaler: the residual is kept in unscaled units, as the scale changes. When a
        gradient overflows on one rank, all ranks get NaN, so all scalers skip the step and stay equal.

    Notes
    -----
    DDP does not apply the update of a parameter that no rank used in a step (``find_unused_parameters=True``).

    The state can be saved as PyTorch's PowerSGDState is, by pickling it with ``torch.save``; or without pickle, by
    `state_dict`. The process group is not part of it.

    Examples
    --------
    >>> from gtopk.torch.ddp_hook import GTopKState, gtopk_hook
    >>> def register(ddp: torch.nn.parallel.DistributedDataParallel) -> None:
    ...     ddp.register_comm_hook(GTopKState(density=0.001), gtopk_hook)
    """

    run: int | None  # random id of the training run, the same on all ranks and over checkpoints
    steps: int  # exchanges done
    _exchange: Exchange | None
    _unopened: dict[str, Any] | None  # loaded, and not compared with a model yet
    _slots: dict[int, Slot]  # by id of the parameter, which the slot keeps alive; in the order of the first iteration
    _places: dict[int, tuple[int, int]]  # by id of the parameter: part and segment; empty: build reducers
    _buckets: list[_Bucket]  # of the step that is going on
    _stats: dict[str, Any]

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
        density: float = 0.001,
        algorithm: str = "gtopk",
        value_type: str = "bf16",
        residual_policy: str = "share",
        merge_growth: float = 1.0,
        warmup: Warmup | None = None,
        dense_below: int = 0,
        dense_1d: bool = False,
        grad_scaler: Any = None,
    ) -> None:
        options = Options(algorithm, value_type, residual_policy, merge_growth, False, dense_below, bool(dense_1d))
        self.grad_scaler = grad_scaler
        self._names = {id(parameter): name for name, parameter in named_parameters or ()}
        self._prepare(options, DensitySchedule(density, warmup))
        self._open(process_group)

    def stats(self) -> dict[str, Any]:
        """Statistics of the latest exchange on this rank, {} before the first; see `gtopk.Reducer.stats`."""
        return dict(self._stats)

    def state_dict(self) -> dict[str, Any]:
        """This rank's residual and progress; loads with ``weights_only=True``. Between steps."""
        self._check_between_steps("state_dict")
        if self._unopened is not None or not self._slots:
            return self._unopened or {}
        return checkpoint.save(self, self._parameters())

    def consolidate_state_dict(self, to: int = 0) -> dict[str, Any] | None:
        """The sum of all ranks' residuals on rank `to`, None elsewhere. Collective, between steps."""
        self._check_between_steps("consolidate_state_dict")
        return checkpoint.consolidate(self, self._parameters(), to)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = False) -> None:
        """Goes on from a saved state, which is compared with the model at the next step.

        Parameters
        ----------
        state_dict : mapping
            Of `state_dict` on this rank, or of `consolidate_state_dict`.
        strict : bool
            Make a state of another rank, or of another number of ranks, an error.

        Raises
        ------
        CorruptError
            It is no state of gtopk, or a damaged one. Nothing was changed.
        """
        self._check_between_steps("load_state_dict")
        self._unopened, self._strict = _unopened(state_dict), strict
        self._places = {}

    # ---- what checkpoint asks for ----

    @property
    def comm(self) -> Comm:
        """The ranks."""
        return self.exchange.comm

    @property
    def exchange(self) -> Exchange:
        """The reducers; made at the first step of a state that was unpickled."""
        if self._exchange is None:
            self._open(None)
        assert self._exchange is not None
        return self._exchange

    # ---- pickle ----

    def __getstate__(self) -> dict[str, Any]:
        return {
            "options": self._options,
            "schedule": self._schedule,
            "grad_scaler": self.grad_scaler,
            "state": self.state_dict() or None,
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.grad_scaler = saved["grad_scaler"]
        self._names = {}
        self._prepare(saved["options"], saved["schedule"])
        self._unopened = _unopened(saved["state"] or {})

    # ---- set-up ----

    def _prepare(self, options: Options, schedule: DensitySchedule) -> None:
        self._options, self._schedule = options, schedule
        self._exchange = None
        self._unopened = None
        self._strict = False
        self.run, self.steps = None, 0
        self._slots, self._places, self._buckets = {}, {}, []
        self._stats = {}
        self._warning = NonfiniteWarning()

    def _open(self, process_group: dist.ProcessGroup | None) -> None:
        self._exchange = Exchange(_comm_of(process_group), self._options)

    def _parameters(self) -> dict[str, Tensor]:
        return {slot.name: slot.parameter for slot in self._slots.values()}

    def _build(self) -> None:
        """Reducers for the parameters of all buckets. Collective."""
        slots = self._identify()
        agree(self.comm, "parameters", [self._options.describe(), *(slot.describe() for slot in slots)])
        self._restore()
        mine = None if self.run is None else (self.run, self.steps)
        self.run, self.steps = agree_on_progress(self.comm, mine, secrets.randbits(63))
        self.exchange.build(slots, self._schedule(self.steps))
        self._places = {
            id(slot.parameter): (p, s)
            for p, part in enumerate(self.exchange.parts)
            for s, slot in enumerate(part.slots)
        }

    def _identify(self) -> list[Slot]:
        """The parameters of all buckets under their names, in the order of the first iteration."""
        found = [parameter for bucket in self._buckets for parameter in bucket.parameters]
        if self._slots and any(id(parameter) not in self._slots for parameter in found):
            raise StateError(
                "this GTopKState belongs to another DistributedDataParallel, whose residuals it keeps: make one for each"
            )
        if len(found) == len(self._slots):
            found = [slot.parameter for slot in self._slots.values()]
        slots = [Slot(self._name(parameter, i), parameter) for i, parameter in enumerate(found)]
        self._slots = {id(slot.parameter): slot for slot in slots}
        check_types(self._parameters())
        return slots

    def _restore(self) -> None:
        """Compares a loaded state with the model and takes it over."""
        if self._unopened is None:
            return
        waiting = checkpoint.check(self, self._parameters(), self._unopened, self._strict)
        self.run, self.steps = self._unopened["run"], self._unopened["step"]
        self._unopened = None
        self.exchange.close()
        self.exchange.waiting = waiting

    def _name(self, parameter: Tensor, number: int) -> str:
        known = self._slots.get(id(parameter))
        if known is not None:
            return known.name
        saved = (self._unopened or {}).get("names", ())
        if not self._names and number < len(saved):
            return str(saved[number])
        return self._names.get(id(parameter), str(number))

    def _check_between_steps(self, call: str) -> None:
        if self._buckets:
            raise StateError(f"{call} is not allowed while backward runs: call it after the step")

    # ---- one step ----

    def take(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """One bucket of backward. The last one completes the futures of all."""
        if bucket.index() == 0 and self._buckets:
            self._buckets = []
            raise StateError(
                "the backward pass before this one did not finish, so this rank's gradients are half accumulated: go on from "
                "a checkpoint in a new process"
            )
        mine = _Bucket(bucket)
        self._buckets.append(mine)
        known = self._unopened is None and all(id(parameter) in self._places for parameter in mine.parameters)
        if known:
            self._accumulate(mine)
        if bucket.is_last():
            try:
                self._finish()
            finally:
                self._buckets = []
        return mine.future

    def _finish(self) -> None:
        """After the last bucket: select, exchange, complete the futures."""
        with record("gtopk.ddp_hook"):
            if self.comm.size > 1:
                self._exchange_all()
            elif self._unopened is not None:
                self._add_loaded()
        for bucket in self._buckets:
            bucket.future.set_result(bucket.buffer)

    def _exchange_all(self) -> None:
        if not all(bucket.accumulated for bucket in self._buckets) or self._is_smaller():
            if any(bucket.accumulated for bucket in self._buckets):
                raise StateError(
                    "DDP changed its parameters during training: make a new GTopKState for a new DDP object"
                )
            self._build()
            for bucket in self._buckets:
                self._accumulate(bucket)
        outputs: list[list[Tensor]] = [[torch.empty(0)] * len(part.slots) for part in self.exchange.parts]
        for bucket in self._buckets:
            for (part, segment), block in zip(bucket.places, bucket.blocks, strict=True):
                outputs[part][segment] = block
        self._stats = self.exchange.reduce(outputs, are_zero=True)
        scale = self._scale()
        for bucket in self._buckets:
            bucket.finish(scale)
        self._stats["step"] = self.steps
        self._warning.note(bool(self._stats["nonfinite"]), self.comm.rank, self.steps)
        self.steps += 1
        self.exchange.set_density(self._schedule(self.steps))

    def _add_loaded(self) -> None:
        """One rank alone: a loaded residual is added to the first gradient."""
        self._identify()
        self._restore()
        for bucket in self._buckets:
            for parameter, gradient in zip(bucket.parameters, bucket.gradients, strict=True):
                slot = self._slots[id(parameter)]
                entry = self.exchange.waiting.pop(slot.name, None)
                if entry is not None:
                    gradient.add_(slot.flattened(entry.residual), alpha=self._scale())

    def _is_smaller(self) -> bool:
        return sum(len(bucket.parameters) for bucket in self._buckets) != len(self._places)

    def _accumulate(self, bucket: _Bucket) -> None:
        bucket.places = [self._places[id(parameter)] for parameter in bucket.parameters]
        slots = [self._slots[id(parameter)] for parameter in bucket.parameters]
        bucket.blocks = [bucket.block(slot, grad) for slot, grad in zip(slots, bucket.gradients, strict=True)]
        for p, part in enumerate(self.exchange.parts):
            chosen = [
                (segment, block) for (q, segment), block in zip(bucket.places, bucket.blocks, strict=True) if q == p
            ]
            if chosen:
                segments, blocks = zip(*chosen, strict=True)
                part.reducer.accumulate_many(segments, blocks, 1.0 / self._scale(), zero_input=True)
        bucket.accumulated = True

    def _scale(self) -> float:
        scaler = self.grad_scaler
        return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0


def gtopk_hook(state: GTopKState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The hook: ``ddp.register_comm_hook(GTopKState(density=0.001), gtopk_hook)``."""
    return state.take(bucket)


def _unopened(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """A state whose form is right; None for that of a model which had not made a step."""
    if isinstance(state, Mapping) and not state:
        return None
    check_form(state)
    return dict(state)


def _comm_of(process_group: dist.ProcessGroup | None) -> Comm:
    """The communicator of `gtopk.init` where it has the same ranks in the same order, else one of the hook's own."""
    if process_group is None:
        _comm.init(transport=None if _comm.is_initialized() else "torch")
        if _comm.current().transport == "torch":
            return _comm.current()
    return Comm(transport="torch", group=process_group)
