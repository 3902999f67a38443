"""Do all ranks describe the same thing? One small exchange; every rank finds the same first difference.

Used before reducers are made and parameters are broadcast, because the library sees lengths only, not names.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from ..comm import Comm, Sum
from ..errors import DesyncError, MismatchError

OPTIONS = "the options"  # the name of a row that describes no parameter


def agree(comm: Comm, what: str, rows: list[list[Any]]) -> None:
    """Raises `MismatchError` on every rank unless all have the same rows. Collective.

    Parameters
    ----------
    comm : Comm
        The ranks to ask.
    what : str
        Names the whole in the error text: "parameters".
    rows : list of list
        One for each item, of what JSON can hold; the first entry is its name.
    """
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    digests = comm.allgather_json(digest)
    other = next((r for r, found in enumerate(digests) if found != digests[0]), None)
    if other is None:
        return
    described = comm.allgather_json(rows)
    raise MismatchError(_first_difference(what, described[0], described[other], other))


def any_of(comm: Comm, mine: bool) -> bool:
    """Whether it is so on some rank. Collective."""
    total = comm.allreduce(torch.tensor([float(mine)], device="cpu", dtype=torch.float32), Sum)
    return bool(total.item() > 0)


def agree_on_progress(
    comm: Comm, mine: tuple[int, int] | None, proposal: int, scaled: bool = False
) -> tuple[int, int, bool]:
    """(run, steps done, scaled), the same on all ranks. Collective.

    The run is what they all loaded or have done, else a new one; `scaled` is true where it is so on some rank.

    Raises
    ------
    DesyncError
        Some rank is at another step, or goes on from another checkpoint; on every rank.
    """
    found = comm.allgather_json({"at": mine, "proposal": proposal, "scaled": scaled})
    first = found[0]["at"]
    for other, entry in enumerate(found):
        if entry["at"] != first:
            raise DesyncError(
                f"rank 0 {_progress(first)}, but rank {other} {_progress(entry['at'])}: load a checkpoint of one and the "
                "same step on every rank, or load it on one rank and call gtopk.broadcast_optimizer_state on all"
            )
    run, steps = first or (found[0]["proposal"], 0)
    return int(run), int(steps), any(entry["scaled"] for entry in found)


def _progress(at: list[int] | None) -> str:
    return f"goes on after step {at[1]} of run {at[0]:016x}" if at else "starts anew"


def _first_difference(what: str, first: list[list[Any]], second: list[list[Any]], rank: int) -> str:
    for mine, theirs in zip(first, second, strict=False):
        if mine != theirs and mine[0] == theirs[0] == OPTIONS:
            return (
                f"ranks have different options: rank 0 has {_row(_without(mine, theirs))}, rank {rank} has "
                f"{_row(_without(theirs, mine))}: give the same on every rank"
            )
        if mine != theirs:
            return (
                f"ranks have different {what}: rank 0 has {_row(mine)}, rank {rank} has {_row(theirs)} in its place. "
                "Build the same model on every rank, in the same memory format and type, with the same parameters frozen"
            )
    longer, holder = (first, 0) if len(first) > len(second) else (second, rank)
    extra = longer[min(len(first), len(second))]
    return (
        f"ranks have different {what}: rank 0 has {len(first)}, rank {rank} has {len(second)}; {_row(extra)} is on rank "
        f"{holder} only. Build the same model on every rank, with the same parameters frozen"
    )


def _without(row: list[Any], other: list[Any]) -> list[Any]:
    return [part for part in row if part not in other]


def _row(row: list[Any]) -> str:
    return " ".join(str(part) for part in row)
