"""Runs the tests of faults in their long versions and keeps what they counted: make test-faults.

    python benchmarks/faults_report.py --build build [--quick] [PART...]

Parts, all by default: injected (faults at every message), injected_scalar and injected_reference (the same with scalar
kernels, and on the reference device), memory (failing allocations in C, creations, peak of a step), python_memory (the
same through Python), mpi and gloo (ranks killed and stopped), jobs, fuzz, libfuzzer (the same targets under clang's,
where that is found), mutants. Each is written to the JSON file as soon as it has ended, beside those of earlier calls,
with its command, its commit, its date and its seconds. Exit status 1 when a part failed; a part that failed keeps the
end of its output.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from report import machine

ROOT = Path(__file__).resolve().parents[1]
OUTPUT_KEPT = 4000


@dataclass
class Part:
    """A command, its settings, and how its result is read from what it printed or from the file it wrote."""

    command: list[str]
    read: Callable[[str, Path], Any]
    environment: dict[str, str] = field(default_factory=dict)
    file_variable: str = ""  # names the file in the environment


def json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def last_line(text: str, _file: Path) -> Any:
    return json_lines(text)[-1]


def memory(text: str, _file: Path) -> Any:
    peak = [line for line in text.splitlines() if line.startswith("peak of a step")]
    return {**json_lines(text)[-1], "peak": peak[0]}


def fuzz(text: str, _file: Path) -> Any:
    targets = json_lines(text)
    if not targets:
        return {"skipped": text.strip().splitlines()[-1]}
    return {"inputs": sum(target["inputs"] for target in targets), "targets": targets}


def from_file(_text: str, file: Path) -> Any:
    return json.loads(file.read_text())


def summary(text: str, _file: Path) -> Any:
    return {"pytest": text.strip().splitlines()[-1]}


def parts(build: str, cache: str, quick: bool) -> dict[str, Part]:
    pytest = [sys.executable, "-m", "pytest", "-q"]
    real = "tests/distributed/test_real_faults.py"
    cycles = {} if quick else {"GTOPK_TEST_CYCLES": "10000"}
    make = ["make", f"BUILD={build}", f"CACHE={cache}"]

    def strikes(kind: str, times: str) -> Part:
        environment = {"GTOPK_BUILD": build, "GTOPK_TEST_FAULTS": "1" if quick else times}
        return Part([*pytest, real, "-k", kind], from_file, environment, "GTOPK_TEST_FAULTS_JSON")

    return {
        "injected": Part([f"{build}/tests/faults/test_faults"], last_line),
        "injected_scalar": Part([f"{build}/tests/faults/test_faults"], last_line, {"GTOPK_ISA": "scalar"}),
        "injected_reference": Part([f"{build}/tests/faults/test_faults"], last_line, {"GTOPK_DEVICE": "reference"}),
        "memory": Part([f"{build}/tests/faults/test_memory"], memory, cycles),
        "python_memory": Part(
            [*pytest, "tests/python/test_memory.py"],
            from_file,
            {"GTOPK_BUILD": build, **cycles},
            "GTOPK_TEST_MEMORY_JSON",
        ),
        "mpi": strikes("mpi", "13"),
        "gloo": strikes("gloo", "13"),
        "jobs": Part(
            [*pytest, "tests/distributed/test_jobs.py"],
            summary,
            {"GTOPK_BUILD": build, "GTOPK_TEST_FAULTS": "1" if quick else "2"},
        ),
        "fuzz": Part([*make, "fuzz", f"TIME={6 if quick else 1200}"], fuzz),
        "libfuzzer": Part([*make, "fuzz-libfuzzer", f"TIME={6 if quick else 1200}"], fuzz),
        "mutants": Part([sys.executable, "tests/mutants/run.py", "--cache", cache, "--json", "FILE"], from_file),
    }


def commit() -> str:
    """What was tested; "-dirty" where the tree had changes of its own."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.strip() or "unknown"


def run(part: Part, where: Path) -> dict[str, Any]:
    file = where / "result.json"
    command = [str(file) if word == "FILE" else word for word in part.command]
    environment = {**os.environ, **part.environment}
    if part.file_variable:
        environment[part.file_variable] = str(file)
    begin = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    shown = ["python" if word == sys.executable else word for word in part.command]
    result: dict[str, Any] = {
        "command": " ".join([*(f"{name}={value}" for name, value in part.environment.items()), *shown]),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.monotonic() - begin, 1),
        "passed": done.returncode == 0,
    }
    try:
        result["result"] = part.read(done.stdout, file)
    except (OSError, ValueError, LookupError) as error:
        result.update(passed=False, unreadable=str(error))
    if not result["passed"]:
        result["output"] = done.stdout[-OUTPUT_KEPT:]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--build", default="build", help="folder of the built library and tests")
    parser.add_argument("--cache", default=".cache", help="where cmocka was unpacked")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "faults.json")
    parser.add_argument("--quick", action="store_true", help="the short versions, to see that all works")
    options = parser.parse_args()
    known = parts(options.build, options.cache, options.quick)
    unknown = set(options.parts) - set(known)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(known)}")

    report = json.loads(options.output.read_text()) if options.output.exists() else {}
    report["machine"] = {**machine(), "system": f"{platform.system()} {platform.release()}"}
    failed = []
    for name in options.parts or known:
        with tempfile.TemporaryDirectory() as folder:
            report[name] = run(known[name], Path(folder))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{name}: {'passed' if report[name]['passed'] else 'FAILED'} in {report[name]['seconds']} s", flush=True)
        if not report[name]["passed"]:
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
