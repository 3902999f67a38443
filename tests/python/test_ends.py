"""How jobs end when a rank ends before the others: at once, and with a text that says what to do."""

from __future__ import annotations

import re

import launcher
import pytest

LIMIT = 200  # a third of the deadline of the ranks


def errors_of(output):
    return dict(re.findall(r"^rank (\d): (.*)$", output, re.MULTILINE))


@pytest.mark.parametrize("how", ["returns", "shutdown"])
def test_a_rank_that_ends_in_order_too_early_is_an_error_on_the_others(how):
    status, output = launcher.mpirun(3, "ending_rank.py", how, limit=LIMIT)
    assert status != 0, output
    # Rank 0 waits for it. Rank 1 may hear of it from rank 0, or be ended by mpirun before.
    found = " ".join(errors_of(output).values())
    assert "AbortedError" in found, output
    assert "rank 2 has ended, or called gtopk.shutdown()" in found, output
    assert "optimizer.join()" in found, output


@pytest.mark.parametrize(("how", "status"), [("argparse", 2), ("text", 1)])
def test_an_exit_with_a_status_ends_the_job(how, status):
    found, output = launcher.mpirun(3, "ending_rank.py", how, limit=LIMIT)
    assert found == status, output


def test_a_rank_that_never_starts_is_not_waited_for_forever():
    """MPI_Init itself knows no deadline."""
    status, output = launcher.mpirun(3, "absent_rank.py", limit=LIMIT)
    assert status != 0, output
    assert "every process that mpirun started must call gtopk.init(). It has waited for 1 s (of at most 6)" in output, (
        output
    )
    assert "has waited for 6 s, the whole timeout" in output, output
    assert "init returned" not in output, output


def test_ranks_that_end_together_say_nothing():
    status, output = launcher.mpirun(3, "ending_rank.py", "together", limit=LIMIT)
    assert (status, output) == (0, "")


def test_mpi_ends_in_order_after_an_error_that_was_caught():
    status, output = launcher.mpirun(2, "ending_rank.py", "caught", limit=LIMIT)
    assert status == 0, output
    assert len(errors_of(output)) == 2, output
    assert "finalize" not in output, output


def test_nothing_but_steps_while_a_rank_joins():
    """Horovod's join() takes part in any all-reduce; here both sides are told, and what to do."""
    pytest.importorskip("torch")
    status, output = launcher.mpirun(2, "ending_rank.py", "join", environment={"OMP_NUM_THREADS": "1"}, limit=LIMIT)
    errors = errors_of(output)
    assert status == 0, output
    assert sorted(errors) == ["0", "1"], output
    assert "while one is in join(), gradient exchanges only" in " ".join(errors.values()), output


def test_over_torch_a_rank_that_ends_closes_its_connections():
    status, output = launcher.torchrun(3, "ending_rank.py", "returns", limit=LIMIT)
    assert status != 0, output
    found = " ".join(errors_of(output).values())
    assert "that rank closed its connection" in found, output
    assert "optimizer.join()" in found, output
