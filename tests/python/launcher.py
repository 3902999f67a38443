"""Starts a script on several ranks with mpirun or torchrun, with a time limit that ends the whole group."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DISTRIBUTED = Path(__file__).resolve().parents[1] / "distributed"


def find(program):
    """Beside this Python, else on PATH; skips the test where there is none."""
    beside = Path(sys.executable).parent
    found = shutil.which(program, path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
    if not found:
        pytest.skip(f"there is no {program}")
    return found


def mpirun(ranks, script, *arguments, environment=None, limit=300):
    """Exit status and output of `script` on that many ranks."""
    command = [find("mpirun"), "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    command += ["-np", str(ranks), sys.executable, str(DISTRIBUTED / script), *arguments]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return run(command, {**as_root, **(environment or {})}, limit)


def torchrun(ranks, script, *arguments, environment=None, limit=300):
    """The same with torchrun."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return run(
        [*command, str(DISTRIBUTED / script), *arguments], {"OMP_NUM_THREADS": "1", **(environment or {})}, limit
    )


def run(command, environment, limit):
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{' '.join(command)} did not end within {limit} s\n{output[-8000:]}")
    return process.returncode, output
