"""A communication hook for torch.nn.parallel.DistributedDataParallel.

DDP hands over buckets one at a time during backward, and builds them anew after the first iteration; so what is kept
from step to step is kept by parameter. A bucket is accumulated when it arrives and answered with a pending future; the
last one selects, exchanges, and completes all futures.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from .. import comm as _comm
from ..comm import Comm
from ..errors import InvalidError, StateError, UnsupportedError
from . import checkpoint
from .ddp_object import Ddp, after_backward, find_ddp
from .holder import Holder
from .local_options import OWN as OF_LOCAL_STEPS
from .on_host import answers, are_zero
from .options import Options
from .parameters import Names, check_parameters, plain_name
from .profile import record
from .segments import Segment, sparse_text
from .session import Session
from .state_form import check_form
from .warmup import DensitySchedule, Warmup, growth_of, share_of

__all__ = ["GTopKState", "gtopk_hook", "register_hook"]


class _Bucket:
    """A bucket of the step that is going on. DDP keeps each gradient in it in the memory order of its parameter."""

    def __init__(self, bucket: GradBucket) -> None:
        self.buffer = bucket.buffer()
        if self.buffer.layout is not torch.strided:
            raise UnsupportedError(sparse_text("a parameter"))
        self.parameters = bucket.parameters()
        # What gradients() gives has the shape of the parameter but not its strides: as memory only is it right.
        self.gradients = [gradient.view(-1) for gradient in bucket.gradients()]
        # A future of a GPU's tensor has those who wait for it wait for the stream that it was written on.
        self.future: torch.futures.Future[Tensor] = torch.futures.Future(
            devices=[self.buffer.device] if self.buffer.is_cuda else None
        )
        self.accumulated = False


class _Update(NamedTuple):
    """The update of a parameter that this rank has perhaps not used."""

    parameter: Tensor
    place: int
    mean: Tensor  # flat
    applied: Tensor  # what DDP puts into the gradient, in the shape of the parameter


class GTopKState(Holder):
    """What `gtopk_hook` needs to know and keeps from step to step, for one model. Making one is collective.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup, optional
        The one that DDP uses. Default: all ranks.
    named_parameters : iterable of (str, Tensor), optional
        The names for checkpoints and errors: ``model.named_parameters()`` of the model inside DDP. Default: numbers, in
        the order in which DDP hands parameters over in its first iteration.
    density, algorithm, value_type, residual_policy, merge_growth, warmup, dense_below, dense_1d, rollback, residual_dtype,
    hierarchy
        See `gtopk.DistributedOptimizer`.
    grad_scaler : torch.amp.GradScaler, optional
        Needed in mixed precision with a scaler: the residual is kept in unscaled units, as the scale changes. When a
        gradient overflows on one rank, all ranks get NaN, so all scalers skip the step and stay equal, and all
        residuals stay as they were. Buckets are then accumulated at the end of backward.
    local_steps : int
        1. Local steps need no DDP: they are an option of `gtopk.DistributedOptimizer`, as are ``exchange``, ``outer_lr``,
        ``outer_momentum``, ``residual_decay``, ``start_dtype`` and ``momentum_correction``. Here they are an error.

    Notes
    -----
    DDP does not apply the update of a parameter that no rank used in a step (``find_unused_parameters=True``,
    ``static_graph=True``): it goes back to the residuals, and is sent in a later step.

    The state can be saved as PyTorch's PowerSGDState is, by pickling it with ``torch.save``; or without pickle, by
    `state_dict`. The process group is not part of it.

    Examples
    --------
    >>> from gtopk.torch.ddp_hook import GTopKState, gtopk_hook
    >>> def register(ddp: torch.nn.parallel.DistributedDataParallel) -> None:
    ...     ddp.register_comm_hook(GTopKState(), gtopk_hook)
    """

    _session: Session | None
    _loaded: dict[str, Any] | None  # a state that was not compared with the model yet
    _parameters: dict[str, Tensor]  # under their names, in the order of the first iteration
    _places: dict[int, int]  # by id of the parameter: of its segment; empty: build reducers
    _buckets: list[_Bucket]  # of the step that is going on
    _taken: set[int]  # ids of the parameters in them
    _unused: dict[int, Tensor]  # of these, by place, those that this rank has perhaps not used
    _ddp: Ddp | None
    _step_scale: float | None  # the loss scale of the step that is going on, once it was asked for

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
        density: float | None = None,
        algorithm: str = "gtopk",
        value_type: str = "bf16",
        residual_policy: str = "share",
        merge_growth: float | None = None,
        warmup: Warmup | None = None,
        dense_below: int = 0,
        dense_1d: bool = False,
        rollback: bool = False,
        residual_dtype: str = "fp32",
        grad_scaler: Any = None,
        hierarchy: str = "off",
        local_steps: int = 1,
        **others: Any,
    ) -> None:
        _refuse(local_steps, others)
        schedule = DensitySchedule(density, warmup, share_of(None))
        options = Options(
            algorithm=algorithm,
            value_type=value_type,
            residual_policy=residual_policy,
            merge_growth=growth_of(merge_growth, algorithm, residual_policy, schedule),
            dense_below=dense_below,
            dense_1d=bool(dense_1d),
            rollback=bool(rollback),
            residual_dtype=residual_dtype,
            hierarchy=hierarchy,
        )
        self._prepare(options, schedule, grad_scaler, Names(named_parameters))
        self._session = self._open(process_group)

    def stats(self) -> dict[str, Any]:
        """Statistics of the latest exchange on this rank, {} before the first; see `gtopk.Reducer.stats`."""
        return {} if self._session is None else dict(self._session.stats)

    def state_dict(self) -> dict[str, Any]:
        """This rank's residual and progress; loads with ``weights_only=True``. Between steps."""
        self._check_between_steps("state_dict")
        if self._loaded is not None or not self._parameters:
            return self._loaded or {}
        return checkpoint.save(self.session, self._parameters)

    def consolidate_state_dict(self, to: int = 0) -> dict[str, Any] | None:
        """The sum of all ranks' residuals on rank `to`, None elsewhere. Collective, between steps.

        As in `state_dict`: {} before the first step, and of a loaded state what this says until a step takes it over.
        """

        def prepare() -> tuple[tuple[Session, Mapping[str, Tensor]], Any]:
            self._check_between_steps("consolidate_state_dict")
            return self._held(), [self.session.comm.root(to)]

        session, parameters = self.session.comm.together("consolidate_state_dict()", prepare)
        summed = checkpoint.consolidate(session, parameters, to)
        return {} if summed is not None and not parameters else summed

    def _held(self) -> tuple[Session, Mapping[str, Tensor]]:
        """What the next step goes on from, and its parameters: a loaded state was not compared with the model yet."""
        if self._loaded is None:
            return self.session, self._parameters
        names, shapes = map(plain_name, self._loaded["names"]), self._loaded["shapes"]
        parameters = {name: torch.empty(shape, device="meta") for name, shape in zip(names, shapes, strict=True)}
        session = Session(self.session.comm, self._options, self._schedule)
        waiting = checkpoint.check(session, parameters, self._loaded, self._strict)
        session.restore(self._loaded["run"], self._loaded["step"], waiting)
        return session, parameters

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
        self._loaded, self._strict = _form_checked(state_dict), strict
        self._places = {}

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        process_group: dist.ProcessGroup | None = None,
        *,
        hierarchy: str | None = None,
    ) -> int:
        """Goes on in this process after ranks were lost, with those that are left. Collective among these.

        Drop the old DDP object first (``del ddp``), and make a new one of the same module afterwards, with this state. Ranks
        for which the latest step did not happen take over parameters and optimizer state; all residuals stay. See
        `gtopk.DistributedOptimizer`'s ``attach``.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            That of the model's parameters.
        process_group : torch.distributed.ProcessGroup, optional
            The one that the new DDP object uses. Default: all ranks that are left.
        hierarchy : {"off", "node", "auto"}, optional
            From now on.

        Returns
        -------
        int
            A rank that is not behind.
        """
        from .attach import attach

        return attach(self, optimizer, _comm_of(process_group), hierarchy)

    # ---- other ranks, after a loss: see `attach` ----

    def check_attach(self) -> None:
        """`StateError` while backward runs."""
        self._check_between_steps("attach")

    def move(self, comm: Comm, options: Options) -> None:
        """Goes on among the ranks of `comm`."""
        self.session.move(comm, options)
        self._options, self._places, self._ddp = options, {}, None
        self._end()

    @property
    def session(self) -> Session:  # type: ignore[override]
        """Steps, reducers and residuals. Of a state that was unpickled, it is made at the first step."""
        if self._session is None:
            self._session = self._open(None)
        return self._session

    # ---- pickle ----

    def __getstate__(self) -> dict[str, Any]:
        return {
            "options": self._options,
            "schedule": self._schedule,
            "grad_scaler": self.grad_scaler,
            "state": self.state_dict() or None,
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._prepare(saved["options"], saved["schedule"], saved["grad_scaler"], Names(None))
        self._loaded = _form_checked(saved["state"] or {})

    # ---- set-up ----

    def _prepare(self, options: Options, schedule: DensitySchedule, grad_scaler: Any, names: Names) -> None:
        self._options, self._schedule, self.grad_scaler, self._names = options, schedule, grad_scaler, names
        self._session = self._loaded = self._ddp = None
        self._strict = False
        self._parameters, self._places = {}, {}
        self._end()

    def _end(self) -> None:
        """Of a step, whether it was done or not."""
        self._buckets, self._taken, self._unused, self._step_scale = [], set(), {}, None

    def _open(self, process_group: dist.ProcessGroup | None) -> Session:
        return Session(_comm_of(process_group), self._options, self._schedule)

    def _build(self) -> None:
        """Reducers for the parameters of all buckets. Collective."""

        def prepare() -> tuple[list[Segment], None]:
            self._check_ranks()
            self._identify()
            check_parameters(self._parameters, exchanged=True)
            self._restore()
            return [Segment(name, parameter) for name, parameter in self._parameters.items()], None

        segments = self.session.comm.together("the exchange in backward()", prepare)
        self.session.build(segments, scaled=self._scaler_is_on())
        self._places = {id(parameter): place for place, parameter in enumerate(self._parameters.values())}

    def _check_ranks(self) -> None:
        """The mean over other ranks than DDP's would be taken for its own."""
        ddp = None if self._ddp is None or self._ddp.object is None else self._ddp.object()
        if ddp is None:
            return
        theirs, ours = dist.get_process_group_ranks(ddp.process_group), self.session.comm.global_ranks
        if theirs != ours:
            raise InvalidError(
                f"DistributedDataParallel has the ranks {theirs}, and its GTopKState {ours}: give "
                "GTopKState(process_group=ddp.process_group), or call gtopk.torch.ddp_hook.register_hook(ddp)"
            )

    def _identify(self) -> None:
        """The parameters of all buckets under their names, in the order of the first iteration."""
        found = [parameter for bucket in self._buckets for parameter in bucket.parameters]
        known = {id(parameter) for parameter in self._parameters.values()}
        if known and any(id(parameter) not in known for parameter in found):
            raise StateError(
                "this GTopKState belongs to another DistributedDataParallel, whose residuals it keeps: make one for each"
            )
        if len(found) == len(known):
            found = list(self._parameters.values())
        saved = () if self._names.complete else (self._loaded or {}).get("names", ())
        proposed = [plain_name(saved[i]) if i < len(saved) else str(i) for i in range(len(found))]
        self._parameters = {self._names.name(p, name): p for p, name in zip(found, proposed, strict=True)}

    def _restore(self) -> None:
        """Compares a loaded state with the model and takes it over."""
        if self._loaded is None:
            return
        waiting = checkpoint.check(self.session, self._parameters, self._loaded, self._strict)
        self.session.restore(self._loaded["run"], self._loaded["step"], waiting)
        self._loaded = None

    def _check_between_steps(self, call: str) -> None:
        if self._buckets:
            raise StateError(f"{call} is not allowed while backward runs: call it after the step")

    # ---- one step ----

    def take(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """One bucket of backward. The last one completes the futures of all."""
        try:
            mine = _Bucket(bucket)
            self._add(mine)
            if bucket.is_last() or self._is_complete():
                self._finish()
                self._end()
        except BaseException:
            self._end()
            if self._session is not None:
                self._session.cancel()
            raise
        return mine.future

    def _add(self, mine: _Bucket) -> None:
        new = set(map(id, mine.parameters))
        if self._taken & new:
            raise StateError(
                "the backward pass before this one did not finish, so this rank's gradients are half accumulated: go on from "
                "a checkpoint in a new process"
            )
        if self._ddp is None or (self._ddp.object is not None and self._ddp.object() is None):
            self._ddp = find_ddp(self)
        self._buckets.append(mine)
        self._taken |= new
        if self.session.solo or self.session.needs_all:
            return
        if self._loaded is None and all(id(parameter) in self._places for parameter in mine.parameters):
            if len(self._buckets) == 1:
                self.session.begin()
            self._note_unused(mine)
            self.session.accumulate_some(self._places_of(mine), mine.gradients, 1.0 / self._scale())
            mine.accumulated = True

    def _is_complete(self) -> bool:
        """In the first iteration with a static graph DDP says of no bucket that it is the last."""
        return self._ddp is not None and self._ddp.parameters == len(self._taken)

    def _finish(self) -> None:
        """After the last bucket: select, exchange, complete the futures."""
        with record("gtopk.ddp_hook"):
            if self.session.solo:
                self._add_waiting()
            else:
                self._exchange_all()
        for bucket in self._buckets:
            bucket.future.set_result(bucket.buffer)

    def _exchange_all(self) -> None:
        early = [bucket.accumulated for bucket in self._buckets]
        if self._loaded is not None or self._places.keys() != self._taken:
            if any(early):
                raise StateError(
                    "DDP changed its parameters during training: make a new GTopKState for a new DDP object"
                )
            self._build()
        updates = self.session.finish() if all(early) else self._exchange_late()
        self._put_back(updates)

    def _exchange_late(self) -> list[Tensor]:
        """All tensors at once, after a look at them."""
        tensors: list[Tensor] = [torch.empty(0)] * len(self._places)
        for bucket in self._buckets:
            self._note_unused(bucket)
            for place, gradient in zip(self._places_of(bucket), bucket.gradients, strict=True):
                tensors[place] = gradient
        found_inf = self.session.scaled and not all(answers([one.buffer.isfinite().all() for one in self._buckets]))
        return self.session.step(tensors, 1.0 / self._scale(), found_inf=found_inf)

    def _put_back(self, updates: list[Tensor]) -> None:
        """Puts the update where DDP looks for it, with the loss scale that the scaler is going to take out."""
        scale = self._scale()
        uncertain = {} if self.session.nonfinite else self._unused
        changed = answers([updates[place].any() for place in uncertain])
        means = {place: updates[place].clone() for place, yes in zip(uncertain, changed, strict=True) if yes}
        for bucket in self._buckets:
            if scale != 1.0:
                bucket.buffer.mul_(scale)
        if means:
            shaped = self.session.exchange.segments
            after = [
                _Update(uncertain[place], place, mean, shaped[place].shaped(updates[place].clone()))
                for place, mean in means.items()
            ]
            after_backward(lambda: self._give_back(after))

    def _places_of(self, bucket: _Bucket) -> list[int]:
        return [self._places[id(parameter)] for parameter in bucket.parameters]

    # ---- parameters that no rank used ----

    def _note_unused(self, bucket: _Bucket) -> None:
        """Those whose gradient is zero here. Whether the other ranks used them, DDP finds out after the last bucket."""
        if self._ddp is not None and not self._ddp.skips_unused:
            return
        zero = are_zero(bucket.gradients)
        for place, parameter, is_zero in zip(self._places_of(bucket), bucket.parameters, zero, strict=True):
            if is_zero:
                self._unused[place] = parameter

    def _give_back(self, updates: list[_Update]) -> None:
        """What DDP has not applied on any rank was taken out of the residuals all the same."""
        for update in updates:
            grad = update.parameter.grad
            if grad is None or not torch.equal(grad, update.applied):
                self.session.exchange.give_back(update.place, update.mean)

    # ---- one rank alone ----

    def _add_waiting(self) -> None:
        """A loaded residual is added to the first gradient."""
        if self._loaded is not None or not self._parameters:
            self._identify()
            self._restore()
        waiting = self.session.step_alone()
        if not waiting:
            return
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        for bucket in self._buckets:
            for parameter, gradient in zip(bucket.parameters, bucket.gradients, strict=True):
                entry = waiting.pop(names[id(parameter)], None)
                if entry is not None:
                    flat = Segment(names[id(parameter)], parameter).flattened(entry.residual)
                    gradient.add_(flat.to(gradient.device), alpha=self._scale())

    def _scaler_is_on(self) -> bool:
        return self.grad_scaler is not None and bool(self.grad_scaler.is_enabled())

    def _scale(self) -> float:
        """The loss scale of this step. On a GPU asking for it waits: once a step is enough."""
        if self._step_scale is None:
            self._step_scale = float(self.grad_scaler.get_scale()) if self._scaler_is_on() else 1.0
        return self._step_scale


def gtopk_hook(state: GTopKState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The hook: ``ddp.register_comm_hook(GTopKState(), gtopk_hook)``."""
    return state.take(bucket)


def _form_checked(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """A state whose form is right; None for that of a model which had not made a step."""
    if isinstance(state, Mapping) and not state:
        return None
    check_form(state)
    return dict(state)


def _comm_of(process_group: dist.ProcessGroup | None) -> Comm:
    """The communicator of `gtopk.init` where it has the same ranks in the same order, else one of the hook's own."""
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        raise InvalidError(
            f"process_group is a {type(process_group).__name__}, but must be a ProcessGroup: parameters are given as "
            "named_parameters=model.named_parameters()"
        )
    if process_group is None:
        _comm.init(transport=None if _comm.is_initialized() else "torch")
        if _comm.current().transport == "torch":
            return _comm.current()
    return Comm(transport="torch", group=process_group)


def _refuse(local_steps: Any, others: Mapping[str, Any]) -> None:
    """What `gtopk.DistributedOptimizer` has and the hook has not."""
    if callable(local_steps) or local_steps != 1 or not others.keys().isdisjoint(("exchange", *OF_LOCAL_STEPS)):
        raise UnsupportedError(
            "DDP exchanges gradients in every step: for local steps leave out DistributedDataParallel and wrap the "
            "optimizer, gtopk.DistributedOptimizer(optimizer, model.named_parameters(), local_steps=...)"
        )
    if others.get("momentum_correction"):
        raise UnsupportedError(
            "momentum_correction=True takes the optimizer's momentum, and a hook sees gradients only: leave out "
            "DistributedDataParallel and wrap the optimizer, gtopk.DistributedOptimizer(..., momentum_correction=True)"
        )
    unknown = next((name for name in others if name != "momentum_correction"), None)
    if unknown is not None:
        raise TypeError(f"GTopKState() has no option {unknown!r}")


def register_hook(ddp: Any, **options: Any) -> GTopKState:
    """Has a DistributedDataParallel exchange its gradients by gtopk: state and hook in one call. Collective.

    Parameters
    ----------
    ddp : DistributedDataParallel
        Before its first backward.
    **options
        Of `GTopKState`, whose names are those of the model inside, and whose process group is DDP's.

    Raises
    ------
    UnsupportedError
        It is no DistributedDataParallel.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise UnsupportedError(
            f"the model is a {type(ddp).__name__} and not inside DistributedDataParallel, where the hook goes: with several "
            "processes the framework wraps it (start it with torchrun, and ask for DDP); else wrap the optimizer with "
            "gtopk.DistributedOptimizer"
        )
    group = None if ddp.process_group is dist.group.WORLD else ddp.process_group
    state = GTopKState(**{"named_parameters": ddp.module.named_parameters(), "process_group": group, **options})
    ddp.register_comm_hook(state, gtopk_hook)
    return state
