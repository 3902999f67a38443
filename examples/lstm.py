"""The language model of Zaremba, Sutskever and Vinyals, "Recurrent Neural Network Regularization", arXiv 1409.2329: the large
one, two LSTMs of 1500 cells, 66 million parameters with 10,000 words. Knows nothing of gtopk."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["LanguageModel"]

State = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Words of shape (steps, batch) and a state, to logits of shape (steps, batch, words) and the state after them.

    Examples
    --------
    >>> model = LanguageModel(words=10_000)
    >>> sum(p.numel() for p in model.parameters())
    66034000
    """

    def __init__(self, words: int, hidden: int = 1500, layers: int = 2, keep: float = 0.35) -> None:
        super().__init__()
        self.drop = nn.Dropout(1 - keep)
        self.embed = nn.Embedding(words, hidden)
        self.lstm = nn.LSTM(hidden, hidden, layers, dropout=1 - keep if layers > 1 else 0.0)
        self.linear = nn.Linear(hidden, words)
        for weight in (self.embed.weight, self.linear.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.linear.bias)

    def forward(self, words: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        values, state = self.lstm(self.drop(self.embed(words)), state)
        return self.linear(self.drop(values)), state
