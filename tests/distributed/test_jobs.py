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
START = 240  # seconds until all ranks are up, on a loaded machine
SOON = 100  # and until they have ended, a sixth of what they would wait


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


def hands(folder, sizes, deadline, names=("0",)):
    """Ranks of one port, of these sizes, in a job of each name; the deadline begins when all have started."""
    port, processes = free_port(), len(sizes) * len(names)
    together = {"MEET": str(folder), "PROCESSES": str(processes)}
    commands = [
        hand(rank, size, port, deadline, JOB=name, **together) for name in names for rank, size in enumerate(sizes)
    ]
    return Job(commands), port


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


def start_waiting(kind, size):
    """Ranks of which all but the last, which sleeps, wait inside the library."""
    if kind == "hand":
        port = free_port()
        job = Job([hand(rank, size, port, "600", "wait") for rank in range(size)])
    else:
        job = Job([{"mpirun": mpi, "torchrun": torchrun}[kind](size, "600", "wait")])
    try:
        job.wait_for(
            lambda text: len(job.pids) == size and text.count(" waits\n") == size - 1,
            START,
            f"the start of {size} ranks",
        )
        time.sleep(1)  # most often they are in the middle of it then
    except BaseException:
        job.end()
        raise
    return job


def check_nothing_is_left(job):
    end = time.monotonic() + SOON
    while any(map(lives, job.pids.values())) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(lives, job.pids.values())), f"a rank is left of {job.pids}:\n{job.text()}"


def errors_of(job):
    """What ended the step of each rank that waited and had the time to say so; its residual was as it had been."""
    found = re.findall(r"^rank (\d+) stopped by (\w+) kept ([01])$", job.text(), re.MULTILINE)
    assert all(kept == "1" for _, _, kept in found), job.text()
    return {int(rank): name for rank, name, _ in found}


def test_an_interrupt_ends_processes_without_a_launcher():
    """As a terminal does it: SIGINT to every process of its foreground group. The first to end may be seen by the others."""
    job = start_waiting("hand", 3)
    try:
        for process in job.processes:
            os.killpg(process.pid, signal.SIGINT)
        statuses = finish(job, SOON)
        assert statuses[2] == -signal.SIGINT, job.text()  # in no call of the library
        assert -signal.SIGINT in statuses[:2], job.text()
        assert 0 not in statuses, job.text()
        check_nothing_is_left(job)
        assert "KeyboardInterrupt" in errors_of(job).values(), job.text()
    finally:
        job.end()


def test_an_interrupt_ends_a_job_of_torchrun():
    """It passes the signal on, to one rank after the other: the first to end may be seen by those that follow."""
    job = start_waiting("torchrun", 3)
    try:
        os.killpg(job.processes[0].pid, signal.SIGINT)
        assert finish(job, SOON)[0] != 0, job.text()
        check_nothing_is_left(job)
        assert "KeyboardInterrupt" in errors_of(job).values(), job.text()
    finally:
        job.end()


def test_an_interrupt_of_a_rank_ends_a_job_of_mpirun():
    """A terminal's signal does not get to the ranks: mpirun has it, and ends them by SIGTERM. This one does."""
    job = start_waiting("mpirun", 3)
    try:
        os.kill(job.pids[0], signal.SIGINT)
        assert finish(job, SOON)[0] != 0, job.text()
        check_nothing_is_left(job)
        assert errors_of(job)[0] == "KeyboardInterrupt", job.text()
    finally:
        job.end()


# ---- the wrong number of ranks ----


def fails_with(job, seconds, *words):
    finish(job, seconds)
    for word in words:
        assert re.search(word, job.text()), f"{word!r} is not in:\n{job.text()}"
    assert "Traceback" not in job.text(), job.text()


def test_a_missing_rank_is_an_error_on_the_others(tmp_path):
    job, _ = hands(tmp_path, [3, 3], DEADLINE)
    try:
        fails_with(job, START, r"2/3 clients joined")
        assert len(re.findall("^failed ", job.text(), re.MULTILINE)) == 2, job.text()
    finally:
        job.end()


def test_a_rank_too_many_is_an_error_on_that_rank(tmp_path):
    job, _ = hands(tmp_path, [2, 2, 2], "20")
    try:
        fails_with(job, START, r"failed TransportError: .*rank < size")
        assert len(set(re.findall(r"of 2 digest (\w+)", job.text()))) == 1, job.text()
        assert job.text().count("of 2 digest") == 2, job.text()
    finally:
        job.end()


@pytest.mark.skipif(not LONG, reason="gloo waits 40 s for the third rank: make test-long")
def test_ranks_that_disagree_about_the_size(tmp_path):
    job, _ = hands(tmp_path, [2, 3, 3], DEADLINE)
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
def test_two_jobs_on_one_port(tmp_path):
    """One of the first ranks cannot listen, and says so; no rank goes on with ranks of the other job unnoticed."""
    job, port = hands(tmp_path, [2, 2], DEADLINE, names=("1", "2"))
    try:
        fails_with(job, START + 60, rf"failed TransportError: .*127\.0\.0\.1:{port}.*address already in use")
        assert len(re.findall("^failed ", job.text(), re.MULTILINE)) >= 2, job.text()
    finally:
        job.end()


# ---- /dev/shm ----


def test_a_full_dev_shm():
    """MPI keeps its messages between ranks of one host there. With no room it works another way, or gtopk says that MPI
    failed. (What MPI itself prints proves nothing: it warns in either case.)"""
    fill = "mount -t tmpfs -o size=16k tmpfs /dev/shm && head -c 16k /dev/zero >/dev/shm/full"
    fill += " && ! echo more 2>/dev/null >/dev/shm/more"
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-m", "sh", "-c", fill], capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here: needs root")
    command, extra = mpi(2, "60")
    inside = [unshare, "-m", "sh", "-c", f'{fill}; exec "$@"', "sh", *command]
    job = Job([(inside, extra)])
    try:
        status = finish(job, START)[0]
        failures = re.findall(r"^failed (\w+)", job.text(), re.MULTILINE)
        if status == 0:
            digests = re.findall(r"of 2 digest (\w+)", job.text())
            assert len(digests) == 2, job.text()
            assert len(set(digests)) == 1, job.text()
            assert not failures, job.text()
        else:
            assert set(failures) == {"TransportError"}, job.text()
    finally:
        job.end()
