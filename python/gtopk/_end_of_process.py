"""What happens to communicators, reducers and MPI when Python ends."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Any, Protocol

from . import _c_api


class Closable(Protocol):
    """A communicator or a reducer."""

    def close(self) -> None:
        """May be called twice."""


class EndOfProcess:
    """Closes what is open when Python ends; with MPI the other ranks hear of it. Then exit() ends MPI if gtopk started it.

    MPI_Finalize waits for all ranks. Where this one ends by an error the others may be waiting for it in the middle of
    an exchange, and both sides would wait for ever. So the library looks at the status that exit() is given, which
    Python shows to nobody: with another one than 0 it leaves MPI as it is, and mpirun ends the job when it sees this
    process go.
    """

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._dependents: weakref.WeakSet[Any] = weakref.WeakSet()
        self._pid = 0

    def register(self, comm: Closable, *, uses_mpi: bool) -> None:
        self._open.add(comm)
        if uses_mpi:
            _c_api.check(_c_api.library().gtopk_finalize_at_exit())
        if not self._pid:
            self._pid = os.getpid()
            atexit.register(self._run)

    def register_dependent(self, reducer: Closable) -> None:
        """Reducers go before the communicators that they use."""
        self._dependents.add(reducer)

    def _run(self) -> None:
        if os.getpid() != self._pid:
            return
        for one in (*self._dependents, *self._open):
            one.close()
        _c_api.silence_log()


end_of_process = EndOfProcess()


def register_dependent(reducer: Closable) -> None:
    """Has `reducer.close()` called before the communicators are closed at the end of the process."""
    end_of_process.register_dependent(reducer)
