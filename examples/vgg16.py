"""VGG-16 for 32 x 32 images, in plain `torch.nn`.

Configuration D of Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, with batch normalisation and, as usual for images of this size, one linear layer in place of three. 14.7 million
parameters. Knows nothing of gtopk.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["VGG16"]

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG-16: images of shape (batch, 3, 32, 32) to logits of shape (batch, classes).

    Examples
    --------
    >>> model = VGG16()
    >>> sum(p.numel() for p in model.parameters())
    14728266
    """

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for widths in STAGES:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x).flatten(1))
        return logits
