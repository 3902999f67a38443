"""Every example learns: benchmarks/examples_learn.py with another seed, what it found with ten; and the blocks of the pages."""

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
from examples_learn import LEARN, Launch

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


def test_what_was_measured_has_learned() -> None:
    found = json.loads(RESULT.read_text())
    assert found["arguments"] == {example.name: example.arguments for example in LEARN}, "measure again"
    wanted = [
        (example.name, launch.ranks, launch.frozen, seed)
        for launch in examples_learn.launches()
        for example in examples_learn.examples_of(launch)
        for seed in range(1, 11)
    ]
    rows = [(row["example"], row["ranks"], row["frozen"], row["seed"]) for row in found["rows"]]
    assert sorted(rows) == sorted(wanted)
    assert not [text for row in found["rows"] if (text := examples_learn.wrong(row))]


@pytest.mark.long
@pytest.mark.parametrize("launch", examples_learn.launches(), ids=str)
def test_examples_learn(launch: Launch, tmp_path: Path) -> None:
    """With a seed that is not among those of the file."""
    jobs = [(example, [10 + launch.ranks]) for example in examples_learn.examples_of(launch)]
    examples_learn.run(launch, jobs, tmp_path, limit=3600)
    rows = examples_learn.rows_of(launch, tmp_path)
    assert [row["example"] for row in rows] == [example.name for example, _ in jobs]
    assert not [text for row in rows if (text := examples_learn.wrong(row))]


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
