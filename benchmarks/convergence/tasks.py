"""Small trainings of different kinds on real data: Fashion-MNIST and the novels that the examples read.

Each is what somebody who tries gtopk would start with. A batch depends on the seed, the rank and the step alone, so that all
settings see the same; the loss that counts is that on data which training does not see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import data
import text

__all__ = ["TASKS", "Task"]

TESTED = 1000  # images
CONTEXT, WINDOWS = 64, 64  # of text: characters in a sequence, sequences in the test
CHARACTERS = "\n !\"'(),-.0123456789:;?_abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Task:
    """`loss(model, samples)` is the mean over a batch; `samples` draws one, or takes the test's."""

    name: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    loss: Callable[[nn.Module, Any], Tensor]
    draw: Callable[[torch.Generator, int], Any]
    test: Callable[[], Any]
    batch: int = 16

    @property
    def momentum(self) -> bool:
        """Whether it is SGD with momentum."""
        group = self.optimizer(nn.Linear(1, 1)).param_groups[0]
        return "dampening" in group and group["momentum"] > 0


# ---- images ---------------------------------------------------------------------------------------------------------


class Images:
    """Fashion-MNIST, read when it is first used."""

    def __init__(self) -> None:
        self._read: data.DataSet | None = None

    @property
    def all(self) -> data.DataSet:
        if self._read is None:
            self._read = data.load(data.locate("fashion-mnist"))
        return self._read

    def draw(self, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        train = self.all.train
        return self._prepared(train.take(torch.randint(len(train), (count,), generator=generator)))

    def test(self) -> tuple[Tensor, Tensor]:
        return self._prepared(self.all.test.take(torch.arange(TESTED)))

    def _prepared(self, part: data.Split) -> tuple[Tensor, Tensor]:
        return part.images[:, :, 2:30, 2:30].float() / 255, part.labels


IMAGES = Images()


def cross_entropy(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(samples[0]), samples[1])


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


class Vae(nn.Module):
    """Kingma and Welling, 2014. Its noise is drawn from the images, so that no two ranks share a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        self.decode = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encode(x).chunk(2, dim=1)
        seed = int(x.sum().item() * 1000) % (1 << 31)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
        logits = self.decode(mean + noise * (log_variance / 2).exp())
        seen = functional.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum")
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return (seen + divergence) / len(x)


class Denoiser(nn.Module):
    """Regression: an image from its half."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(392, 300), nn.Tanh(), nn.Linear(300, 392))

    def forward(self, x: Tensor) -> Tensor:
        return functional.mse_loss(self.layers(x[:, :, :14].flatten(1)), x[:, :, 14:].flatten(1))


# ---- text -----------------------------------------------------------------------------------------------------------


class Characters:
    """The novels, character by character; the last twentieth of each is for the test."""

    def __init__(self) -> None:
        self._parts: tuple[Tensor, Tensor] | None = None

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        if self._parts is None:
            number = {character: i for i, character in enumerate(CHARACTERS)}
            books = []
            for lines in text.books(text.locate(None)):
                known = [number[c] for c in "\n".join(lines).lower() if c in number]
                books.append(torch.tensor(known))
            ends = [len(book) // 20 for book in books]
            train = torch.cat([book[:-end] for book, end in zip(books, ends, strict=True)])
            test = torch.cat([book[-end:] for book, end in zip(books, ends, strict=True)])
            self._parts = train, test
        return self._parts

    def draw(self, generator: torch.Generator, count: int) -> Tensor:
        train = self.parts[0]
        begins = torch.randint(len(train) - CONTEXT, (count,), generator=generator)
        return train[begins.unsqueeze(1) + torch.arange(CONTEXT + 1)]

    def test(self) -> Tensor:
        test = self.parts[1]
        begins = torch.linspace(0, len(test) - CONTEXT - 1, WINDOWS).long()
        return test[begins.unsqueeze(1) + torch.arange(CONTEXT + 1)]


TEXT = Characters()


def next_character(model: nn.Module, samples: Tensor) -> Tensor:
    logits = model(samples[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten())


class Gpt(nn.Module):
    """Two layers of a transformer, 0.1M parameters."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(CHARACTERS), width)
        self.place = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.linear = nn.Linear(width, len(CHARACTERS))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.layers(self.embed(x) + self.place, mask=self.mask, is_causal=True))
        return logits


class Lstm(nn.Module):
    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(CHARACTERS), width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)
        self.linear = nn.Linear(width, len(CHARACTERS))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.lstm(self.embed(x))[0])
        return logits


# ---- all of them ----------------------------------------------------------------------------------------------------


def sgd(lr: float, momentum: float = 0.0) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def adam(lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=lr)


def adadelta(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(model.parameters(), lr=1.0)


def on_images(name: str, model: Any, optimizer: Any, loss: Any = cross_entropy) -> Task:
    return Task(name, model, optimizer, loss, IMAGES.draw, IMAGES.test)


def on_text(name: str, model: Any, optimizer: Any) -> Task:
    return Task(name, model, optimizer, next_character, TEXT.draw, TEXT.test, batch=8)


def own_loss(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    loss: Tensor = model(samples[0])
    return loss


TASKS = [
    on_images("LeNet, SGD", lenet, sgd(0.05)),
    on_images("LeNet, SGD with momentum", lenet, sgd(0.01, 0.9)),
    on_images("LeNet, Adadelta", lenet, adadelta),
    on_images("perceptron, SGD with momentum", perceptron, sgd(0.02, 0.9)),
    on_images("perceptron, AdamW", perceptron, adam(1e-3)),
    on_images("VAE, AdamW", Vae, adam(1e-3), own_loss),
    on_images("regression, SGD with momentum", Denoiser, sgd(0.1, 0.9), own_loss),
    on_text("GPT, AdamW", Gpt, adam(2e-3)),
    on_text("LSTM, SGD", Lstm, sgd(2.0)),
    on_text("LSTM, AdamW", Lstm, adam(3e-3)),
]
