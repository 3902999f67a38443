"""What the trainer asks of a workload, and what workloads share. A script is a workload and a call of `trainer.main`."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from recipe import Recipe
from torch import Tensor, nn

__all__ = ["Workload", "epoch_order", "step_seed"]


class Workload(ABC):
    """A model, its data, its loss and how it is judged. Calls come in the order in which they stand here."""

    name: str
    """Of the model: "ResNet-20"."""
    recipe: Recipe
    unit: ClassVar[str]
    """What a batch consists of, in the plural: "images"."""
    metric: ClassVar[str]
    """What `score` gives: "accuracy"."""
    data: str
    """Set by `load`: the name of the data set."""
    samples: dict[str, int]
    """Set by `load`: how many there are, {"train": 50000, "test": 10000}. The same on all ranks."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Options of this workload alone."""
        parser.add_argument("--data", help="a folder with the data")

    @abstractmethod
    def fetch(self, options: argparse.Namespace, progress: bool) -> None:
        """Downloads or unpacks what is missing. Only one process of each host is asked. Raises `data.DataError`."""

    @abstractmethod
    def load(self, options: argparse.Namespace, rank: int, size: int) -> str:
        """Reads the data and says in a line what it is. Raises `data.DataError`."""

    @abstractmethod
    def steps_an_epoch(self) -> int:
        """Full batches that this rank has in an epoch; 0 if the data is too little."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The model, on the CPU."""

    def place(self, device: torch.device) -> None:
        """Moves to the device what stays there."""
        self.device = device

    @abstractmethod
    def batch(self, step: int) -> Any:
        """This rank's batch of a step, which depends on nothing but the seed, the step and the ranks."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """On this rank's share of the test data: two sums, which are added up over the ranks."""

    def score(self, total: float, count: float) -> float:
        """Made of these sums."""
        return total / max(1.0, count)


def step_seed(step: int, *, rank: int, size: int, seed: int) -> int:
    """Of what a rank draws in a step: another for each, and the same where a run was interrupted."""
    return (seed * 1_000_003 + step) * size + rank


def epoch_order(count: int, epoch: int, *, batch: int, rank: int, size: int, seed: int) -> Tensor:
    """The order in which `rank` reads the data in an epoch: (steps, batch) indices.

    All ranks shuffle alike and take every size-th index, so that no two read the same sample; the few that do not fill
    a batch on every rank are left out.
    """
    steps = count // (batch * size)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return shuffled[: steps * batch * size].view(steps, batch, size)[:, :, rank]
