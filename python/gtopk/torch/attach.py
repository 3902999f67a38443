"""Another communicator for a session, after ranks were lost: who is ahead, and what the others take over from there.

A step that failed may have happened on other ranks. Those are ahead, by one step: no rank finishes one without a message of
every other. All ranks first have everything, and each then changes on its own what it has; so an attempt that fails, as
another rank was lost, is made again with the next communicator.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from .._reducer_handle import check_survives
from ..comm import Comm
from ..errors import DesyncError, InvalidError, UnsupportedError
from ..reducer import Reducer
from .broadcast import load_own_state_dict, own_state_dict, receive
from .holder import Holder
from .options import Options
from .session import Session

_CALL = "attach()"
_HIERARCHIES = ("off", "node", "auto")


def attach(holder: Holder, optimizer: torch.optim.Optimizer, comm: Comm, hierarchy: str | None) -> int:
    """Goes on among the ranks of `comm`; which of them was ahead. Collective."""

    def prepare() -> tuple[Options, list[Any]]:
        check_survives(holder.session.comm, comm)
        if hierarchy is not None and hierarchy not in _HIERARCHIES:
            raise InvalidError(f'hierarchy is {hierarchy!r}, but must be "off", "node" or "auto"')
        holder.check_attach()
        options = holder.session.options
        options = options if hierarchy is None else dataclasses.replace(options, hierarchy=hierarchy)
        return options, options.describe()

    options = comm.together(_CALL, prepare)
    _check_nodes(comm, options)
    found = comm.allgather_json(_progress(holder.session))
    first = max(range(comm.size), key=lambda rank: (found[rank][1], found[rank][0] is not None, -rank))
    _check_apart(found, first)
    given = None
    if any(row != found[first] for row in found):
        given = receive(comm, _CALL, first, lambda: _given(holder, optimizer))
        comm.together(_CALL, lambda: (None, "what is taken over"))  # everybody has it
    is_behind = found[comm.rank] != found[first]
    if given is not None and is_behind and found[comm.rank][1] < found[first][1] and not given["nonfinite"]:
        holder.missed_step(optimizer)
    holder.move(comm, options)
    if given is not None and is_behind:
        _take(holder, optimizer, given)
        holder.session.run, holder.session.steps = found[first]
    return first


def _given(holder: Holder, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    given = {"besides": holder.besides(optimizer), "nonfinite": holder.session.nonfinite}
    if holder.shares_state:
        state = own_state_dict(optimizer)
        given["parameters"] = [parameter.detach() for parameter in _parameters(optimizer)]
        given["optimizer"] = {"state": state["state"], "param_groups": state["param_groups"]}
    return given


@torch.no_grad()
def _take(holder: Holder, optimizer: torch.optim.Optimizer, given: dict[str, Any]) -> None:
    if holder.shares_state:
        for parameter, values in zip(_parameters(optimizer), given["parameters"], strict=True):
            parameter.copy_(values)
        load_own_state_dict(optimizer, given["optimizer"])
    if not given["nonfinite"]:
        holder.take_besides(optimizer, given["besides"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _progress(session: Session) -> list[int | None]:
    return [session.run, session.steps]


def _check_nodes(comm: Comm, options: Options) -> None:
    if options.hierarchy != "node" or comm.size == 1:
        return
    try:
        Reducer([comm.size], hierarchy="node", comm=comm).close()
    except UnsupportedError as error:
        raise UnsupportedError(
            f'{error.text}. After a loss: attach(hierarchy="off"), which keeps what the ranks that are left have not sent'
        ) from error


def _check_apart(found: list[Any], first: int) -> None:
    run, steps = found[first]
    for rank, (its_run, its_steps) in enumerate(found):
        if its_steps < steps - 1 or (its_run is not None and its_run != run):
            raise DesyncError(
                f"rank {rank} has done {its_steps} steps of run {its_run}, rank {first} {steps} of run {run}: ranks that are "
                "left of one group are at most one step apart. Load a checkpoint of the same step on all of them"
            )
