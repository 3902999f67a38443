"""ImageNet, or any images in folders, as a workload: train/CLASS/*.JPEG and val/CLASS/*.JPEG. Models, reader and transforms are
torchvision's. Without --data the images are made up: that measures throughput and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from data import DataError
from recipe import Recipe
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from workload import Workload, epoch_order, step_seed

__all__ = ["ImageNet", "import_torchvision"]

CLASSES = 1000
MADE_UP = {"train": 1_281_167, "test": 64}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def import_torchvision() -> Any:
    """PyPI's torchvision is built for CUDA; beside a CPU build of PyTorch it misses two operators, of no use here."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


class ImageNet(Workload):
    """The published recipe: 95 epochs, learning rate .01 with warm-up, divided by 10 at epochs 30, 60 and 80."""

    unit = "images"
    metric = "accuracy"

    def __init__(self, name: str, model: Callable[[Any, int], nn.Module], batch_size: int) -> None:
        self.name = name
        self._model = model
        self.recipe = Recipe(epochs=95, batch_size=batch_size, lr=0.01, weight_decay=5e-4, lr_drops="30,60,80")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", type=Path, help="a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG")
        parser.add_argument("--image-size", type=int, default=224, help="sides of a crop (%(default)s)")
        parser.add_argument("--workers", type=int, default=2, help="processes a rank that read images (%(default)s)")
        parser.add_argument("--test-images", type=int, help="test on so many images only, the same in every run")

    def fetch(self, options: argparse.Namespace, progress: bool) -> None:
        """ImageNet has to be fetched by hand."""
        if options.data is not None and not options.data.is_dir():
            raise DataError(f"--data {options.data} is no folder")

    def load(self, options: argparse.Namespace, rank: int, size: int) -> str:
        self._vision = import_torchvision()
        self._rank, self._size, self._options = rank, size, options
        self._at, self._batches = -1, iter(())
        self._train: Dataset[Any]
        self._test: Dataset[Any]
        if options.data is None:
            self.data, self.samples, self._classes = "made-up images", dict(MADE_UP), CLASSES
            self._train, self._test = (MadeUp(MADE_UP[part], options.image_size) for part in ("train", "test"))
            return (
                "MADE-UP IMAGES, for throughput: loss and accuracy say nothing. Give a folder with images with --data"
            )
        train, test = (self._folder(options.data, part) for part in ("train", "val"))
        if train.classes != test.classes:
            differing = ", ".join(sorted(set(train.classes) ^ set(test.classes))[:3])
            raise DataError(f"{options.data}/train and {options.data}/val have different classes ({differing}, ...)")
        self.data, self._classes = f"images in {len(train.classes)} classes", len(train.classes)
        count = min(options.test_images or len(test), len(test))
        shuffled = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
        self.samples = {"train": len(train), "test": count}
        self._train, self._test = train, Subset(test, shuffled[rank::size].tolist())
        return f"{self.data} from {options.data} ({len(train)} for training, {count} for the test)"

    def _folder(self, folder: Path, part: str) -> Any:
        t, side = self._vision.transforms, self._options.image_size
        if part == "train":
            steps = [t.RandomResizedCrop(side), t.RandomHorizontalFlip()]
        else:
            steps = [t.Resize(side * 256 // 224), t.CenterCrop(side)]
        transform = t.Compose([*steps, t.ToTensor(), t.Normalize(MEAN, STD)])
        try:
            return self._vision.datasets.ImageFolder(str(folder / part), transform, loader=_read)
        except FileNotFoundError as error:
            raise DataError(f"{folder / part} has no folders with images, one a class ({error})") from error

    def steps_an_epoch(self) -> int:
        return self.samples["train"] // (self._options.batch_size * self._size)

    def build(self) -> nn.Module:
        return self._model(self._vision.models, self._classes)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        if step != self._at or step % self.steps_an_epoch() == 0:
            self._batches = self._from(step)
        self._at = step + 1
        images, labels = next(self._batches)
        return images.to(self.device), labels.to(self.device)

    def _from(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the epoch, beginning at a step."""
        options, (epoch, place) = self._options, divmod(step, self.steps_an_epoch())
        order = epoch_order(
            self.samples["train"],
            epoch,
            batch=options.batch_size,
            rank=self._rank,
            size=self._size,
            seed=options.seed,
        )
        draw = torch.Generator().manual_seed(step_seed(step, rank=self._rank, size=self._size, seed=options.seed))
        return iter(
            DataLoader(self._train, batch_sampler=order[place:].tolist(), num_workers=options.workers, generator=draw)
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        correct, count = 0.0, 0
        for images, labels in DataLoader(self._test, self._options.batch_size, num_workers=self._options.workers):
            correct += float((model(images.to(self.device)).argmax(1).cpu() == labels).sum())
            count += len(labels)
        return correct, count


class MadeUp(Dataset[tuple[Tensor, int]]):
    """One image of noise, as often as asked for."""

    def __init__(self, count: int, side: int) -> None:
        self._count = count
        self._image = torch.randn(3, side, side, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._image, index % CLASSES


def _read(path: str) -> Any:
    """A damaged image is an error that names it; gtopk tells the other ranks, so that nobody waits."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}): replace or remove it") from error
