"""`DistributedOptimizer`: the user's own optimizer, which exchanges gradients in `step()`.

What users call is here; what happens inside a step is in `synchronizer`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from .. import comm as _comm
from ..errors import InvalidError, StateError, UnsupportedError
from . import amp, checkpoint, momentum, sharded_state
from .checkpoint import KEY
from .exchange import Options
from .local_options import LocalOptions, Period, check_local, check_outer, exchanges_weights
from .local_steps import LocalSteps
from .parameters import Names
from .shards import Shards, find
from .synchronizer import Synchronizer
from .warmup import DensitySchedule, Warmup, growth_of

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)


def DistributedOptimizer(
    optimizer: OptimizerT,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    *,
    density: float | None = None,
    algorithm: str = "gtopk",
    value_type: str = "bf16",
    residual_policy: str = "share",
    merge_growth: float | None = None,
    warmup: Warmup | None = None,
    momentum_correction: bool | None = None,
    dense_below: int = 0,
    dense_1d: bool = False,
    rollback: bool = False,
    residual_dtype: str = "fp32",
    local_steps: Period = 1,
    exchange: str | None = None,
    outer_lr: float = 1.0,
    outer_momentum: float = 0.0,
    residual_decay: float = 1.0,
    backward_passes_per_step: int = 1,
    grad_scaler: Any = None,
    hierarchy: str = "off",
    comm: _comm.Comm | None = None,
    group: Any = None,
) -> OptimizerT:
    """Makes an optimizer exchange its gradients with the other ranks in `step()`.

    The optimizer itself is changed and returned: its class becomes a subclass of what it was, so schedulers and other
    references to it go on working. Call it on every rank, after `gtopk.init()`.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any optimizer that takes dense gradients and needs one evaluation a step.
    named_parameters : iterable of (str, Tensor), optional
        Usually ``model.named_parameters()``. Names are compared between ranks, and are used in checkpoints and errors.
        Default: the places in the optimizer.
    density : float, optional
        Part of all gradient entries that a rank sends in a step, in (0, 1]. Default: it falls while the training goes on,
        after 39 dense steps from 0.1 as 14 / step, until as many bytes are sent as at 0.0005. With a ``warmup``: 0.001
        after it.
    algorithm, value_type, residual_policy
        See `gtopk.Reducer`.
    merge_growth : float, optional
        The same. Default: 2 with the default density (of ``gtopk`` with ``share``), which is then lower, so that as many bytes
        are sent; else 1.
    warmup : list of (steps, density), or callable of the step, optional
        Densities to begin with; the same on every rank.
    momentum_correction : bool, optional
        Apply SGD's momentum on each rank before entries are selected (Deep Gradient Compression). Takes 4 bytes a
        parameter more in the exchange, and none in SGD unless it has weight decay. Default: with the default density, of
        ``torch.optim.SGD`` itself with one momentum, no dampening and no hierarchy, from where that density is below 0.05; not
        after `synchronize()` was called by hand. See the guide on optimizers.
    dense_below : int
        Parameters with fewer entries than this are sent dense.
    dense_1d : bool
        Parameters with one dimension or none (biases, normalisation layers) are sent dense, whatever their size.
    rollback : bool
        A step that is skipped because a gradient was not finite on some rank leaves the residuals of all ranks as they were
        before it, without a GradScaler too. Takes 4 more bytes a parameter (8 with momentum correction). Of no effect where
        weights are exchanged: what is skipped there changes nothing anyway.
    residual_dtype : {"fp32", "bf16"}
        ``bf16``: the residual takes 2 bytes a parameter in place of 4, rounded at random so that the mean is right. On CPUs
        only, so far. Parameters that are sent dense keep float32. See the guide on memory.
    local_steps : int, or callable of the step
        Each rank does so many steps by itself, with its own gradients, before the differences of weights are exchanged
        in place of gradients. A function is given the number of steps done. 1: gradients, in every step. Takes 4 bytes
        a parameter more, for the weights where the period started, and 8 during an exchange.
    exchange : {"gradients", "weights"}, optional
        With ``local_steps=1``: "weights" exchanges the difference that each step makes.
    outer_lr : float
        By how much of the mean difference the weights of all ranks move at an exchange.
    outer_momentum : float
        Of the mean differences (Nesterov), in [0, 1). Takes 4 bytes a parameter.
    residual_decay : float
        Multiplies the residual before each exchange of weights, in [0, 1]. Below 1, what waits is forgotten slowly.
    backward_passes_per_step : int
        As in Horovod: backward passes before each `step()`. Gradients are added up, not averaged. Any number works,
        whatever is given here, since nothing happens before `step()`.
    grad_scaler : torch.amp.GradScaler, optional
        Needed when `synchronize()` is called by hand in mixed precision; `step()` alone does without.
    hierarchy : {"off", "node", "auto"}
        With several ranks on each machine: see `gtopk.Reducer`, and the guide for several machines.
    comm : Comm, optional
        The ranks to exchange with. Default: those of `gtopk.init()`.
    group : {"replicas"}, ProcessGroup or one-dimensional DeviceMesh, optional
        For models under ``torch.distributed.fsdp.fully_shard`` on each node's own mesh: the ranks that hold the same shard,
        which exchange it; "replicas" finds them. Then this call is collective over all ranks. See the guide on FSDP2.

    Returns
    -------
    torch.optim.Optimizer
        The same object, with the methods of `DistributedMixin`.

    Raises
    ------
    StateError
        `gtopk.init()` was not called, or the optimizer is wrapped already.
    UnsupportedError
        Optimizers that evaluate the model several times in a step (LBFGS, SAM) or need sparse gradients (SparseAdam);
        complex parameters; on more than one rank, DTensors without ``group``, and parameters on two devices or on others
        than CPU and CUDA; momentum correction for anything but SGD without dampening.

    Notes
    -----
    Every parameter that requires a gradient gets one in `step()`, zeros where none arrived on any rank. With one rank
    nothing is compressed and gradients stay as they are.

    When a gradient is not finite on some rank, the step is skipped on all: gradients become NaN, ``stats()["nonfinite"]``
    is 1, and the wrapped optimizer is not called. With a GradScaler, or with ``rollback=True``, such a step leaves the
    residuals of all ranks as they were.

    Examples
    --------
    >>> import torch, gtopk
    >>> gtopk.init()
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    >>> model(torch.ones(2, 4)).sum().backward()
    >>> optimizer.step()
    >>> isinstance(optimizer, torch.optim.SGD)
    True
    """
    _check_wrappable(optimizer)
    if not isinstance(backward_passes_per_step, int) or backward_passes_per_step < 1:
        raise InvalidError(f"backward_passes_per_step is {backward_passes_per_step!r}, but must be at least 1")
    if not isinstance(dense_below, int) or dense_below < 0:
        raise InvalidError(f"dense_below is {dense_below!r}, but must be a number of entries, 0 or more")
    weights = exchanges_weights(local_steps, exchange)
    check_outer(weights, outer_lr, outer_momentum, residual_decay)
    if weights:
        check_local(optimizer, momentum_correction)
    elif momentum_correction:
        momentum.check(optimizer)
    schedule = DensitySchedule(density, warmup)
    if momentum_correction is None:
        grows = growth_of(None, algorithm, residual_policy, schedule) != 1.0  # all of it is the default
        automatic = grows and not weights and hierarchy == "off" and group is None and momentum.is_automatic(optimizer)
        momentum_correction = None if automatic else False
    else:
        momentum_correction = bool(momentum_correction)
    options: dict[str, Any] = {
        "algorithm": algorithm,
        "value_type": value_type,
        "residual_policy": residual_policy,
        "merge_growth": growth_of(merge_growth, algorithm, residual_policy, schedule),
        "momentum_correction": momentum_correction,
        "dense_below": dense_below,
        "dense_1d": bool(dense_1d),
        "hierarchy": hierarchy,
        "rollback": bool(rollback) and not weights,  # a skipped exchange of weights changes nothing anyway
        "residual_dtype": residual_dtype,
    }
    ranks = _comm.current() if comm is None else comm
    held = None
    if group is not None:
        named_parameters = None if named_parameters is None else list(named_parameters)
        held = _shards(optimizer, named_parameters, group, comm, hierarchy)
        ranks = held.replicas
    sync: Synchronizer
    if weights:
        outer: dict[str, Any] = {
            "outer_lr": outer_lr,
            "outer_momentum": outer_momentum,
            "residual_decay": residual_decay,
        }
        local = LocalOptions(**options, local_steps=local_steps, **outer)
        sync = LocalSteps(ranks, optimizer, named_parameters, local, schedule, grad_scaler, held)
    else:
        sync = Synchronizer(ranks, optimizer, named_parameters, Options(**options), schedule, grad_scaler, held)
    optimizer.__dict__.pop("step", None)  # a scheduler's patch of the old class's step
    optimizer.__class__ = distributed_class(type(optimizer))  # type: ignore[assignment]
    cast(DistributedMixin, optimizer)._gtopk = sync
    return optimizer


def distributed_class(
    base: type[torch.optim.Optimizer], *mixins: type[DistributedMixin]
) -> type[torch.optim.Optimizer]:
    """A subclass of `base` with the methods of `mixins`, and then of `DistributedMixin`, before its own.

    `base` is its only base: an object's class can be replaced only by one that lays out memory alike, and of several
    bases the first decides. So the mixin stands in the order of methods alone, which is what a metaclass is for.
    """

    def mro(cls: type) -> list[type]:
        return [cls, *mixins, DistributedMixin, *base.__mro__]

    meta: Any = type(type(base).__name__, (type(base),), {"mro": mro})
    try:
        made: type[torch.optim.Optimizer] = meta(base.__name__, (base,), {"__module__": base.__module__})
    except Exception as error:
        raise UnsupportedError(
            f"gtopk makes a subclass of the optimizer's class, and {type(base).__name__}, the metaclass of {base.__name__}, "
            f"refuses ({type(error).__name__}: {error}): give what it asks for a default, or wrap an optimizer without it"
        ) from error
    return made


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

        It can be loaded on any number of ranks: each takes an equal share, and nothing is lost. With ``local_steps`` what
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
        """Goes on from what `sharded_state_dict` gave, on any number of nodes and shards: nothing is lost. Collective.

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


def _shards(
    optimizer: torch.optim.Optimizer,
    named_parameters: list[tuple[str, Tensor]] | None,
    group: Any,
    comm: _comm.Comm | None,
    hierarchy: str,
) -> Shards:
    if comm is not None:
        raise InvalidError("group= is for shards and comm= for other ranks than all: give one of them")
    if hierarchy != "off":
        raise InvalidError(f"hierarchy={hierarchy!r} with group=: there is one replica a node, so leave out hierarchy")
    return find(group, Names(named_parameters).of(optimizer), _comm.current())


def _check_wrappable(optimizer: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidError(f"a {type(optimizer).__name__} is no torch.optim.Optimizer: pass the optimizer itself")
    name = type(optimizer).__name__
    if isinstance(optimizer, DistributedMixin):
        raise StateError("this optimizer is wrapped by gtopk.DistributedOptimizer already: wrap it once")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UnsupportedError(
            "LBFGS evaluates the model several times in a step, each time with another gradient, and gtopk exchanges once "
            "a step: use another optimizer"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise UnsupportedError(
            "SparseAdam needs sparse gradients, which gtopk cannot exchange: use Adam with sparse=False"
        )
    if isinstance(getattr(optimizer, "base_optimizer", None), torch.optim.Optimizer):
        raise UnsupportedError(
            f"{name} steps by way of an optimizer in its base_optimizer, whose gradients gtopk would not see: wrap that one, "
            "optimizer.base_optimizer = gtopk.DistributedOptimizer(optimizer.base_optimizer, ...), and leave "
            f"{name} as it is"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UnsupportedError(
            f"step() of {name} cannot do without a closure: it evaluates the model itself, and gtopk exchanges once a step, "
            "before it. Use another optimizer, or wrap the one that it is based on"
        )
    patched = optimizer.__dict__.get("step")
    if patched is not None and not hasattr(patched, "_wrapped_by_lr_sched"):
        raise InvalidError(
            f"something has replaced step() of this {name}: wrap it with gtopk.DistributedOptimizer first"
        )
