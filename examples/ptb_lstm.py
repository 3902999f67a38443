"""Trains an LSTM language model on Penn Treebank (or six novels) with one process per worker and gTop-k between them.

    mpirun -n 4 python examples/ptb_lstm.py --data FOLDER      # ptb.train.txt, ptb.valid.txt, ptb.test.txt
    mpirun -n 4 python examples/ptb_lstm.py                    # the novels of Debian's r-cran-janeaustenr

The published recipe: two LSTMs of 1500 cells, 35 words a step, of which dropout keeps 0.35, batch 20 a worker, SGD without
momentum, learning rate 1, gradients clipped to a norm of 0.25, 50 epochs.
"""

from __future__ import annotations

import argparse
import math

import text
import torch
from lstm import LanguageModel, State
from recipe import Recipe
from torch import Tensor, nn
from torch.nn import functional
from trainer import main
from workload import Workload

STREAMS = 20  # read side by side in a test, whatever the number of ranks
WORDS_A_STEP = 35


class Lstm(Workload):
    """The text is cut into as many streams as all batches together have places; the state runs on along them."""

    name = "LSTM"
    unit = "sequences"
    metric = "perplexity"
    recipe = Recipe(epochs=50, batch_size=20, lr=1.0, momentum=0.0, weight_decay=0.0, warmup_epochs=0, clip=0.25)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", help="a folder with Penn Treebank, or with train.txt, valid.txt and test.txt")
        parser.add_argument("--hidden", type=int, default=1500, help="cells of an LSTM (%(default)s)")
        parser.add_argument("--keep", type=float, default=0.35, help="what dropout keeps (%(default)s)")
        parser.add_argument("--words", type=int, default=10_000, help="size of the vocabulary (%(default)s)")
        parser.add_argument("--test-on", choices=("valid", "test"), default="valid", help="(%(default)s)")
        parser.add_argument("--test-words", type=int, help="test on so many words only")

    def fetch(self, options: argparse.Namespace, progress: bool) -> None:
        text.locate(options.data)

    def load(self, options: argparse.Namespace, rank: int, size: int) -> str:
        corpus = text.load(text.locate(options.data, download=False), options.words)
        self.data, self.samples = corpus.name, {part: len(words) for part, words in corpus.parts.items()}
        self._words, self._hidden, self._keep = len(corpus.words), options.hidden, options.keep
        streams = _streams(corpus.parts["train"], options.batch_size * size)
        self._train = streams[:, rank * options.batch_size : (rank + 1) * options.batch_size]
        test = corpus.parts[options.test_on][: options.test_words]
        self._test = _streams(test, min(STREAMS, len(test) // 2))[:, rank::size]
        self._state: State | None = None
        self._next = 0
        return corpus.describe()

    def steps_an_epoch(self) -> int:
        return (len(self._train) - 1) // WORDS_A_STEP

    def build(self) -> nn.Module:
        return LanguageModel(self._words, self._hidden, keep=self._keep)

    def place(self, device: torch.device) -> None:
        self._train, self._test = self._train.to(device), self._test.to(device)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        place = step % self.steps_an_epoch()
        if place == 0 or step != self._next:  # also where a run goes on: the state is not saved
            self._state = None
        self._next = step + 1
        begin = place * WORDS_A_STEP
        words = self._train[begin : begin + WORDS_A_STEP + 1]
        return words[:-1], words[1:]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits, (hidden, cells) = model(batch[0], self._state)
        self._state = (hidden.detach(), cells.detach())
        return functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten())

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        total, state = 0.0, None
        if self._test.shape[1] == 0:  # more ranks than streams
            return 0.0, 0.0
        for words, following in zip(
            self._test[:-1].split(WORDS_A_STEP), self._test[1:].split(WORDS_A_STEP), strict=True
        ):
            logits, state = model(words, state)
            total += float(functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum"))
        return total, self._test[1:].numel()

    def score(self, total: float, count: float) -> float:
        return math.exp(min(50.0, total / max(1.0, count)))


def _streams(words: Tensor, count: int) -> Tensor:
    """(length, count): column i is the i-th part of the text; what does not fill a row is left out."""
    length = len(words) // count
    return words[: length * count].view(count, length).t().contiguous()


if __name__ == "__main__":
    main(Lstm(), __doc__)
