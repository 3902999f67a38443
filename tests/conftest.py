"""For all tests in Python: what the launchers that they start leave behind, and what a shell has its jobs ignore."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

# What a shell starts in the background ignores Ctrl-C, and so would all processes that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

VARIABLE = "PRTE_MCA_prte_tmpdir_base"  # PRRTE's own spelling


@pytest.fixture(scope="session", autouse=True)
def launchers_folder():
    """A folder for the session files of Open MPI's launcher, removed at the end.

    It names them by its process id. One that was killed leaves them there, and a later launcher of the same id cannot
    start: "The PMIx server's listener thread failed to start".
    """
    with tempfile.TemporaryDirectory(prefix="gtopk-", ignore_cleanup_errors=True) as folder:
        os.environ[VARIABLE] = folder
        yield
        del os.environ[VARIABLE]
