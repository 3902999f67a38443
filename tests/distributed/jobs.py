"""Jobs for tests that do things to processes: start them, read what they print, signal them, end all of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build_folder():
    return Path(os.environ.get("GTOPK_BUILD", ROOT / "build")).resolve()


def mpirun():
    found = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if not found:
        pytest.skip("there is no mpirun")
    return found


RANK = re.compile(r"rank (\d+) pid (\d+)")

# What mpirun says on a loaded machine when it cannot even begin: no failure of what is tested.
NOT_BEGUN = "The PMIx server's listener thread failed to start"
STARTS = 3


class Launch:
    """A process in a session of its own whose lines go to a file. A launcher that could not begin is started again."""

    def __init__(self, command, extra):
        self.command, self.environment = command, {**os.environ, **extra}
        self.starts = 0
        self.start()

    def start(self):
        self.starts += 1
        self.output = tempfile.NamedTemporaryFile("w+", suffix=".txt", delete=False)
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def text(self):
        return Path(self.output.name).read_text(errors="replace")

    def begin_again(self):
        """Starts the process again if it ended with an error that is the launcher's own, before it had started a rank.
        Whether it did so."""
        if not self.process.poll() or self.starts == STARTS:
            return False
        text = self.text()
        if NOT_BEGUN not in text or RANK.search(text):
            return False
        self.end()
        self.start()
        return True

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(30)
        self.output.close()
        Path(self.output.name).unlink()


class Job:
    """Processes that are ended with everything they started, whatever happens."""

    def __init__(self, commands):
        self.launches = [Launch(command, extra) for command, extra in commands]

    @property
    def processes(self):
        return [launch.process for launch in self.launches]

    @property
    def pids(self):
        """Of the ranks that said so."""
        return {int(rank): int(pid) for rank, pid in RANK.findall(self.text())}

    def text(self):
        """What all processes printed, one after the other."""
        return "".join(launch.text() for launch in self.launches)

    def wait_for(self, condition, seconds, what):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = condition(self.text())
            again = [launch.begin_again() for launch in self.launches]
            if found and not any(again):
                return found
            time.sleep(0.02)
        raise AssertionError(f"{what} did not happen within {seconds} s:\n{self.text()}")

    def end(self):
        for pid in self.pids.values():
            kill(pid, signal.SIGKILL)
        for launch in self.launches:
            launch.end()


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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
