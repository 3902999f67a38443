"""Deep Speech 2 without a language model: Amodei et al., ICML 2016, in the form that gTop-k's authors trained.

Two convolutions over the spectrum, five LSTMs of 800 cells one after the other in time, a convolution that looks ahead, and
a letter for each step. 27.6 million parameters. Knows nothing of gtopk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DeepSpeech"]

AHEAD = 20


class DeepSpeech(nn.Module):
    """Spectra (batch, 1, 161, frames) and their lengths, to logits (steps, batch, letters) and the lengths of these.

    What stands behind the end of a spectrum has no influence on what is before, but through batch normalisation.

    Examples
    --------
    >>> model = DeepSpeech(letters=29)
    >>> logits, lengths = model(torch.zeros(2, 1, 161, 50), torch.tensor([50, 40]))
    >>> logits.shape, lengths
    (torch.Size([25, 2, 29]), tensor([25, 20]))
    """

    def __init__(self, letters: int, hidden: int = 800, layers: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, (41, 11), stride=(2, 2), padding=(20, 5))
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, (21, 11), stride=(2, 1), padding=(10, 5))
        self.norm2 = nn.BatchNorm2d(32)
        widths = [32 * 41] + [hidden] * (layers - 1)
        self.norms = nn.ModuleList([nn.Identity(), *(nn.BatchNorm1d(width) for width in widths[1:])])
        self.lstms = nn.ModuleList(nn.LSTM(width, hidden) for width in widths)
        self.ahead = nn.Conv1d(hidden, hidden, AHEAD, groups=hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.linear = nn.Linear(hidden, letters, bias=False)

    def forward(self, spectra: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        lengths = (lengths - 1) // 2 + 1
        x = functional.hardtanh(self.norm1(self.conv1(spectra)), 0, 20)
        inside = (torch.arange(x.shape[-1]) < lengths.unsqueeze(1)).to(x.device).float()[:, None, None]
        x = functional.hardtanh(self.norm2(self.conv2(x * inside)), 0, 20) * inside
        x = x.flatten(1, 2).permute(2, 0, 1)  # (steps, batch, features)
        for norm, lstm in zip(self.norms, self.lstms, strict=True):
            x, _ = lstm(_over_features(norm, x))
        x = x * inside[:, 0, 0].t().unsqueeze(2)
        x = self.ahead(functional.pad(x.permute(1, 2, 0), (0, AHEAD - 1))).permute(2, 0, 1)
        x = functional.hardtanh(x, 0, 20)
        return self.linear(_over_features(self.norm, x)), lengths


def _over_features(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm` of (steps, batch, features) as if every step were a sample."""
    result: Tensor = norm(x.flatten(0, 1)).view_as(x)
    return result
