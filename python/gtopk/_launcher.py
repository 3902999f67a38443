"""Under what was this process started: mpirun, torchrun, srun, or alone? Looks at the environment only; starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from . import _slurm

# Set by Open MPI, MPICH, MVAPICH, Intel MPI, PMIx launchers and srun with a PMI.
_MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_SIZE")


def torch_distributed_is_initialized() -> bool:
    """True when the program has set up torch.distributed itself. Does not import it."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def detect(environment: Mapping[str, str] = os.environ) -> str:
    """The transport to use: "torch", "mpi" or "self".

    What was started innermost wins: a process group that exists in this process; then torchrun, which may run under
    mpirun or srun; then MPI (mpirun, or srun with a PMI), under which scripts often set RANK and WORLD_SIZE by hand;
    then RANK and WORLD_SIZE; then the tasks of srun, which find each other through torch.distributed.
    """
    by_hand = "RANK" in environment and "WORLD_SIZE" in environment and "MASTER_ADDR" in environment
    if torch_distributed_is_initialized() or ("TORCHELASTIC_RUN_ID" in environment and by_hand):
        return "torch"
    if any(name in environment for name in _MPI_VARIABLES):
        return "mpi"
    if by_hand or (_slurm.started(environment) and environment["SLURM_STEP_NUM_TASKS"] != "1"):
        return "torch"
    return "self"


def mpi_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """Number of processes that mpirun or srun says it started for MPI, where it does.

    A process linked with another MPI than the one of its mpirun comes up as one process alone, and training would
    silently be that of many single processes.
    """
    names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"]
    # PMIx puts no size into the environment. This is how srun's PMIx calls a job step, of which Slurm says the size.
    if environment.get("PMIX_NAMESPACE", "").startswith("slurm.pmix."):
        names.append("SLURM_STEP_NUM_TASKS")
    for name in names:
        text = environment.get(name, "")
        if text.isdecimal():
            return int(text)
    return None
