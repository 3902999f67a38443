"""Exceptions, one for each status code of the C library, all derived from `GtopkError`.

Knows nothing of the library; `_c_api.check` turns a status into one of these.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AbortedError",
    "CorruptError",
    "DeadlineError",
    "DesyncError",
    "DeviceError",
    "GtopkError",
    "InternalError",
    "InterruptError",
    "InvalidError",
    "MismatchError",
    "NotFoundError",
    "OutOfMemoryError",
    "StateError",
    "TransportError",
    "UnsupportedError",
]


class GtopkError(RuntimeError):
    """Base of all errors of this package.

    Attributes
    ----------
    status : int
        The C status code (``GTOPK_ERR_...`` in ``gtopk.h``).
    text : str
        What happened, to which object, and what to do.

    Examples
    --------
    >>> import gtopk
    >>> gtopk.init()
    >>> try:
    ...     gtopk.Reducer([10], density=-1.0)
    ... except gtopk.GtopkError as error:
    ...     print(type(error).__name__, error.status)
    InvalidError -1
    """

    status: ClassVar[int] = -13

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class InvalidError(GtopkError, ValueError):
    """An argument is wrong. Nothing was changed or sent."""

    status = -1


class OutOfMemoryError(GtopkError, MemoryError):
    """An allocation failed."""

    status = -2


class StateError(GtopkError):
    """The call is not allowed now: before `init`, inside a step, after a fork, or from two threads at once."""

    status = -3


class UnsupportedError(GtopkError):
    """This build or machine cannot do it."""

    status = -4


class MismatchError(GtopkError):
    """Ranks disagree on segments, configuration or version; raised on every rank."""

    status = -5


class CorruptError(GtopkError):
    """A message or a saved state is malformed."""

    status = -6


class DesyncError(GtopkError):
    """A message belongs to another step, run or configuration: ranks do not do the same things in the same order."""

    status = -7


class DeadlineError(GtopkError, TimeoutError):
    """A peer did not answer in time. Also a built-in ``TimeoutError``."""

    status = -8


class AbortedError(GtopkError):
    """Another rank met an error and gave up, or ended while this one still waits for it."""

    status = -9


class TransportError(GtopkError):
    """The network, MPI or torch.distributed failed."""

    status = -10


class DeviceError(GtopkError):
    """The compute device failed."""

    status = -11


class NotFoundError(GtopkError):
    """A library or file was not found; the text says what to install or set."""

    status = -12


class InternalError(GtopkError):
    """A defect of gtopk: please report it."""

    status = -13


class InterruptError(GtopkError):
    """An earlier call was interrupted while it waited for a peer, and the communicator is broken since then.

    The interrupted call itself raises what the signal's handler raised: `KeyboardInterrupt` for Ctrl-C.
    """

    status = -14


_BY_STATUS: dict[int, type[GtopkError]] = {
    kind.status: kind
    for kind in (
        InvalidError,
        OutOfMemoryError,
        StateError,
        UnsupportedError,
        MismatchError,
        CorruptError,
        DesyncError,
        DeadlineError,
        AbortedError,
        TransportError,
        DeviceError,
        NotFoundError,
        InternalError,
        InterruptError,
    )
}


def from_status(status: int, text: str) -> GtopkError:
    """The exception for a C status code, not raised yet."""
    return _BY_STATUS.get(status, InternalError)(text)
