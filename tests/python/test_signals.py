"""What a signal's handler raises inside a call out of C is raised once C has returned, never lost.

A signal can come at any instruction, and the one to fear is the first of a function that C calls. `in_c` makes calls
one after the other without a single instruction of Python between them, so a handler runs inside the last of them.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import operator
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

import gtopk
from gtopk import _c_api, _signals

LINE = "a line of the library"
write_line = functools.partial(_c_api._log_fn, None, _c_api.LOG_WARN, LINE.encode())
# As the handler of C does when a signal comes: Python's own is to run.
interrupt = functools.partial(ctypes.pythonapi.PyErr_SetInterruptEx, signal.SIGINT)


def in_c(*calls: Callable[[], object]) -> list[object]:
    return list(map(operator.methodcaller("__call__"), calls))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not _signals.pending()


During = Callable[[Callable[[], object]], None]


@pytest.fixture
def during_lines() -> Iterator[During]:
    """Has a function called within `logging`, outside its locks, while each line is written."""
    filters: list[Callable[[logging.LogRecord], bool]] = []

    def add(call: Callable[[], object]) -> None:
        def let_through(_: logging.LogRecord) -> bool:
            call()
            return True

        filters.append(let_through)
        logging.getLogger("gtopk").addFilter(let_through)

    yield add
    for let_through in filters:
        logging.getLogger("gtopk").removeFilter(let_through)


def test_lines_arrive(caplog: pytest.LogCaptureFixture) -> None:
    write_line()
    assert [record.getMessage() for record in caplog.records] == [LINE]


def test_ctrl_c_as_a_line_is_written() -> None:
    in_c(interrupt, write_line)
    with pytest.raises(KeyboardInterrupt):
        _c_api.check(0)
    _c_api.check(0)  # once


def test_ctrl_c_while_a_line_is_written(during_lines: During) -> None:
    during_lines(lambda: signal.raise_signal(signal.SIGINT))
    write_line()
    with pytest.raises(KeyboardInterrupt):
        _c_api.check(0)


def test_the_lines_that_follow_arrive(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        in_c(interrupt, write_line)
        with pytest.raises(KeyboardInterrupt):
            _signals.raise_again()
    write_line()
    assert [record.getMessage() for record in caplog.records] == [LINE]


def test_a_wait_ends_after_ctrl_c_as_a_line_was_written() -> None:
    ask = _c_api.InterruptFn(_signals.watch())
    assert ask(None) == 0
    in_c(interrupt, write_line)
    assert ask(None) == 1
    with pytest.raises(KeyboardInterrupt):
        _signals.raise_again()
    assert ask(None) == 0


def test_ctrl_c_as_the_library_asks() -> None:
    ask = _c_api.InterruptFn(_signals.watch())
    assert in_c(interrupt, functools.partial(ask, None))[-1] == 1
    with pytest.raises(KeyboardInterrupt):
        _signals.raise_again()


def test_what_another_handler_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(*_: object) -> None:
        raise TimeoutError("the alarm")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        in_c(functools.partial(ctypes.pythonapi.PyErr_SetInterruptEx, signal.SIGALRM), write_line)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(TimeoutError, match="the alarm"):
        _c_api.check(0)


def test_a_step_that_ends_well_raises_it() -> None:
    np = pytest.importorskip("numpy")
    with gtopk.Comm() as comm, gtopk.Reducer([4], comm=comm) as reducer:
        in_c(interrupt, write_line)
        with pytest.raises(KeyboardInterrupt):
            reducer.accumulate(0, np.ones(4, np.float32))
        in_c(interrupt, write_line)
        with pytest.raises(KeyboardInterrupt):
            reducer.reduce([np.ones(4, np.float32)])


def test_lines_of_several_threads(during_lines: During, caplog: pytest.LogCaptureFixture) -> None:
    """Each inside the other: a generator that runs cannot be entered a second time."""
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        if threading.current_thread() is thread:
            inside.set()
            assert go_on.wait(60)

    during_lines(wait)
    thread = threading.Thread(target=write_line)
    thread.start()
    assert inside.wait(60)
    write_line()
    go_on.set()
    thread.join(60)
    assert [record.getMessage() for record in caplog.records] == [LINE, LINE]
