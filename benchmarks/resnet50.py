"""ResNet-50 for 224 x 224 images, in plain `torch.nn`: the size of model that a step's share is quoted for.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1, with the stride of a stage in
its first 3 x 3 convolution, as common implementations have it. 161 parameter tensors, 25.6 million entries. Knows nothing
of gtopk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ResNet50"]

EXPANSION = 4
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width of the 3 x 3 convolutions, blocks


def _convolution(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and the shortcut around them: a projection where the shape changes."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        channels_out = EXPANSION * width
        self.reduce = _convolution(channels_in, width, 1)
        self.convolve = _convolution(width, width, 3, stride)
        self.expand = _convolution(width, channels_out, 1)
        changes = stride != 1 or channels_in != channels_out
        self.shortcut = _convolution(channels_in, channels_out, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.reduce(x))
        y = functional.relu(self.convolve(y))
        return functional.relu(self.expand(y) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50: images of shape (batch, 3, 224, 224) to logits of shape (batch, classes).

    Examples
    --------
    >>> model = ResNet50()
    >>> sum(p.numel() for p in model.parameters())
    25557032
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _convolution(3, 64, 7, 2)
        blocks: list[nn.Module] = []
        channels = 64
        for stage, (width, count) in enumerate(STAGES):
            for block in range(count):
                blocks.append(Bottleneck(channels, width, stride=2 if stage > 0 and block == 0 else 1))
                channels = EXPANSION * width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, stride=2, padding=1)
        x = self.blocks(x)
        logits: Tensor = self.linear(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))
        return logits
