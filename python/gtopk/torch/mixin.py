"""What a wrapped optimizer does: its own class with these methods before its own.

What happens inside a step is in `synchronizer`; how an optimizer is wrapped, in `optimizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from .. import comm as _comm
from ..errors import InvalidError, StateError
from . import amp, checkpoint, sharded_state
from .checkpoint import KEY
from .local_steps import LocalSteps
from .synchronizer import Synchronizer


class DistributedMixin(torch.optim.Optimizer):
    """What `DistributedOptimizer` adds to an optimizer."""

    _gtopk: Synchronizer
    # A GradScaler then calls step() on every rank, also after an overflow, and says in two attributes what it found.
    _step_supports_amp_scaling = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """In place of the wrapped class's own, which may ask for arguments, or keep a list of subclasses."""

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Exchanges the gradients and lets the wrapped optimizer apply the mean update. Collective.

        With ``local_steps`` the wrapped optimizer applies this rank's own gradients, unless they are not finite; the step
        that ends a period then exchanges the differences of weights.

        Parameters
        ----------
        closure : callable, optional
            Computes loss and gradients; called once, with gradients enabled, before the exchange.
        **kwargs
            Passed to the wrapped optimizer's step.

        Returns
        -------
        The closure's loss, or what the wrapped optimizer returns.
        """
        sync = self._gtopk
        if checkpoint.is_dcp_step(self):  # nothing to exchange, and other ranks may not be at it
            with _stepping(sync):
                return super().step()
        self.__dict__["_opt_called"] = True  # what a scheduler's patch of step() would note
        loss = None
        if closure is not None:
            if sync.skipping:
                raise StateError(
                    "step(closure) inside skip_synchronize() would compute gradients after the exchange: call the closure "
                    "before synchronize(), and step() without it"
                )
            with torch.enable_grad():
                loss = closure()
        self._gtopk_exchange()
        nonfinite = sync.nonfinite
        sync.drop_update()
        result = None
        if not nonfinite:
            with sync.wrapped_step(self), _stepping(sync):
                result = super().step(**kwargs)
        sync.end_step(self)
        return result if closure is None else loss

    def synchronize(self) -> None:
        """Exchanges the gradients now: they are the mean update afterwards, for global clipping. Collective.

        To be followed by `step()` inside `skip_synchronize()`. In mixed precision the optimizer must have been wrapped
        with ``grad_scaler=``; gradients are unscaled first unless ``scaler.unscale_(optimizer)`` was called.

        With ``local_steps`` it ends the period now, after a step: all ranks have the same weights afterwards, as for an
        evaluation or at the end of training.
        """
        sync = self._gtopk
        own = self._gtopk_own("synchronize")
        if own is not None:
            own()
            return
        if isinstance(sync, LocalSteps):
            sync.exchange(self)
            return
        if sync.holds_update(self):
            raise StateError(
                "synchronize() was called already and would exchange the mean update as if it were a gradient: call "
                "step() inside skip_synchronize() first, or optimizer.zero_grad() to do without that step"
            )
        sync.begin_by_hand()
        sync.synchronize(self, amp.unscaled(sync.grad_scaler, self))
        sync.keep_update(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch. After `synchronize()` it does without the step: the mean update is thrown away."""
        super().zero_grad(set_to_none)
        self._gtopk.drop_update()

    def skip_synchronize(self) -> AbstractContextManager[None]:
        """Inside, `step()` does not exchange: the gradients are those of `synchronize()`."""
        own = self._gtopk_own("skip_synchronize")
        if own is None and isinstance(self._gtopk, LocalSteps):
            raise StateError(
                "skip_synchronize() is for exchanges of gradients; with local steps they stay on this rank: clip them between "
                "backward() and step(), without synchronize()"
            )
        return _skipping(self._gtopk) if own is None else own()

    def join(self) -> int:
        """Tells the others that this rank has no more batches, and goes on exchanging until nobody has. Collective.

        Until all ranks have joined, none may add, freeze or unfreeze parameters.

        Returns
        -------
        int
            The rank that had the most batches. The others' parameters and optimizer states (momentum, ...) are out of
            date: give it to `gtopk.broadcast_parameters` and `gtopk.broadcast_optimizer_state` as ``root_rank``. With
            ``local_steps`` all have the same parameters, and optimizer states are each rank's own anyway.
        """
        own = self._gtopk_own("join")
        return self._gtopk.join(self) if own is None else own()

    def attach(self, comm: _comm.Comm | None = None, *, hierarchy: str | None = None) -> int:
        """Goes on in this process after ranks were lost, with those that are left. Collective among these.

        Ranks for which the latest step did not happen take over parameters and optimizer state from one for which it did; all
        residuals stay. Can be called again with the next communicator when it fails because another rank is lost. The guide on
        losing a rank has a complete loop, and says what may be lost.

        Parameters
        ----------
        comm : Comm, optional
            The ranks that are left. Default: those of `gtopk.init()`, which was called again, by
            `gtopk.elastic.Meeting.regroup` for example.
        hierarchy : {"off", "node", "auto"}, optional
            From now on. "off", where it was "node", when machines have unequally many ranks left.

        Returns
        -------
        int
            A rank that is not behind. What else the ranks keep, such as schedulers and counters of steps, they take from it,
            by `gtopk.broadcast_object`.

        Raises
        ------
        UnsupportedError
            With ``group=``, and over NCCL.
        """
        own = self._gtopk_own("attach")
        if own is not None:
            return cast(int, own())
        from .attach import attach

        return attach(self._gtopk, self, _comm.current() if comm is None else comm, hierarchy)

    def stats(self, *, residual_norm: bool = False) -> dict[str, Any]:
        """Statistics of the latest exchange on this rank, {} before the first; see `gtopk.Reducer.stats`.

        With ``local_steps`` also ``local_steps``: how many there were since then, 0 where the latest step has exchanged.

        Parameters
        ----------
        residual_norm : bool
            Also the Euclidean norm of this rank's residual, which takes a pass over it.
        """
        own = self._gtopk_own("stats")
        if own is not None:
            return cast(dict[str, Any], own())
        session = self._gtopk.session
        found = {**session.stats, **self._gtopk.own_stats()}
        if residual_norm:
            found["residual_norm"] = session.exchange.residual_norm()
        return found

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state, and under "gtopk" this rank's residual; loads with ``weights_only=True``."""
        sync = self._gtopk
        checkpoint.reject_dcp_state(sync.session)
        with _stepping(sync):
            state = super().state_dict()
        state[KEY] = {**checkpoint.save(sync.session, sync.tensors(self), sync.shards), **sync.saved_fields()}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = False) -> None:
        """Goes on from `state_dict` or `consolidate_state_dict`, or from the state of an optimizer without gtopk.

        Parameters
        ----------
        state_dict : mapping
            This rank's own, a consolidated one, or that of another rank: then the residual starts at zero here.
        strict : bool
            Make a state of another rank, or of another number of ranks, an error.
        """
        sync = self._gtopk
        saved = state_dict.get(KEY)
        waiting = {}
        if saved is not None:
            waiting = checkpoint.check(sync.session, sync.tensors(self), saved, strict, sync.shards)
            sync.check_saved(saved)
            saved = checkpoint.with_names_as_in(sync.names.of(self), saved)
        super().load_state_dict({name: value for name, value in state_dict.items() if name != KEY})
        if saved is None:
            sync.restore(None, 0, {})
        else:
            sync.restore(saved["run"], saved["step"], waiting)
        sync.go_on(self, saved)

    def consolidate_state_dict(self, to: int = 0) -> dict[str, Any] | None:
        """A state with the sum of all ranks' residuals, on rank `to`; None elsewhere. Collective.

        It can be loaded on any number of ranks: each takes the mean over those that there were, so that the update that waits
        stays as it is (with Horovod's ``op=Sum``: the sum stays). With ``local_steps`` what
        ranks have done since the latest exchange is part of the sum, and the wrapped optimizer's own state is that of
        rank `to`; loading sets the parameters to where the period started, so load the model before. What the wrapped
        optimizer has under this name (ZeroRedundancyOptimizer) is called first.
        """
        own = self._gtopk_own("consolidate_state_dict")
        if own is not None:
            return cast(dict[str, Any] | None, own(to))
        sync = self._gtopk
        size = sync.session.comm.size
        if not isinstance(to, int) or not 0 <= to < size:
            raise InvalidError(f"to is {to!r}, but must be one of the ranks, 0 to {size - 1}")
        with _stepping(sync):
            own = self._gtopk_own("consolidate_state_dict")
            if own is not None:
                own(to)
            summed = checkpoint.consolidate(sync.session, sync.tensors(self), to, sync.shards)
            sync.consolidate(self, summed)
            if summed is None:
                return None
            state = super().state_dict()
        state[KEY] = summed
        return state

    def sharded_state_dict(self) -> dict[str, Tensor]:
        """The residual for ``torch.distributed.checkpoint.save``: under any key, on all ranks. See the guide on checkpoints.

        With ``local_steps`` right after an exchange only: call `synchronize` before.
        """
        sync = self._gtopk
        state = sharded_state.save(sync, self)
        sync.session.given_at = sync.session.steps
        return state

    def load_sharded_state(self, checkpoint_id: Any = None, *, key: str = "gtopk", storage_reader: Any = None) -> None:
        """Goes on from what `sharded_state_dict` gave, on any number of nodes and shards; their mean stays. Collective.

        Parameters
        ----------
        checkpoint_id : str or os.PathLike
            The folder that ``dcp.save`` wrote.
        key : str
            Under which the residual was saved there.
        storage_reader : torch.distributed.checkpoint.StorageReader, optional
            In place of ``checkpoint_id``, where the checkpoint is no folder.

        Notes
        -----
        Model and the wrapped optimizer's own state are loaded before. On as many nodes as there were the run goes on
        bit for bit, whatever the number of shards.
        """
        sync = self._gtopk
        everyone = sync.session.comm if sync.shards is None else sync.shards.everyone

        def read() -> tuple[sharded_state.Loaded, None]:
            reader = storage_reader
            if reader is None:
                from torch.distributed.checkpoint.filesystem import FileSystemReader

                reader = FileSystemReader(checkpoint_id)
            loaded = sharded_state.load(sync, self, reader, key)
            sync.check_saved(loaded.saved)
            return loaded, None

        loaded = everyone.together("load_sharded_state()", read)
        sync.restore(loaded.run, loaded.steps, loaded.waiting)
        sync.go_on(self, loaded.saved)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise StateError(
            "a gtopk optimizer cannot be copied or pickled, as its reducers are tied to this process: save "
            "optimizer.state_dict(), or copy the optimizer before it is wrapped"
        )

    def _gtopk_own(self, name: str) -> Callable[..., Any] | None:
        """While the wrapped optimizer's own code runs: the method that it has under one of our names, if any."""
        return getattr(super(), name, None) if self._gtopk.stepping else None

    def _gtopk_exchange(self) -> None:
        sync = self._gtopk
        scaled = amp.read(self)
        if not sync.skipping:
            if sync.holds_update(self):
                raise StateError(
                    "step() after synchronize() would exchange the gradients a second time: write\n"
                    "    with optimizer.skip_synchronize():\n        optimizer.step()\n"
                    "or call optimizer.zero_grad() to do without that step"
                )
            amp.note_no_gradients(scaled, sync.grad_scaler, self, sync.session.comm.rank)
            sync.synchronize(self, scaled)
        elif not sync.synchronized:
            raise StateError(
                "step() inside skip_synchronize() without synchronize() before would apply this rank's own gradients: call "
                "optimizer.synchronize() first"
            )
        elif scaled.present and sync.grad_scaler is None:
            raise StateError(
                "synchronize() was called in mixed precision, but it cannot see whether gradients are scaled: wrap the "
                "optimizer with gtopk.DistributedOptimizer(..., grad_scaler=scaler); synchronize() then unscales them "
                "first, unless scaler.unscale_(optimizer) was called before"
            )
        else:
            sync.check_untouched()


@contextmanager
def _skipping(sync: Synchronizer) -> Iterator[None]:
    sync.skipping = True
    try:
        yield
    finally:
        sync.skipping = False


@contextmanager
def _stepping(sync: Synchronizer) -> Iterator[None]:
    """Code of the wrapped optimizer runs: where it calls a method of its own that has one of our names, it gets its own."""
    sync.stepping = True
    try:
        yield
    finally:
        sync.stepping = False


# A scheduler looks for the first on step() and would patch it otherwise; torch for the second, to add its hooks. Both
# are done by the wrapped optimizer's own step, which runs inside.
DistributedMixin.step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
DistributedMixin.step.hooked = True  # type: ignore[attr-defined]
