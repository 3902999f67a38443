"""ResNet-20 for 32 x 32 images, in plain `torch.nn`.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: a 3 x 3 convolution,
three stages of n blocks with 16, 32 and 64 filters (6 n + 2 layers with weights; n = 3), global average pooling and one
linear layer. Shortcuts are option A: the identity, subsampled and padded with zero channels where the size changes, so
they have no parameters. 0.27 million parameters. Knows nothing of gtopk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ResNet20"]


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    """Two 3 x 3 convolutions and the shortcut around them."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels_in, channels_out, stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _convolution(channels_out, channels_out)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.extra = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.extra == 0:
            return x
        before = self.extra // 2
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


class ResNet20(nn.Module):
    """ResNet-20: images of shape (batch, 3, 32, 32) to logits of shape (batch, classes).

    Examples
    --------
    >>> model = ResNet20()
    >>> sum(p.numel() for p in model.parameters())
    269722
    """

    def __init__(self, classes: int = 10, channels: int = 3, blocks: int = 3) -> None:
        super().__init__()
        self.conv = _convolution(channels, 16)
        self.norm = nn.BatchNorm2d(16)
        widths = [16] * blocks + [32] * blocks + [64] * blocks
        stages = []
        for before, width in zip([16, *widths], widths, strict=False):
            stages.append(Block(before, width, stride=1 if before == width else 2))
        self.blocks = nn.Sequential(*stages)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        x = self.blocks(x)
        logits: Tensor = self.linear(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))
        return logits
