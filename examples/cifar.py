"""CIFAR-10, or Fashion-MNIST in its form, as a workload: any model of 32 x 32 images in ten classes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import data
import torch
from recipe import Recipe
from torch import Tensor, nn
from torch.nn import functional
from workload import Workload, epoch_order, step_seed

__all__ = ["Cifar"]

TEST_BATCH = 125


class Cifar(Workload):
    """The published recipe: 141 epochs, learning rate .1 with warm-up, divided by 10 at epochs 81, 122 and 155."""

    unit = "images"
    metric = "accuracy"
    recipe = Recipe(epochs=141, batch_size=32, lr=0.1, lr_drops="81,122,155")

    def __init__(self, name: str, model: Callable[[], nn.Module]) -> None:
        self.name = name
        self._model = model

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", help="a folder with CIFAR-10 or Fashion-MNIST; or cifar10; or fashion-mnist")
        parser.add_argument("--subset", type=int, help="train on so many images only, the same in every run")
        parser.add_argument("--test-images", type=int, help="test on so many images only, the same in every run")

    def fetch(self, options: argparse.Namespace, progress: bool) -> None:
        data.locate(options.data, progress=progress, say=print if progress else lambda text: None)

    def load(self, options: argparse.Namespace, rank: int, size: int) -> str:
        images = data.load(data.locate(options.data, download=False, say=lambda text: None))
        train, test = images.train, images.test
        self.data, self.samples = images.name, {"train": len(train), "test": len(test)}
        if options.subset:
            shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
            train = train.take(shuffled[: options.subset])
        test = test.take(torch.arange(min(options.test_images or len(test), len(test))))
        self._train, self._test = train, test.take(torch.arange(len(test))[rank::size])
        self._mean, self._std = images.mean, images.std
        self._rank, self._size = rank, size
        self._batch, self._seed = options.batch_size, options.seed
        self._epoch = -1
        return f"{images.describe()}, {len(train)} and {len(test)} of them used"

    def steps_an_epoch(self) -> int:
        return len(self._train) // (self._batch * self._size)

    def build(self) -> nn.Module:
        return self._model()

    def place(self, device: torch.device) -> None:
        self._train, self._test = self._train.to(device), self._test.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, self.steps_an_epoch())
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = epoch_order(
                len(self._train), epoch, batch=self._batch, rank=self._rank, size=self._size, seed=self._seed
            )
        batch = self._train.take(self._order[place].to(self._train.labels.device))
        draw = torch.Generator().manual_seed(step_seed(step, rank=self._rank, size=self._size, seed=self._seed))
        return data.augment(self._prepare(batch.images), draw), batch.labels

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        correct = torch.zeros((), dtype=torch.float64, device=self._test.labels.device)
        for images, labels in zip(
            self._test.images.split(TEST_BATCH), self._test.labels.split(TEST_BATCH), strict=True
        ):
            x = self._prepare(images).contiguous(memory_format=torch.channels_last)
            correct += (model(x).argmax(1) == labels).sum()
        return float(correct), len(self._test)

    def _prepare(self, images: Tensor) -> Tensor:
        return data.normalise(images, self._mean, self._std)
