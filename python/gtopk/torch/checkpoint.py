"""The part of an optimizer's state_dict that is gtopk's: this rank's residual, by parameter.

Plain tensors, numbers and strings only, so that it loads with ``weights_only=True``. The step's own state is the
wrapped optimizer's, beside it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from fractions import Fraction
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..comm import Sum
from ..errors import MismatchError, StateError
from .agreement import agree, agree_on_progress
from .parameters import plain_name
from .parts import VELOCITY_TEXT, Waiting
from .session import Session
from .shards import Shards
from .state_form import CONSOLIDATED, FORMAT, check_form

_log = logging.getLogger("gtopk")

KEY = "gtopk"
_DDP = "module."  # what DistributedDataParallel puts before the names of its model's parameters
_DCP = "torch.distributed.checkpoint.state_dict"


# ---- saving ----


def save(session: Session, parameters: Mapping[str, Tensor], shards: Shards | None = None) -> dict[str, Any]:
    """This rank's residual and progress. `parameters`: what this rank holds of them."""
    return _document(session, parameters, session.comm.rank, _entries(session, parameters), shards)


def consolidate(
    session: Session, parameters: Mapping[str, Tensor], to: int, shards: Shards | None = None
) -> dict[str, Any] | None:
    """The sum of all ranks' residuals on rank `to`, None elsewhere. Collective.

    Raises
    ------
    MismatchError, DesyncError
        Some rank has other parameters, or is at another step; on every rank.
    """
    mine = session.comm.together("consolidate_state_dict()", lambda: (_entries(session, parameters), None))
    agree(session.comm, "parameters", [[name, list(parameter.shape)] for name, parameter in parameters.items()])
    agree_on_progress(session.comm, None if session.run is None else (session.run, session.steps), 0)
    listed = session.comm.allgather_json([[name, entry.velocity is not None] for name, entry in mine.items()])
    velocities: dict[str, bool] = {}
    for names in listed:
        for name, has_velocity in names:
            velocities[name] = velocities.get(name, False) or has_velocity
    total: dict[str, Waiting] = {}
    for name in sorted(velocities):
        entry = mine.get(name)
        shape = parameters[name].shape
        residual = _summed(session, None if entry is None else entry.residual, shape)
        velocity = _summed(session, None if entry is None else entry.velocity, shape) if velocities[name] else None
        total[name] = Waiting(residual, velocity)
    return _document(session, parameters, CONSOLIDATED, total, shards) if session.comm.rank == to else None


def _entries(session: Session, parameters: Mapping[str, Tensor]) -> dict[str, Waiting]:
    """What belongs to `parameters`. What was taken out of the optimizer keeps its residual, but not over a checkpoint."""
    found = session.exchange.state()
    gone = [name for name in found if name not in parameters]
    if gone:
        _log.warning(
            "the residual of %s is not saved: %s no parameter of the optimizer any more",
            ", ".join(gone),
            "it is" if len(gone) == 1 else "they are",
        )
    return {name: entry for name, entry in found.items() if name in parameters}


def _summed(session: Session, mine: Tensor | None, shape: torch.Size) -> Tensor:
    total: Tensor = session.comm.allreduce(
        torch.zeros(shape, dtype=torch.float32, device="cpu") if mine is None else mine, Sum
    )
    return total


def _document(
    session: Session,
    parameters: Mapping[str, Tensor],
    rank: int,
    entries: Mapping[str, Waiting],
    shards: Shards | None,
) -> dict[str, Any]:
    return {
        **({} if shards is None else {"shard": [shards.peers.rank, shards.peers.size]}),
        "format": FORMAT,
        "rank": rank,
        "size": session.comm.size,
        "run": session.run,
        "step": session.steps,
        "names": list(parameters),
        "shapes": [list(parameter.shape) for parameter in parameters.values()],
        # By name as well, so that a lost tensor is noticed.
        "residual_of": list(entries),
        "velocity_of": [name for name, entry in entries.items() if entry.velocity is not None],
        # Contiguous, as safetensors wants them.
        "residual": {name: entry.residual.contiguous() for name, entry in entries.items()},
        "velocity": {
            name: entry.velocity.contiguous() for name, entry in entries.items() if entry.velocity is not None
        },
    }


# ---- loading ----


def check(
    session: Session,
    parameters: Mapping[str, Tensor],
    saved: Mapping[str, Any],
    strict: bool,
    shards: Shards | None = None,
) -> dict[str, Waiting]:
    """What this rank is to go on with. Changes nothing.

    Raises
    ------
    CorruptError
        It is no state of gtopk, or a damaged one.
    MismatchError
        It belongs to another model, and the text names the first difference; or, with `strict`, to another rank.
    """
    check_form(saved)
    saved = with_names_as_in(parameters, saved)
    _check_shard(saved.get("shard"), None if shards is None else [shards.peers.rank, shards.peers.size])
    _check_model(parameters, saved)
    entries = {name: Waiting(values, saved["velocity"].get(name)) for name, values in saved["residual"].items()}
    if saved["velocity"] and session.exchange.options.momentum_correction is False:
        raise MismatchError(VELOCITY_TEXT)
    if saved["rank"] == CONSOLIDATED:
        part = among(session, saved["size"]) / session.comm.size
        return {name: scaled(entry, part) for name, entry in entries.items()}
    if (saved["rank"], saved["size"]) == (session.comm.rank, session.comm.size) or not entries:
        return {name: scaled(entry, Fraction(1)) for name, entry in entries.items()}
    text = (
        f"the loaded state is that of rank {saved['rank']} of {saved['size']}, this is rank {session.comm.rank} of "
        f"{session.comm.size}"
    )
    if strict:
        raise MismatchError(f"{text}: load this rank's own, or one of consolidate_state_dict, or leave out strict=True")
    _log.warning(
        "%s: the residual starts at zero here. To keep what had not been sent, save the state of every rank, or call "
        "consolidate_state_dict on all ranks and save its result",
        text,
    )
    return {}


def with_names_as_in(parameters: Mapping[str, Tensor], saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state of a model that was compiled, or inside DDP, when it was saved, by the names that its parameters have here."""
    renamed = {name: plain_name(name) for name in saved["names"]}
    here, there = (
        bool(names) and all(name.startswith(_DDP) for name in names) for names in (parameters, renamed.values())
    )
    if there and not here:
        renamed = {name: plain.removeprefix(_DDP) for name, plain in renamed.items()}
    elif here and not there:
        renamed = {name: _DDP + plain for name, plain in renamed.items()}
    if len(set(renamed.values())) < len(renamed):
        return saved
    by_name = [what for what in ("residual", "velocity", "start", "outer_velocity") if what in saved]
    return {
        **saved,
        "names": list(renamed.values()),
        **{what: {renamed[name]: values for name, values in saved[what].items()} for what in by_name},
    }


def _check_shard(saved: Any, mine: list[int] | None) -> None:
    if saved != mine:
        theirs, here = ("no shard" if one is None else f"shard {one[0]} of {one[1]}" for one in (saved, mine))
        raise MismatchError(
            f"the state has {theirs}, and this rank has {here}: load the state that this rank saved, or save with "
            "optimizer.sharded_state_dict() and torch.distributed.checkpoint, which fits any number of nodes and shards"
        )


def _check_model(parameters: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    mine = [(name, list(parameter.shape)) for name, parameter in parameters.items()]
    theirs = [(name, list(shape)) for name, shape in zip(saved["names"], saved["shapes"], strict=True)]
    for i, (here, there) in enumerate(zip(mine, theirs, strict=False)):
        if here != there:
            raise MismatchError(
                f"the state belongs to another model: its parameter {i} is {there[0]} of shape {there[1]}, and here it is "
                f"{here[0]} of shape {here[1]}"
            )
    if len(mine) != len(theirs):
        extra = (mine if len(mine) > len(theirs) else theirs)[min(len(mine), len(theirs))][0]
        where = "here" if len(mine) > len(theirs) else "in the state"
        raise MismatchError(
            f"the state belongs to another model: it has {len(theirs)} parameters, and there are {len(mine)} here; {extra} is "
            f"{where} only"
        )


def among(session: Session, ranks: int) -> Fraction:
    """How much there must be of what waited on so many ranks together, so that the update that waits stays what it was.

    A mean over the ranks stays the same when the sum grows with their number. Where updates are sums, the sum is to stay.
    """
    return Fraction(1 if session.sums else session.comm.size, 1 if session.sums else ranks)


def scaled(entry: Waiting, part: Fraction) -> Waiting:
    """A part of it, as a copy on the host."""
    return Waiting(*(None if values is None else _scaled(values, part) for values in entry))  # type: ignore[arg-type]


def _scaled(values: Tensor, part: Fraction) -> Tensor:
    return values.detach().to("cpu", copy=True).mul_(part.numerator).div_(part.denominator)


# ---- torch.distributed.checkpoint ----


def is_dcp_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch.distributed.checkpoint calls step() with learning rate 0, to have the optimizer make its state."""
    if any("lr" in group and group["lr"] != 0 for group in optimizer.param_groups):
        return False
    frame: FrameType | None = sys._getframe(1)
    for _ in range(8):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == _DCP:
            return True
        frame = frame.f_back
    return False


def reject_dcp_state(session: Session) -> None:
    """An error when torch.distributed.checkpoint is about to drop a residual that was not saved beside it."""
    if sys._getframe(2).f_globals.get("__name__") != _DCP or session.run is None:
        return
    if session.given_at != session.steps:
        raise StateError(
            "get_optimizer_state_dict and get_state_dict of torch.distributed.checkpoint drop the residual from the "
            "optimizer's state: call optimizer.sharded_state_dict() before them, after the same step, and save what it "
            'returns beside it, dcp.save({..., "gtopk": residual}, ...)'
        )
