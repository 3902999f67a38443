"""A Slurm cluster for tests: its real daemons, of the user who runs the tests, with two nodes on this one machine.

    with Cluster(find_programs(folder)) as cluster:
        status, output = cluster.run("srun", "-n", "3", "hostname")

There is no accounting and there are no cgroups. The nodes are called 127.0.0.1 and 127.0.0.2, which tasks can connect to
like names of hosts. Everything is in a temporary folder, every wait has a deadline, and nothing is left behind: daemons
end with the process that started them, and `left` names what had to be killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobs import run_to_end

START = 60  # seconds for all daemons, on a loaded machine
END = 20
_NEEDED = ("munged", "slurmctld", "slurmd", "slurmstepd", "srun", "sbatch", "scancel", "sinfo")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
{plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=2
NodeName=127.0.0.[1-2] NodeHostname=localhost Port=[{ports[1]}-{ports[2]}] CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=30 OverSubscribe=YES State=UP
"""


@dataclass(frozen=True)
class Programs:
    """Where Slurm is. `root`: None for the system's, else the folder that its packages were unpacked in."""

    root: Path | None

    def path(self, name):
        if self.root is None:
            return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        return str(next(p for p in sorted(self.root.glob(f"usr/*bin/{name}*")) if p.name in (name, f"{name}-wlm")))

    @property
    def libraries(self):
        return sorted(
            {str(p.parent) for n in ("libslurmfull", "libmunge") for p in self.root.glob(f"usr/lib/**/{n}.so*")}
        )

    def environment(self):
        if self.root is None:
            return {}
        return {"LD_LIBRARY_PATH": ":".join([*self.libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])}


def find_programs(folder):
    """None where the system has no Slurm and scripts/find_slurm.sh has put none into `folder`."""
    system = Programs(None)
    if all(system.path(name) for name in _NEEDED):
        return system
    unpacked = Programs(Path(folder).resolve() / "root")
    return unpacked if all(any(unpacked.root.glob(f"usr/*bin/{name}*")) for name in _NEEDED) else None


class Cluster:
    """`environment` is for all jobs, in addition to that of this process."""

    def __init__(self, programs, **environment):
        self.programs = programs
        self.left = []
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has 107 bytes at most
        self._daemons = []
        self._always = set()  # processes that are there without a job
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PMI"))},
            **environment,
            **programs.environment(),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def run(self, *command, limit=120, environment=None):
        """Exit status and output (both streams) of one of Slurm's commands, ended with its job after `limit` seconds."""
        words = [self.programs.path(command[0]), *map(str, command[1:])]
        try:
            return run_to_end(words, {**self._environment, **(environment or {})}, limit, self.folder)
        except pytest.fail.Exception:
            self._cancel_all()
            raise

    def close(self):
        """Jobs first, then nodes, controller and munge."""
        if self._always:
            self._cancel_all()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(END)
            except subprocess.TimeoutExpired:
                self.left.append(f"{daemon.args[0]} ({daemon.pid})")
                daemon.kill()
                daemon.wait()
        self._daemons = []
        self._wait_for_ends(set())
        for pid, name in self._processes():
            self.left.append(f"{name} ({pid})")
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self):
        """What the daemons said last, for the text of a failure."""
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))

    # ---- starting ----

    def _start(self):
        folder = self.folder
        plugins = [p for p in (self.programs.libraries if self.programs.root else []) if p.endswith("slurm-wlm")]
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=folder,
                user=_user(),
                ports=_free_ports(3),
                plugins=f"PluginDir={plugins[0]}" if plugins else "",
            )
        )
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        munge = [
            f"--{what}-file={folder}/munge.{end}" for what, end in (("log", "log"), ("pid", "pid"), ("seed", "seed"))
        ]
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", *munge
        )
        self._wait(lambda: (folder / "munge.socket").exists(), "munged's start")
        self._daemon("slurmctld", "-D", "-i")
        for node in ("127.0.0.1", "127.0.0.2"):
            self._daemon("slurmd", "-D", "-N", node, "-d", self.programs.path("slurmstepd"))
        self._wait(self._nodes_are_idle, "the start of slurmctld and two slurmd")
        self._always = {pid for pid, _ in self._processes()}

    def _daemon(self, name, *arguments):
        die_with_parent = [shutil.which("setpriv"), "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (self.folder / f"{name}-{len(self._daemons)}.out.log").open("w") as output:
            self._daemons.append(
                subprocess.Popen(
                    [*die_with_parent, self.programs.path(name), *arguments],
                    env=self._environment,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _nodes_are_idle(self):
        status, output = self.run("sinfo", "--noheader", "--Node", "--format=%t", limit=START)
        return status == 0 and output.split() == ["idle", "idle"]

    def _wait(self, condition, what):
        end = time.monotonic() + START
        while not condition():
            ended = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                raise RuntimeError(f"{what}: {f'ended: {ended}' if ended else f'not within {START} s'}\n{self.logs()}")
            time.sleep(0.2)

    # ---- ending ----

    def _cancel_all(self):
        """Kills all jobs and waits for the end of their processes: `close` says which stay."""
        for options in (["--signal=KILL"], []):
            subprocess.run(
                [self.programs.path("scancel"), *options, f"--user={_user()}"],
                env=self._environment,
                timeout=END,
                check=False,
                capture_output=True,
            )
        self._wait_for_ends(self._always)

    def _wait_for_ends(self, others):
        end = time.monotonic() + END
        while time.monotonic() < end and any(pid not in others for pid, _ in self._processes()):
            time.sleep(0.1)

    def _processes(self):
        """Of this cluster: those with its configuration in their environment. (pid, name)"""
        mark = f"SLURM_CONF={self.folder}/slurm.conf\0".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                    found.append((int(process.name), (process / "comm").read_text().strip()))
            except OSError:  # has ended, or is another user's
                continue
        return found


def _user():
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _free_ports(count):
    """Neighbours, as Slurm's notation for several nodes wants them. Another program may still take one first."""
    for _ in range(100):
        sockets = []
        try:
            first = 0
            for place in range(count):
                sockets.append(socket.socket())
                sockets[-1].bind(("0.0.0.0", first + place if first else 0))
                first = first or sockets[0].getsockname()[1]
            return list(range(first, first + count))
        except (OSError, OverflowError):
            continue
        finally:
            for one in sockets:
                one.close()
    raise RuntimeError(f"there are no {count} free ports in a row")
