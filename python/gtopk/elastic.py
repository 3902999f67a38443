"""Going on without a rank that was lost, in the same processes: the others find each other and make a new group.

`Meeting.regroup` replaces the communicator of `gtopk.init`; `attach` of an optimizer or a reducer goes on with it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from . import _roll_call
from . import comm as _comm
from ._roll_call import Roll, RollCall
from .errors import AbortedError, DeadlineError, InvalidError, StateError, TransportError, UnsupportedError

__all__ = ["LOST", "Meeting"]

_log = logging.getLogger("gtopk")

_LATER = 4  # by how much longer ranks are waited for after an attempt that failed, on each of them at another time

LOST = (AbortedError, DeadlineError, TransportError)
"""What a step raises when another rank is gone, or does not answer."""


class Meeting:
    """Where the ranks find each other when one of them is lost. Making one is collective, while all are there.

    Parameters
    ----------
    wait : float
        Seconds for which ranks that are alive are waited for, and for which making connections may take: more than a step
        takes. Ranks whose process has ended are not waited for.
    min_ranks : int, optional
        With fewer ranks training does not go on. Default: more than half of those that there were before, so that two halves
        of a network that has broken apart do not both go on.
    host : str, optional
        Name or address of this machine for the other ranks. Default: the address from which MASTER_ADDR is reached.

    Notes
    -----
    For ranks that were started so that the others live on when one dies: those of torch.distributed with gloo by hand, by ssh,
    or by srun, not by one torchrun; those of MPI by ``mpirun --with-ft ulfm`` of Open MPI 5. With the former each rank keeps a
    socket open, on a port of its own; the latter need neither that nor `host`.

    Examples
    --------
    >>> import gtopk
    >>> from gtopk import elastic
    >>> gtopk.init()
    >>> meeting = elastic.Meeting(wait=30.0)
    >>> try:
    ...     gtopk.barrier()
    ... except elastic.LOST:
    ...     meeting.regroup()
    >>> meeting.close()
    """

    def __init__(self, *, wait: float = 60.0, min_ranks: int | None = None, host: str | None = None) -> None:
        comm = _comm.current()
        call = "gtopk.elastic.Meeting"

        def prepare() -> tuple[tuple[RollCall, list[Any]], Any]:
            _check(comm, wait, min_ranks)
            roll = RollCall()
            return (roll, [secrets.randbits(63), host or _own_address(), roll.port]), [wait, min_ranks]

        self._roll, mine = comm.together(call, prepare)
        found = comm.allgather_json(mine)
        self._roll.job = found[0][0]
        self._addresses = {rank: (row[1], row[2]) for rank, row in enumerate(found)}
        if comm.transport == "mpi":  # which knows by itself who is left
            self._roll.close()
        else:
            comm.together(call, self._check_reach)
        self._me, self._min_ranks, self._wait = comm.rank, min_ranks, float(wait)
        self._ranks = list(range(comm.size))  # of the group that there is now, by the numbers of the first one
        self._transport = comm.transport
        self._options: dict[str, Any] = {"timeout": comm.timeout, "warn_after": comm.warn_after}
        self._pid = os.getpid()

    def regroup(self) -> None:
        """The communicator of `init` is closed, and another one made of the ranks that are left. Collective among these.

        Of torch.distributed, too, the groups that there are are destroyed, and a new default group is made. Ranks keep their
        order. Where one more is lost meanwhile, that is another attempt. Over MPI ranks that still wait get an error
        (`LOST`), and come as well.

        Raises
        ------
        StateError
            Too few ranks are left, or this one came too late, or it took too long. Go on from a checkpoint in new processes.

        Notes
        -----
        Takes some tenths of a second where processes have ended. A process that is there but does not answer (stopped, or its
        machine gone) is waited for: 3 * wait + 30 s, and no attempt takes more than 20 * wait + 60 s for each such process.
        Over MPI it is an error after `wait`, unless MPI notices itself (``--mca mpi_ft_detector true``).
        """
        if os.getpid() != self._pid:
            raise StateError("regroup() in a child of the process that made the Meeting: call it there")
        if self._transport == "mpi":
            self._shrink()
            return
        _comm.shutdown()
        if self._transport == "self":
            _comm.init(transport="self", **self._options)
            return
        failure = ""
        wait = self._wait
        for _ in self._ranks:
            store: list[Any] = []
            addresses = {rank: self._addresses[rank] for rank in self._ranks}
            roll = self._roll.call(self._me, addresses, wait, lambda ranks: self._offer(ranks, store))  # noqa: B023
            self._check_enough(roll.ranks, wait)
            wait = _LATER * self._wait
            try:
                _within(6 * self._wait + 10.0, lambda: self._join(roll, store))  # noqa: B023
            except LOST as error:
                failure = error.text
                _log.warning(
                    "rank %d: another attempt to make a group, as that of ranks %s failed: %s",
                    self._me,
                    roll.ranks,
                    failure,
                )
                continue
            _log.warning(
                "rank %d goes on as rank %d of %d: left of ranks %s are %s",
                self._me,
                _comm.rank(),
                _comm.size(),
                self._ranks,
                roll.ranks,
            )
            self._ranks = roll.ranks
            return
        raise StateError(
            f"no group was made of the ranks that are left: {failure}. Go on from a checkpoint in new processes"
        )

    def _shrink(self) -> None:
        """The same by MPI. That an attempt failed all ranks know: it fails on all of them."""
        before = _comm.current()
        failure = ""
        for _ in self._ranks:
            try:
                made = _comm.Comm(transport="mpi", survivors_of=before, setup_timeout=self._wait, **self._options)
            except (AbortedError, TransportError) as error:
                failure = error.text
                _log.warning("rank %d: another attempt to make a group: %s", before.rank, failure)
                continue
            except DeadlineError as error:
                failure = error.text
                break
            try:
                self._check_enough(list(range(made.size)), self._wait)
            except StateError:
                made.close()
                raise
            _log.warning("rank %d of %d goes on as rank %d of %d", before.rank, before.size, made.rank, made.size)
            _comm.replace(made)
            self._ranks = list(range(made.size))
            return
        raise StateError(
            f"no group was made of the ranks that are left: {failure}. Go on from a checkpoint in new processes"
        )

    def close(self) -> None:
        """Closes the socket: from then on the others take this rank for lost. May be called twice."""
        self._roll.close()

    def _check_reach(self) -> tuple[None, None]:
        for rank, (host, port) in self._addresses.items():
            if not _roll_call.reaches((host, port)):
                raise InvalidError(
                    f"this rank does not reach rank {rank} at {host}, port {port}: give Meeting(host=...) on that rank, a "
                    "name or address of its machine that the others know, and let them through its firewall"
                )
        return None, None

    def _check_enough(self, ranks: list[int], wait: float) -> None:
        needed = len(self._ranks) // 2 + 1 if self._min_ranks is None else self._min_ranks
        if len(ranks) < needed:
            least = "more than half of them" if self._min_ranks is None else f"min_ranks={needed}"
            raise StateError(
                f"of ranks {self._ranks} only {ranks} came within {wait:g} s, and training goes on with {least}: "
                "the others are lost, or have gone on without this rank. Go on from a checkpoint in new processes"
            )

    # ---- the new group ----

    def _offer(self, ranks: list[int], store: list[Any]) -> list[Any]:
        """Of the rank that counts: a store for the new group, and where it is."""
        import torch.distributed as dist

        host, _ = self._addresses[self._me]
        made: Any = dist.TCPStore(  # type: ignore[attr-defined]
            host, 0, len(ranks), is_master=True, wait_for_workers=False, timeout=self._limit()
        )
        store.append(made)
        return [host, made.port]

    def _join(self, roll: Roll, store: list[Any]) -> None:
        import torch.distributed as dist

        try:
            if dist.is_initialized():
                dist.destroy_process_group()
            if not store:
                host, port = roll.offer
                made = dist.TCPStore(host, port, len(roll.ranks), is_master=False, timeout=self._limit())  # type: ignore[attr-defined]
                store.append(made)
            rank = roll.ranks.index(self._me)
            dist.init_process_group(
                "gloo", store=store[0], rank=rank, world_size=len(roll.ranks), timeout=self._limit()
            )
        except Exception as error:
            raise TransportError(f"torch.distributed makes no group: {type(error).__name__}: {error}") from error
        _comm.init(transport="torch", setup_timeout=self._wait, **self._options)

    def _limit(self) -> timedelta:
        return timedelta(seconds=self._wait)


def _check(comm: _comm.Comm, wait: float, min_ranks: int | None) -> None:
    if not isinstance(wait, (int, float)) or not 0 < wait < 1e6:
        raise InvalidError(f"wait is {wait!r}, but must be a positive number of seconds")
    if min_ranks is not None and (not isinstance(min_ranks, int) or not 1 <= min_ranks <= comm.size):
        raise InvalidError(f"min_ranks is {min_ranks!r}, but must be one of 1 to {comm.size}, the number of ranks")
    if comm.asked in ("nccl", "auto"):
        raise UnsupportedError(
            f"transport {comm.asked!r}: when a rank is lost NCCL is of no more use in the other processes: go on from a "
            "checkpoint in new ones, or leave out transport="
        )
    if comm.transport == "mpi" and not comm.survives:
        raise UnsupportedError(
            "these ranks talk by MPI, which as they were started ends all of them when one is lost: start them with "
            "mpirun --with-ft ulfm of Open MPI 5 or newer, or by hand or with srun, so that gtopk takes torch.distributed"
        )
    if comm.transport == "torch":
        import torch.distributed as dist

        if comm.size != dist.get_world_size():
            raise UnsupportedError(
                f"gtopk has {comm.size} ranks, torch.distributed {dist.get_world_size()}: a Meeting is for all of them"
            )
        if "nccl" in dist.get_backend():
            raise UnsupportedError(
                "torch.distributed was initialised with nccl, which cannot be used again in the same process when a rank is "
                'lost: call torch.distributed.init_process_group("gloo") in its place'
            )


def _own_address() -> str:
    """From where this machine reaches the place that all ranks have reached; its name where that is the machine itself."""
    master = os.environ.get("MASTER_ADDR")
    if master:
        try:
            place = socket.getaddrinfo(master, 1, type=socket.SOCK_DGRAM)[0]
            with socket.socket(place[0], socket.SOCK_DGRAM) as probe:
                probe.connect(place[4])  # sends nothing
                address = str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
        if address.startswith("127.") or address == "::1":
            return master
        return address
    return socket.gethostname()


def _within(seconds: float, call: Callable[[], None]) -> None:
    """`call()` on a thread of its own, as what it waits for knows no deadline where a process is stopped, not ended."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=run, name="gtopk regroup", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise StateError(
            f"torch.distributed did not make a group within {seconds:g} s, and did not give up: go on from a checkpoint in new "
            "processes"
        )
    if raised:
        raise raised[0]
