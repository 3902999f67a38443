"""A small real task: a transformer that learns the sources and docstrings of the installed PyTorch by characters."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gtopk

BATCH = 4  # sequences a rank and step
CONTEXT = 64
EVALUATION_WINDOWS = 512  # of CONTEXT characters, the same ones each time, shared between the ranks
TEXT = ("_torch_docs.py", "_tensor_docs.py", "nn/functional.py", "nn/modules/*.py", "optim/*.py")


def load_text() -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Characters for training and for validation, as numbers below 97, and what they are."""
    root = Path(torch.__file__).parent
    train, validation = bytearray(), bytearray()
    for pattern in TEXT:
        for file in sorted(root.glob(pattern)):
            characters = file.read_bytes()
            train += characters[: len(characters) * 9 // 10]
            validation += characters[len(characters) * 9 // 10 :]
    about = {
        "files": [f"torch/{pattern}" for pattern in TEXT],
        "torch": torch.__version__,
        "training_characters": len(train),
        "validation_characters": len(validation),
        "sha256": hashlib.sha256(train + validation).hexdigest(),
    }
    return _numbers(train), _numbers(validation), about


def _numbers(characters: bytearray) -> Tensor:
    """0 for a line's end, 1 to 95 for printable ASCII, 96 for the rest."""
    found = torch.frombuffer(characters, dtype=torch.uint8).long()
    return torch.where(found == 10, 0, torch.where((found >= 32) & (found < 127), found - 31, 96))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return x


class Transformer(nn.Module):
    """Pre-norm and causal, with learned positions; the output's weights are the embedding's."""

    def __init__(self, layers: int = 4, width: int = 128, heads: int = 4, characters: int = 97) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_the_stream = name.endswith(("project.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if into_the_stream else 1.0))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, characters: Tensor) -> Tensor:
        x: Tensor = self.embedding(characters) + self.position.weight[: characters.shape[1]]
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(self.norm(x), self.embedding.weight)

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross entropy in nats a character."""
        logits = self.forward(windows[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def cut(text: Tensor, starts: Tensor) -> Tensor:
    """Windows of CONTEXT characters and the one that follows."""
    return text[starts[:, None] + torch.arange(CONTEXT + 1)]


def batches(text: Tensor, seed: int) -> Iterator[Tensor]:
    """This rank's: they depend on the seed and the rank, and on nothing else of a run."""
    generator = torch.Generator().manual_seed(1000 * seed + gtopk.rank())
    while True:
        yield cut(text, torch.randint(len(text) - CONTEXT, (BATCH,), generator=generator))


@torch.no_grad()
def evaluate(model: Transformer, text: Tensor) -> float:
    starts = torch.linspace(0, len(text) - CONTEXT - 1, EVALUATION_WINDOWS).long()[gtopk.rank() :: gtopk.size()]
    losses = torch.stack([model.loss(cut(text, part)) for part in torch.split(starts, 32)])
    return float(gtopk.allreduce(losses.mean()))
