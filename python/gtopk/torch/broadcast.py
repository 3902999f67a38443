"""Starting all ranks from one: parameters and optimizer state. In place, whatever the tensors' layout and device.

Small tensors travel together in buckets, since each broadcast costs log2 P latencies; large ones straight from memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import comm as _comm
from ..comm import Comm
from ..errors import InvalidError, UnsupportedError
from . import plain
from .agreement import agree
from .optimizer import DistributedMixin

_log = logging.getLogger("gtopk")

_BUCKET_BYTES = 4 << 20
_ALONE_BYTES = 1 << 20


def broadcast_parameters(
    params: Mapping[str, Any] | Iterable[tuple[str, Tensor]], root_rank: int = 0, *, comm: Comm | None = None
) -> None:
    """Overwrites the tensors of every rank with those of one. Collective.

    Parameters
    ----------
    params : mapping or iterable of (str, Tensor)
        Usually ``model.state_dict()``, which has buffers too, or ``model.named_parameters()``. Entries that are no
        tensors stay as they are.
    root_rank : int
        The rank whose values are taken.
    comm : Comm, optional
        The ranks. Default: those of `gtopk.init()`.

    Raises
    ------
    MismatchError
        Ranks gave other names, shapes or types; on every rank, with the first difference.

    Examples
    --------
    >>> import torch, gtopk
    >>> gtopk.init()
    >>> model = torch.nn.Linear(4, 1)
    >>> gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
    """
    comm = _comm.current() if comm is None else comm
    items = list(params.items() if isinstance(params, Mapping) else params)
    tensors: dict[str, Tensor] = {}
    for name, value in items:
        if isinstance(value, Tensor):
            tensors[name] = value
        elif value is not None:
            _log.warning(
                "broadcast_parameters leaves %s as it is: it is a %s and no tensor", name, type(value).__name__
            )
    if comm.size == 1:
        return
    agree(comm, "tensors", [_row(name, tensor) for name, tensor in tensors.items()])
    _broadcast(comm, list(tensors.values()), root_rank)


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int = 0) -> None:
    """Gives every rank the state and the options (learning rate, ...) of one rank's optimizer. Collective.

    The residual is not part of it: each rank keeps its own. What is taken over is the number of steps done, so that
    ranks can go on together after one of them has loaded a checkpoint.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Of the same kind, with the same parameters, on all ranks; wrapped or not. The ranks are those that it was wrapped
        for, else those of `gtopk.init()`.
    root_rank : int
        The rank whose state is taken.

    Examples
    --------
    >>> import torch, gtopk
    >>> gtopk.init()
    >>> optimizer = torch.optim.AdamW(torch.nn.Linear(4, 1).parameters())
    >>> gtopk.broadcast_optimizer_state(optimizer, root_rank=0)
    """
    sync = optimizer._gtopk if isinstance(optimizer, DistributedMixin) else None
    comm = _comm.current() if sync is None else sync.session.comm
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidError("the state of LBFGS cannot be broadcast: it differs in shape from rank to rank")
    if comm.size == 1:
        return
    agree(comm, "optimizers", _describe(optimizer))
    tensors: list[Tensor] = []
    mine: Any = None
    if comm.rank == root_rank:
        state = _own_state_dict(optimizer)
        progress = None if sync is None or sync.session.run is None else [sync.session.run, sync.session.steps]
        mine = _encoded(state, tensors), progress
    message, progress = comm.broadcast_json(mine, root_rank)
    if isinstance(message, str):
        raise UnsupportedError(message)
    if comm.rank != root_rank:
        state = plain.decode(message, tensors)
        _broadcast(comm, tensors, root_rank)
        _load_own_state_dict(optimizer, state)
    else:
        _broadcast(comm, tensors, root_rank)
    if sync is not None and progress is not None and not sync.session.solo:
        sync.adopt_progress(*progress)


def _broadcast(comm: Comm, tensors: Iterable[Tensor], root_rank: int) -> None:
    """In place. Every rank gives tensors of the same shapes and types, in whatever memory order."""
    with torch.no_grad():
        for bucket in _buckets(tensors):
            if len(bucket) == 1:
                _broadcast_one(comm, bucket[0], root_rank)
            else:
                packed = torch.cat([_bytes(tensor) for tensor in bucket])
                comm.broadcast_(packed, root_rank)
                for tensor, part in zip(bucket, torch.split(packed, [t.nbytes for t in bucket]), strict=True):
                    # A copy: the place in the bucket need not be aligned to the type.
                    tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))


def _broadcast_one(comm: Comm, tensor: Tensor, root_rank: int) -> None:
    data = tensor.detach()
    if data.is_contiguous() and data.device.type == "cpu":
        comm.broadcast_(data, root_rank)
        return
    packed = _bytes(data)
    comm.broadcast_(packed, root_rank)
    tensor.copy_(packed.view(tensor.dtype).view(tensor.shape))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if tensor.numel() == 0:
            continue
        if tensor.nbytes >= _ALONE_BYTES:
            yield [tensor]
            continue
        if size + tensor.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _bytes(tensor: Tensor) -> Tensor:
    """A copy of the values in logical order, as bytes on the host."""
    return tensor.detach().to("cpu", copy=True).contiguous().view(-1).view(torch.uint8)


def _row(name: str, tensor: Tensor) -> list[Any]:
    return [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]


def _describe(optimizer: torch.optim.Optimizer) -> list[list[Any]]:
    rows: list[list[Any]] = [[type(optimizer).__name__]]
    for g, group in enumerate(optimizer.param_groups):
        rows += [_row(f"parameter {i} of group {g}", parameter) for i, parameter in enumerate(group["params"])]
    return rows


def _encoded(state: dict[str, Any], tensors: list[Tensor]) -> Any:
    """For `plain.decode`; a text where it cannot be done, so that every rank hears of it."""
    try:
        return plain.encode({"state": state["state"], "param_groups": state["param_groups"]}, tensors)
    except UnsupportedError as error:
        return str(error)


def _own_state_dict(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Without the residual."""
    if isinstance(optimizer, DistributedMixin):
        return super(DistributedMixin, optimizer).state_dict()
    return optimizer.state_dict()


def _load_own_state_dict(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    if isinstance(optimizer, DistributedMixin):
        super(DistributedMixin, optimizer).load_state_dict(state)
    else:
        optimizer.load_state_dict(state)
