"""How an error of gtopk that nobody catches is printed: with the lines of the program that led to it, and no more.

What is inside gtopk and below it says nothing to its users; the text of the error does. Whoever catches an error has all
of it, and GTOPK_DEBUG prints it, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from .errors import GtopkError

_PACKAGE = str(Path(__file__).resolve().parent) + os.sep


def install() -> None:
    """Once for the process; goes on to the hook that was there."""
    if sys.excepthook is not _hook:
        _Hook.before = sys.excepthook
        sys.excepthook = _hook


def shorten(error: GtopkError, traceback: TracebackType | None) -> TracebackType | None:
    """Without the frames of gtopk at the end, and without the exceptions that led to this one."""
    last = None
    entry = traceback
    while entry is not None:
        if not entry.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            last = entry
        entry = entry.tb_next
    if last is not None:
        last.tb_next = None
    error.__cause__ = None
    error.__suppress_context__ = True
    return traceback


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, GtopkError) and not os.environ.get("GTOPK_DEBUG"):
        traceback = shorten(error, traceback)
        error.__traceback__ = traceback
    _Hook.before(kind, error, traceback)


class _Hook:
    before: Callable[[type[BaseException], BaseException, TracebackType | None], object] = staticmethod(
        sys.__excepthook__
    )
