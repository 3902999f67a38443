"""Runs test_transport_mpi.c under mpirun: with MPI started by the module and by the caller, and in short parts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import run_to_end

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("GTOPK_BUILD", ROOT / "build")).resolve()
SECONDS = 300


def launch(ranks, mode, module):
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mpirun = shutil.which("mpirun", path=beside)
    if not mpirun:
        pytest.skip("there is no mpirun")
    command = [mpirun, "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "-n", str(ranks)]
    command += [str(BUILD / "tests/distributed/test_transport_mpi"), mode]
    extra = {"GTOPK_MPI_MODULE": str(module), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    status, output = run_to_end(command, {**os.environ, **extra}, SECONDS)
    assert status == 0, output[-8000:]


@pytest.mark.parametrize("mode", ["module", "caller"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_transport(ranks, mode):
    launch(ranks, mode, BUILD / "libgtopk_mpi.so")


def test_messages_longer_than_an_int_can_count(tmp_path):
    """A module whose int ends at 5000: what is longer travels as derived types and in parts."""
    module = tmp_path / "libgtopk_mpi.so"
    mpicc = (BUILD / "mpicc.txt").read_text().strip()
    command = [shutil.which(mpicc) or str(ROOT / mpicc), "-std=c11", "-O1", "-fPIC", "-shared", "-pthread"]
    command += ["-fvisibility=hidden"]
    command += ["-D_GNU_SOURCE", "-DMPI_MODULE_COUNT_MAX=5000", f"-I{ROOT / 'include'}", f"-I{ROOT / 'csrc'}"]
    command += [*map(str, sorted((ROOT / "csrc/transport/mpi").glob("*.c"))), "-o", str(module), "-lm"]
    subprocess.run(command, check=True)
    launch(3, "caller", module)
