"""Breaks the library in named ways (mutants.py) and says which test notices: make test-mutants.

Works on copies of the tree. The tests in C run on the scalar kernels, which are the ones that are broken, and with few
ranks; those in Python with the library of the copy, first in one process. The first one that fails has caught the mutant.
Which one that was stands in noticed.json: it is tried first the next time, and only where it passes the others are
(--learn writes the file). A test that has caught one has to pass when nothing is broken. Exit status 1 when a mutant survives.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue

sys.path.insert(0, str(Path(__file__).parent))
from mutants import MUTANTS, Mutant
from which_tests import KERNEL_TESTS, is_python, tests_for

ROOT = Path(__file__).resolve().parents[2]
NOTICED = Path(__file__).parent / "noticed.json"
# What stands in for a GPU; the tests in Python take it as it was built, with the kernels that are not broken.
STANDIN = ("libcuda_standin.so", "libtorch_cuda_standin.so")
LIMIT = 1500  # seconds: what hangs ends by deadlines of its own, and a mutant that is late is not one that was noticed
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


def build(tree: Path, cache: str, target: str, *settings: str) -> None:
    done = subprocess.run(
        ["make", "-j2", f"CACHE={cache}", "CFLAGS=-O1", "BUILD=build", *settings, target],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"{target} does not build:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def run(tree: Path, command: list[str], environment: dict[str, str]) -> list[str] | None:
    """What the test said when it failed; None when it passed."""
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return ["ran into the time limit"]
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line or "FAILED" in line]
    return lines or [f"status {done.returncode}"]


def run_c(tree: Path, cache: str, test: str) -> tuple[str, str] | None:
    program, *where = test.split()
    build(tree, cache, f"build/tests/{program}", *(["CUDA=0"] if test in KERNEL_TESTS else []))
    settings = dict(zip(("GTOPK_DEVICE", "GTOPK_TEST_TRANSPORT"), where, strict=False))
    said = run(tree, [f"build/tests/{program}"], {**ENVIRONMENT, **settings})
    return (test, said[0]) if said else None


def run_python(tree: Path, cache: str, *tests: str) -> tuple[str, str] | None:
    """Of a file, the one test that failed."""
    build(tree, cache, "lib")
    build(tree, cache, "module")
    environment = {
        "GTOPK_BUILD": str(tree / "build"),
        "GTOPK_LIBRARY": str(tree / "build" / "libgtopk.so"),
        "GTOPK_MPI_MODULE": str(tree / "build" / "libgtopk_mpi.so"),
        "PYTHONPATH": str(tree / "python"),
        "PYTHONDONTWRITEBYTECODE": "1",  # two mutants of one second and one length have the same bytecode's name
    }
    said = run(
        tree, [sys.executable, "-m", "pytest", "-x", "-q", *(f"tests/python/{test}" for test in tests)], environment
    )
    if not said:
        return None
    for line in said:
        kind, _, failed = line.partition(" tests/python/")
        if kind in ("FAILED", "ERROR"):
            return failed.partition(" - ")[0], line
    return " ".join(tests), said[0]


def notice(tree: Path, cache: str, mutants: list[Mutant], tests: list[str]) -> tuple[str, str] | None:
    """The first of the tests that fails, and what it said."""
    for test in tests:
        said = (run_python if is_python(mutants[0]) else run_c)(tree, cache, test)
        if said:
            return said
    return None


def misfits() -> list[str]:
    """Mutants whose text does not stand once in their file of this tree, or whose name stands twice."""
    counts = [(mutant, (ROOT / mutant.file).read_text().count(mutant.old)) for mutant in MUTANTS]
    names = [mutant.name for mutant in MUTANTS]
    return [
        f"'{mutant.name}' stands {count} times in {mutant.file}: mend mutants.py"
        for mutant, count in counts
        if count != 1
    ] + [f"'{name}' is the name of two mutants: mend mutants.py" for name in set(names) if names.count(name) > 1]


def make_tree(folder: Path) -> Path:
    copy_tree(folder)
    (folder / "build").mkdir(exist_ok=True)
    for name in STANDIN:
        if (ROOT / "build" / name).is_file():
            shutil.copy(ROOT / "build" / name, folder / "build")
    return folder


class Work:
    """Mutants that wait, and what was found."""

    def __init__(self, chosen: list[Mutant], known: dict[str, str], until: float) -> None:
        self.waiting: SimpleQueue[Mutant] = SimpleQueue()
        for mutant in chosen:
            self.waiting.put(mutant)
        self.count, self.known, self.until = len(chosen), known, until
        self.results: list[dict[str, str]] = []
        self.sound: set[str] = set()  # tests that pass where nothing is broken
        self.failure: BaseException | None = None

    def take(self) -> Mutant | None:
        try:
            return self.waiting.get_nowait() if time.monotonic() < self.until and not self.failure else None
        except Empty:
            return None

    def run(self, tree: Path, cache: str) -> None:
        try:
            while mutant := self.take():
                self.try_one(tree, cache, mutant)
        except BaseException as failure:  # for the main thread to raise
            self.failure = failure

    def try_one(self, tree: Path, cache: str, mutant: Mutant) -> None:
        path, start = tree / mutant.file, time.monotonic()
        text = path.read_text()
        path.write_text(text.replace(mutant.old, mutant.new))
        first = [self.known[mutant.name]] if mutant.name in self.known else []
        caught = notice(tree, cache, [mutant], first + [test for test in tests_for([mutant]) if test not in first])
        path.write_text(text)
        os.utime(path)
        test, said = caught or ("", "SURVIVED")
        if caught and test not in self.sound:
            if failed := notice(tree, cache, [mutant], [test]):
                raise SystemExit(f"a test fails though nothing is broken: {failed}")
            self.sound.add(test)
        self.results.append({"mutant": mutant.name, "file": mutant.file, "caught_by": test, "said": said[:200]})
        seconds = time.monotonic() - start
        print(f"{len(self.results):3}/{self.count} {mutant.name}: {test or 'SURVIVED'} ({seconds:.0f} s)", flush=True)


def learn(results: list[dict[str, str]]) -> None:
    """What is known of mutants that there are, in the order of their names."""
    known = json.loads(NOTICED.read_text()) if NOTICED.exists() else {}
    known |= {row["mutant"]: row["caught_by"] for row in results if row["caught_by"]}
    names = {mutant.name for mutant in MUTANTS}
    kept = {name: test for name, test in sorted(known.items()) if name in names}
    NOTICED.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default=str(ROOT / ".cache"), help="where cmocka was unpacked")
    parser.add_argument("--json", type=Path, help="write the list here")
    parser.add_argument("--only", help="mutants whose name or file contains this")
    parser.add_argument("--unknown", action="store_true", help="only those of which no test is known")
    parser.add_argument("--seconds", type=float, help="take them in an order of chance, and no more after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time (%(default)s)")
    parser.add_argument("--learn", action="store_true", help="write down which tests noticed")
    parser.add_argument("--check", action="store_true", help="only see that every mutant applies")
    options = parser.parse_args()
    if misfits():
        raise SystemExit("\n".join(misfits()))
    if options.check:
        return 0
    known: dict[str, str] = json.loads(NOTICED.read_text()) if NOTICED.exists() else {}
    chosen = [mutant for mutant in MUTANTS if not options.only or options.only in f"{mutant.name} {mutant.file}"]
    if options.unknown:
        chosen = [mutant for mutant in chosen if mutant.name not in known]
    if options.seconds:
        random.shuffle(chosen)
    with tempfile.TemporaryDirectory() as folder:
        trees = [make_tree(Path(folder) / str(job)) for job in range(max(1, min(options.jobs, len(chosen))))]
        work = Work(chosen, known, time.monotonic() + (options.seconds or float("inf")))
        threads = [threading.Thread(target=work.run, args=(tree, options.cache)) for tree in trees]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if options.learn:
        learn(work.results)
    if work.failure:
        raise work.failure
    survivors = [row["mutant"] for row in work.results if not row["caught_by"]]
    if options.json:
        counted = {"mutants": len(work.results), "survived": survivors, "list": work.results}
        options.json.write_text(json.dumps(counted, indent=1) + "\n")
    print(
        f"{len(work.results) - len(survivors)} of {len(work.results)} mutants caught; survivors: {survivors or 'none'}"
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
