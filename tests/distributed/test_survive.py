"""examples/losing_a_rank: a rank dies, the others end with the error, and training goes on from the checkpoint."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from jobs import run_to_end

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "losing_a_rank" / "run.sh"
LIMIT = 300


def environment():
    extra = {"PYTHON": sys.executable, "MPIRUN_FLAGS": "--bind-to none --mca mpi_yield_when_idle 1"}
    extra["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if not shutil.which("mpirun", path=extra["PATH"]):
        pytest.skip("there is no mpirun")
    if not os.environ.get("GTOPK_TEST_INSTALLED"):
        build = Path(os.environ.get("GTOPK_BUILD", ROOT / "build")).resolve()
        extra["PYTHONPATH"] = str(ROOT / "python")
        extra["GTOPK_LIBRARY"] = os.environ.get("GTOPK_LIBRARY", str(build / "libgtopk.so"))
    if os.geteuid() == 0:
        extra.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return {**os.environ, **extra}


def run(folder):
    status, output = run_to_end([str(SCRIPT), str(folder)], environment(), LIMIT)
    assert status == 0, output
    return output


def test_training_goes_on_with_one_rank_fewer(tmp_path):
    torch = pytest.importorskip("torch")
    output = run(tmp_path / "kept")

    # Both survivors ended with an error of the step in which rank 1 was gone.
    errors = re.findall(r"^gtopk\.errors\.(\w+): step 50, (.*)$", output, re.MULTILINE)
    assert len(errors) == 2, output
    assert all(kind in ("DeadlineError", "AbortedError", "TransportError") for kind, _ in errors), output
    assert "a rank was lost" in output, output

    # The second life begins with the loss of the checkpoint, and the loss goes on falling.
    lines = re.findall(r"^step +(\d+)  ranks (\d)  loss ([\d.]+)$", output, re.MULTILINE)
    history = [(int(step), int(ranks), float(loss)) for step, ranks, loss in lines]
    before = [(step, loss) for step, ranks, loss in history if ranks == 3]
    after = [(step, loss) for step, ranks, loss in history if ranks == 2]
    assert [step for step, _ in before] == [0, 20, 40], output
    assert [step for step, _ in after] == [40, 60, 80, 100, 120], output
    assert after[0] == before[-1], output
    losses = [loss for _, loss in before + after[1:]]
    assert losses == sorted(losses, reverse=True), output
    assert losses[-1] < 0.5 * losses[2], output

    # Two ranks have in the mean what three had not sent.
    found = re.search(
        r"residual: a mean of ([\d.]+) over the 3 ranks .*, of ([\d.]+) over 2 ranks; largest difference (\S+) of",
        output,
    )
    assert found, output
    assert float(found[1]) > 0, output
    assert float(found[2]) == pytest.approx(float(found[1]), rel=1e-5), output
    assert float(found[3]) < 1e-6, output

    saved = torch.load(tmp_path / "kept" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 120
    assert saved["optimizer"]["gtopk"]["size"] == 2
