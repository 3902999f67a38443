"""Under what was this process started: mpirun, torchrun, srun, or alone? Looks at the environment only; starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from . import _slurm
from .errors import InvalidError

# Set by Open MPI, MPICH, MVAPICH, Intel MPI, PMIx launchers and srun with a PMI.
_MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_SIZE")

# torch.distributed finds the other processes with these.
BY_HAND = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# A number above the one here says that there are more processes; and what is needed beside it to find them.
_CLAIMS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("WORLD_SIZE", 1, BY_HAND),
    ("RANK", 0, BY_HAND),
    ("LOCAL_WORLD_SIZE", 1, BY_HAND),
    ("LOCAL_RANK", 0, BY_HAND),
    ("OMPI_COMM_WORLD_RANK", 0, ("OMPI_COMM_WORLD_SIZE",)),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", 1, ("OMPI_COMM_WORLD_SIZE",)),
    ("OMPI_COMM_WORLD_LOCAL_RANK", 0, ("OMPI_COMM_WORLD_SIZE",)),
    ("PMI_SIZE", 1, ("PMI_RANK",)),
    ("MPI_LOCALNRANKS", 1, ("PMI_RANK",)),
    ("MPI_LOCALRANKID", 0, ("PMI_RANK",)),
    ("MV2_COMM_WORLD_RANK", 0, ("MV2_COMM_WORLD_SIZE",)),
    ("SLURM_PROCID", 0, ("SLURM_STEP_NUM_TASKS",)),
    ("SLURM_LOCALID", 0, ("SLURM_STEP_NUM_TASKS",)),
)


def torch_distributed_is_initialized() -> bool:
    """True when the program has set up torch.distributed itself. Does not import it."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def detect(environment: Mapping[str, str] = os.environ) -> str:
    """The transport to use: "torch", "mpi" or "self".

    What was started innermost wins: a process group that exists in this process; then torchrun, which may run under
    mpirun or srun; then MPI (mpirun, or srun with a PMI), under which scripts often set RANK and WORLD_SIZE by hand;
    then RANK and WORLD_SIZE; then the tasks of srun, which find each other through torch.distributed.

    `InvalidError` where the environment says that there are more processes, but not how to find them.
    """
    by_hand = "RANK" in environment and "WORLD_SIZE" in environment and "MASTER_ADDR" in environment
    if torch_distributed_is_initialized() or ("TORCHELASTIC_RUN_ID" in environment and by_hand):
        return "torch"
    if any(name in environment for name in _MPI_VARIABLES):
        return "mpi"
    if by_hand or (_slurm.started(environment) and environment["SLURM_STEP_NUM_TASKS"] != "1"):
        return "torch"
    _check_alone(environment)
    return "self"


def _check_alone(environment: Mapping[str, str]) -> None:
    for name, alone, needed in _CLAIMS:
        text = environment.get(name, "")
        if name in ("RANK", "WORLD_SIZE") and text and not text.isdecimal():
            raise InvalidError(f"{name} is {text!r}, but must be a number, 0 or more: unset it to train alone")
        if text.isdecimal() and int(text) > alone:
            missing = [other for other in needed if other not in environment]
            raise InvalidError(
                f"{name} is {text}, so there are more processes, but {' and '.join(missing)} {_are(missing)} not set, "
                "without which they do not find each other: start all of them with mpirun, torchrun or srun, or set "
                f"RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each; to train alone, unset {name} or call "
                'gtopk.init(transport="self")'
            )


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def mpi_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number that mpirun or srun gave this process for MPI, where it did."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"):
        text = environment.get(name, "")
        if text.isdecimal():
            return int(text)
    return None


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
