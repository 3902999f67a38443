"""Lets Python's signal handlers run while the library waits for a peer, so that Ctrl-C ends the wait.

Python runs handlers between two instructions of Python code, and a wait in C has none. So the library asks now and
then, by a call into Python, whether to go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

_raised = threading.local()


def watch() -> Callable[[Any], int]:
    """A function for one communicator: 0, or 1 when a signal's handler raised something.

    A generator in the middle of a try block: whatever is raised when it is entered is caught. An ordinary function
    would be left by the exception before its first line, and ctypes would print and drop it.
    """
    generator = _watch()
    next(generator)
    return generator.send


def _watch() -> Generator[int, Any, None]:
    try:
        try:
            while True:
                yield 0
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt, SystemExit, whatever the handler raises
            _raised.error = error
    except GeneratorExit:
        return
    except BaseException as error:  # noqa: BLE001 - the next signal came at once
        _raised.error = error
    while True:
        yield 1


def raise_again() -> None:
    """Raises, once, what a handler raised during the call of this thread that was interrupted."""
    error = getattr(_raised, "error", None)
    _raised.error = None
    if error is not None:
        raise error
