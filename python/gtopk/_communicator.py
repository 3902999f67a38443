"""`Comm`: how a communicator is made, what it belongs to, and how it is closed."""

from __future__ import annotations

import ctypes
import math
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _c_api, _launcher, _nccl, _signals
from ._collectives import Collectives
from ._end_of_process import end_of_process
from .errors import InvalidError, StateError

if TYPE_CHECKING:
    from typing_extensions import Self

# How long closing waits for a call that was given up.
_SETTLE_SECONDS = 1.0


class Comm(Collectives):
    """A group of processes (ranks) and the way they talk. Making one is collective.

    Parameters
    ----------
    transport : {"self", "mpi", "torch", "nccl", "auto"}
        One process alone; MPI; or torch.distributed, through a gloo group of its own. "nccl": what reducers on GPUs
        exchange travels by NCCL, on PyTorch's current stream, and the rest as the processes were started, by MPI or gloo;
        each rank calls ``torch.cuda.set_device`` first. "auto": NCCL where all ranks have a GPU and it works.
    timeout : float, optional
        Seconds a whole exchange may wait. Default: the environment variable GTOPK_TIMEOUT, else 1800.
    warn_after : float, optional
        Seconds of waiting until a warning names the rank that is waited for. Default 60.
    mpi_module : str, optional
        File of libgtopk_mpi.so. Default: GTOPK_MPI_MODULE, else beside the library.
    mpi_comm : int, optional
        Address of an ``MPI_Comm`` to duplicate (mpi4py: ``MPI._addressof(comm)``). Default: MPI_COMM_WORLD.
    group : torch.distributed.ProcessGroup or list of int, optional
        With "torch": the ranks to use. Default: all.
    setup_timeout : float, optional
        Seconds that making the communicator may take, with "torch" with connections between all ranks. Default: `timeout`.
    peers : Comm, optional
        The ranks that hold the other parts of one model, each of which is exchanged on a communicator of its own: a step
        happens on all of them or on none, and is non-finite on all when it is so on one.
    survivors_of : Comm, optional
        With "mpi": a communicator that has lost ranks, of which the new one has the others, in their order. For MPI that
        `survives`. The old one is of no more use but here, when this call fails with a `TransportError` or
        `AbortedError`, as it then does on all of them. `gtopk.elastic.Meeting` does this.

    Notes
    -----
    Used by one thread at a time; another one gets `StateError`. After an error in an exchange the communicator is
    broken: every later call raises the first error again.

    Signals are seen while a call waits for other ranks. When a handler raises (Ctrl-C: `KeyboardInterrupt`), the call
    ends with that exception as it ends with an error: the step did not happen, the communicator is broken. A handler
    that returns changes nothing.

    Examples
    --------
    >>> import gtopk
    >>> with gtopk.Comm(transport="self") as comm:
    ...     comm.rank, comm.size
    (0, 1)
    """

    def __init__(
        self,
        *,
        transport: str = "self",
        timeout: float | None = None,
        warn_after: float | None = None,
        mpi_module: str | os.PathLike[str] | None = None,
        mpi_comm: int | None = None,
        group: Any = None,
        setup_timeout: float | None = None,
        peers: Comm | None = None,
        survivors_of: Comm | None = None,
    ) -> None:
        self._handle: int | None = None
        self.pid = os.getpid()
        self._torch: Any = None
        self.asked, self.timeout, self.warn_after = transport, timeout, warn_after
        self.parts: dict[Any, tuple[Comm, ...]] = {}  # communicators of some of the ranks, closed with this one
        data = transport if transport in ("nccl", "auto") else None
        if data is not None:
            transport = _launcher.detect()
        self.transport = transport  # what moves everything but messages between GPUs
        library_file = _nccl.package_file() if data is not None else None
        self._interrupt = _c_api.InterruptFn(_signals.watch())  # kept as long as the library may call it
        library = _c_api.library()
        config = _c_api.CommConfig(
            struct_size=ctypes.sizeof(_c_api.CommConfig),
            transport=transport.encode(),
            size=-1,
            rank=-1,
            timeout=default_timeout() if timeout is None else _seconds(timeout, "timeout"),
            warn_after=_seconds(warn_after, "warn_after"),
            mpi_module=None if mpi_module is None else os.fsencode(mpi_module),
            mpi_comm=mpi_comm,
            interrupt=self._interrupt,
            data=data and data.encode(),
            data_library=library_file and os.fsencode(library_file),
            peers=None if peers is None else peers.handle,
            survivors_of=None if survivors_of is None else survivors_of.handle,
            setup_timeout=_seconds(setup_timeout, "setup_timeout"),
        )
        if transport == "torch":
            from ._torch_distributed import TorchDistributed

            self._torch = TorchDistributed(group, config.timeout, config.setup_timeout or config.timeout)
            config.transport = b"callback"
            config.size, config.rank = self._torch.size, self._torch.rank
            config.callbacks = ctypes.pointer(self._torch.callbacks)
            config.node = self._torch.node and self._torch.node.encode()
        elif transport not in ("self", "mpi"):
            raise InvalidError(f'transport is {transport!r}, but must be "self", "mpi", "torch", "nccl" or "auto"')
        handle = ctypes.c_void_p()
        try:
            _c_api.check(library.gtopk_comm_create(ctypes.byref(handle), ctypes.byref(config)))
        except BaseException:
            if self._torch is not None:
                self._torch.close()
            raise
        self._handle = handle.value
        self.rank: int = library.gtopk_comm_rank(handle)
        self.size: int = library.gtopk_comm_size(handle)
        self.local_rank: int = library.gtopk_comm_local_rank(handle)
        self.over_nccl = data is not None and "nccl" in self.description.lower()  # messages between GPUs
        end_of_process.register(self, uses_mpi=transport == "mpi")

    @property
    def handle(self) -> int:
        """The C handle; `StateError` after `close`."""
        if self._handle is None:
            raise StateError(
                "this communicator was closed (gtopk.shutdown or Comm.close): make a new one, and the reducers and "
                "distributed optimizers that use it"
            )
        return self._handle

    @property
    def is_closed(self) -> bool:
        """True after `close`."""
        return self._handle is None

    @property
    def survives(self) -> bool:
        """Whether a communicator can be made of the ranks that are left of this one: see `survivors_of`."""
        return bool(_c_api.library().gtopk_comm_survives(self.handle))

    @property
    def global_ranks(self) -> list[int]:
        """The numbers that these ranks have in torch.distributed, where that is the transport; else []."""
        return [] if self._torch is None else list(self._torch.global_ranks)

    @property
    def description(self) -> str:
        """The transport and the version of what is behind it."""
        encoded: bytes = _c_api.library().gtopk_comm_describe(self.handle)
        text = encoded.decode("utf-8", "replace")
        return text if self._torch is None else text.replace("callback", str(self._torch.description))

    def abort(self, why: str) -> None:
        """For a rank that cannot go on, for reasons outside of gtopk: ranks that wait for it, or will, hear of it at once.

        They get an error then, and so do the ranks of `peers`, and every later call here. Does not wait. Nothing happens where
        the communicator is closed or broken already.

        Examples
        --------
        >>> import gtopk
        >>> comm = gtopk.Comm()
        >>> comm.abort("the disk is full")
        >>> comm.barrier()
        Traceback (most recent call last):
        ...
        gtopk.errors.AbortedError: the communicator is broken since an earlier call: this rank gave up: the disk is full
        """
        if self._handle is not None:
            _c_api.library().gtopk_comm_abort(self._handle, why.encode())

    def close(self) -> None:
        """Frees the communicator. Neither waits for other ranks nor talks; may be called twice. Close its reducers first."""
        for comm in (one for made in self.parts.values() for one in made):
            comm.close()
        self.parts.clear()
        handle, self._handle = self._handle, None
        if handle is not None and os.getpid() == self.pid:
            _c_api.library().gtopk_comm_destroy(handle)
            if self._torch is not None:
                self._torch.close()
                self._torch.settle(_SETTLE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._handle is None:
            return "<gtopk.Comm, closed>"
        return f"<gtopk.Comm rank {self.rank} of {self.size}, {self.description}>"


def _seconds(value: float | None, name: str) -> float:
    """Seconds for the C config, where 0 stands for the default."""
    if value is None:
        return 0.0
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise InvalidError(f"{name} is {value!r}, but must be a positive number of seconds")
    return float(value)


def default_timeout() -> float:
    """Seconds: GTOPK_TIMEOUT, else 1800."""
    text = os.environ.get("GTOPK_TIMEOUT")
    if not text:
        return 1800.0
    try:
        return _seconds(float(text), "GTOPK_TIMEOUT")
    except ValueError:
        raise InvalidError(f"GTOPK_TIMEOUT is {text!r}, but must be a positive number of seconds") from None
