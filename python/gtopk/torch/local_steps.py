"""Local steps: each rank trains by itself for a while, then the differences of weights are exchanged.

At an exchange every rank adds theta0 - theta, what its steps have changed, to its residual; the mean update is taken from
theta0, which all ranks have, and the result is where all go on. Sparse, this is SparseLoCo (arXiv 2508.15706); dense, with an
outer momentum, DiLoCo (arXiv 2311.08105).

An exchange happens or it does not: where it fails, or a difference is not finite, weights and residuals are as before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..comm import Comm, Sum
from ..errors import DesyncError, MismatchError, StateError
from .agreement import any_of
from .amp import Scaled
from .local_options import LocalOptions
from .nonfinite import NonfiniteWarning
from .options import Options
from .parameters import check_parameters
from .profile import record
from .segments import Segment
from .shards import Shards
from .start import Start, all_finite, check_same, flat, zeros_like
from .synchronizer import Synchronizer, trained
from .warmup import DensitySchedule

_log = logging.getLogger("gtopk")


class LocalSteps(Synchronizer):
    """A `Synchronizer` of weights: gradients stay this rank's own, and every so many steps end with an exchange."""

    shares_state = False

    def __init__(
        self,
        comm: Comm,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]] | None,
        options: LocalOptions,
        schedule: DensitySchedule,
        grad_scaler: Any,
        shards: Shards | None = None,
    ) -> None:
        super().__init__(comm, optimizer, named_parameters, options, schedule, grad_scaler, shards)
        self.options = options
        self.session.undoes = True
        self.done = 0  # steps, over checkpoints; after an exchange those of the rank that did the most
        self.since = 0  # of them since the latest exchange
        self.velocities: dict[str, Tensor] = {}  # of the outer momentum, the same on all ranks
        self._starts: dict[str, Start] = {}  # by name: of what was trained at some time in this period
        # Ids of the parameters that are trained now, and where they are.
        self._trained: list[tuple[int, torch.device]] = []
        self._built: list[tuple[str, torch.device]] | None = None  # what the reducers were made for
        self._warning = NonfiniteWarning("a gradient was Inf or NaN, so this rank has left out its local step ({}")

    # ---- one step ----

    def synchronize(self, optimizer: torch.optim.Optimizer, scaled: Scaled) -> None:
        """Before the wrapped step: looks at this rank's gradients, and exchanges nothing."""
        self._period()  # an error now rather than after the step
        self._remember(optimizer)
        self.average_whole(trained(optimizer))
        gradients = [_values(self.local(p.grad)) for p in trained(optimizer) if p.grad is not None]
        self.nonfinite = scaled.found_inf or not (scaled.present or all_finite(gradients))
        if self.shards is not None:  # what a step does to one shard it does to all
            with self.session.among_peers() as peers:
                self.nonfinite = any_of(peers, self.nonfinite)
        if not scaled.present:
            self._warning.note(self.nonfinite, self.session.comm.rank, self.done, kept_out=True)
        if scaled.scale != 1.0 and not self.nonfinite:
            torch._foreach_mul_(gradients, scaled.scale)
        self.batches += 1

    def end_step(self, optimizer: torch.optim.Optimizer) -> None:
        """After the wrapped step, or where it was left out. Collective at the end of a period."""
        length = self._period()
        self.done += 1
        self.since += 1
        if self.since >= length:
            self.exchange(optimizer)

    def _period(self) -> int:
        return self.options.period(self.done - self.since)

    def _remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Where each parameter's local steps start: at the beginning of a period, or when it is unfrozen or added.

        Weights that were loaded or broadcast after an exchange are where the next period starts.
        """
        if self.session.solo:
            self._starts = {}  # of periods with others: this rank goes on from where it is
            return
        now = [(id(p), p.device) for p in trained(optimizer)]
        if self.since and now == self._trained:
            return
        parameters = {
            name: self.local(p)
            for name, p in self.names.of(optimizer).items()
            if p.requires_grad and not p.is_complex()
        }
        # What was frozen in the latest period took part in its exchange, and takes no part in the next one.
        if not self.since:
            self._starts = {name: start for name, start in self._starts.items() if name in parameters}
        for name, parameter in parameters.items():
            start = self._starts.get(name)
            if start is None:
                self._starts[name] = self._start_of(parameter)
                continue
            start.weights = start.weights.to(parameter.device)
            if not self.since and not start.is_at(parameter):
                start.weights.copy_(parameter.detach())
        self._trained = now

    def _start_of(self, parameter: Tensor) -> Start:
        return Start(parameter, self.options.start_dtype == "bf16")

    # ---- one exchange ----

    def exchange(self, optimizer: torch.optim.Optimizer) -> None:
        """Ends the period; afterwards all ranks have the same weights. Collective."""
        if self.session.solo:
            self._end_alone(optimizer)
        else:
            self._exchange(optimizer, joined=False)

    @torch.no_grad()
    def _exchange(self, optimizer: torch.optim.Optimizer, *, joined: bool) -> bool:
        """True when all ranks have joined, and nothing was exchanged."""
        with record("gtopk.synchronize"):
            self._remember(optimizer)
            parameters = self._prepare_weights(optimizer)
            differences = [flat(self._starts[name].difference(p)) for name, p in parameters.items()]
            finite = all_finite(differences)
            done = self._agree(finite, joined)
            if done is None:
                self.session.skip()
                if not finite:
                    self._go_back(optimizer, parameters)
                return False
            updates, all_joined = self._reduce(differences, joined)
            if all_joined:
                return True
            if self.session.nonfinite:  # residual and difference together are too large
                self._go_back(optimizer, parameters)
                return False
            for (name, parameter), update in zip(parameters.items(), updates, strict=True):
                self._starts[name].move(parameter, self._with_momentum(name, update), self.options.outer_lr)
        self.done, self.since = done, 0
        return False

    def _prepare_weights(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The parameters to exchange. Makes the reducers where these are others than before."""

        def choose() -> tuple[dict[str, Tensor], None]:
            check_parameters(self.names.of(optimizer), exchanged=True, sharded=self.shards is not None)
            return self._started(optimizer), None

        chosen = self._started(optimizer)
        wanted = [(name, p.device) for name, p in chosen.items()]
        if wanted == self._built:
            return chosen
        self._built = None  # if this fails, the next exchange tries again
        chosen = self.together(choose)
        known = self.names.of(optimizer)
        starts = {name: self._starts[name] for name in chosen}
        self.build([Segment(name, s.weights.to(s.wide), self.is_whole(known[name])) for name, s in starts.items()])
        check_same(self.session.comm, chosen, self._starts, self.velocities)
        self._built = wanted
        return chosen

    def _started(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        return {name: p for name, p in self.tensors(optimizer).items() if name in self._starts}

    def _agree(self, finite: bool, joined: bool) -> int | None:
        """The most steps that a rank has done; None where a difference is not finite on some rank."""
        if self.shards is not None:
            with self.session.among_peers() as peers:
                finite = not any_of(peers, not finite)
        mine = [self.session.steps, None if joined else self._period(), finite, self.done]
        rows = self.session.comm.allgather_json(mine)
        for column, what in enumerate(("after exchange {}", "in a period of {} local steps")):
            found = [(rank, row[column]) for rank, row in enumerate(rows) if row[column] is not None]
            for rank, value in found:
                if value != found[0][1]:
                    raise DesyncError(
                        f"rank {found[0][0]} is {what.format(found[0][1])}, but rank {rank} is {what.format(value)}: give "
                        "the same local_steps on all ranks, and after an interruption load a checkpoint on all"
                    )
        return max(row[3] for row in rows) if all(row[2] for row in rows) else None

    def _reduce(self, differences: list[Tensor], joined: bool) -> tuple[list[Tensor], bool]:
        """The mean update, and whether all ranks have joined. Where nobody takes an update residuals are as before."""
        exchange = self.session.exchange
        kept = exchange.residuals()
        taken = all_joined = False
        try:
            if self.options.residual_decay != 1.0:
                exchange.set_residuals([residual * self.options.residual_decay for residual in kept])
            if joined:
                updates = differences
                all_joined = self.session.step_joined(updates=updates)
            else:
                updates = self.session.step(differences)
            taken = not (self.session.nonfinite or all_joined)
        finally:
            if not taken:
                exchange.set_residuals(kept)
        return updates, all_joined

    def _with_momentum(self, name: str, update: Tensor) -> Tensor:
        """Nesterov's, as SGD has it. Each product and sum is rounded by itself: the same bits on every machine."""
        factor = self.options.outer_momentum
        if factor == 0.0:
            return update
        if name not in self.velocities:
            self.velocities[name] = zeros_like(self._starts[name].weights, torch.float32)
        self.velocities[name] = self.velocities[name].to(update.device)
        velocity = flat(self.velocities[name])
        velocity.mul_(factor).add_(update)
        return update.add_(velocity * factor)

    def _go_back(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
        """This rank's weights went wrong: it starts the period again, with what is finite of the optimizer's state."""
        known = self.names.of(optimizer)
        for name, parameter in parameters.items():
            parameter.copy_(self._starts[name].weights)
            for value in optimizer.state.get(known[name], {}).values():
                if isinstance(value, Tensor) and value.is_floating_point():
                    self.local(value).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        _log.warning(
            "rank %d: weights were Inf, NaN or too large after %d local steps, so this rank goes back to those of the latest "
            "exchange: lower the learning rate, or clip gradients",
            self.session.comm.rank,
            self.since,
        )

    def _end_alone(self, optimizer: torch.optim.Optimizer) -> None:
        """One rank: nothing to exchange, and no outer step. A loaded residual is applied at once."""
        waiting = self.session.step_alone()
        with torch.no_grad():
            for name, parameter in self.names.of(optimizer).items():
                if name in waiting and parameter.requires_grad:
                    self.local(parameter).sub_(
                        (waiting.pop(name).residual * self.options.outer_lr).to(parameter.device)
                    )
        self._starts, self.since = {}, 0

    # ---- join ----

    def join(self, optimizer: torch.optim.Optimizer) -> int:
        """As there. A rank that has joined takes the updates, too: in the end all have the same weights."""
        if self.session.solo:
            self._end_alone(optimizer)
            return 0
        while self.since:
            self.exchange(optimizer)
        while not self._exchange(optimizer, joined=True):
            pass
        return self.most_batches()

    def own_stats(self) -> dict[str, Any]:
        """Local steps since the latest exchange."""
        return {"local_steps": self.since}

    # ---- checkpoints and broadcasts ----

    def saved_fields(self) -> dict[str, Any]:
        """What a state has beside the residual."""
        weights = {name: start.weights.to(start.wide) for name, start in self._starts.items()}
        return {
            "local_steps": [self.done, self.since],
            "start_of": list(weights),
            "start": _on_host(weights),
            "outer_velocity_of": list(self.velocities),
            "outer_velocity": _on_host(self.velocities),
        }

    def sharded_fields(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The same, for `sharded_state`."""
        if self.since:
            raise StateError(
                f"sharded_state_dict() after {self.since} local steps: the nodes have different weights, of which a checkpoint "
                "keeps one. Call optimizer.synchronize() first, on all ranks"
            )
        parameters = self._started(optimizer)
        start = {name: self._starts[name].begin(p) for name, p in parameters.items()}
        return {"done": self.done, "start": _on_host(start), "outer_velocity": _on_host(self.velocities)}

    def consolidate(self, optimizer: torch.optim.Optimizer, summed: dict[str, Any] | None) -> None:
        """Adds the same to a consolidated state, with what all ranks have done since the latest exchange as residual.

        Collective.
        """
        comm = self.session.comm
        parameters = self._started(optimizer)
        for name in sorted(set().union(*comm.allgather_json(list(parameters)))):
            mine = torch.zeros(self.tensors(optimizer)[name].shape, dtype=torch.float32, device="cpu")
            if name in parameters:
                difference = self._starts[name].difference(parameters[name])
                if all_finite([difference]):  # else this rank is going to start the period again
                    mine = difference.cpu().contiguous()
            total = comm.allreduce(mine, Sum)
            if summed is not None:
                summed["residual"][name] = total + summed["residual"].get(name, 0)
        if summed is not None:
            summed["residual_of"] = list(summed["residual"])
            summed.update(self.saved_fields(), local_steps=[self.done, 0])

    def check_saved(self, saved: Mapping[str, Any]) -> None:
        """`MismatchError` where a state has a residual of gradients."""
        if "start" not in saved and saved["residual"]:
            raise MismatchError(
                "the state has a residual of gradients, and this optimizer exchanges weights: wrap it as it was when it was "
                'saved, or take the entry "gtopk" out of the state, and what was not sent is lost'
            )

    def go_on(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any] | None) -> None:
        """After `restore`. The weights become those where the period started, unless the state is this rank's own."""
        self.restart()
        self.done, self.velocities = 0, {}
        if saved is None or "start" not in saved:
            return
        self.done, self.since = saved["local_steps"]
        if self.session.solo:
            self.since = 0
        own = (saved["rank"], saved["size"]) == (self.session.comm.rank, self.session.comm.size)
        parameters = self.tensors(optimizer)
        with torch.no_grad():
            for name, values in saved["start"].items():
                start = self._starts[name] = self._start_of(parameters[name])
                start.weights.copy_(values)
                if not own:
                    parameters[name].copy_(values)
            for name, values in saved["outer_velocity"].items():
                self.velocities[name] = zeros_like(parameters[name], torch.float32).copy_(values)

    def progress(self) -> list[int] | None:
        """What `adopt_progress` takes on the other ranks."""
        found = super().progress()
        return None if found is None else [*found, self.done]

    def adopt_progress(self, run: int, steps: int, done: int = 0) -> None:
        """As there, and `restart`."""
        super().adopt_progress(run, steps)
        self.restart()
        self.done = done

    # ---- other ranks, after a loss ----

    def besides(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Where the period started, which is the same on all ranks; the rest is each rank's own."""
        starts = {name: start.weights for name, start in self._starts.items()}
        return {"starts": starts, "velocities": self.velocities, "local_steps": [self.done, self.since]}

    @torch.no_grad()
    def missed_step(self, optimizer: torch.optim.Optimizer) -> None:
        """As there, once what this rank has done in the period is in its residual, as it is when an exchange begins."""
        exchange = self.session.exchange
        parameters = self._started(optimizer)
        differences = [flat(self._starts[one.name].difference(parameters[one.name])) for one in exchange.segments]
        kept = [residual * self.options.residual_decay for residual in exchange.residuals()]
        exchange.set_residuals([old + new.to("cpu") for old, new in zip(kept, differences, strict=True)])
        super().missed_step(optimizer)

    def move(self, comm: Comm, options: Options) -> None:
        """As there. Local steps that were not exchanged yet are this rank's own, and go on."""
        super().move(comm, options)
        assert isinstance(options, LocalOptions)
        self.options = options
        self._built = None

    @torch.no_grad()
    def take_besides(self, optimizer: torch.optim.Optimizer, given: dict[str, Any]) -> None:
        """Takes over what `besides` has given elsewhere. Periods end together from now on."""
        parameters = self.tensors(optimizer)
        for name, weights in given["starts"].items():
            parameters[name].copy_(weights)
        self.velocities = {name: velocity.to(parameters[name].device) for name, velocity in given["velocities"].items()}
        self.restart()
        self.done, self.since = given["local_steps"]

    def restart(self) -> None:
        """The next step starts a period, from the weights that there are then."""
        self._starts, self._trained, self._built = {}, [], None
        self.since = 0


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, in the order of their shapes."""
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _values(gradient: Tensor) -> Tensor:
    """A sparse gradient's, too: here it is only looked at."""
    return gradient.detach() if gradient.layout is torch.strided else gradient.detach()._values()
