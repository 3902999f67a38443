"""What every front end of the exchange needs beside its own tensors: one run of training, step by step, on one rank.

`build` makes the reducers, when the list of segments is new or has changed; `step` exchanges a tensor for each of them.
A front end decides what the tensors are: the optimizer's gradients, the buckets of DDP, or anything else that is to be
averaged, such as shards of gradients, or the difference of weights after some local steps.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..comm import Comm
from ..step_stats import NOTHING
from .agreement import agree, agree_on_progress, any_of
from .exchange import Exchange
from .nonfinite import NonfiniteWarning
from .options import Options
from .parts import Momentum, Waiting
from .sameness import SameGradients
from .segments import Segment
from .warmup import DensitySchedule

_log = logging.getLogger("gtopk")


class Session:
    """The steps of one training run, its reducers, and what is kept of both in checkpoints.

    Parameters
    ----------
    comm : Comm
        The ranks.
    options : Options
        How segments are exchanged.
    schedule : DensitySchedule
        With which density.
    peers : Comm, optional
        The ranks that hold the other shards, each with a session of its own.

    Examples
    --------
    >>> import torch, gtopk
    >>> from gtopk.torch.options import Options
    >>> from gtopk.torch.segments import Segment
    >>> from gtopk.torch.session import Session
    >>> from gtopk.torch.warmup import DensitySchedule
    >>> gtopk.init()
    >>> start, weights = torch.zeros(4), torch.tensor([0.0, -3.0, 2.0, 1.0])
    >>> session = Session(gtopk.comm.current(), Options(value_type="fp32"), DensitySchedule(0.25, None))
    >>> session.build([Segment("weights", start)])
    >>> session.step([start - weights])
    [tensor([0., 3., 0., 0.])]
    """

    def __init__(self, comm: Comm, options: Options, schedule: DensitySchedule, peers: Comm | None = None) -> None:
        self.comm = comm
        self.peers = peers  # whose steps are taken together with this rank's
        self.options = options
        self.schedule = schedule
        self.exchange = Exchange(comm, options, schedule.is_default)
        self.run: int | None = None  # random id of the training run, the same on all ranks and over checkpoints
        self.steps = 0  # exchanges done, over checkpoints
        self.scaled = False  # some rank has a GradScaler: flags are agreed on before a step
        self.given_at = -1  # the step after which the residual was given to be saved by torch.distributed.checkpoint
        self.sums = False  # the front end makes the mean update the sum
        self.undoes = False  # the front end puts residuals back after a step that was skipped
        self.stats: dict[str, Any] = {}
        self._warning = NonfiniteWarning()
        self._sameness = SameGradients(comm.size)

    @property
    def solo(self) -> bool:
        """One rank: nothing is exchanged, and nothing is compressed."""
        return self.comm.size == 1

    @property
    def nonfinite(self) -> bool:
        """Whether the latest step was skipped."""
        return bool(self.stats.get("nonfinite"))

    @property
    def needs_all(self) -> bool:
        """The coming step looks at all tensors before it begins, so `accumulate_some` would come too early."""
        return self.scaled or self._sameness.looks

    # ---- one step ----

    def build(self, segments: Sequence[Segment], *, scaled: bool = False, momentum: Momentum | None = None) -> None:
        """Makes the reducers for `segments`, which must be the same on all ranks. Collective. Residuals go on.

        With `scaled` on some rank, each of the steps to come begins with the question whether a gradient has overflowed
        anywhere. `momentum` is what correction that begins goes on from: see `Exchange.build`.
        """
        agree(self.comm, "parameters", [self.options.describe(), *(segment.describe() for segment in segments)])
        mine = None if self.run is None else (self.run, self.steps)
        self.run, self.steps, self.scaled = agree_on_progress(self.comm, mine, secrets.randbits(63), scaled)
        self.exchange.build(segments, self.schedule(self.steps), self.steps, momentum)
        _log.info("rank %d, step %d: %d segments are exchanged", self.comm.rank, self.steps, len(segments))

    @property
    def corrects_otherwise(self) -> bool:
        """Momentum correction begins with the coming step: `build` is to be called before it."""
        return self.exchange.corrects_otherwise(self.schedule(self.steps))

    def begin(self, momentum: tuple[float, bool] | None = None) -> None:
        """The density, and with momentum correction the momentum, of the coming step. Collective."""
        self.exchange.set_density(self.schedule(self.steps))
        if momentum is not None:
            self.exchange.set_momentum(*momentum)

    def step(
        self,
        tensors: Sequence[Tensor],
        scale: float = 1.0,
        *,
        found_inf: bool = False,
        momentum: tuple[float, bool] | None = None,
    ) -> list[Tensor]:
        """Exchanges a tensor for each segment. Collective.

        Parameters
        ----------
        tensors : sequence of Tensor
            In the shape of their segments and in whatever memory order, or flat: then in the order of the segment's
            memory. They are overwritten with the mean update.
        scale : float
            Multiplied with them on their way.
        found_inf : bool
            They overflowed. With a GradScaler the step then changes no residual on any rank.
        momentum : (float, bool), optional
            Momentum and nesterov, for momentum correction.

        Returns
        -------
        list of Tensor
            The mean update: the tensors that were given, or new ones where those share memory or have gaps.
        """
        self.begin(momentum)
        self.exchange.hand_over(tensors)  # what is refused is refused before the other ranks hear of it
        try:
            self._sameness.look(self.comm, tensors)
            if self.scaled:
                found_inf = self.anywhere(found_inf)
            self.exchange.accumulate(scale, found_inf=found_inf)
            return self.finish()
        except BaseException:  # Ctrl-C in between, too
            self.exchange.cancel()
            raise

    def accumulate_some(self, places: Sequence[int], tensors: Sequence[Tensor], scale: float = 1.0) -> None:
        """In place of `step`, after `begin`: some of the tensors, as early as they are there; at last `finish`.

        After an error `cancel` is to be called. Not where `needs_all`.
        """
        self.exchange.accumulate_some(places, tensors, scale)

    def finish(self) -> list[Tensor]:
        """Exchanges what was accumulated. Collective."""
        stats, updates = self.exchange.reduce()
        self._end_step(stats)
        return updates

    def cancel(self) -> None:
        """Ends a step that `accumulate_some` began."""
        self.exchange.cancel()

    def step_joined(
        self, momentum: tuple[float, bool] | None = None, *, updates: Sequence[Tensor] | None = None
    ) -> bool:
        """One exchange of a rank that has no more data; True when all ranks are such. Collective.

        `updates`: flat tensors to overwrite with the mean update, where this rank has a use for it.
        """
        self.begin(momentum)
        self._sameness.look(self.comm, None)
        if self.scaled:
            self.anywhere(False)
        self._end_step(self.exchange.reduce_joined(updates))
        return bool(self.stats["all_joined"])

    def anywhere(self, mine: bool) -> bool:
        """Whether it is so on some rank, peers included. Collective."""
        found = any_of(self.comm, mine)
        if self.peers is None:
            return found
        with self.among_peers() as peers:
            return any_of(peers, found)

    @contextmanager
    def among_peers(self) -> Iterator[Comm]:
        """The peers, for a collective of theirs within a step: where it fails, those who will wait for this rank hear of it."""
        assert self.peers is not None
        try:
            yield self.peers
        except BaseException as error:  # Ctrl-C, too
            self.comm.abort(f"the ranks that share this model failed together ({type(error).__name__}: {error})")
            raise

    def skip(self) -> None:
        """Counts a step that all ranks have agreed to do without."""
        self._end_step({**NOTHING, "nonfinite": 1})

    def step_alone(self, found_inf: bool = False) -> dict[str, Waiting]:
        """Counts a step of one rank alone, and gives what a loaded state has waiting: to be added to the tensors."""
        if self.run is None:
            self.run = secrets.randbits(63)
        self._end_step({**NOTHING, "nonfinite": int(found_inf)})
        return self.exchange.waiting

    def _end_step(self, stats: dict[str, Any]) -> None:
        self.stats = {**stats, "step": self.steps}
        self.steps += 1
        kept_out = self.scaled or self.solo or self.undoes or self.exchange.options.rollback
        self._warning.note(self.nonfinite, self.comm.rank, self.stats["step"], kept_out=kept_out)

    # ---- checkpoints ----

    def restore(self, run: int | None, steps: int, waiting: dict[str, Waiting]) -> None:
        """Goes on from a checkpoint. `build` is to be called before the next step."""
        self.exchange.close()
        self.exchange.waiting = waiting
        self.run, self.steps = run, steps

    def adopt_progress(self, run: int, steps: int) -> None:
        """Goes on at another rank's step, with the residual that this rank has."""
        self.exchange.park()
        self.restore(run, steps, self.exchange.waiting)

    def move(self, comm: Comm, options: Options) -> None:
        """Goes on among other ranks, with the residual that this rank has. `build` is to be called before the next step."""
        self.exchange.park()
        self.comm = self.exchange.comm = comm
        self._sameness = SameGradients(comm.size)
        self.options = self.exchange.options = options
