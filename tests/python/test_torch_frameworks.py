"""Accelerate and Lightning, the real packages, through the DDP hook."""

from __future__ import annotations

import launcher
import pytest

pytestmark = pytest.mark.long


@pytest.mark.parametrize("package", ["accelerate", "lightning"])
def test_training(package):
    pytest.importorskip(package)
    status, output = launcher.torchrun(2, f"train_{package}.py", "2")
    assert status == 0, output[-8000:]
    assert "trained on 2 ranks" in output, output[-8000:]
