"""Ranks that MPI loses and goes on without (mpirun --with-ft ulfm): four, of which one is left. ulfm_rank.py [plain]

plain: MPI was started without that, and everything is refused.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gtopk
from gtopk import elastic


def raises(kind: Any, text: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except gtopk.GtopkError as error:
        assert isinstance(error, kind) and re.search(text, str(error)), repr(error)
        return
    raise AssertionError(f"no error: {text}")


def survivors(of: gtopk.Comm, **options: Any) -> gtopk.Comm:
    return gtopk.Comm(transport="mpi", survivors_of=of, timeout=20.0, **options)


def exchange() -> None:
    """Until somebody is lost."""
    reducer = gtopk.Reducer([1000], density=0.1)
    for _ in range(1_000_000):
        reducer.accumulate(0, np.ones(1000, np.float32))
        reducer.reduce([np.empty(1000, np.float32)])


def lose(rank: int) -> None:
    if gtopk.rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    raises(elastic.LOST, "", exchange)


def forbid_finalize() -> None:
    """It would wait for who is lost, or for a watchdog. MPI_Finalize first drops what MPI_COMM_SELF has: here by abort()."""
    mpi, key = ctypes.CDLL("libmpi.so.40"), ctypes.c_int()
    none = ctypes.cast(mpi.OMPI_C_MPI_COMM_NULL_COPY_FN, ctypes.c_void_p)
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p)
    own = ctypes.byref(ctypes.c_char.in_dll(mpi, "ompi_mpi_comm_self"))
    assert mpi.MPI_Comm_create_keyval(none, abort, ctypes.byref(key), None) == 0
    assert mpi.MPI_Comm_set_attr(own, key, None) == 0


def refused() -> None:
    comm = gtopk.Comm(transport="mpi")
    assert not comm.survives
    raises(gtopk.UnsupportedError, "mpirun --with-ft ulfm", lambda: survivors(comm))
    raises(gtopk.UnsupportedError, "mpirun --with-ft ulfm", elastic.Meeting)
    comm.close()


def main() -> None:
    gtopk.init(timeout=20.0)
    rank = gtopk.rank()
    if sys.argv[1:] == ["plain"]:
        refused()
        gtopk.shutdown()
        return
    alone = gtopk.Comm(transport="self")
    assert not alone.survives
    raises(gtopk.UnsupportedError, "transport mpi alone", lambda: gtopk.Comm(transport="self", survivors_of=alone))
    raises(gtopk.UnsupportedError, "transport mpi alone", lambda: survivors(alone))

    # Nobody is lost, but one does not come in time.
    comm = gtopk.Comm(transport="mpi", timeout=20.0)
    assert comm.survives
    gtopk.barrier()
    if rank == 3:
        time.sleep(1.0)
        raises(elastic.LOST, "REVOKED|Revoked", comm.barrier)
    else:
        raises(gtopk.DeadlineError, "the ranks that are left", lambda: survivors(comm, setup_timeout=0.3))
    comm.close()

    meeting = elastic.Meeting(wait=10.0)
    lose(0)
    meeting.regroup()
    assert (gtopk.rank(), gtopk.size()) == (rank - 1, 3)
    lose(1)
    meeting.regroup()
    assert (gtopk.rank(), gtopk.size()) == (rank // 3, 2)
    gtopk.barrier()
    lose(0)
    raises(gtopk.StateError, r"more than half of them", meeting.regroup)
    meeting.close()
    forbid_finalize()
    gtopk.shutdown()
    print("done", flush=True)


if __name__ == "__main__":
    main()
