"""A launcher that could not begin is started again by the tests' jobs, but for no other failure, and not for ever."""

from __future__ import annotations

import sys

import pytest
from jobs import NOT_BEGUN, STARTS, Job

# Fails as often as it is told to, counting its starts in a file; "rank": it has started a rank before.
LAUNCHER = """
import os, pathlib, sys
count, failures, what, begun = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
starts = len(count.read_text()) + 1 if count.exists() else 1
count.write_text("x" * starts)
if starts > failures or begun == "rank":
    print("rank 0 pid", os.getpid())
if starts <= failures:
    print(what + ". We cannot continue.")
    sys.exit(1)
"""


def run(tmp_path, failures, what=NOT_BEGUN, begun="nothing"):
    """The exit status of the last start, the number of starts, and what the last one printed."""
    count = tmp_path / "starts"
    job = Job([([sys.executable, "-c", LAUNCHER, str(count), str(failures), what, begun], {})])
    try:
        job.wait_for(lambda _: job.processes[0].poll() is not None, 60, "the end")
        return job.processes[0].returncode, len(count.read_text()), job.text()
    finally:
        job.end()


def test_a_launcher_that_could_not_begin_is_started_again(tmp_path):
    status, starts, text = run(tmp_path, 2)
    assert (status, starts) == (0, 3)
    assert NOT_BEGUN not in text
    assert "rank 0" in text


def test_not_for_ever(tmp_path):
    assert run(tmp_path, 99)[:2] == (1, STARTS)


@pytest.mark.parametrize(("what", "begun"), [("a rank died", "nothing"), (NOT_BEGUN, "rank")])
def test_no_other_failure_is_passed_over(tmp_path, what, begun):
    assert run(tmp_path, 1, what, begun)[:2] == (1, 1)
