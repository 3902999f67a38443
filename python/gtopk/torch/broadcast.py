"""Starting all ranks from one: parameters and optimizer state. In place, whatever the tensors' layout and device.

Small tensors travel together in buckets, since each broadcast costs log2 P latencies; large ones straight from memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .. import _tensors
from .. import comm as _comm
from ..comm import Comm
from ..errors import InvalidError
from . import plain
from .agreement import agree
from .local_steps import LocalSteps
from .mixin import DistributedMixin
from .shards import REPLICAS, Shards, find, here, is_dtensor, spread_like

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
        The rank whose values are taken. Of a model under ``fully_shard``: the number of the node, in the order of meshes.
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

    def prepare() -> tuple[dict[str, Tensor], Any]:
        tensors = _tensors_of(params)
        sharded = any(map(is_dtensor, tensors.values()))
        return tensors, [None if sharded else comm.root(root_rank)]

    tensors = comm.together("broadcast_parameters", prepare)
    if comm.size == 1:
        return
    agree(comm, "tensors", [_row(name, tensor) for name, tensor in tensors.items()])
    if any(map(is_dtensor, tensors.values())):
        _broadcast_shards(find(REPLICAS, tensors, comm, trained=False), list(tensors.values()), root_rank)
    else:
        _broadcast(comm, list(tensors.values()), root_rank)


def _broadcast_shards(shards: Shards, tensors: list[Tensor], root_rank: int) -> None:
    """What is whole comes from the first peer of the root."""
    root = shards.everyone.together("broadcast_parameters", lambda: (shards.replicas.root(root_rank), root_rank))
    _broadcast(shards.peers, [tensor for tensor in tensors if not is_dtensor(tensor)], 0)
    _broadcast(shards.replicas, [here(tensor) for tensor in tensors], root)


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int = 0) -> None:
    """Gives every rank the state and the options (learning rate, ...) of one rank's optimizer. Collective.

    The residual is not part of it: each rank keeps its own, so load a consolidated state on all of them instead. With
    ``local_steps`` the next step starts a period, so broadcast the parameters, too. What is taken over is the number of
    steps done, so that ranks can go on together after one of them has loaded a checkpoint.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Of the same kind, with the same parameters, on all ranks; wrapped or not. The ranks are those that it was wrapped
        for, else those of `gtopk.init()`.
    root_rank : int
        The rank whose state is taken. With ``group=``: the number of the node, in the order of meshes.

    Examples
    --------
    >>> import torch, gtopk
    >>> gtopk.init()
    >>> optimizer = torch.optim.AdamW(torch.nn.Linear(4, 1).parameters())
    >>> gtopk.broadcast_optimizer_state(optimizer, root_rank=0)
    """
    sync = optimizer._gtopk if isinstance(optimizer, DistributedMixin) else None
    comm = _comm.current() if sync is None else sync.session.comm

    def prepare() -> tuple[list[list[Any]], Any]:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InvalidError("the state of LBFGS cannot be broadcast: it differs in shape from rank to rank")
        return _describe(optimizer), [comm.root(root_rank)]

    def known() -> dict[str, Any]:
        state = tree_map(lambda x: here(x) if isinstance(x, Tensor) else x, own_state_dict(optimizer))
        return {
            "state": state["state"],
            "param_groups": state["param_groups"],
            "velocities": sync.velocities if isinstance(sync, LocalSteps) else {},
            "progress": None if sync is None else sync.progress(),
        }

    rows = comm.together("broadcast_optimizer_state", prepare)
    if comm.size == 1:
        return
    agree(comm, "optimizers", rows)
    state = receive(comm, "broadcast_optimizer_state", root_rank, known)

    def take() -> tuple[None, str]:
        progress, velocities = state.pop("progress"), state.pop("velocities")
        if comm.rank != root_rank:
            _spread(optimizer, state)
            load_own_state_dict(optimizer, state)
            if isinstance(sync, LocalSteps):
                sync.velocities = velocities
        if isinstance(sync, LocalSteps):
            sync.restart()
        if sync is not None and progress is not None and not sync.session.solo:
            sync.adopt_progress(*progress)
        return None, "what is taken over"

    comm.together("broadcast_optimizer_state", take)


def receive(comm: Comm, call: str, root_rank: int, give: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `give` returns on one rank, with new tensors on the others. Collective; `call` names it in error texts."""
    tensors: list[Tensor] = []

    def encode() -> tuple[tuple[dict[str, Any], Any], None]:
        given = give() if comm.rank == root_rank else {}
        return (given, plain.encode(given, tensors)), None

    given, mine = comm.together(call, encode)
    message = comm.broadcast_json(mine, root_rank)
    found: dict[str, Any] = comm.together(
        call, lambda: (given if comm.rank == root_rank else plain.decode(message, tensors), "the state")
    )
    _broadcast(comm, tensors, root_rank)
    return found


def allreduce_buffers(module: torch.nn.Module) -> None:
    """Gives every rank the mean of all ranks' buffers, as before an evaluation in which all take part. Collective.

    Buffers are what a module keeps beside its parameters: the running statistics of batch normalisation, for example.
    Those of floats are averaged. Others, which count (``num_batches_tracked``) or name something, become rank 0's.

    Parameters
    ----------
    module : torch.nn.Module
        The model; the same on all ranks.

    Raises
    ------
    MismatchError
        Ranks have other buffers; on every rank, with the first difference.

    Examples
    --------
    >>> import torch, gtopk
    >>> gtopk.init()
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    >>> gtopk.allreduce_buffers(model)
    """
    comm = _comm.current()
    buffers = comm.together("allreduce_buffers", lambda: (_buffers_of(module), None))
    if comm.size == 1:
        return
    agree(comm, "buffers", [_row(name, buffer) for name, buffer in buffers.items()])
    floats = [buffer for buffer in buffers.values() if buffer.is_floating_point() and buffer.numel()]
    for dtype in sorted({buffer.dtype for buffer in floats}, key=str):
        same = [buffer.detach() for buffer in floats if buffer.dtype == dtype]
        mean = comm.allreduce(torch.cat([buffer.to("cpu").reshape(-1) for buffer in same]))
        with torch.no_grad():
            for buffer, part in zip(same, torch.split(mean, [b.numel() for b in same]), strict=True):
                buffer.copy_(part.view(buffer.shape))
    _broadcast(comm, [buffer for buffer in buffers.values() if not buffer.is_floating_point()], 0)


def _buffers_of(module: torch.nn.Module) -> dict[str, Tensor]:
    if not isinstance(module, torch.nn.Module):
        raise InvalidError(f"module is a {type(module).__name__}, but must be a torch.nn.Module: give the model itself")
    buffers = dict(module.named_buffers())
    for name, buffer in buffers.items():
        _check(name, buffer)
    return buffers


def _tensors_of(params: Mapping[str, Any] | Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in params.items() if isinstance(params, Mapping) else params:
        if isinstance(value, Tensor):
            _check(name, value)
            tensors[name] = value
        elif value is not None:
            _log.warning(
                "broadcast_parameters leaves %s as it is: it is a %s and no tensor", name, type(value).__name__
            )
    return tensors


def _check(name: str, tensor: Tensor) -> None:
    """Whether the tensor's memory can be read and written, on one rank as on many."""
    tensor = here(tensor)
    if tensor.layout is not torch.strided:
        raise InvalidError(f"{name} is a sparse tensor ({tensor.layout}): leave it out, or convert it with to_dense()")
    if tensor.device.type == "meta":
        raise InvalidError(f"{name} is on the meta device and has no values: give it memory with to_empty() first")
    if _tensors.is_expanded(tensor):
        raise InvalidError(f"{name} is expanded, so that entries share memory: make it whole with clone()")


def _broadcast(comm: Comm, tensors: Iterable[Tensor], root_rank: int) -> None:
    """In place. Every rank gives tensors of the same shapes and types, in whatever memory order."""
    with torch.no_grad():
        for bucket in _buckets(tensors):
            if len(bucket) == 1:
                _broadcast_one(comm, bucket[0], root_rank)
            else:
                packed = torch.cat([_bytes(tensor) for tensor in bucket])
                comm.broadcast_memory(packed, root_rank)
                for tensor, part in zip(bucket, torch.split(packed, [t.nbytes for t in bucket]), strict=True):
                    # A copy: the place in the bucket need not be aligned to the type.
                    tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))


def _broadcast_one(comm: Comm, tensor: Tensor, root_rank: int) -> None:
    data = tensor.detach()
    if data.is_contiguous() and data.device.type == "cpu":
        comm.broadcast_memory(data, root_rank)
        return
    packed = _bytes(data)
    comm.broadcast_memory(packed, root_rank)
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


def _spread(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Of sharded parameters: values that came as this rank's part are it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, entries in state["state"].items():
        parameter = parameters[place]
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.dim() and value.shape == here(parameter).shape:
                entries[name] = spread_like(value, parameter)


def own_state_dict(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The wrapped optimizer's, without the residual."""
    if isinstance(optimizer, DistributedMixin):
        return super(DistributedMixin, optimizer).state_dict()
    return optimizer.state_dict()


def load_own_state_dict(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The same, and the residual stays."""
    if isinstance(optimizer, DistributedMixin):
        super(DistributedMixin, optimizer).load_state_dict(state)
    else:
        optimizer.load_state_dict(state)
