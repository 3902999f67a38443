"""The residual as torch.distributed.checkpoint (DCP) saves it: an entry for each parameter and replica.

A replica is a node of a model under fully_shard, else a rank. Each saves its own residual, spread as the parameter is; nothing
is added up, so nothing travels. When there are other replicas on loading, they share the entries out, add up what each
of them gets, and scale it so that the mean stays: nothing is lost, whatever the number of nodes and of shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CorruptError, MismatchError
from .checkpoint import among, scaled
from .parts import VELOCITY_TEXT, Waiting
from .shards import here, spread_like
from .start import wide_type
from .state_form import CONSOLIDATED
from .synchronizer import Synchronizer

_FORMAT = 1
_PROGRESS = "progress"  # format, replicas, run (-1: none), steps, local steps (-1: gradients are exchanged)
_AS_GRADIENTS = "as_gradients"  # is there where momentum stays with the optimizer
_LOCAL = ("start", "outer_velocity")  # the same on all replicas
_OWN = ("residual", "velocity")


def save(sync: Synchronizer, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What this rank gives to ``dcp.save``."""
    session, parameters = sync.session, sync.names.of(optimizer)
    fields = sync.sharded_fields(optimizer)
    replica = session.comm.rank
    progress = [_FORMAT, session.comm.size, -1 if session.run is None else session.run, session.steps]
    found = {_PROGRESS: torch.tensor([*progress, fields.pop("done", -1)], device="cpu")}
    if session.exchange.stays_gradient:
        found[_AS_GRADIENTS] = torch.ones(1, device="cpu")
    for name, entry in session.exchange.state().items():
        for what, values in zip(_OWN, entry, strict=True):
            if values is not None and name in parameters:
                found[f"{what}.{replica}.{name}"] = spread_like(values.contiguous(), parameters[name])
    for what, tensors in fields.items():
        for name, values in tensors.items():
            found[f"{what}.{name}"] = spread_like(values, parameters[name])
    return found


class Loaded(NamedTuple):
    """What this rank goes on with."""

    run: int | None
    steps: int
    waiting: dict[str, Waiting]
    saved: dict[str, Any]  # as in a consolidated state, for local steps


def load(sync: Synchronizer, optimizer: torch.optim.Optimizer, reader: Any, key: str) -> Loaded:
    """Reads this rank's part of a checkpoint. Changes nothing, and asks no other rank.

    Raises
    ------
    CorruptError, MismatchError
        It has no such entry; or another model's.
    """
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    parameters = sync.names.of(optimizer)
    sizes = _sizes(reader, key)
    _check_model(parameters, sizes)

    def read(name: str, like: Tensor) -> Tensor:
        dcp_load({key: {name: like}}, storage_reader=reader, no_dist=True)
        values = here(like)
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise CorruptError(f"the checkpoint's {key}.{name} holds Inf or NaN: load another checkpoint")
        return values.to("cpu")

    counts = [int(n) for n in read(_PROGRESS, torch.zeros(sizes[_PROGRESS], dtype=torch.int64, device="cpu"))]
    if len(counts) != 5 or counts[0] != _FORMAT:
        raise CorruptError(f"the checkpoint's {key} has another format than {_FORMAT}: install a newer gtopk")
    _, replicas, run, steps, done = counts
    _check_replicas(replicas, sizes, key)
    found, part = _waiting(sync, parameters, sizes, read), among(sync.session, replicas)
    waiting = {name: _finite(name, scaled(found.pop(name), part)) for name in list(found)}
    saved: dict[str, Any] = {"residual": waiting, **({_AS_GRADIENTS: True} if _AS_GRADIENTS in sizes else {})}
    if done >= 0:
        saved |= {"rank": CONSOLIDATED, "size": sync.session.comm.size, "local_steps": [done, 0]}
        for what in _LOCAL:
            named = [name for name in parameters if f"{what}.{name}" in sizes]
            saved[what] = {name: read(f"{what}.{name}", _room(parameters[name], what)) for name in named}
    return Loaded(None if run < 0 else run, steps, waiting, saved)


def _waiting(
    sync: Synchronizer,
    parameters: Mapping[str, Tensor],
    sizes: Mapping[str, Any],
    read: Callable[[str, Tensor], Tensor],
) -> dict[str, Waiting]:
    """The sums over the replicas whose entries this one takes."""
    mine, size = sync.session.comm.rank, sync.session.comm.size
    found: dict[str, dict[str, Tensor]] = {what: {} for what in _OWN}
    for entry in sizes:
        what, _, rest = entry.partition(".")
        if what not in _OWN:
            continue
        replica, _, name = rest.partition(".")
        if int(replica) % size != mine:
            continue
        values = read(entry, _room(parameters[name]))
        before = found[what].get(name)
        found[what][name] = values if before is None else before.add_(values)
    alone = sorted(set(found["velocity"]) - set(found["residual"]))
    if alone:
        raise CorruptError(f"the checkpoint has a velocity of {alone[0]}, and no residual of it: load another one")
    if found["velocity"] and sync.session.options.momentum_correction is False:
        raise MismatchError(VELOCITY_TEXT)
    return {name: Waiting(residual, found["velocity"].get(name)) for name, residual in found["residual"].items()}


def _finite(name: str, entry: Waiting) -> Waiting:
    """What is finite may be too large when it is added up."""
    if all(values is None or bool(torch.isfinite(values).all()) for values in entry):
        return entry
    raise CorruptError(f"what waits of {name} is too large for float32 in the checkpoint: load another one")


def _room(parameter: Tensor, what: str = "residual") -> Tensor:
    part = here(parameter)
    dtype = wide_type(parameter) if what == "start" else torch.float32
    return spread_like(torch.zeros(part.shape, dtype=dtype, device=part.device), parameter)


def _sizes(reader: Any, key: str) -> dict[str, Any]:
    """The size of each entry under `key`, by its name there."""
    entries = reader.read_metadata().state_dict_metadata
    prefix = f"{key}."
    found = {
        name.removeprefix(prefix): getattr(entry, "size", None)
        for name, entry in sorted(entries.items())
        if name.startswith(prefix)
    }
    if _PROGRESS not in found:
        others = sorted({name.partition(".")[0] for name in entries})
        raise CorruptError(
            f"the checkpoint has no {key!r} of gtopk, only {', '.join(others)}: give the key under which "
            "optimizer.sharded_state_dict() was saved"
        )
    return found


def _check_replicas(replicas: int, sizes: Mapping[str, Any], key: str) -> None:
    found = {entry.split(".", 2)[1] for entry in sizes if entry.partition(".")[0] in _OWN}
    wrong = sorted(number for number in found if not (number.isdecimal() and int(number) < replicas))
    if wrong or replicas < 1:
        what = f"it has a residual of number {wrong[0]}" if wrong else "there must be 1 or more"
        raise CorruptError(
            f"the checkpoint's {key}.{_PROGRESS} says that {replicas} ranks or nodes have saved it, but {what}: load another "
            "checkpoint"
        )


def _check_model(parameters: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> None:
    for entry, size in sizes.items():
        what, _, name = entry.partition(".")
        if what in _OWN:
            name = name.partition(".")[2]
        if what not in (*_OWN, *_LOCAL):
            continue
        if name not in parameters:
            raise MismatchError(f"the checkpoint belongs to another model: its parameter {name} is not here")
        if size != parameters[name].shape:
            raise MismatchError(
                f"the checkpoint belongs to another model: its {name} has shape {list(size or [])}, and here it has "
                f"{list(parameters[name].shape)}"
            )
