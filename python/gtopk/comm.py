"""The communicator that `init` makes: the group of processes, its set-up and end, and collectives on it.

`Comm` is for programs that need another one, for example for exchanges from several threads.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from . import _descendants, _excepthook, _launcher
from ._collectives import Average, Op, Sum
from ._communicator import Comm
from ._end_of_process import register_dependent as register_dependent
from ._tensors import TensorLike
from .errors import StateError, TransportError

__all__ = [
    "Average",
    "Comm",
    "Op",
    "Sum",
    "allgather",
    "allreduce",
    "barrier",
    "broadcast",
    "broadcast_",
    "broadcast_object",
    "init",
    "is_initialized",
    "local_rank",
    "rank",
    "shutdown",
    "size",
]

_log = logging.getLogger("gtopk")


class _Default:
    """The communicator that `init` made."""

    comm: Comm | None = None


def init(
    *,
    transport: str | None = None,
    timeout: float | None = None,
    warn_after: float | None = None,
    mpi_module: str | os.PathLike[str] | None = None,
    group: Any = None,
    setup_timeout: float | None = None,
) -> None:
    """Joins the processes of this job. Collective; to be called once, a second call changes nothing.

    Parameters
    ----------
    transport : {"self", "mpi", "torch", "nccl", "auto"}, optional
        "nccl" and "auto" are for GPUs: see `Comm`. Found out if not given, without NCCL: an initialised
        torch.distributed, torchrun, mpirun (or srun with a PMI), RANK and WORLD_SIZE with MASTER_ADDR in the environment,
        the tasks of srun, else one process alone.
    timeout : float, optional
        Seconds a whole exchange may wait. Default: GTOPK_TIMEOUT, else 1800.
    warn_after, mpi_module, group, setup_timeout
        See `Comm`.

    Notes
    -----
    With "torch" gtopk makes a gloo group of its own; if torch.distributed is not initialised, it does that too, with
    gloo, and leaves it so at `shutdown`. Programs that want another backend call
    ``torch.distributed.init_process_group`` first.

    When Python ends with exit status 0, gtopk ends MPI if it started it, which waits for all ranks. With another status
    it does not, and mpirun ends the job. Ranks that still wait for one that has ended get `AbortedError`.

    Examples
    --------
    >>> import gtopk
    >>> gtopk.init()
    >>> gtopk.rank(), gtopk.size()
    (0, 1)
    """
    if _Default.comm is not None and _Default.comm.pid != os.getpid():
        _Default.comm = None  # that of the process from which this one was forked
    if _Default.comm is not None:
        if transport is not None and transport not in (_Default.comm.transport, _Default.comm.asked):
            raise StateError(
                f"gtopk is initialised with transport {_Default.comm.asked!r} already, and {transport!r} is asked "
                "for: call gtopk.shutdown() first"
            )
        return
    _excepthook.install()
    if transport != "self" and not _launcher.torch_distributed_is_initialized():
        _descendants.refuse()
    chosen = _launcher.detect() if transport is None else transport
    _Default.comm = Comm(
        transport=chosen,
        timeout=timeout,
        warn_after=warn_after,
        mpi_module=mpi_module,
        group=group,
        setup_timeout=setup_timeout,
    )
    _log.info("rank %d of %d, %s", _Default.comm.rank, _Default.comm.size, _Default.comm.description)
    if _Default.comm.transport == "mpi":
        _check_mpi(_Default.comm)
    if _Default.comm.transport != "self":
        _descendants.mark(_Default.comm.rank)


def _check_mpi(comm: Comm) -> None:
    """A process whose MPI does not know its launcher comes up as one process alone."""
    expected, rank = _launcher.mpi_size(), _launcher.mpi_rank()
    if comm.size == expected or (expected is None and (comm.size > 1 or not rank)):
        return
    found = comm.size
    shutdown()
    started = f"rank {rank}" if expected is None else f"{expected} processes"
    raise TransportError(
        f"mpirun or srun started {started}, but MPI shows {found}: the gtopk MPI module belongs to another MPI than this "
        "launcher (run `python -m gtopk build-mpi` with the mpicc of this MPI first on PATH), or the launcher's variables "
        "came along from another shell (unset them)"
    )


def shutdown() -> None:
    """Closes the communicator that `init` made. Does not wait for other ranks; `init` may be called again."""
    comm, _Default.comm = _Default.comm, None
    if comm is not None:
        _descendants.unmark()
        comm.close()


def replace(comm: Comm) -> None:
    """Closes the communicator that `init` made, and takes this one in its place."""
    shutdown()
    _Default.comm = comm
    _descendants.mark(comm.rank)


def is_initialized() -> bool:
    """True between `init` and `shutdown`."""
    return _Default.comm is not None


def current() -> Comm:
    """The communicator that `init` made."""
    if _Default.comm is None:
        raise StateError("gtopk is not initialised: call gtopk.init() first, on every rank")
    return _Default.comm


def rank() -> int:
    """This process's number, from 0 to size() - 1."""
    return current().rank


def size() -> int:
    """Number of processes."""
    return current().size


def local_rank() -> int:
    """This process's number among those on the same host: which of its GPUs to take."""
    return current().local_rank


def barrier() -> None:
    """Returns when all ranks have called it."""
    current().barrier()


def allreduce(tensor: TensorLike, op: Op = Op.AVERAGE) -> TensorLike:
    """The average (or sum) of every rank's tensor, as a new tensor. See `Comm.allreduce`.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.init()
    >>> gtopk.allreduce(numpy.array([1.0, 2.0]), op=gtopk.Sum)
    array([1., 2.])
    """
    return current().allreduce(tensor, op)


def allgather(tensor: TensorLike) -> TensorLike:
    """Every rank's tensor, joined along the first dimension. See `Comm.allgather`.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.init()
    >>> gtopk.allgather(numpy.array([[1, 2]]))
    array([[1, 2]])
    """
    return current().allgather(tensor)


def broadcast(tensor: TensorLike, root_rank: int = 0) -> TensorLike:
    """A new tensor with the values of rank `root_rank`. See `Comm.broadcast`.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.init()
    >>> gtopk.broadcast(numpy.array([1.5]))
    array([1.5])
    """
    return current().broadcast(tensor, root_rank)


def broadcast_(tensor: TensorLike, root_rank: int = 0) -> TensorLike:
    """Overwrites the tensor with the values of rank `root_rank`. See `Comm.broadcast_`."""
    return current().broadcast_(tensor, root_rank)


def broadcast_object(obj: Any, root_rank: int = 0) -> Any:
    """The object of rank `root_rank`, sent as a pickle. See `Comm.broadcast_object`.

    Examples
    --------
    >>> import gtopk
    >>> gtopk.init()
    >>> gtopk.broadcast_object({"learning_rate": 0.1})
    {'learning_rate': 0.1}
    """
    return current().broadcast_object(obj, root_rank)
