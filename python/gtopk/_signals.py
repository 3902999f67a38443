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
    """A function for the library to call: 0, or 1 when a signal's handler raised something."""
    return shield(int)


def shield(call: Callable[[], object]) -> Callable[[Any], int]:
    """A function for the library to call, on one thread at a time, that does `call()`: 0, or 1 when something was
    raised, by `call` or by a signal's handler. `raise_again` raises it once C has returned.

    It is a generator in the middle of a try block, so that what a handler raises as it is entered is caught too. An
    ordinary function would be left by such an exception before its first line, and ctypes would print and drop it.
    """
    generator = _shield(call)
    next(generator)
    return generator.send


def _shield(call: Callable[[], object]) -> Generator[int, Any, None]:
    result = 0
    while True:
        try:
            try:
                while True:
                    yield result
                    result = 0
                    call()
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt, SystemExit, whatever a handler raises
                result, _raised.error = 1, error
        except GeneratorExit:
            return
        except BaseException as error:  # noqa: BLE001 - of another signal, which came at once
            result, _raised.error = 1, error


def raise_again() -> None:
    """Raises, once, what was raised during the call into C of this thread."""
    error = getattr(_raised, "error", None)
    _raised.error = None
    if error is not None:
        raise error
