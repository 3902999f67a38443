"""Keeps what a signal's handler raises while the library is running or waiting, so that Ctrl-C ends the call.

Python runs handlers between two instructions of Python code, and a wait in C has none. So the library asks now and
then, by a call into Python, whether to go on. What is raised in such a call, or in another one out of C, cannot go
through C: ctypes would print and drop it. It is kept for the thread, and raised once C has returned.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Generator
from typing import Any


class _Raised(threading.local):
    error: BaseException | None = None


_raised = _Raised()


def watch() -> Callable[[Any], int]:
    """A function for the library to call: 0, or 1 when this thread is to stop, as something was raised: by a signal's
    handler just now, or before, in a call of another function of this module."""
    return _start(bool)


def shield(call: Callable[[], object]) -> Callable[[Any], int]:
    """A function for the library to call, on one thread at a time, that does `call()`: 0, or 1 when something was
    raised, by `call` or by a signal's handler."""
    return _start(lambda _: call())


def shield_log(write: Callable[[int, bytes], object]) -> Callable[..., object]:
    """A gtopk_log_fn that does `write(level, text)`, for any thread.

    From the library to the generator of the thread (see `_start`) only C may run. So PyObject_CallMethod makes a tuple of
    the arguments and sends it, and what finds the generator is a thread-local object: handlers run on the main thread
    alone, where it is made at once, so that the Python code that makes those of other threads has none to fear.
    """
    lines = _Lines(write)
    return functools.partial(_call_method, lines, b"send", b"((niy))")


_call_method = ctypes.PYFUNCTYPE(
    ctypes.py_object,  # what the method returns
    ctypes.py_object,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_void_p,  # context, level and text
    ctypes.c_int,
    ctypes.c_char_p,
)(("PyObject_CallMethod", ctypes.pythonapi))


class _Lines(threading.local):
    def __init__(self, write: Callable[[int, bytes], object]) -> None:
        self.send = _start(lambda line: write(line[1], line[2]))


def _start(call: Callable[[Any], object]) -> Callable[[Any], int]:
    """The `send` of a generator that is in the middle of a try block, so that what a handler raises as it is entered is
    caught too. An ordinary function would be left by such an exception before its first line."""
    generator = _shield(call)
    next(generator)
    return generator.send


def _shield(call: Callable[[Any], object]) -> Generator[int, Any, None]:
    while True:
        try:
            try:
                while True:
                    given = yield 0 if _raised.error is None else 1
                    call(given)
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt, SystemExit, whatever a handler raises
                _raised.error = error
        except GeneratorExit:
            return
        except BaseException as error:  # noqa: BLE001 - of another signal, which came at once
            _raised.error = error


def pending() -> bool:
    """Whether `raise_again` would raise."""
    return _raised.error is not None


def raise_again() -> None:
    """Raises, once, what was raised during the calls into C of this thread."""
    error, _raised.error = _raised.error, None
    if error is not None:
        raise error
