"""Starts a script on several ranks with mpirun or torchrun, with a time limit that ends the whole group."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

LIMIT = 900  # seconds: it tells what hangs from what a busy machine does
DISTRIBUTED = Path(__file__).resolve().parents[1] / "distributed"
sys.path.insert(0, str(DISTRIBUTED))
from jobs import run_to_end


def find(program):
    """Beside this Python, else on PATH; skips the test where there is none."""
    beside = Path(sys.executable).parent
    found = shutil.which(program, path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
    if not found:
        pytest.skip(f"there is no {program}")
    return found


def mpirun(ranks, script, *arguments, environment=None, limit=LIMIT):
    """Exit status and output of `script` on that many ranks."""
    command = ["-np", ranks, sys.executable, DISTRIBUTED / script, *arguments]
    return mpirun_of(*command, environment=environment, limit=limit)


def mpirun_of(*command, environment=None, limit=LIMIT):
    """The same of anything that mpirun starts, with options of its own before it."""
    mpirun = [find("mpirun"), "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return run([*mpirun, *map(str, command)], {**as_root, **(environment or {})}, limit)


def torchrun(ranks, script, *arguments, environment=None, limit=LIMIT):
    """The same with torchrun."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(DISTRIBUTED / script), *arguments]
    return run(command, {"OMP_NUM_THREADS": "1", **(environment or {})}, limit)


def run(command, environment, limit):
    """The same of any command; `environment` is added to this process's."""
    return run_to_end(command, {**os.environ, **environment}, limit)
