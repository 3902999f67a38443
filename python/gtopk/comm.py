"""Communicators: the group of processes, its set-up and end, and collectives for set-up and small dense data.

The functions of this module work on the communicator that `init` made. `Comm` is for programs that need another one,
for example for exchanges from several threads.
"""

from __future__ import annotations

import atexit
import ctypes
import enum
import json
import logging
import math
import os
import pickle
import struct
import sys
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from . import _c_api, _launcher, _signals, _tensors
from ._tensors import TensorLike
from .errors import InvalidError, MismatchError, StateError, TransportError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Average",
    "Comm",
    "Op",
    "Sum",
    "allgather",
    "allreduce",
    "barrier",
    "broadcast",
    "broadcast_",
    "broadcast_object",
    "init",
    "is_initialized",
    "local_rank",
    "rank",
    "shutdown",
    "size",
]

_log = logging.getLogger("gtopk")

# How long closing waits for a call that was given up.
_SETTLE_SECONDS = 1.0


class Op(enum.Enum):
    """What `allreduce` computes."""

    AVERAGE = "average"
    SUM = "sum"


Average = Op.AVERAGE
Sum = Op.SUM


class _Closable(Protocol):
    def close(self) -> None: ...


class Comm:
    """A group of processes (ranks) and the way they talk. Making one is collective.

    Parameters
    ----------
    transport : {"self", "mpi", "torch"}
        One process alone; MPI; or torch.distributed, through a gloo group of its own.
    timeout : float, optional
        Seconds a whole exchange may wait. Default: the environment variable GTOPK_TIMEOUT, else 1800.
    warn_after : float, optional
        Seconds of waiting until a warning names the rank that is waited for. Default 60.
    mpi_module : str, optional
        File of libgtopk_mpi.so. Default: GTOPK_MPI_MODULE, else beside the library.
    mpi_comm : int, optional
        Address of an ``MPI_Comm`` to duplicate (mpi4py: ``MPI._addressof(comm)``). Default: MPI_COMM_WORLD.
    group : torch.distributed.ProcessGroup, optional
        With "torch": the ranks to use. Default: all.

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
    ) -> None:
        self._handle: int | None = None
        self._pid = os.getpid()
        self._torch: Any = None
        self.transport = transport
        self._interrupt = _c_api.InterruptFn(_signals.watch())  # kept as long as the library may call it
        library = _c_api.library()
        config = _c_api.CommConfig(
            struct_size=ctypes.sizeof(_c_api.CommConfig),
            transport=transport.encode(),
            size=-1,
            rank=-1,
            timeout=_default_timeout() if timeout is None else _seconds(timeout, "timeout"),
            warn_after=_seconds(warn_after, "warn_after"),
            mpi_module=None if mpi_module is None else os.fsencode(mpi_module),
            mpi_comm=mpi_comm,
            interrupt=self._interrupt,
        )
        if transport == "torch":
            from ._torch_distributed import TorchDistributed

            self._torch = TorchDistributed(group, config.timeout)
            config.transport = b"callback"
            config.size, config.rank = self._torch.size, self._torch.rank
            config.callbacks = ctypes.pointer(self._torch.callbacks)
        elif transport not in ("self", "mpi"):
            raise InvalidError(f'transport is {transport!r}, but must be "self", "mpi" or "torch"')
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
        _end.register(self)

    @property
    def handle(self) -> int:
        """The C handle; `StateError` after `close`."""
        if self._handle is None:
            raise StateError("this communicator was closed (gtopk.shutdown or Comm.close): make a new one")
        return self._handle

    @property
    def description(self) -> str:
        """The transport and the version of what is behind it."""
        if self._torch is not None:
            return str(self._torch.description)
        text: bytes = _c_api.library().gtopk_comm_describe(self.handle)
        return text.decode("utf-8", "replace")

    def close(self) -> None:
        """Frees the communicator. Neither waits for other ranks nor talks; may be called twice. Close its reducers first."""
        handle, self._handle = self._handle, None
        if handle is not None and os.getpid() == self._pid:
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

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        _c_api.check(_c_api.library().gtopk_barrier(self.handle))

    def allreduce(self, tensor: TensorLike, op: Op = Op.AVERAGE) -> TensorLike:
        """The average or sum of every rank's tensor, as a new tensor of the same kind, type and device.

        Parameters
        ----------
        tensor : numpy.ndarray or torch.Tensor
            The same shape and type on all ranks. 16-bit floats are added up in float32, integers exactly.
        op : Op
            ``gtopk.Average`` or ``gtopk.Sum``; integers can only be summed.
        """
        if not isinstance(op, Op):
            raise InvalidError(f"op is {op!r}, but must be gtopk.Average or gtopk.Sum")
        host = _tensors.host_contiguous(tensor, "tensor")
        name = _tensors.dtype_name(host)
        if name in ("float16", "bfloat16", "float32", "float64"):
            total = self._allreduce_float(host, name, op)
        elif name.startswith(("int", "uint")):
            if op is not Op.SUM:
                raise InvalidError(f"tensor is {name}, whose average is no integer: use op=gtopk.Sum, or convert it")
            total = self._allgather_stacked(host).sum(0, dtype=host.dtype)
        else:
            raise InvalidError(f"tensor is {name}, but allreduce takes floats and integers: convert it")
        return _like(total.reshape(tensor.shape), tensor)

    def allgather(self, tensor: TensorLike) -> TensorLike:
        """Every rank's tensor, joined along the first dimension in the order of ranks.

        Shapes may differ in the first dimension only; otherwise every rank gets `MismatchError`.
        """
        host = _tensors.host_contiguous(tensor, "tensor")
        if host.ndim == 0:
            host = host.reshape(1)
        layouts = self.allgather_json({"dtype": _tensors.dtype_name(host), "shape": list(host.shape)})
        for other, layout in enumerate(layouts):
            first = layouts[0]
            if layout["dtype"] != first["dtype"] or layout["shape"][1:] != first["shape"][1:]:
                raise MismatchError(
                    f"allgather: rank 0 has {first['dtype']} of shape {first['shape']}, rank {other} has "
                    f"{layout['dtype']} of shape {layout['shape']}: only the first dimension may differ"
                )
        rows = [layout["shape"][0] for layout in layouts]
        padded = _tensors.empty(
            _tensors.kind_of(host, "tensor"), (max(rows), *host.shape[1:]), _tensors.dtype_name(host)
        )
        padded[: host.shape[0]] = host
        stacked = self._allgather_stacked(padded)
        if min(rows) == max(rows):
            return _like(stacked.reshape((sum(rows), *host.shape[1:])), tensor)
        joined = _tensors.empty(
            _tensors.kind_of(host, "tensor"), (sum(rows), *host.shape[1:]), _tensors.dtype_name(host)
        )
        begin = 0
        for other, count in enumerate(rows):
            joined[begin : begin + count] = stacked[other, :count]
            begin += count
        return _like(joined, tensor)

    def broadcast(self, tensor: TensorLike, root_rank: int = 0) -> TensorLike:
        """A new tensor with root's values. All ranks give the same shape and type."""
        host = _tensors.host_contiguous(tensor, "tensor")
        copy = host.clone() if _tensors.is_torch(host) else host.copy()
        self._broadcast_memory(copy, root_rank)
        return _like(copy.reshape(tensor.shape), tensor)

    def broadcast_(self, tensor: TensorLike, root_rank: int = 0) -> TensorLike:
        """Overwrites the tensor with root's values, whatever its layout and device, and returns it."""
        if not _tensors.writable(tensor):
            raise InvalidError("tensor is read-only, but broadcast_ writes to it: give a writable array or a copy")
        host = _tensors.host_contiguous(tensor, "tensor")
        self._broadcast_memory(host, root_rank)
        if _tensors.pointer(host) != _tensors.pointer(tensor):
            if _tensors.is_torch(tensor):
                tensor.detach().copy_(host)
            else:
                tensor[...] = host
        return tensor

    def broadcast_object(self, obj: Any, root_rank: int = 0) -> Any:
        """Root's object, on every rank.

        It travels as a pickle, and loading a pickle runs whatever code it names: as safe as the processes of your job
        are to each other. gtopk itself never sends pickles.
        """
        root = self._root(root_rank)
        data = self._broadcast_bytes(pickle.dumps(obj) if self.rank == root else b"", root)
        return obj if self.rank == root else pickle.loads(data)

    def broadcast_json(self, value: Any, root_rank: int = 0) -> Any:
        """Root's value, of anything that JSON can hold, on every rank."""
        root = self._root(root_rank)
        return json.loads(self._broadcast_bytes(json.dumps(value).encode() if self.rank == root else b"", root))

    def _broadcast_bytes(self, data: bytes, root: int) -> bytearray:
        """Root's bytes; the others need not know how many."""
        length = bytearray(struct.pack("<Q", len(data)))
        self._broadcast_buffer(length, root)
        buffer = bytearray(data) if self.rank == root else bytearray(struct.unpack("<Q", length)[0])
        self._broadcast_buffer(buffer, root)
        return buffer

    def allgather_json(self, value: Any) -> list[Any]:
        """Every rank's value, of anything that JSON can hold; for comparing set-ups."""
        return [json.loads(data) for data in self._allgather_bytes(json.dumps(value).encode())]

    def _allgather_bytes(self, data: bytes) -> list[bytes]:
        lengths = struct.unpack(f"<{self.size}Q", self._allgather_fixed(struct.pack("<Q", len(data))))
        longest = max(lengths)
        joined = self._allgather_fixed(data.ljust(longest, b"\0"))
        return [joined[r * longest : r * longest + length] for r, length in enumerate(lengths)]

    def _allgather_fixed(self, data: bytes) -> bytes:
        out = ctypes.create_string_buffer(max(1, len(data) * self.size))
        _c_api.check(_c_api.library().gtopk_allgather(self.handle, data, len(data), out))
        return out.raw[: len(data) * self.size]

    def _allgather_stacked(self, host: TensorLike) -> TensorLike:
        """All ranks' tensors of one shape, stacked along a new first dimension."""
        out = _tensors.empty(_tensors.kind_of(host, "tensor"), (self.size, *host.shape), _tensors.dtype_name(host))
        _c_api.check(
            _c_api.library().gtopk_allgather(
                self.handle, _tensors.pointer(host), _tensors.byte_length(host), _tensors.pointer(out)
            )
        )
        return out

    def _allreduce_float(self, host: TensorLike, name: str, op: Op) -> TensorLike:
        wide = "float64" if name == "float64" else "float32"
        total = _tensors.empty(_tensors.kind_of(host, "tensor"), tuple(host.shape), wide)
        total[...] = host
        code = _c_api.F64 if wide == "float64" else _c_api.F32
        count = _tensors.byte_length(total) // (8 if wide == "float64" else 4)
        _c_api.check(_c_api.library().gtopk_allreduce(self.handle, _tensors.pointer(total), count, code))
        if op is Op.AVERAGE:
            total /= self.size
        if name == wide:
            return total
        return total.to(host.dtype) if _tensors.is_torch(total) else total.astype(host.dtype)

    def _broadcast_memory(self, host: TensorLike, root_rank: int) -> None:
        _c_api.check(
            _c_api.library().gtopk_broadcast(
                self.handle, _tensors.pointer(host), _tensors.byte_length(host), self._root(root_rank)
            )
        )

    def _broadcast_buffer(self, data: bytearray, root: int) -> None:
        if data:
            memory = (ctypes.c_char * len(data)).from_buffer(data)
            _c_api.check(_c_api.library().gtopk_broadcast(self.handle, memory, len(data), root))

    def _root(self, root_rank: int) -> int:
        if not isinstance(root_rank, int) or not 0 <= root_rank < self.size:
            raise InvalidError(f"root rank is {root_rank!r}, but must be one of 0 to {self.size - 1}")
        return root_rank


def _like(host: TensorLike, tensor: TensorLike) -> TensorLike:
    """On the device that `tensor` is on."""
    return host.to(tensor.device) if _tensors.is_torch(tensor) else host


def _seconds(value: float | None, name: str) -> float:
    """Seconds for the C config, where 0 stands for the default."""
    if value is None:
        return 0.0
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise InvalidError(f"{name} is {value!r}, but must be a positive number of seconds")
    return float(value)


def _default_timeout() -> float:
    text = os.environ.get("GTOPK_TIMEOUT")
    if not text:
        return 1800.0
    try:
        return _seconds(float(text), "GTOPK_TIMEOUT")
    except ValueError:
        raise InvalidError(f"GTOPK_TIMEOUT is {text!r}, but must be a positive number of seconds") from None


class _EndOfProcess:
    """Closes what is open when Python ends, and then ends MPI if gtopk started it.

    MPI_Finalize waits for all ranks. After an uncaught exception the others may be waiting for this rank in the middle
    of an exchange, and both sides would wait for ever; so then it is left out, and mpirun ends the job when it sees
    this process go. `sys.last_value` is what the interpreter sets when it prints the traceback of such an exception.
    """

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._dependents: weakref.WeakSet[Any] = weakref.WeakSet()
        self._pid = 0

    def register(self, comm: Comm) -> None:
        self._open.add(comm)
        if not self._pid:
            self._pid = os.getpid()
            atexit.register(self._run)

    def register_dependent(self, reducer: _Closable) -> None:
        """Reducers go before the communicators that they use."""
        self._dependents.add(reducer)

    def _run(self) -> None:
        if os.getpid() != self._pid:
            return
        for one in (*self._dependents, *self._open):
            one.close()
        if getattr(sys, "last_value", None) is None:
            status = _c_api.library().gtopk_finalize()
            if status:
                _log.debug("gtopk_finalize: %s", _c_api.describe_status(status))
        _c_api.silence_log()


_end = _EndOfProcess()


def register_dependent(reducer: _Closable) -> None:
    """Has `reducer.close()` called before the communicators are closed at the end of the process."""
    _end.register_dependent(reducer)


class _Default:
    """The communicator that `init` made."""

    comm: Comm | None = None


def init(
    *,
    transport: str | None = None,
    timeout: float | None = None,
    warn_after: float | None = None,
    mpi_module: str | os.PathLike[str] | None = None,
    group: Any = None,
) -> None:
    """Joins the processes of this job. Collective; to be called once, a second call changes nothing.

    Parameters
    ----------
    transport : {"self", "mpi", "torch"}, optional
        Found out if not given: an initialised torch.distributed, torchrun, mpirun (or srun with a PMI), RANK and
        WORLD_SIZE with MASTER_ADDR in the environment, the tasks of srun, else one process alone.
    timeout : float, optional
        Seconds a whole exchange may wait. Default: GTOPK_TIMEOUT, else 1800.
    warn_after, mpi_module, group
        See `Comm`.

    Notes
    -----
    With "torch" gtopk makes a gloo group of its own; if torch.distributed is not initialised, it does that too, with
    gloo, and leaves it so at `shutdown`. Programs that want another backend call
    ``torch.distributed.init_process_group`` first.

    When Python ends without an uncaught exception, gtopk ends MPI if it started it, which waits for all ranks. So let
    errors be raised: a rank that leaves by ``sys.exit`` in the middle of the others' work makes them wait until their
    deadline.

    Examples
    --------
    >>> import gtopk
    >>> gtopk.init()
    >>> gtopk.rank(), gtopk.size()
    (0, 1)
    """
    if _Default.comm is not None:
        if transport is not None and transport != _Default.comm.transport:
            raise StateError(
                f"gtopk is initialised with transport {_Default.comm.transport!r} already, and {transport!r} is asked "
                "for: call gtopk.shutdown() first"
            )
        return
    chosen = _launcher.detect() if transport is None else transport
    _Default.comm = Comm(transport=chosen, timeout=timeout, warn_after=warn_after, mpi_module=mpi_module, group=group)
    _log.info("rank %d of %d, %s", _Default.comm.rank, _Default.comm.size, _Default.comm.description)
    expected = _launcher.mpi_size() if chosen == "mpi" else None
    if expected is not None and expected != _Default.comm.size:
        found = _Default.comm.size
        shutdown()
        raise TransportError(
            f"mpirun or srun started {expected} processes, but MPI shows {found}: the gtopk MPI module belongs to another "
            "MPI than this launcher; run `python -m gtopk build-mpi` with the mpicc of this MPI first on PATH"
        )


def shutdown() -> None:
    """Closes the communicator that `init` made. Does not wait for other ranks; `init` may be called again."""
    comm, _Default.comm = _Default.comm, None
    if comm is not None:
        comm.close()


def is_initialized() -> bool:
    """True between `init` and `shutdown`."""
    return _Default.comm is not None


def current() -> Comm:
    """The communicator that `init` made."""
    if _Default.comm is None:
        raise StateError("gtopk is not initialised: call gtopk.init() first, on every rank")
    return _Default.comm


def rank() -> int:
    """This process's number, from 0 to size() - 1."""
    return current().rank


def size() -> int:
    """Number of processes."""
    return current().size


def local_rank() -> int:
    """This process's number among those on the same host: which of its GPUs to take."""
    return current().local_rank


def barrier() -> None:
    """Returns when all ranks have called it."""
    current().barrier()


def allreduce(tensor: TensorLike, op: Op = Op.AVERAGE) -> TensorLike:
    """The average (or sum) of every rank's tensor, as a new tensor. See `Comm.allreduce`.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.init()
    >>> gtopk.allreduce(numpy.array([1.0, 2.0]), op=gtopk.Sum)
    array([1., 2.])
    """
    return current().allreduce(tensor, op)


def allgather(tensor: TensorLike) -> TensorLike:
    """Every rank's tensor, joined along the first dimension. See `Comm.allgather`.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.init()
    >>> gtopk.allgather(numpy.array([[1, 2]]))
    array([[1, 2]])
    """
    return current().allgather(tensor)


def broadcast(tensor: TensorLike, root_rank: int = 0) -> TensorLike:
    """A new tensor with the values of rank `root_rank`. See `Comm.broadcast`.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.init()
    >>> gtopk.broadcast(numpy.array([1.5]))
    array([1.5])
    """
    return current().broadcast(tensor, root_rank)


def broadcast_(tensor: TensorLike, root_rank: int = 0) -> TensorLike:
    """Overwrites the tensor with the values of rank `root_rank`. See `Comm.broadcast_`."""
    return current().broadcast_(tensor, root_rank)


def broadcast_object(obj: Any, root_rank: int = 0) -> Any:
    """The object of rank `root_rank`, sent as a pickle. See `Comm.broadcast_object`.

    Examples
    --------
    >>> import gtopk
    >>> gtopk.init()
    >>> gtopk.broadcast_object({"learning_rate": 0.1})
    {'learning_rate': 0.1}
    """
    return current().broadcast_object(obj, root_rank)
