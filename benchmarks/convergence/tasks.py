"""Small trainings of different kinds on real data: Fashion-MNIST, the novels and the speech that the examples read.

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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # pictures.py
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import data
import speech
import text
from resnet20 import ResNet20

__all__ = ["FACTOR_TASKS", "SOUNDS", "TASKS", "Task"]

TESTED = 1000  # images
CONTEXT, WINDOWS = 64, 64  # of text: characters in a sequence, sequences in the test
UTTERANCES = 64  # in the test
LATENT = 64  # of the GAN: numbers that an image is made from
CHARACTERS = "\n !\"'(),-.0123456789:;?_abcdefghijklmnopqrstuvwxyz"


Optimize = Callable[[nn.Module], torch.optim.Optimizer]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Part:
    """Parameters with an optimizer and a loss of their own. Most models are one part."""

    optimizer: Optimize
    loss: Loss  # the mean over a batch
    of: Callable[[nn.Module], nn.Module] = lambda model: model


@dataclass(frozen=True)
class Task:
    """A step draws a batch, and trains one part after the other with it. `measure` is what is looked at, of `test`."""

    name: str
    model: Callable[[], nn.Module]
    parts: tuple[Part, ...]
    measure: Loss
    draw: Callable[[torch.Generator, int], Any]
    test: Callable[[], Any]
    batch: int = 16
    accuracy: Loss | None = None  # of a classification: the part of `test` that is right

    @property
    def momentum(self) -> bool:
        """Whether it is SGD with momentum."""
        group = self.parts[0].optimizer(nn.Linear(1, 1)).param_groups[0]
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


def right_images(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    return (model(samples[0]).argmax(1) == samples[1]).float().mean()


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def resnet20() -> nn.Module:
    return ResNet20(channels=1)


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


class Gan(nn.Module):
    """Goodfellow et al., 2014, with two optimizers, and what makes it converge (Mescheder et al., 2018): R1."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(LATENT, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2), nn.Linear(256, 512), nn.BatchNorm1d(512),
            nn.LeakyReLU(0.2), nn.Linear(512, 784), nn.Sigmoid(),
        )  # fmt: skip
        self.judge = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 512), nn.LeakyReLU(0.2), nn.Linear(512, 256), nn.LeakyReLU(0.2),
            nn.Linear(256, 1),
        )  # fmt: skip


def generator(gan: nn.Module) -> nn.Module:
    assert isinstance(gan, Gan)
    return gan.generator


def judge(gan: nn.Module) -> nn.Module:
    assert isinstance(gan, Gan)
    return gan.judge


def images_and_latents(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    return IMAGES.draw(generator, count)[0], torch.randn(count, LATENT, generator=generator)


def test_of_gan() -> tuple[Tensor, Tensor]:
    return IMAGES.test()[0], torch.randn(TESTED, LATENT, generator=torch.Generator().manual_seed(1))


def judge_loss(gan: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    images = samples[0].requires_grad_()
    real, made = judge(gan)(images), judge(gan)(generator(gan)(samples[1]).detach())
    slope = torch.autograd.grad(real.sum(), images, create_graph=True)[0].flatten(1)
    return functional.softplus(-real).mean() + functional.softplus(made).mean() + slope.pow(2).sum(1).mean() / 2


def generator_loss(gan: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    return functional.softplus(-judge(gan)(generator(gan)(samples[1]))).mean()


def sliced_wasserstein(gan: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    """How far made images are from real ones, the mean over 256 directions (Rabin et al., 2012): neither loss of a GAN
    falls when it learns."""
    directions = torch.randn(784, 256, generator=torch.Generator().manual_seed(2))
    directions /= directions.norm(dim=0)
    real, made = samples[0].flatten(1) @ directions, generator(gan)(samples[1]) @ directions
    return (real.sort(dim=0)[0] - made.sort(dim=0)[0]).abs().mean()


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


def right_characters(model: nn.Module, samples: Tensor) -> Tensor:
    return (model(samples[:, :-1]).argmax(2) == samples[:, 1:]).float().mean()


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


# ---- speech ---------------------------------------------------------------------------------------------------------


class Sounds:
    """AN4, or what the repository has of it; as spectra, two bins in one."""

    def __init__(self) -> None:
        self.where: str | None = None
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] | None = None

    @property
    def parts(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        if self._parts is None:
            found = speech.load(speech.locate(self.where))
            self._parts = {part: [self._prepared(one) for one in utterances] for part, utterances in found.items()}
        return self._parts

    def draw(self, generator: torch.Generator, count: int) -> Any:
        train = self.parts["train"]
        return self._together([train[i] for i in torch.randint(len(train), (count,), generator=generator).tolist()])

    def test(self) -> Any:
        return self._together(self.parts["test"][:UTTERANCES])

    @staticmethod
    def _prepared(utterance: speech.Utterance) -> tuple[Tensor, Tensor]:
        spectrum = speech.spectra([utterance], torch.device("cpu"))[0][0, 0]
        return functional.avg_pool1d(spectrum.t(), 2).contiguous(), speech.encode(utterance.words)

    @staticmethod
    def _together(chosen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        spectra, words = [one[0] for one in chosen], [one[1] for one in chosen]
        lengths = torch.tensor([len(one) for one in spectra])
        return (
            nn.utils.rnn.pad_sequence(spectra, batch_first=True), lengths,
            torch.cat(words), torch.tensor([len(one) for one in words]),
        )  # fmt: skip


SOUNDS = Sounds()


class Listener(nn.Module):
    """A convolution over three frames of four, and an LSTM, 0.2M parameters."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(80, width, 5, stride=3, padding=2)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.linear = nn.Linear(width, len(speech.LETTERS))
        with torch.no_grad():
            self.linear.bias[0] = 4.0  # most steps are blank: else most of the drop is to learn that

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.convolution(x.transpose(1, 2))).transpose(1, 2)
        logits: Tensor = self.linear(self.lstm(x)[0])
        return logits


def ctc(model: nn.Module, samples: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """A letter's, in the mean over utterances."""
    spectra, lengths, words, sizes = samples
    chances = model(spectra).log_softmax(2).transpose(0, 1)
    return functional.ctc_loss(chances, words, (lengths - 1) // 3 + 1, sizes, zero_infinity=True)


# ---- all of them ----------------------------------------------------------------------------------------------------


def sgd(lr: float, momentum: float = 0.0) -> Optimize:
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def adamw(lr: float) -> Optimize:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=lr)


def adam(lr: float, beta1: float) -> Optimize:
    return lambda model: torch.optim.Adam(model.parameters(), lr=lr, betas=(beta1, 0.999))


def adadelta(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(model.parameters(), lr=1.0)


def on_images(name: str, model: Any, optimizer: Optimize, loss: Loss = cross_entropy) -> Task:
    accuracy = right_images if loss is cross_entropy else None
    return Task(name, model, (Part(optimizer, loss),), loss, IMAGES.draw, IMAGES.test, accuracy=accuracy)


def on_text(name: str, model: Any, optimizer: Optimize) -> Task:
    parts = (Part(optimizer, next_character),)
    return Task(name, model, parts, next_character, TEXT.draw, TEXT.test, batch=8, accuracy=right_characters)


def on_speech(name: str, model: Any, optimizer: Optimize) -> Task:
    return Task(name, model, (Part(optimizer, ctc),), ctc, SOUNDS.draw, SOUNDS.test, batch=8)


def own_loss(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    loss: Tensor = model(samples[0])
    return loss


def gan(name: str, optimizer: Optimize) -> Task:
    parts = Part(optimizer, judge_loss, judge), Part(optimizer, generator_loss, generator)
    return Task(name, Gan, parts, sliced_wasserstein, images_and_latents, test_of_gan, batch=32)


LENET = on_images("LeNet, SGD with momentum", lenet, sgd(0.01, 0.9))

TASKS = [
    on_images("LeNet, SGD", lenet, sgd(0.05)),
    LENET,
    on_images("LeNet, Adadelta", lenet, adadelta),
    on_images("perceptron, SGD with momentum", perceptron, sgd(0.02, 0.9)),
    on_images("perceptron, AdamW", perceptron, adamw(1e-3)),
    on_images("VAE, AdamW", Vae, adamw(1e-3), own_loss),
    on_images("regression, SGD with momentum", Denoiser, sgd(0.1, 0.9), own_loss),
    on_text("GPT, AdamW", Gpt, adamw(2e-3)),
    on_text("LSTM, SGD", Lstm, sgd(2.0)),
    on_text("LSTM, AdamW", Lstm, adamw(3e-3)),
    on_speech("speech with CTC, AdamW", Listener, adamw(2e-3)),
    gan("GAN, two of Adam", adam(1e-3, 0.5)),
]

# Of the factor study: a network without normalisation, one with it, and one that is recurrent.
FACTOR_TASKS = [
    LENET,
    on_images("ResNet-20, SGD with momentum", resnet20, sgd(0.05, 0.9)),
    on_text("LSTM 2 x 256, SGD with momentum", lambda: Lstm(256), sgd(0.2, 0.9)),
]
