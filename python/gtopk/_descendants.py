"""Processes that a rank starts: they inherit the launcher's variables, and would join the job as the same rank.

`init` leaves a mark in the environment that names its process and the rank's identity. A child that finds the mark of
another process beside the same identity is no rank; one that a launcher of its own started has another identity.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping

from .errors import StateError

MARK = "GTOPK_RANK_PROCESS"

# Together they tell one rank of one launch from all others.
_IDENTITY = (
    "OMPI_COMM_WORLD_RANK",
    "PMIX_NAMESPACE",
    "PMIX_RANK",
    "PMI_FD",
    "PMI_RANK",
    "MV2_COMM_WORLD_RANK",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
)


def mark(rank: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """This process is a rank, and those that it starts from now on are not."""
    environment[MARK] = json.dumps([os.getpid(), rank, _identity(environment)])


def unmark(environment: MutableMapping[str, str] = os.environ) -> None:
    """This process is no rank any more."""
    environment.pop(MARK, None)


def refuse(environment: Mapping[str, str] = os.environ) -> None:
    """`StateError` in a process that a rank started."""
    try:
        pid, rank, identity = json.loads(environment[MARK])
    except (KeyError, ValueError, TypeError):
        return
    if pid != os.getpid() and identity == _identity(environment):
        raise StateError(
            f"this process was started by rank {rank} (process {pid}) and has its environment, so it would join the job as "
            "that rank a second time: call gtopk.init() in the ranks alone (where workers are spawned, below "
            'if __name__ == "__main__":), or gtopk.init(transport="self") here'
        )


def _identity(environment: Mapping[str, str]) -> list[str]:
    return [environment.get(name, "") for name in _IDENTITY]
