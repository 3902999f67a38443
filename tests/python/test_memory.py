"""Out of memory through Python: every allocation of the library fails in turn. GTOPK_TEST_CYCLES: creations (500)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(os.environ.get("GTOPK_BUILD", ROOT / "build")).resolve() / "libgtopk_oom.so"


def test_every_allocation_fails_in_turn():
    if not LIBRARY.is_file():
        pytest.skip(f"there is no {LIBRARY.name}: run `make py-tests`")
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests" / "distributed" / "oom_life.py"),
            os.environ.get("GTOPK_TEST_CYCLES", "500"),
        ],
        env={**os.environ, "GTOPK_LIBRARY": str(LIBRARY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["allocations_failed"] > 50
    if path := os.environ.get("GTOPK_TEST_MEMORY_JSON"):
        Path(path).write_text(json.dumps(result) + "\n")
