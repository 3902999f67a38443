"""What keeps a session through a loss of ranks, as `attach` sees it; what front ends have in common stands here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from ..comm import Comm
from .options import Options
from .session import Session


class Holder(ABC):
    """A front end: what goes on with the other ranks."""

    session: Session
    shares_state = True  # all ranks have the same parameters and optimizer state between steps

    @abstractmethod
    def check_attach(self) -> None:
        """Raises where this rank is in the middle of something."""

    @abstractmethod
    def move(self, comm: Comm, options: Options) -> None:
        """Goes on among the ranks of `comm`: the reducers are made anew at the next exchange, with all residuals."""

    def besides(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What ranks that are behind take over beside parameters and optimizer state, of what `plain.encode` takes."""
        return {}

    def take_besides(self, optimizer: torch.optim.Optimizer, given: dict[str, Any]) -> None:  # noqa: B027  may be empty
        """Takes over what `besides` has given where the step happened and was finite."""

    def missed_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The step that failed here has happened elsewhere, and what was sent in it is in the update applied there."""
        self.session.exchange.forget_dense()
