"""`DistributedOptimizer`: the user's own optimizer, which exchanges gradients in `step()`.

How an optimizer is wrapped is here; what it does from then on, in `mixin`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .. import comm as _comm
from ..errors import InvalidError, StateError, UnsupportedError
from . import momentum
from .local_options import LocalOptions, Period, check_local, check_outer, exchanges_weights
from .local_steps import LocalSteps
from .mixin import DistributedMixin as DistributedMixin
from .options import Options
from .parameters import Names
from .shards import Shards, find
from .synchronizer import Synchronizer
from .warmup import SHARE, DensitySchedule, Warmup, growth_of, share_of

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
    start_dtype: str = "fp32",
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
        after 39 dense steps from 0.1, as 14 / step with SGD and as 50 / step with other optimizers, until as many bytes are
        sent as at 0.0005. With a ``warmup``: 0.001 after it.
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
        Parameters with fewer entries than this are sent dense. Where it is larger than when a state was saved, what waits of
        such a parameter, velocity included, is sent in the next step.
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
    start_dtype : {"fp32", "bf16"}
        ``bf16``: the weights where the period started take 2 bytes a parameter in place of 4, of float32 parameters. What that
        rounds away stays in the residual.
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
    check_outer(weights, outer_lr, outer_momentum, residual_decay, start_dtype)
    if weights:
        check_local(optimizer, momentum_correction)
    elif momentum_correction:
        momentum.check(optimizer)
    schedule = DensitySchedule(density, warmup, SHARE if weights else share_of(optimizer))
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
            "start_dtype": start_dtype,
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
    return find(group, Names(named_parameters).of(optimizer), _comm.current(), trained=True)


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
