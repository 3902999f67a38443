"""Every Python block of the README and the guide, and the smallest example, on two ranks under mpirun and torchrun.

See tests/python/run_blocks.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "python"))

import launcher
import run_blocks

MINIMAL = ROOT / "examples" / "minimal.py"
PAGES = [
    page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), MINIMAL] if run_blocks.blocks(page)
]


def environment():
    if os.environ.get("GTOPK_TEST_INSTALLED"):
        return {}
    build = Path(os.environ.get("GTOPK_BUILD", ROOT / "build")).resolve()
    library = os.environ.get("GTOPK_LIBRARY", str(build / "libgtopk.so"))
    return {"PYTHONPATH": str(ROOT / "python"), "GTOPK_LIBRARY": library}


@pytest.mark.parametrize("launch", [launcher.mpirun, launcher.torchrun], ids=["mpirun", "torchrun"])
def test_blocks_on_two_ranks(launch, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    script = Path(run_blocks.__file__)
    status, output = launch(2, script, launch.__name__, "1", *map(str, PAGES), environment=environment())
    assert status == 0, output
    assert output.count("blocks on 2 ranks)") == len(PAGES), output


@pytest.mark.parametrize("ranks", [3, 4])
def test_complete_examples_train(tmp_path, monkeypatch, ranks):
    """On one and on two ranks they are among the blocks above. Three is where they failed most often."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    files = [ROOT / "README.md", ROOT / "docs/guide/quickstart.md", MINIMAL]
    script = run_blocks.__file__
    status, output = launcher.mpirun(ranks, script, "mpirun", "1", *map(str, files), environment=environment())
    assert status == 0, output
    assert output.count(f"blocks on {ranks} ranks), loss") == len(files), output
