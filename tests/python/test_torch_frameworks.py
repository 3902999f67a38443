"""Accelerate, Lightning, Hugging Face's Trainer and Ray Train, the real packages."""

from __future__ import annotations

import importlib.util
import sys

import launcher
import pytest

pytestmark = pytest.mark.long


@pytest.mark.parametrize("package", ["accelerate", "lightning", "transformers"])
def test_training_and_going_on(package, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"there is no {package}")
    status, output = launcher.torchrun(2, f"train_{package}.py", "2", str(tmp_path))
    assert status == 0, output[-8000:]
    assert "trained on 2 ranks" in output, output[-8000:]


def test_ray_train(tmp_path):
    pytest.importorskip("ray.train")
    environment = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, str(launcher.DISTRIBUTED / "train_ray.py"), "2", str(tmp_path)]
    status, output = launcher.run(command, environment, 300)
    assert status == 0, output[-8000:]
    assert "trained on 2 ranks" in output, output[-8000:]
