"""Signs that processes of one test leave for each other in a folder: what is to come first is waited for, not slept for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

LIMIT = 240.0  # seconds, on a loaded machine


def leave(folder: str | Path, name: str) -> None:
    Path(folder, name).touch()


def wait_for(folder: str | Path, *names: str) -> None:
    _poll(lambda: all(Path(folder, name).exists() for name in names), " and ".join(names))


def meet(folder: str | Path, processes: int) -> None:
    """Goes on when so many have come, so that no deadline begins while one of them still starts."""
    leave(folder, f"process {os.getpid()}")
    _poll(lambda: len(list(Path(folder).glob("process *"))) >= processes, f"{processes} processes")


def _poll(is_there: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not is_there():
        if time.monotonic() > end:
            raise TimeoutError(f"no sign of {what} within {LIMIT:g} s")
        time.sleep(0.01)
