"""The models that benchmarks train are what they are called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


def test_resnet50_is_the_published_one() -> None:
    from resnet50 import ResNet50

    model = ResNet50()
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == 53
    images = torch.zeros(1, 3, 224, 224)
    assert model.blocks(model.stem(images)).shape == (1, 2048, 14, 14)  # 7 x 7 after the pooling that is left out here
    assert model.eval()(images).shape == (1, 1000)
