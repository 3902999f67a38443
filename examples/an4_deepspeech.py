"""Trains Deep Speech on the AN4 corpus with one process per worker and gTop-k between them.

    mpirun -n 4 python examples/an4_deepspeech.py --data an4_raw.bigendian.tar.gz      # or the folder an4
    python examples/an4_deepspeech.py                                                  # sixteen utterances, to try it

The published recipe: five LSTMs of 800 cells on spectra, CTC loss, batch 8 a worker, SGD with momentum 0.9, learning rate
0.0003, divided by 1.01 each epoch, gradients clipped to a norm of 400, 100 epochs. Judged by the word error rate of greedy
decoding, without a language model.
"""

from __future__ import annotations

import argparse

import jiwer
import speech
import torch
from deepspeech import DeepSpeech
from recipe import Recipe
from speech import LETTERS, Utterance
from torch import Tensor, nn
from torch.nn import functional
from trainer import main
from workload import Workload

TEST_BATCH = 10


class Speech(Workload):
    """Utterances of about the same length are in a step together, on all ranks; the steps are shuffled each epoch."""

    name = "Deep Speech"
    unit = "utterances"
    metric = "word error rate"
    recipe = Recipe(epochs=100, batch_size=8, lr=3e-4, warmup_epochs=0, lr_divisor=1.01, clip=400)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", help="AN4: CMU's archive of raw sound, or its folder")
        parser.add_argument("--hidden", type=int, default=800, help="cells of an LSTM (%(default)s)")
        parser.add_argument("--layers", type=int, default=5, help="LSTMs (%(default)s)")

    def fetch(self, options: argparse.Namespace, progress: bool) -> None:
        speech.locate(options.data)

    def load(self, options: argparse.Namespace, rank: int, size: int) -> str:
        folder = speech.locate(options.data, unpack=False)
        parts = speech.load(folder)
        self.data, self.samples = "AN4", {part: len(utterances) for part, utterances in parts.items()}
        self._train = sorted(parts["train"], key=lambda utterance: (len(utterance.sound), utterance.name))
        self._test = sorted(parts["test"], key=lambda utterance: len(utterance.sound))[rank::size]
        self._hidden, self._layers = options.hidden, options.layers
        note = ""
        if not options.data:
            options.batch_size = max(1, min(options.batch_size, len(self._train) // size))
            note = f": a few, to see that it works, {options.batch_size} in a batch; give all of AN4 with --data"
        self._batch, self._seed, self._rank, self._size = options.batch_size, options.seed, rank, size
        return f"AN4 from {folder} ({len(parts['train'])} training and {len(parts['test'])} test utterances{note})"

    def steps_an_epoch(self) -> int:
        return len(self._train) // (self._batch * self._size)

    def build(self) -> nn.Module:
        return DeepSpeech(len(LETTERS), self._hidden, self._layers)

    def batch(self, step: int) -> list[Utterance]:
        """Which utterances are left out, where they do not fill a step, changes with the epochs."""
        epoch, place = divmod(step, self.steps_an_epoch())
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        together = self._batch * self._size
        left_over = len(self._train) % together
        skip = int(torch.randint(left_over + 1, (1,), generator=draw))
        first = skip + together * int(torch.randperm(self.steps_an_epoch(), generator=draw)[place])
        return self._train[first : first + together][self._rank :: self._size]

    def loss(self, model: nn.Module, batch: list[Utterance]) -> Tensor:
        """The sum over letters and steps, the mean over utterances, as published."""
        logits, lengths = model(*speech.spectra(batch, self.device))
        letters = [speech.encode(utterance.words) for utterance in batch]
        targets, sizes = torch.cat(letters), torch.tensor([len(one) for one in letters])
        chances = logits.float().log_softmax(2)
        return functional.ctc_loss(chances, targets.to(self.device), lengths, sizes, reduction="sum") / len(batch)

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        said, heard = [], []
        for begin in range(0, len(self._test), TEST_BATCH):
            batch = self._test[begin : begin + TEST_BATCH]
            logits, lengths = model(*speech.spectra(batch, self.device))
            letters = logits.argmax(2).t().cpu()
            heard += [speech.decode(one[:length]) for one, length in zip(letters, lengths.tolist(), strict=True)]
            said += [utterance.words for utterance in batch]
        if not said:
            return 0.0, 0.0
        found = jiwer.process_words(said, heard)
        wrong = found.substitutions + found.deletions + found.insertions
        return float(wrong), float(found.hits + found.substitutions + found.deletions)


if __name__ == "__main__":
    main(Speech(), __doc__)
