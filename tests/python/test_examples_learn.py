"""Every example learns: benchmarks/examples_learn.py with two seeds, what it found with ten; and the blocks of the pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import launcher
import pytest
import run_blocks

pytest.importorskip("torch")
pytest.importorskip("jiwer")
ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "examples_learn.json"
sys.path.insert(0, str(ROOT / "benchmarks"))

import examples_learn
from examples_learn import LEARN, Example

MINIMAL = ROOT / "examples" / "minimal.py"
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if run_blocks.blocks(page)]
TRAIN = [page for page in PAGES if any(map(run_blocks.trains, run_blocks.blocks(page)))]


def test_every_script_is_among_them() -> None:
    scripts = {
        file
        for file in (ROOT / "examples").rglob("*.py")
        if file != MINIMAL and 'if __name__ == "__main__":' in file.read_text() and file.name != "run_demo.py"
    }
    assert len(scripts) == 9
    assert scripts == {example.file for example in LEARN}


def test_all_that_was_measured_has_learned() -> None:
    rows = json.loads(RESULT.read_text())["rows"]
    found = {(row["example"], row["arguments"], row["ranks"], row["frozen"]): row for row in rows}
    for example in LEARN:
        for ranks, frozen in examples_learn.launches_of(example):
            row = found[example.name, example.arguments, ranks, frozen]
            assert len(row["first"]) == len(row["last"]) == 10
            assert not examples_learn.wrong(example, row)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("example", LEARN, ids=[example.name for example in LEARN])
def test_examples_learn(example: Example, ranks: int, tmp_path: Path) -> None:
    seeds = range(10 + ranks, 12 + ranks)  # others than those of the file
    row = examples_learn.launch(example, ranks, seeds, tmp_path, limit=900)
    assert not examples_learn.wrong(example, row)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_blocks_learn_with_ten_seeds(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun, where all of them run."""
    monkeypatch.chdir(tmp_path)
    files = [*TRAIN, MINIMAL]  # among them the quick start, which has the set-up
    script = Path(run_blocks.__file__)
    status, output = launcher.torchrun(ranks, script, "torchrun", "10", *map(str, files), limit=1800)
    assert status == 0, output[-8000:]
    assert output.count(f"blocks on {ranks} ranks), loss") == 10 * len(files), output[-8000:]
