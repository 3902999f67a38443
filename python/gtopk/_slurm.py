"""A task that Slurm's srun started: which rank it is, and where the ranks of its job step meet. Starts nothing.

srun numbers the tasks and names their machines in the environment, and without a PMI that is all it does. The port
follows from the numbers of job and step, so that every task finds the same one without asking, and steps that run at
the same time have different ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import InvalidError

# Below the ports that Linux gives to connections by itself, and above those of well-known services.
_FIRST_PORT, _PORTS = 20000, 12000
_STEPS_APART = 31  # so many steps of one job have ports that the next job's do not have

# What other launchers, and people, call the same two numbers.
_RANKS = ("RANK", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Task:
    """This process in its job step. `host` and `port` are where rank 0 listens."""

    rank: int
    size: int
    node: str
    host: str
    port: int


def started(environment: Mapping[str, str] = os.environ) -> bool:
    """True in what srun started. False in the script of sbatch itself, which has no step's number of tasks."""
    return "SLURM_STEP_NUM_TASKS" in environment


def task(environment: Mapping[str, str] = os.environ) -> Task:
    """Of a process for which `started` is true. MASTER_ADDR and MASTER_PORT win over what is found out."""
    rank, size = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_STEP_NUM_TASKS")
    for names, number in ((_RANKS, rank), (_SIZES, size)):
        for name in names:
            if environment.get(name, str(number)) != str(number):
                raise InvalidError(
                    f"{name} is {environment[name]!r}, but srun made this process task {rank} of {size}: unset "
                    f"{name}, or set all of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process"
                )
    return Task(
        rank=rank,
        size=size,
        node=f"slurm {_number(environment, 'SLURM_NODEID')}",
        host=environment.get("MASTER_ADDR") or _host_of_rank_0(environment, rank),
        port=_port(environment),
    )


def first_host(nodes: str) -> str:
    """The first name of a list in Slurm's notation: ``gpu[07-12,20]-a,login1`` begins with ``gpu07-a``."""
    first = re.match(r"((?:[^][,]|\[\w[^][]*\])+)(?:,|$)", nodes)
    name = re.sub(r"\[(\w+)[^]]*\]", r"\1", first.group(1)) if first else ""
    if not name:
        raise InvalidError(f"SLURM_STEP_NODELIST is {nodes!r}, in which no host can be found: set MASTER_ADDR")
    return name


def _host_of_rank_0(environment: Mapping[str, str], rank: int) -> str:
    # srun --distribution=arbitrary may put task 0 elsewhere. The list of hosts is sorted, so only rank 0 can tell.
    if rank == 0 and environment.get("SLURM_NODEID", "0") != "0":
        raise InvalidError(
            f"task 0 is on host {environment.get('SLURMD_NODENAME', 'number ' + environment['SLURM_NODEID'])}, not on "
            "the first of SLURM_STEP_NODELIST, where the other tasks look for it: set MASTER_ADDR to that host"
        )
    return first_host(_text(environment, "SLURM_STEP_NODELIST"))


def _port(environment: Mapping[str, str]) -> int:
    if environment.get("MASTER_PORT"):
        port = _number(environment, "MASTER_PORT")
        if not 0 < port < 65536:
            raise InvalidError(f"MASTER_PORT is {port}, but must be from 1 to 65535")
        return port
    job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
    return _FIRST_PORT + (job * _STEPS_APART + step) % _PORTS


def _text(environment: Mapping[str, str], name: str) -> str:
    text = environment.get(name)
    if not text:
        raise InvalidError(
            f"srun started this process, but {name} is not set: pass Slurm's variables on (a container may hide them), "
            "or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or start the program with srun torchrun"
        )
    return text


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _text(environment, name)
    if not (text.isascii() and text.isdecimal()):
        raise InvalidError(f"{name} is {text!r}, but must be a number")
    return int(text)
