"""Who is left? Each rank keeps a socket open; after a loss the first rank that answers counts the others.

A connection that is refused means that the process is gone. One that is taken says no more than that its machine is there,
whatever the process does: such a rank is waited for. Knows addresses and numbers of ranks; nothing of communicators.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

_BACKLOG = 1024
_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_LONGEST_LINE = 1 << 20

Address = tuple[str, int]


class Roll(NamedTuple):
    """What all who are left have alike."""

    ranks: list[int]
    offer: Any  # what the rank that counted had to say


class RollCall:
    """This rank's socket, and the calls over it.

    Examples
    --------
    >>> from gtopk._roll_call import RollCall
    >>> mine = RollCall()
    >>> mine.call(0, {0: ("localhost", mine.port)}, 5.0, lambda ranks: "alone")
    Roll(ranks=[0], offer='alone')
    >>> mine.close()
    """

    def __init__(self) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._socket = socket.create_server(("", 0), family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self.job = 0  # a number that all ranks of this job have: what others send is left alone

    def close(self) -> None:
        """The others take this rank for lost from now on. May be called twice."""
        self._socket.close()

    def call(self, me: int, addresses: Mapping[int, Address], wait: float, offer: Callable[[list[int]], Any]) -> Roll:
        """Those who call too, the same on all of them. Collective among whoever is left.

        It ends within wait, and 2 * wait + 30 s more for each rank that is there, but silent.

        Parameters
        ----------
        me : int
            This rank's number.
        addresses : mapping of int to (host, port)
            Where all ranks are, or were.
        wait : float
            Seconds that ranks which are alive are waited for.
        offer : callable
            Is asked on the rank that counts, with the ranks, for what JSON can hold: for the others.
        """
        for rank in sorted(addresses):
            if rank == me:
                break
            roll = self._answer(me, addresses[rank], 2 * wait)
            if roll is not None:
                return roll
        return self._count(me, {rank: address for rank, address in addresses.items() if rank > me}, wait, offer)

    # ---- on a rank that is counted ----

    def _answer(self, me: int, address: Address, seconds: float) -> Roll | None:
        """None: the rank at `address` is gone, or did not count within that time."""
        try:
            with _connected(address) as link:
                link.sendall(_line({"job": self.job, "rank": me}))
                data = _read_line(link, time.monotonic() + seconds)
                return None if data is None else Roll(**json.loads(data))
        except (OSError, ValueError, TypeError):
            return None

    # ---- on the rank that counts ----

    def _count(self, me: int, others: Mapping[int, Address], wait: float, offer: Callable[[list[int]], Any]) -> Roll:
        end = time.monotonic() + wait
        count = _Count(self._socket, self.job, others)
        with count:
            while count.someone_is_late() and time.monotonic() < end:
                count.look(_LOOK_SECONDS)
            count.look(0)
            ranks = sorted([me, *count.came])
            roll = Roll(ranks, offer(ranks))
            for link in count.came.values():
                try:
                    link.settimeout(_CONNECT_SECONDS)
                    link.sendall(_line(roll._asdict()))
                except OSError:  # it is gone by now: the new group will notice
                    continue
        return roll


class _Count:
    """Who has come so far, and who may come yet."""

    def __init__(self, door: socket.socket, job: int, others: Mapping[int, Address]) -> None:
        self.came: dict[int, socket.socket] = {}
        self._door, self._job, self._others = door, job, others
        self._entering: dict[socket.socket, bytes] = {}  # and what they have sent so far
        self._watched: dict[int, socket.socket] = {}  # connections to ranks that have not come

    def __enter__(self) -> _Count:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for link in self._links():
                stack.callback(link.close)

    def _links(self) -> Iterable[socket.socket]:
        return [*self.came.values(), *self._entering, *self._watched.values()]

    def look(self, seconds: float) -> None:
        """Waits so long for something to happen, and takes note of it."""
        poll = select.poll()
        for link in (self._door, *self._links()):
            poll.register(link, select.POLLIN)
        ready = {number for number, _ in poll.poll(1000 * seconds)}
        for link in list(self._entering):
            if link.fileno() in ready:
                self._listen(link)
        if self._door.fileno() in ready:
            self._let_in()
        for rank, link in list(self.came.items()):
            if _is_over(link):
                del self.came[rank]
                link.close()

    def _let_in(self) -> None:
        while True:
            try:
                link, _ = self._door.accept()
            except OSError:  # there is no other
                return
            link.setblocking(False)
            self._entering[link] = b""

    def _listen(self, link: socket.socket) -> None:
        data = _received(link)
        said = self._entering[link] + (data or b"")
        if data and b"\n" not in said and len(said) < _LONGEST_LINE:
            self._entering[link] = said
            return
        del self._entering[link]
        rank = self._rank_in(said)
        if rank is None:  # it has gone again, only looked whether this rank is there, or belongs to another job
            link.close()
            return
        old = self.came.pop(rank, None)
        if old is not None:
            old.close()
        self.came[rank] = link

    def _rank_in(self, line: bytes) -> int | None:
        try:
            said = json.loads(line)
            rank = said["rank"] if said["job"] == self._job else None
        except (ValueError, TypeError, KeyError):
            return None
        return rank if isinstance(rank, int) and rank in self._others else None

    def someone_is_late(self) -> bool:
        """Whether a rank that has not come is alive, as far as one can see."""
        return any(not self._is_gone(rank) for rank in self._others if rank not in self.came)

    def _is_gone(self, rank: int) -> bool:
        link = self._watched.get(rank)
        if link is not None:
            if not _is_over(link):
                return False
            self._watched.pop(rank).close()
        try:
            self._watched[rank] = socket.create_connection(self._others[rank], timeout=1.0)
        except ConnectionRefusedError:
            return True
        except OSError:  # its machine does not answer: it may be gone or slow
            return False
        self._watched[rank].setblocking(False)
        return False


def reaches(address: Address) -> bool:
    """Whether there is a socket at `address`, from here."""
    try:
        _connected(address).close()
    except OSError:
        return False
    return True


def _connected(address: Address) -> socket.socket:
    """A busy machine may lose the first attempts; one that refuses has nobody there."""
    end = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return socket.create_connection(address, timeout=_CONNECT_SECONDS)
        except (ConnectionRefusedError, socket.gaierror):
            raise
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(_LOOK_SECONDS)


def _is_over(link: socket.socket) -> bool:
    """Whether the other side has ended the connection. It says nothing that has not been read."""
    return _received(link) == b""


def _received(link: socket.socket) -> bytes | None:
    """What has come; b"": the connection is over; None: nothing yet."""
    try:
        return link.recv(4096, socket.MSG_DONTWAIT)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return b""


def _read_line(link: socket.socket, end: float) -> bytes | None:
    data = b""
    while not data.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or len(data) > _LONGEST_LINE:
            return None
        link.settimeout(left)
        got = link.recv(4096)
        if not got:
            return None
        data += got
    return data


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
