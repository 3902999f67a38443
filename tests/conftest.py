"""For all tests in Python: what the launchers that they start leave behind."""

from __future__ import annotations

import os
import tempfile

import pytest

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
