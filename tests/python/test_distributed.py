"""The Python API under real launchers: one launch for each number of ranks runs all cases of tests/distributed."""

from __future__ import annotations

import launcher
import pytest

CASES = ("cases_collectives", "cases_reducer")


def passed(result, ranks):
    status, output = result
    assert status == 0, output[-8000:]
    assert f"cases passed on {ranks} ranks" in output, output[-8000:]


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8])
def test_mpirun(ranks):
    passed(launcher.mpirun(ranks, "harness.py", *CASES), ranks)


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.long), 3])
def test_torchrun(ranks):
    environment = {"GTOPK_TEST_KIND": "torch"}
    passed(launcher.torchrun(ranks, "harness.py", *CASES, "cases_torch", environment=environment), ranks)


def test_scalar_and_reference_give_the_same_bits():
    """Every rank on another device or instruction set: replicas must still agree."""
    passed(launcher.mpirun(3, "mixed_devices.py", "cases_reducer"), 3)


def test_a_late_rank_is_an_error_by_the_deadline(tmp_path):
    status, output = launcher.mpirun(2, "late_rank.py", tmp_path)
    assert "rank 1: DeadlineError" in output, output
    assert "rank 0: AbortedError" in output, output
    assert status == 0, output  # both caught their errors and ended in order, and so does MPI


def test_an_uncaught_exception_ends_the_job():
    """Nobody waits for the others in MPI_Finalize."""
    status, output = launcher.mpirun(3, "raising_rank.py")
    assert status != 0
    assert "ValueError: only here" in output


def test_a_module_for_another_mpi_is_noticed():
    """mpirun says 2 processes, each finds itself alone."""
    environment = {"OMPI_COMM_WORLD_SIZE": "7"}
    status, output = launcher.mpirun(1, "another_mpi.py", environment=environment)
    assert "build-mpi" in output, output
    assert status == 0, output
