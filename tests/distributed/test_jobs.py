"""What happens to whole jobs: Ctrl-C, a wrong number of ranks, two jobs on one host, no room in /dev/shm.

Each ends as it should or with an error that says what is wrong, and leaves no process behind. GTOPK_TEST_FAULTS above
1: the cases too in which torch itself takes most of a minute to give up.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import Job, by_hand, free_port, mpirun_command

SCRIPT = str(Path(__file__).with_name("job_rank.py"))
LONG = int(os.environ.get("GTOPK_TEST_FAULTS", "1")) > 1
DEADLINE = "5"
START = 120  # seconds until all ranks are up, on a loaded machine


def mpi(size, *arguments, options=(), **environment):
    command, extra = mpirun_command(size, *options)
    return [*command, sys.executable, SCRIPT, *arguments], {**extra, **environment}


def torchrun(size, *arguments):
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), "--master-port"]
    return [*command, str(free_port()), SCRIPT, *arguments], {"OMP_NUM_THREADS": "1"}


def hand(rank, size, port, *arguments, **environment):
    pytest.importorskip("torch")
    return [sys.executable, SCRIPT, *arguments], {**by_hand(rank, size, port), **environment}


def lives(pid):
    """A process that has ended and waits for its parent to hear of it does not live."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def finish(job, seconds):
    """Exit statuses; fails when a process is left after that time."""
    end = time.monotonic() + seconds
    statuses = []
    for process in job.processes:
        try:
            statuses.append(process.wait(max(0.1, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            pytest.fail(f"a process did not end within {seconds} s:\n{job.text()}")
    return statuses


# ---- Ctrl-C ----


@pytest.mark.parametrize("kind", ["mpirun", "torchrun", "hand"])
def test_an_interrupt_ends_the_job(kind):
    """As a terminal does it: SIGINT to every process of its foreground group. Rank 0 and 1 wait inside the library."""
    size, port = 3, free_port()
    if kind == "hand":
        job = Job([hand(rank, size, port, "600", "wait") for rank in range(size)])
    else:
        job = Job([{"mpirun": mpi, "torchrun": torchrun}[kind](size, "600", "wait")])
    try:
        job.wait_for(lambda _: len(job.pids) == size, START, f"the start of {size} ranks")
        pids = job.pids
        time.sleep(1)
        for process in job.processes:
            os.killpg(process.pid, signal.SIGINT)
        statuses = finish(job, 20)
        assert all(status != 0 for status in statuses), job.text()
        end = time.monotonic() + 5
        while any(map(lives, pids.values())) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(lives, pids.values())), f"a rank is left of {pids}:\n{job.text()}"
        if kind == "hand":  # the launchers may use SIGTERM, which ends a rank without a word
            for rank in (0, 1):
                assert f"rank {rank} stopped by KeyboardInterrupt kept 1" in job.text(), job.text()
            assert statuses == [-signal.SIGINT] * size
    finally:
        job.end()


# ---- the wrong number of ranks ----


def fails_with(job, seconds, *words):
    finish(job, seconds)
    for word in words:
        assert re.search(word, job.text()), f"{word!r} is not in:\n{job.text()}"
    assert "Traceback" not in job.text(), job.text()


def test_a_missing_rank_is_an_error_on_the_others():
    port = free_port()
    job = Job([hand(rank, 3, port, DEADLINE) for rank in range(2)])
    try:
        fails_with(job, START, r"2/3 clients joined")
        assert len(re.findall("^failed ", job.text(), re.MULTILINE)) == 2, job.text()
    finally:
        job.end()


def test_a_rank_too_many_is_an_error_on_that_rank():
    port = free_port()
    job = Job([hand(rank, 2, port, DEADLINE) for rank in range(3)])
    try:
        fails_with(job, START, r"failed TransportError: .*rank < size")
        assert len(set(re.findall(r"of 2 digest (\w+)", job.text()))) == 1, job.text()
        assert job.text().count("of 2 digest") == 2, job.text()
    finally:
        job.end()


@pytest.mark.skipif(not LONG, reason="gloo waits 40 s for the third rank: make test-long")
def test_ranks_that_disagree_about_the_size():
    port = free_port()
    job = Job([hand(rank, 2 if rank == 0 else 3, port, DEADLINE) for rank in range(3)])
    try:
        fails_with(job, START + 60, r"failed (DeadlineError|TransportError)")
        assert len(re.findall("^failed ", job.text(), re.MULTILINE)) == 3, job.text()
    finally:
        job.end()


# ---- two jobs on one host ----


def check_two_jobs(job):
    assert finish(job, START) == [0] * len(job.processes), job.text()
    digests = re.findall(r"rank \d of 2 digest (\w+)", job.text())
    assert len(digests) == 4, job.text()
    assert sorted(map(digests.count, set(digests))) == [2, 2], job.text()


def test_two_jobs_of_mpirun():
    job = Job([mpi(2, "60", JOB="1"), mpi(2, "60", JOB="2")])
    try:
        check_two_jobs(job)
    finally:
        job.end()


def test_two_jobs_over_torch():
    commands = []
    for name in ("1", "2"):
        port = free_port()
        commands += [hand(rank, 2, port, "60", JOB=name) for rank in range(2)]
    job = Job(commands)
    try:
        check_two_jobs(job)
    finally:
        job.end()


@pytest.mark.skipif(not LONG, reason="gloo waits 40 s for a rank of the other job: make test-long")
def test_two_jobs_on_one_port():
    """One of the first ranks cannot listen, and says so; no rank goes on with ranks of the other job unnoticed."""
    port = free_port()
    job = Job([hand(rank, 2, port, DEADLINE, JOB=name) for name in ("1", "2") for rank in range(2)])
    try:
        fails_with(job, START + 60, rf"failed TransportError: .*127\.0\.0\.1:{port}.*address already in use")
        assert len(re.findall("^failed ", job.text(), re.MULTILINE)) >= 2, job.text()
    finally:
        job.end()


# ---- /dev/shm ----


def test_a_full_dev_shm():
    """MPI keeps its messages between ranks of one host there. With no room it works another way, or says what fails."""
    mount = "mount -t tmpfs -o size=16k tmpfs /dev/shm && head -c 16k /dev/zero >/dev/shm/full"
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-m", "sh", "-c", mount], capture_output=True).returncode > 1:
        pytest.skip("a file system cannot be mounted here: needs root")
    command, extra = mpi(2, DEADLINE)
    inside = [unshare, "-m", "sh", "-c", f'{mount}; exec "$@"', "sh", *command]
    job = Job([(inside, extra)])
    try:
        status = finish(job, START)[0]
        if status == 0:
            assert job.text().count("of 2 digest") == 2, job.text()
        else:
            assert re.search(r"failed TransportError|shared memory|/dev/shm|space", job.text()), job.text()
    finally:
        job.end()
