"""Everything that a distributed optimizer does beside the optimizer's own step, for one optimizer on one rank.

The order of a step reads here from top to bottom: prepare (build the reducers when the set of parameters changed),
settings (density, momentum), exchange, verdict (was it finite?). What the user calls is in `optimizer`.
"""

from __future__ import annotations

import logging
import secrets
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..comm import Comm
from ..errors import StateError, UnsupportedError
from ..step_stats import NOTHING
from . import amp, momentum
from .agreement import agree, agree_on_progress
from .exchange import Exchange, Options, Waiting
from .nonfinite import NonfiniteWarning
from .parameters import Names, Slot, check_types, sparse_text
from .profile import record
from .warmup import DensitySchedule

_log = logging.getLogger("gtopk")


class Synchronizer:
    """The state of a distributed optimizer that is not the wrapped optimizer's own."""

    def __init__(
        self,
        comm: Comm,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]] | None,
        options: Options,
        schedule: DensitySchedule,
        grad_scaler: Any,
    ) -> None:
        self.comm = comm
        self.schedule = schedule
        self.grad_scaler = grad_scaler
        self.names = Names(named_parameters)
        self.names.check(optimizer)
        check_types(self.names.of(optimizer))
        self.exchange = Exchange(comm, options)
        self.run: int | None = None  # random id of the training run, the same on all ranks and over checkpoints
        self.steps = 0  # exchanges done, over checkpoints
        self.batches = 0  # exchanges since the latest join() to which this rank gave gradients
        self.multiplier = 1.0  # of the mean update; the number of ranks makes it the sum
        self.skipping = False  # in skip_synchronize
        self.synchronized = False  # synchronize() was called and step() not yet
        self.nonfinite = False  # the latest exchange was, and the gradients are NaN
        self._update: weakref.ref[Tensor] | None = None  # the first gradient at the end of synchronize()
        self.stats: dict[str, Any] = {}
        self._warning = NonfiniteWarning()
        self._active: tuple[list[int], list[torch.dtype]] | None = None  # what the reducers were made for
        self._exchanged: frozenset[int] = frozenset()  # parameters of the latest exchange, by id
        self._dense: set[int] = set()

    @property
    def solo(self) -> bool:
        """One rank: nothing is exchanged, and nothing is compressed."""
        return self.comm.size == 1

    # ---- one step ----

    def synchronize(self, optimizer: torch.optim.Optimizer, scale: float, found_inf: bool) -> None:
        """Replaces all gradients by the mean update of all ranks. Collective."""
        with record("gtopk.synchronize"):
            if self.solo:
                self.stats = self._run_solo(optimizer, scale, found_inf)
            else:
                self._prepare(optimizer)
                self._apply_settings(optimizer)
                self.stats = self.exchange.run(scale, found_inf)
                self._multiply(optimizer)
        self.batches += 1
        self._end_step()

    def keep_update(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradients are the mean update, which `step()` is to apply."""
        self.synchronized = True
        first = _first_gradient(optimizer)
        self._update = None if first is None else weakref.ref(first)

    def holds_update(self, optimizer: torch.optim.Optimizer) -> bool:
        """True where they still are: the step was not done without, by new gradients in place of them."""
        if self.synchronized and (self._update is None or self._update() is not _first_gradient(optimizer)):
            self.drop_update()
        return self.synchronized

    def drop_update(self) -> None:
        """The mean update was applied, or is not wanted."""
        self.synchronized = self.nonfinite = False
        self._update = None

    def synchronize_joined(self, optimizer: torch.optim.Optimizer) -> bool:
        """One exchange of a rank that has no more batches; True when all ranks are such."""
        self._prepare(optimizer)
        self._apply_settings(optimizer)
        self.stats = self.exchange.run_joined()
        self._end_step()
        return bool(self.stats["all_joined"])

    def _prepare(self, optimizer: torch.optim.Optimizer) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        active = [id(p) for p in trained], [p.dtype for p in trained]
        if active == self._active:
            return
        self._active = None  # if this fails, the next step tries again
        parameters = self.names.of(optimizer)
        check_types(parameters)
        slots = [Slot(name, p) for name, p in parameters.items() if p.requires_grad]
        rows = [self.exchange.options.describe(), *(slot.describe() for slot in slots)]
        agree(self.comm, "parameters", rows)
        mine = None if self.run is None else (self.run, self.steps)
        self.run, self.steps = agree_on_progress(self.comm, mine, secrets.randbits(63))
        self.exchange.build(slots, self.schedule(self.steps))
        self._dense = {id(slot.parameter) for part in self.exchange.parts if part.dense for slot in part.slots}
        self._active = active
        self._exchanged = frozenset(id(slot.parameter) for slot in slots)
        _log.info(
            "rank %d, step %d: %d of %d parameters are exchanged",
            self.comm.rank,
            self.steps,
            len(slots),
            len(parameters),
        )

    def _apply_settings(self, optimizer: torch.optim.Optimizer) -> None:
        self.exchange.set_density(self.schedule(self.steps))
        if self.exchange.options.momentum_correction:
            self.exchange.set_momentum(*momentum.settings(optimizer))

    def _multiply(self, optimizer: torch.optim.Optimizer) -> None:
        if self.multiplier != 1.0:
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            torch._foreach_mul_([p.grad for p in parameters], self.multiplier)

    def _end_step(self) -> None:
        self.stats["step"] = self.steps
        self.steps += 1
        self.nonfinite = bool(self.stats["nonfinite"])
        self._warning.note(self.nonfinite, self.comm.rank, self.stats["step"])

    @contextmanager
    def wrapped_step(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """What the wrapped optimizer must not see, or must see otherwise, for the time of its step."""
        with ExitStack() as stack:
            stack.enter_context(amp.hidden(optimizer))
            if not self.solo:
                stack.enter_context(self._own_gradients_hidden(optimizer))
                if self.exchange.options.momentum_correction:
                    stack.enter_context(momentum.applied(optimizer, self._dense))
            yield

    @contextmanager
    def _own_gradients_hidden(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """A gradient that was not exchanged, as its parameter was frozen after backward, would move this rank alone."""
        own = [
            (p, p.grad)
            for group in optimizer.param_groups
            for p in group["params"]
            if not p.requires_grad and p.grad is not None and id(p) not in self._exchanged
        ]
        for parameter, _ in own:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, grad in own:
                parameter.grad = grad

    # ---- one rank alone ----

    def _run_solo(self, optimizer: torch.optim.Optimizer, scale: float, found_inf: bool) -> dict[str, Any]:
        if self.run is None:
            self.run = secrets.randbits(63)
        for name, parameter in self.names.of(optimizer).items():
            grad = parameter.grad
            if grad is not None and grad.layout is not torch.strided:
                raise UnsupportedError(sparse_text(name))
            if grad is not None and scale != 1.0 and not found_inf:
                grad.detach().mul_(scale)
            if name in self.exchange.waiting and parameter.requires_grad and not found_inf:
                self._add_waiting(optimizer, parameter, self.exchange.waiting.pop(name))
        return {**NOTHING, "nonfinite": int(found_inf)}

    def _add_waiting(self, optimizer: torch.optim.Optimizer, parameter: Tensor, entry: Waiting) -> None:
        """A loaded residual is sent at once, that is: added to the first gradient; a velocity goes on in SGD."""
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.detach().add_(entry.residual)
        if entry.velocity is not None:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            sign = -1.0 if any(group.get("maximize") for group in optimizer.param_groups) else 1.0
            state["momentum_buffer"].add_(entry.velocity, alpha=sign)

    # ---- checkpoints ----

    def restore(self, run: int | None, steps: int, waiting: dict[str, Waiting]) -> None:
        """Goes on from a checkpoint: the reducers are made anew, collectively, at the next exchange."""
        self.exchange.close()
        self.exchange.waiting = waiting
        self.run, self.steps = run, steps
        self._active = None
        self.skipping = False
        self.drop_update()

    def adopt_progress(self, run: int, steps: int) -> None:
        """Goes on at another rank's step, with the residual that this rank has."""
        self.exchange.park()
        self.restore(run, steps, self.exchange.waiting)

    # ---- join ----

    def join(self, optimizer: torch.optim.Optimizer) -> int:
        """Exchanges without gradients until all ranks do; the rank that had the most batches."""
        if self.solo:
            return 0
        if self.skipping:
            raise StateError("join() inside skip_synchronize(): leave that block first")
        while not self.synchronize_joined(optimizer):
            pass
        batches = self.comm.allgather_json(self.batches)
        self.batches = 0
        return max(range(len(batches)), key=lambda r: (batches[r], r))


def _first_gradient(optimizer: torch.optim.Optimizer) -> Tensor | None:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return next((p.grad for p in parameters if p.requires_grad and p.grad is not None), None)
