"""Shards: who holds which part of a model under torch.distributed.fsdp.fully_shard, and what of it lies on this rank.

The ranks of a mesh are *peers*: each holds a shard of every parameter, and fully_shard averages gradients among them. Ranks
that hold the same shard are *replicas*, one a mesh (usually a node), and exchange it. Knows nothing of steps.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..comm import Comm
from ..errors import InvalidError, MismatchError, UnsupportedError
from .segments import has_no_memory

_log = logging.getLogger("gtopk")

REPLICAS = "replicas"


class Shards(NamedTuple):
    """The two communicators of a rank, and its place."""

    everyone: Comm
    replicas: Comm  # the ranks that hold the same shard; exchanges take place here
    peers: Comm  # the ranks of this rank's mesh; steps are taken by all of them or by none
    mesh: Any


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is spread over a mesh."""
    if not has_no_memory(tensor):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def here(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank: its own memory, no copy."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return cast(Any, tensor).to_local()  # type: ignore[no-any-return]


def spread_like(part: Tensor, tensor: Tensor) -> Tensor:
    """A tensor that is `part` here and is spread as `tensor` is."""
    if not is_dtensor(tensor):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = tensor
    return cast(
        Tensor,
        DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        ),
    )


def find(group: Any, tensors: Mapping[str, Tensor], everyone: Comm, *, trained: bool) -> Shards:
    """The communicators for these tensors. Collective over `everyone`; made once for each mesh.

    Parameters
    ----------
    group : "replicas", ProcessGroup or one-dimensional DeviceMesh
        The ranks with the same shard. "replicas" finds them; any other is compared with what is found.
    trained : bool
        They are parameters, whose gradients are to be exchanged: fully_shard has to have sharded them.

    Raises
    ------
    InvalidError, UnsupportedError
        The tensors are spread otherwise, or the group has other ranks; on the other ranks `MismatchError`.
    """
    call = "gtopk.DistributedOptimizer(group=...)"
    mesh, mine, named = everyone.together(call, lambda: (_described(group, tensors, trained), None))
    rows = everyone.allgather_json([mine, named])
    ranks = everyone.together(call, lambda: (_replicas(mine, named, rows), None))
    return _communicators(everyone, mesh, mine[0], ranks)


# ---- what this rank has ----


def _described(
    group: Any, tensors: Mapping[str, Tensor], trained: bool
) -> tuple[Any, tuple[list[int], int, int], list[int] | None]:
    """The mesh; its ranks, this rank's place among them and number; and the ranks of `group`, None: to be found."""
    import torch.distributed as dist

    mesh = _mesh_of(tensors)
    if trained:
        _check_fully_sharded(tensors)
    named = _ranks_of(group)
    ranks = [int(rank) for rank in mesh.mesh.flatten().tolist()]
    return mesh, (ranks, int(mesh.get_local_rank()), dist.get_rank()), named


def _mesh_of(tensors: Mapping[str, Tensor]) -> Any:
    """The one mesh that all are spread over by shards."""
    mesh: Any = None
    first = ""
    for name, tensor in tensors.items():
        if not is_dtensor(tensor):
            continue
        spread: Any = tensor
        if mesh is None:
            mesh, first = spread.device_mesh, name
        _check_spread(name, spread)
        if spread.device_mesh != mesh:
            raise UnsupportedError(
                f"{first} and {name} are sharded over different meshes ({mesh} and {spread.device_mesh}): call fully_shard "
                "with one mesh for all modules, or make an optimizer for the parameters of each"
            )
    if mesh is None:
        raise InvalidError(
            "group= is for models under fully_shard, and no parameter here is sharded: call fully_shard(model, "
            "mesh=mesh['shards']) before the optimizer is made. Without shards leave out group=; with DistributedDataParallel, "
            "which has a mesh of its own, register gtopk.torch.ddp_hook there in place of this"
        )
    return mesh


def _check_fully_sharded(tensors: Mapping[str, Tensor]) -> None:
    """Shards of tensor parallelism look the same, and nobody has tried to exchange them like this."""
    known = _parameters_of_fully_shard()
    for name, tensor in tensors.items():
        if known is not None and is_dtensor(tensor) and id(tensor) not in known:
            mesh = cast(Any, tensor).device_mesh
            raise UnsupportedError(
                f"{name} is sharded over its mesh {mesh}, but not by fully_shard, and gtopk exchanges shards as that makes "
                "them: leave out tensor parallelism, or exchange the local tensors with gtopk.Reducer"
            )


def _parameters_of_fully_shard() -> set[int] | None:
    """Those of all modules that it has changed and that are alive, by id. None: this PyTorch does not tell; 2.13 does."""
    from torch.distributed import _composable_state
    from torch.distributed.fsdp import FSDPModule

    try:
        states: Any = _composable_state._module_state_mapping
        modules: list[Any] = [module for module in list(states) if isinstance(module, FSDPModule)]
        groups = [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]
        # A module that has its whole parameters now, between forward and backward, does not show the shards.
        shards = [parameter.sharded_param for group in groups for parameter in group.fsdp_params]
    except AttributeError:
        return None
    return {id(parameter) for parameter in itertools.chain(shards, *(module.parameters() for module in modules))}


def _check_spread(name: str, tensor: Any) -> None:
    mesh, placements = tensor.device_mesh, tensor.placements
    if mesh.ndim == 2 and placements[0].is_replicate() and placements[1].is_shard():
        names = mesh.mesh_dim_names or (0, 1)
        raise UnsupportedError(
            f"{name} is replicated over dimension {names[0]!r} of its mesh {mesh}, where its gradient is all-reduced in "
            "backward() already, dense: gtopk would be the second exchange. Give fully_shard the dimension of shards alone, "
            "fully_shard(model, mesh=mesh['shards']), and gtopk.DistributedOptimizer(..., group=mesh['replicas'])"
        )
    if mesh.ndim != 1 or not placements[0].is_shard():
        raise UnsupportedError(
            f"{name} is spread over its mesh {mesh} as {tuple(placements)}, and gtopk exchanges shards over one dimension, as "
            "fully_shard makes them: leave out tensor parallelism, or exchange the local tensors with gtopk.Reducer"
        )


def _ranks_of(group: Any) -> list[int] | None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise InvalidError(
                f"group is a mesh of {group.ndim} dimensions, {group}: give the one along which the model is replicated, "
                "for example group=mesh['replicas']"
            )
        return [int(rank) for rank in group.mesh.tolist()]
    if isinstance(group, dist.ProcessGroup):
        return list(dist.get_process_group_ranks(group))
    if group == REPLICAS:
        return None
    raise InvalidError(
        f'group is {group!r}, but must be "replicas", a ProcessGroup, or a dimension of a DeviceMesh, mesh["replicas"]'
    )


# ---- what all ranks have ----


def _replicas(mine: Iterable[Any], named: list[int] | None, rows: list[Any]) -> list[int]:
    """The ranks that hold this rank's shard, in the order of their meshes."""
    ranks, place, rank = mine
    for (others, _, number), _ in rows:
        if len(others) != len(ranks) or (others != ranks and set(others) & set(ranks)):
            raise MismatchError(
                f"the meshes of shards are {ranks} on rank {rank} and {others} on rank {number}: each rank must be in one "
                "mesh, and all must have the same length. Make them as init_device_mesh(device, (nodes, ranks of a node), "
                "mesh_dim_names=('replicas', 'shards'))['shards']"
            )
    found = [number for (others, at, number), _ in sorted(rows, key=lambda row: row[0][0]) if at == place]
    if named is not None and sorted(named) != sorted(found):
        raise InvalidError(
            f"group has ranks {sorted(named)}, but the ranks with shard {place} of {len(ranks)}, which rank {rank} holds, are "
            f"{sorted(found)}: give group=mesh['replicas'] of the mesh whose other dimension fully_shard got, or "
            'group="replicas"'
        )
    if len(found) == 1 and len(rows) > 1 and rank == ranks[0]:
        _log.warning(
            "fully_shard has spread the model over all %d ranks, so there is one replica and nothing is exchanged: on "
            "several nodes give it each node's own mesh",
            len(ranks),
        )
    return found


def _communicators(everyone: Comm, mesh: Any, ranks: list[int], replicas: list[int]) -> Shards:
    key = (tuple(ranks), tuple(replicas))
    kept = everyone.parts.get(key)
    if kept is None or any(comm.is_closed for comm in kept):
        transport = everyone.asked if everyone.asked in ("nccl", "auto") else "torch"
        peers = Comm(transport="torch", group=ranks, timeout=everyone.timeout, warn_after=everyone.warn_after)
        own = Comm(
            transport=transport,
            group=replicas,
            timeout=everyone.timeout,
            warn_after=everyone.warn_after,
            peers=peers,
        )
        kept = everyone.parts[key] = (own, peers)
    return Shards(everyone, kept[0], kept[1], mesh)
