"""Processes that tests start: run to their end, or as jobs whose processes are read, signalled and ended."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build_folder():
    return Path(os.environ.get("GTOPK_BUILD", ROOT / "build")).resolve()


def mpirun():
    """That of GTOPK_MPIRUN, of this Python's environment, or on PATH."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = os.environ.get("GTOPK_MPIRUN") or shutil.which("mpirun", path=places)
    if not found:
        import pytest  # where ranks of a GPU are checked there is none

        pytest.skip("there is no mpirun")
    return found


def run_to_end(command, environment, limit, cwd=None):
    """Exit status and output (both streams) of `command`; with all it started it is killed after `limit` seconds, and
    the test fails."""
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=cwd,
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
        import pytest

        pytest.fail(f"{' '.join(command)} did not end within {limit} s\n{output[-8000:]}")
    return process.returncode, output


class Job:
    """Processes whose lines go to one file; ended with everything they started, whatever happens."""

    def __init__(self, commands):
        self.output = tempfile.NamedTemporaryFile("w+", suffix=".txt", delete=False)
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **extra},
                stdout=self.output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            for command, extra in commands
        ]

    @property
    def pids(self):
        """Of the ranks that said so."""
        return {int(rank): int(pid) for rank, pid in re.findall(r"rank (\d+) pid (\d+)", self.text())}

    def text(self):
        return Path(self.output.name).read_text(errors="replace")

    def wait_for(self, condition, seconds, what):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = condition(self.text())
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{what} did not happen within {seconds} s:\n{self.text()}")

    def end(self):
        for pid in self.pids.values():
            kill(pid, signal.SIGKILL)
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(30)
        self.output.close()
        Path(self.output.name).unlink()


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def mpirun_command(size, *options):
    """mpirun on one host with more ranks than cores, and the environment that it needs."""
    command = [mpirun(), *options, "-n", str(size), "--oversubscribe", "--bind-to", "none"]
    command += ["--mca", "mpi_yield_when_idle", "1"]
    extra = {"GTOPK_MPI_MODULE": str(build_folder() / "libgtopk_mpi.so")}
    if os.geteuid() == 0:
        extra.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return command, extra


def free_port():
    """Outside of what the system gives to connections, where there is something: nobody takes it until it is listened to."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    outside = [*range(10000, first), *range(last + 1, 65536)]
    for port in [*random.SystemRandom().sample(outside, min(100, len(outside))), 0]:
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return free.getsockname()[1]
    raise OSError("no port is free")


def by_hand(rank, size, port):
    """The environment of a rank that no launcher starts."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
