"""What happens to communicators, reducers and MPI when Python ends."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from typing import Any, Protocol

from . import _c_api

_log = logging.getLogger("gtopk")


class Closable(Protocol):
    """A communicator or a reducer."""

    def close(self) -> None:
        """May be called twice."""


class EndOfProcess:
    """Closes what is open when Python ends, and then ends MPI if gtopk started it.

    MPI_Finalize waits for all ranks. After an uncaught exception the others may be waiting for this rank in the middle
    of an exchange, and both sides would wait for ever; so then it is left out, and mpirun ends the job when it sees
    this process go. `sys.last_value` is what the interpreter sets when it prints the traceback of such an exception.
    """

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._dependents: weakref.WeakSet[Any] = weakref.WeakSet()
        self._pid = 0

    def register(self, comm: Closable) -> None:
        self._open.add(comm)
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
        if getattr(sys, "last_value", None) is None:
            status = _c_api.library().gtopk_finalize()
            if status:
                _log.debug("gtopk_finalize: %s", _c_api.describe_status(status))
        _c_api.silence_log()


end_of_process = EndOfProcess()


def register_dependent(reducer: Closable) -> None:
    """Has `reducer.close()` called before the communicators are closed at the end of the process."""
    end_of_process.register_dependent(reducer)
