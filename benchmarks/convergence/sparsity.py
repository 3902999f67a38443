"""How good the entries are that gTop-k takes: the ratio of Assumption 1 of its analysis, and how far ranks agree.

S is the sum over the ranks of what each has accumulated: its residual and its new gradient (with momentum correction, its
velocity). With G, the sum of what was sent of it, the ratio is ||S - G||^2 / E ||S - random k of S||^2, and has to be at most 1
(Shi, Zhao, Wang, Tang and Chu, "A Convergence Analysis of Distributed SGD with Communication-Efficient Gradient
Sparsification", IJCAI 2019). Of d entries, k drawn at random leave (1 - k / d) ||S||^2 in the mean: this expectation is used,
nothing is drawn. G is the update that the ranks have got, so that what values lose by rounding and what a merge drops counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

import gtopk
from gtopk.torch.exchange import Exchange
from gtopk.torch.parts import Part

__all__ = ["Board", "error_ratio", "union_share", "watch"]

Array = npt.NDArray[np.float32]


def error_ratio(accumulated: Sequence[Array], sent: Array, k: int) -> float | None:
    """||S - sent||^2 / ((1 - k / d) ||S||^2) of what each of the ranks has accumulated, arrays of d entries, and what was sent
    of their sum S; None where random k leave nothing."""
    total = np.zeros(len(sent))
    for mine in accumulated:
        total += mine
    random = (1 - k / len(sent)) * float(total @ total)
    left = total - sent
    return float(left @ left) / random if random > 0 else None


def union_share(accumulated: Sequence[Array], k: int) -> float:
    """Entries that are among the k largest of some rank, over k: 1 where all ranks have the same, P where none has."""
    chosen = np.zeros(len(accumulated[0]), bool)
    for mine in accumulated:
        chosen[np.argpartition(-np.abs(mine), k - 1)[:k]] = True
    return int(chosen.sum()) / k


class Board:
    """What ranks that are threads show each other, and what was found of it."""

    def __init__(self, ranks: int, every: int) -> None:
        self.every = every
        self.accumulated: list[Array] = [np.zeros(0, np.float32)] * ranks
        self.found: list[dict[str, Any]] = []

    def note(self, step: int, mean: Array, k: int) -> None:
        ranks = len(self.accumulated)
        self.found.append(
            {
                "step": step,
                "k": k,
                "entries": len(mean),
                "error_ratio": error_ratio(self.accumulated, ranks * mean, k),
                "union_share": union_share(self.accumulated, k),
            }
        )


class Watched(Exchange):
    """An exchange that shows what it accumulates and what comes of it, every so many steps."""

    board: Board
    taken = 0  # steps

    def accumulate(self, scale: float = 1.0, *, found_inf: bool = False) -> None:
        super().accumulate(scale, found_inf=found_inf)
        self.taken += 1
        part = self._looked_at()
        if part is not None:
            residuals = self.residuals()
            self.board.accumulated[self.comm.rank] = joined([residuals[i] for i in part.places])

    def reduce(self) -> tuple[dict[str, Any], list[Tensor]]:
        part = self._looked_at()
        stats, updates = super().reduce()
        if part is not None:
            self.comm.barrier()  # all have shown theirs
            if self.comm.rank == 0:
                mean = joined([self.segments[i].flattened(updates[i]) for i in part.places])
                self.board.note(self.taken, mean, int(part.reducer.stats()["k"]))
            self.comm.barrier()  # it is read
        return stats, updates

    def _looked_at(self) -> Part | None:
        """What is not sent dense, in the steps that count."""
        if self.taken % self.board.every != 0:
            return None
        return next((p for p in self.parts if not p.dense and p.reducer.next_algorithm != "dense"), None)


def joined(tensors: Sequence[Tensor]) -> Array:
    found: Array = np.concatenate([tensor.numpy().reshape(-1) for tensor in tensors])
    return found


def watch(optimizer: Any, board: Board) -> None:
    """To be called on every rank, before the first step of an optimizer that gtopk has wrapped.

    Not with a hierarchy: there a rank has no residual of its own, but a share of its node's.
    """
    session = optimizer._gtopk.session
    if session.options.hierarchy != "off":
        raise gtopk.UnsupportedError("ranks of a node have one residual together: nothing to compare between ranks")
    session.exchange = Watched(session.comm, session.options, session.schedule.is_default)
    session.exchange.board = board
