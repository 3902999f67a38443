"""Breaks the library in named ways (mutants.py) and says which test notices: make test-mutants.

Works on a copy of the tree. The tests run on the scalar kernels, which are the ones that are broken, and with few ranks;
the first one that fails has caught the mutant. Exit status 1 when a mutant survives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
# In this order, since the first ones are fast and catch most.
TESTS = [
    "property/test_exchange",
    "unit/test_reducer",
    "unit/test_reducer_ranks",
    "unit/test_reducers_together",
    "unit/test_state",
    "unit/test_schedule",
    "unit/test_wire",
    "unit/test_wire_indices",
    "unit/test_wire_convert",
    "unit/test_message",
    "property/test_device",
    "unit/test_transport",
    "faults/test_faults",
    "faults/test_memory",
]
ENVIRONMENT = {"GTOPK_ISA": "scalar", "GTOPK_TEST_SIZES": "6", "GTOPK_TEST_CYCLES": "20"}


def copy_tree(to: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in names.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


def build(tree: Path, cache: str, test: str) -> None:
    done = subprocess.run(
        ["make", "-j2", f"CACHE={cache}", "CFLAGS=-O1", "BUILD=build", f"build/tests/{test}"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"{test} does not build:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def run(tree: Path, test: str) -> str | None:
    """What the test said when it failed; None when it passed."""
    try:
        done = subprocess.run(
            [f"build/tests/{test}"],
            cwd=tree,
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=180,
        )
    except subprocess.TimeoutExpired:
        return "ran into the time limit"
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line or "FAILED" in line]
    return (lines or [f"status {done.returncode}"])[0].strip()[:200]


def caught_by(tree: Path, cache: str) -> tuple[str, str] | None:
    for test in TESTS:
        build(tree, cache, test)
        said = run(tree, test)
        if said is not None:
            return test, said
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", default=str(ROOT / ".cache"), help="where cmocka was unpacked")
    parser.add_argument("--json", type=Path, help="write the list here")
    parser.add_argument("--only", help="mutants whose name contains this")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not options.only or options.only in mutant.name]
    results, survivors = [], []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        whole = caught_by(tree, options.cache)
        if whole:
            raise SystemExit(f"a test fails though nothing is broken: {whole}")
        for number, mutant in enumerate(chosen, 1):
            path = tree / mutant.file
            text = path.read_text()
            if text.count(mutant.old) != 1:
                raise SystemExit(
                    f"'{mutant.name}' stands {text.count(mutant.old)} times in {mutant.file}: mend mutants.py"
                )
            path.write_text(text.replace(mutant.old, mutant.new))
            caught = caught_by(tree, options.cache)
            path.write_text(text)
            os.utime(path)
            test, said = caught or ("", "SURVIVED")
            results.append({"mutant": mutant.name, "file": mutant.file, "caught_by": test, "said": said})
            if not caught:
                survivors.append(mutant.name)
            print(f"{number:3}/{len(chosen)} {mutant.name}: {test or 'SURVIVED'}", flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"mutants": len(results), "survived": survivors, "list": results}, indent=1) + "\n"
        )
    print(f"{len(results) - len(survivors)} of {len(results)} mutants caught; survivors: {survivors or 'none'}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
