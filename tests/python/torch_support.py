"""Models, data and training loops that the PyTorch tests share."""

from __future__ import annotations

import copy
import os

import torch
from torch import nn

DEVICE = os.environ.get("GTOPK_TEST_DEVICE", "cpu")
ALL = {"density": 1.0, "value_type": "fp32"}  # options with which the mean update is the mean gradient


class Net(nn.Module):
    """Convolution, normalisation, a tied and an unused parameter: what real models have."""

    def __init__(self, channels_last=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8 * 16, 5)
        self.tied = nn.Linear(5, 5, bias=False)
        self.again = nn.Linear(5, 5, bias=False)
        self.again.weight = self.tied.weight
        self.unused = nn.Parameter(torch.ones(7))
        if channels_last:
            self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.again(torch.tanh(self.tied(self.linear(x))))


def make(channels_last=False, seed=0):
    torch.manual_seed(seed)
    return Net(channels_last)


def batch(step, rank=0, size=4):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(size, 3, 6, 6, generator=generator, device="cpu").to(DEVICE)


def loss_of(model, x):
    return model(x).pow(2).mean()


def train(model, optimizer, steps=4, begin=0, rank=0, after=()):
    """Plain training; `after` holds what is called after each step, such as a scheduler's step."""
    for step in range(begin, begin + steps):
        optimizer.zero_grad()
        loss_of(model, batch(step, rank)).backward()
        optimizer.step()
        for call in after:
            call()


def twins(**options):
    model = make(**options)
    return model, copy.deepcopy(model)


def assert_equal(one, other):
    """Two models have the same bits."""
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), f"{name} differs by {(p - q).abs().max().item()}"
