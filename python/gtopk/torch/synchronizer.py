"""What a distributed optimizer does beside the optimizer's own step: its gradients through a session, on one rank.

The order of a step reads here from top to bottom: prepare (build the reducers when the set of parameters changed),
gradients, exchange, and what the wrapped step must not see. What the user calls is in `optimizer`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..comm import Comm
from ..errors import MismatchError, StateError, UnsupportedError
from . import amp, momentum
from .amp import Scaled
from .holder import Holder
from .options import Options
from .parameters import Names, check_parameters
from .parts import Momentum, Waiting
from .profile import record
from .segments import Segment, sparse_text
from .session import Session
from .shards import Shards, here, is_dtensor, spread_like
from .warmup import DensitySchedule

T = TypeVar("T")


class Synchronizer(Holder):
    """The state of a distributed optimizer that is not the wrapped optimizer's own."""

    def __init__(
        self,
        comm: Comm,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]] | None,
        options: Options,
        schedule: DensitySchedule,
        grad_scaler: Any,
        shards: Shards | None = None,
    ) -> None:
        self.session = Session(comm, options, schedule, None if shards is None else shards.peers)
        self.shards = shards  # of the parameters; None: they are whole on every rank
        self.grad_scaler = grad_scaler
        self.names = Names(named_parameters)
        self.names.check(optimizer)
        check_parameters(self.names.of(optimizer), exchanged=not self.session.solo, sharded=shards is not None)
        self.batches = 0  # exchanges since the latest join() to which this rank gave gradients
        self.skipping = False  # in skip_synchronize
        self.stepping = False  # the wrapped optimizer's own code runs
        self.synchronized = False  # synchronize() was called and step() not yet
        self.nonfinite = False  # the latest exchange was, and the gradients are NaN
        self._update: weakref.ref[Tensor] | None = None  # the first gradient at the end of synchronize()
        self._touched: deque[Tensor] = deque(maxlen=1)  # a parameter that backward() has given a gradient since then
        self._watched: set[int] = set()  # ids of parameters whose gradients are noted there; the names keep them alive
        # What the reducers were made for.
        self._active: tuple[list[int], list[torch.dtype], list[torch.device]] | None = None
        self._parameters: list[Tensor] = []  # those that are exchanged, in the order of segments

    @property
    def multiplier(self) -> float:
        """Of the mean update: the number of ranks makes it the sum."""
        return float(self.session.comm.size) if self.session.sums else 1.0

    # ---- what lies on this rank ----

    def local(self, tensor: Tensor) -> Tensor:
        """This rank's part of a parameter, a gradient or a state: the memory itself."""
        return tensor if self.shards is None else here(tensor)

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """This rank's part of all parameters, by name."""
        return {name: self.local(p) for name, p in self.names.of(optimizer).items()}

    def is_whole(self, parameter: Tensor) -> bool:
        """Whether the peers have the same entries, while other parameters are sharded."""
        return self.shards is not None and not is_dtensor(parameter)

    def together(self, prepare: Callable[[], tuple[T, Any]]) -> T:
        """What a step has to prepare, on all ranks or on none; collective among replicas inside. Collective."""
        return (self.session.comm if self.shards is None else self.shards.everyone).together("step()", prepare)

    def average_whole(self, parameters: Iterable[Tensor]) -> None:
        """fully_shard leaves the gradients of what it does not shard to each rank: their mean over the peers. Collective."""
        wholes = [p for p in parameters if self.is_whole(p)]
        if self.shards is None or self.shards.peers.size == 1 or not wholes:
            return
        for parameter in wholes:  # what one peer has not used others may have
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, parameter.grad) for parameter in wholes]
        wide = torch.float64 if any(g.dtype is torch.float64 for g in gradients) else torch.float32
        with self.session.among_peers() as peers:
            mean = peers.allreduce(torch.cat([g.detach().to("cpu", wide).reshape(-1) for g in gradients]))
        for gradient, part in zip(gradients, torch.split(mean, [g.numel() for g in gradients]), strict=True):
            gradient.detach().copy_(part.view(gradient.shape))

    # ---- one step ----

    def synchronize(self, optimizer: torch.optim.Optimizer, scaled: Scaled) -> None:
        """Replaces all gradients by the mean update of all ranks. Collective."""
        with record("gtopk.synchronize"):
            if self.session.solo:
                self.average_whole(trained(optimizer))
                self._add_waiting(optimizer, scaled)
            else:
                self._prepare(optimizer, scaled.present)
                gradients = self._gradients()
                updates = self.session.step(
                    gradients, scaled.scale, found_inf=scaled.found_inf, momentum=self._momentum(optimizer)
                )
                self._replace(gradients, updates)
                if self.multiplier != 1.0 and updates:
                    torch._foreach_mul_(updates, self.multiplier)
        self.batches += 1
        self.nonfinite = self.session.nonfinite

    def synchronize_joined(self, optimizer: torch.optim.Optimizer) -> bool:
        """One exchange of a rank that has no more batches; True when all ranks are such."""
        self._prepare(optimizer, False)
        done = self.session.step_joined(self._momentum(optimizer))
        self.nonfinite = self.session.nonfinite
        return done

    def _prepare(self, optimizer: torch.optim.Optimizer, scaled: bool) -> None:
        exchanged = trained(optimizer)
        active = [id(p) for p in exchanged], [p.dtype for p in exchanged], [p.device for p in exchanged]
        if active == self._active and not self.session.corrects_otherwise:
            return
        self._active = None  # if this fails, the next step tries again

        def choose() -> tuple[dict[str, Tensor], None]:
            parameters = self.names.of(optimizer)
            check_parameters(parameters, exchanged=True, sharded=self.shards is not None)
            return {name: p for name, p in parameters.items() if p.requires_grad}, None

        chosen = self.together(choose)
        segments = [Segment(name, self.local(p), self.is_whole(p)) for name, p in chosen.items()]

        handover = None
        if self.session.options.momentum_correction is None:
            self.session.exchange.declines |= not momentum.is_one(optimizer)
        if self.session.options.momentum_correction is not False:
            handover = momentum.Handover(optimizer, chosen, self.multiplier)
        self.build(segments, scaled=scaled, handover=handover)
        self._active = active
        self._parameters = list(chosen.values())

    def build(self, segments: Sequence[Segment], *, scaled: bool = False, handover: Momentum | None = None) -> None:
        """Makes the reducers; where that fails for one shard, on all ranks. Collective."""
        names = [[segment.name, segment.whole] for segment in segments]

        def make() -> tuple[None, Any]:
            self.session.build(segments, scaled=scaled, momentum=handover)
            return None, names

        if self.shards is None:
            make()
        else:
            self.together(make)

    def _gradients(self) -> list[Tensor]:
        """One for each segment; zeros are put where nothing arrived."""
        gradients = [p.grad for p in self._parameters]
        if False in [gradient is not None for gradient in gradients]:
            for i, parameter in enumerate(self._parameters):
                if gradients[i] is None:
                    gradients[i] = parameter.grad = torch.zeros_like(parameter)
        if self.shards is not None:
            self.average_whole(self._parameters)
            return [here(gradient) for gradient in gradients]  # type: ignore[arg-type]
        return gradients  # type: ignore[return-value]

    def _replace(self, gradients: Sequence[Tensor], updates: Sequence[Tensor]) -> None:
        """Where a gradient could not be overwritten, another tensor has the update."""
        if False in [gradient is update for gradient, update in zip(gradients, updates, strict=True)]:
            for parameter, gradient, update in zip(self._parameters, gradients, updates, strict=True):
                if gradient is not update:
                    parameter.grad = spread_like(update.view(gradient.shape), parameter)

    def _momentum(self, optimizer: torch.optim.Optimizer) -> tuple[float, bool] | None:
        return momentum.settings(optimizer) if self._corrects else None

    @property
    def _corrects(self) -> bool:
        """Some of what is exchanged has momentum in it."""
        return any(part.corrected for part in self.session.exchange.parts)

    # ---- between synchronize() and step() ----

    def begin_by_hand(self) -> None:
        """synchronize() is called: what comes of it may be clipped, and stays a gradient if it is one so far."""
        self.session.exchange.declines |= not self._corrects

    def keep_update(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradients are the mean update, which `step()` is to apply."""
        self.synchronized = True
        first = _first_gradient(optimizer)
        self._update = None if first is None else weakref.ref(first)
        for parameter in self._parameters:
            if id(parameter) not in self._watched and parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._touched.append)  # type: ignore[no-untyped-call]
                self._watched.add(id(parameter))
        self._touched.clear()

    def holds_update(self, optimizer: torch.optim.Optimizer) -> bool:
        """True where they still are: the step was not done without, by new gradients in place of them."""
        if self.synchronized and (self._update is None or self._update() is not _first_gradient(optimizer)):
            self.drop_update()
        return self.synchronized

    def check_untouched(self) -> None:
        """`StateError` where backward() has added this rank's own gradients to the mean update."""
        if self._touched:
            raise StateError(
                "backward() was called after synchronize(): it has added gradients of this rank alone to the mean update, and "
                "step() would apply them here only. Call synchronize() after the last backward(), or "
                "optimizer.zero_grad() to do without that step"
            )

    def drop_update(self) -> None:
        """The mean update was applied, or is not wanted."""
        self.synchronized = self.nonfinite = False
        self._update = None
        self._touched.clear()

    # ---- the wrapped optimizer's own step ----

    @contextmanager
    def wrapped_step(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """What the wrapped optimizer must not see, or must see otherwise, for the time of its step."""
        with ExitStack() as stack:
            stack.enter_context(amp.hidden(optimizer))
            if not self.session.solo:
                stack.enter_context(self._own_gradients_hidden(optimizer))
                if self._corrects:
                    stack.enter_context(momentum.applied(optimizer, self._uncorrected()))
            yield

    def _uncorrected(self) -> set[int]:
        parts = self.session.exchange.parts
        return {id(self._parameters[i]) for part in parts if not part.corrected for i in part.places}

    @contextmanager
    def _own_gradients_hidden(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """A gradient that was not exchanged, as its parameter was frozen after backward, would move this rank alone."""
        frozen = [
            p for group in optimizer.param_groups for p in group["params"] if not p.requires_grad and p.grad is not None
        ]
        if not frozen:
            yield
            return
        exchanged = {id(p) for p in self._parameters}
        own = [(p, p.grad) for p in frozen if id(p) not in exchanged]
        for parameter, _ in own:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, grad in own:
                parameter.grad = grad

    def end_step(self, optimizer: torch.optim.Optimizer) -> None:
        """After the wrapped step, or where it was left out."""

    # ---- one rank alone ----

    def _add_waiting(self, optimizer: torch.optim.Optimizer, scaled: Scaled) -> None:
        """Nothing is exchanged. A loaded residual is sent at once, that is: added to the first gradient."""
        parameters = self.names.of(optimizer)
        for name, parameter in parameters.items():
            if parameter.grad is not None and parameter.grad.layout is not torch.strided:
                raise UnsupportedError(sparse_text(name))
        waiting = self.session.step_alone(scaled.found_inf)
        if scaled.found_inf:
            return
        for name, parameter in parameters.items():
            if parameter.grad is not None and scaled.scale != 1.0:
                parameter.grad.detach().mul_(scaled.scale)
            if name in waiting and parameter.requires_grad:
                _add(optimizer, parameter, waiting.pop(name))

    def own_stats(self) -> dict[str, Any]:
        """Statistics that are not the session's."""
        return {}

    # ---- checkpoints ----

    def restore(self, run: int | None, steps: int, waiting: dict[str, Waiting]) -> None:
        """Goes on from a checkpoint: the reducers are made anew, collectively, at the next exchange."""
        self.session.restore(run, steps, waiting)
        self._active = None
        self.skipping = False
        self.drop_update()

    def check_saved(self, saved: Mapping[str, Any]) -> None:
        """`MismatchError` where a state has a residual of weights."""
        if "start" in saved:
            raise MismatchError(
                "the state has a residual of weights: wrap the optimizer with local_steps as it was when it was saved, or take "
                'the entry "gtopk" out of the state, and what was not sent is lost'
            )

    def saved_fields(self) -> dict[str, Any]:
        """What a state has beside the residual."""
        return {"as_gradients": True} if self.session.exchange.stays_gradient else {}

    def sharded_fields(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The same, for `sharded_state`: tensors by name, and with local steps how many were done."""
        return {}

    def consolidate(self, optimizer: torch.optim.Optimizer, summed: dict[str, Any] | None) -> None:
        """Adds the same to a consolidated state. Collective."""
        if summed is not None:
            summed |= self.saved_fields()

    def go_on(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any] | None) -> None:
        """Takes over the same, after `restore`."""
        exchange = self.session.exchange
        exchange.declines, exchange.as_gradients = saved is not None and "as_gradients" in saved, False

    def progress(self) -> list[int] | None:
        """What `adopt_progress` takes on the other ranks; None before the first exchange."""
        return None if self.session.run is None else [self.session.run, self.session.steps]

    def adopt_progress(self, run: int, steps: int) -> None:
        """Goes on at another rank's step, with the residual that this rank has."""
        self.session.adopt_progress(run, steps)
        self._active = None
        self.skipping = False
        self.drop_update()

    # ---- other ranks, after a loss: see `attach` ----

    def check_attach(self) -> None:
        """Raises where this rank could not go on."""
        if self.shards is not None:
            raise UnsupportedError(
                "attach() with group=: a rank that is lost takes its shard of the parameters with it. Go on from a checkpoint "
                "in new processes"
            )
        if self.synchronized:
            raise StateError(
                "attach() between synchronize() and step(): finish the step first, which needs no other rank: call step() "
                "inside skip_synchronize()"
            )

    def move(self, comm: Comm, options: Options) -> None:
        """Goes on among the ranks of `comm`."""
        self.session.move(comm, options)
        self._active = None
        self.skipping = False
        self.drop_update()

    # ---- join ----

    def join(self, optimizer: torch.optim.Optimizer) -> int:
        """Exchanges without gradients until all ranks do; the rank that had the most batches."""
        if self.session.solo:
            return 0
        if self.skipping:
            raise StateError("join() inside skip_synchronize(): leave that block first")
        while not self.synchronize_joined(optimizer):
            pass
        return self.most_batches()

    def most_batches(self) -> int:
        """The rank that had the most since the latest join. Collective."""
        batches = self.session.comm.allgather_json(self.batches)
        self.batches = 0
        return max(range(len(batches)), key=lambda r: (batches[r], r))


def _add(optimizer: torch.optim.Optimizer, parameter: Tensor, entry: Waiting) -> None:
    """What waits, to the gradient."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    residual = entry.residual
    if entry.velocity is not None:
        residual = momentum.as_gradient(entry.residual, entry.velocity, momentum.groups(optimizer)[id(parameter)])
    here(parameter.grad.detach()).add_(residual.to(parameter.device))


def trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Its parameters that require a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _first_gradient(optimizer: torch.optim.Optimizer) -> Tensor | None:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return next((p.grad for p in parameters if p.requires_grad and p.grad is not None), None)
