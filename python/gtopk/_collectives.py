"""Collectives for set-up and small dense data, on numpy arrays and torch tensors: what a communicator can do.

Tensors of a GPU travel by way of host memory.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from typing import Any, TypeVar

from . import _c_api, _tensors
from ._tensors import TensorLike
from .errors import InvalidError, MismatchError

T = TypeVar("T")

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_DIGEST_BYTES = 16


class Op(enum.Enum):
    """What `allreduce` computes."""

    AVERAGE = "average"
    SUM = "sum"


Average = Op.AVERAGE
Sum = Op.SUM


class Collectives:
    """All ranks call these methods in the same order. `_communicator.Comm` adds the life of the handle."""

    rank: int
    size: int

    @property
    def handle(self) -> int:
        """The C handle."""
        raise NotImplementedError

    def together(self, call: str, prepare: Callable[[], tuple[T, Any]]) -> T:
        """What `prepare` gives, on all ranks or on none. Collective; the beginning of a call that has to prepare something.

        Parameters
        ----------
        call : str
            Names the call in error texts.
        prepare : callable
            Checks and reads what this rank gives. Returns it with a description, of what JSON can hold, that must be the
            same on all ranks.

        Raises
        ------
        MismatchError
            `prepare` failed on another rank, or described something else there. On a rank where it failed the
            exception is that of `prepare`.
        """
        failure: Exception | None = None
        try:
            value, described = prepare()
            text = json.dumps([call, described])
        except Exception as error:  # noqa: BLE001 - raised again, once the others know
            failure = error
            text = json.dumps([call, None, f"{type(error).__name__}: {error}"])
        if self.size > 1:
            try:
                self._compare(call, text)
            except MismatchError:
                if failure is None:
                    raise
        if failure is not None:
            raise failure
        return value

    def _compare(self, call: str, mine: str) -> None:
        digest = hashlib.sha256(mine.encode()).digest()[:_DIGEST_BYTES]
        if self._allgather_fixed(digest) == digest * self.size:
            return
        texts = [json.loads(data) for data in self._allgather_bytes(mine.encode())]
        for other, text in enumerate(texts):
            if len(text) > 2:
                raise MismatchError(f"{text[0]} failed on rank {other}, so it was not done on any: {text[2]}")
        other = next(r for r, text in enumerate(texts) if text != texts[0])
        first, second = texts[0], texts[other]
        if first[0] != second[0]:
            raise MismatchError(
                f"rank 0 calls {first[0]}, rank {other} calls {second[0]}: all ranks must make the same calls in the same order"
            )
        raise MismatchError(
            f"{call}: rank 0 has {_words(first[1])}, rank {other} has {_words(second[1])}: give the same on every rank"
        )

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        _c_api.check(_c_api.library().gtopk_barrier(self.handle))

    def allreduce(self, tensor: TensorLike, op: Op = Op.AVERAGE) -> TensorLike:
        """The average or sum of every rank's tensor, as a new tensor of the same kind, type and device.

        Parameters
        ----------
        tensor : numpy.ndarray or torch.Tensor
            The same shape and type on all ranks; otherwise every rank gets `MismatchError`. 16-bit floats are added up in
            float32, integers exactly. A tensor may require a gradient, but the result has none: its `backward` raises.
        op : Op
            ``gtopk.Average`` or ``gtopk.Sum``; integers can only be summed.
        """

        def prepare() -> tuple[TensorLike, Any]:
            if not isinstance(op, Op):
                raise InvalidError(f"op is {op!r}, but must be gtopk.Average or gtopk.Sum")
            host = _tensors.host_contiguous(tensor, "tensor")
            name = _tensors.dtype_name(host)
            if name.startswith(("int", "uint")):
                if op is not Op.SUM:
                    raise InvalidError(
                        f"tensor is {name}, whose average is no integer: use op=gtopk.Sum, or convert it"
                    )
            elif name not in _FLOATS:
                raise InvalidError(f"tensor is {name}, but allreduce takes floats and integers: convert it")
            return host, [*_layout(host, tensor), op.value]

        host = self.together("allreduce", prepare)
        name = _tensors.dtype_name(host)
        total = (
            self._allreduce_float(host, name, op)
            if name in _FLOATS
            else self._allgather_stacked(host).sum(0, dtype=host.dtype)
        )
        return _like(total.reshape(tensor.shape), tensor, "allreduce")

    def allgather(self, tensor: TensorLike) -> TensorLike:
        """Every rank's tensor, joined along the first dimension in the order of ranks.

        Shapes may differ in the first dimension only; otherwise every rank gets `MismatchError`.
        """

        def prepare() -> tuple[TensorLike, Any]:
            host = _tensors.host_contiguous(tensor, "tensor")
            host = host.reshape(1) if host.ndim == 0 else host
            dtype, shape = _layout(host, host)
            return host, [dtype, ["any", *shape[1:]]]

        host = self.together("allgather", prepare)
        kind, name = _tensors.kind_of(host, "tensor"), _tensors.dtype_name(host)
        rows = struct.unpack(f"<{self.size}Q", self._allgather_fixed(struct.pack("<Q", host.shape[0])))
        padded = _tensors.empty(kind, (max(rows), *host.shape[1:]), name)
        padded[: host.shape[0]] = host
        stacked = self._allgather_stacked(padded)
        if min(rows) == max(rows):
            return _like(stacked.reshape((sum(rows), *host.shape[1:])), tensor, "allgather")
        joined = _tensors.empty(kind, (sum(rows), *host.shape[1:]), name)
        begin = 0
        for other, count in enumerate(rows):
            joined[begin : begin + count] = stacked[other, :count]
            begin += count
        return _like(joined, tensor, "allgather")

    def broadcast(self, tensor: TensorLike, root_rank: int = 0) -> TensorLike:
        """A new tensor with root's values. All ranks give the same shape and type; otherwise all get `MismatchError`."""

        def prepare() -> tuple[TensorLike, Any]:
            host = _tensors.host_contiguous(tensor, "tensor")
            return host.clone() if _tensors.is_torch(host) else host.copy(), [
                *_layout(host, tensor),
                self.root(root_rank),
            ]

        copy = self.together("broadcast", prepare)
        self.broadcast_memory(copy, root_rank)
        return _like(copy.reshape(tensor.shape), tensor, "broadcast")

    def broadcast_(self, tensor: TensorLike, root_rank: int = 0) -> TensorLike:
        """Overwrites the tensor with root's values, whatever its layout and device, and returns it.

        All ranks give the same shape and type; otherwise all get `MismatchError`.
        """

        def prepare() -> tuple[TensorLike, Any]:
            host = _tensors.host_contiguous(tensor, "tensor")
            if not _tensors.writable(tensor):
                raise InvalidError("tensor is read-only, but broadcast_ writes to it: give a writable array or a copy")
            if _tensors.is_expanded(tensor):
                raise InvalidError("tensor is expanded, so that entries share memory: make it whole with clone()")
            return host, [*_layout(host, tensor), self.root(root_rank)]

        host = self.together("broadcast_", prepare)
        self.broadcast_memory(host, root_rank)
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

        def prepare() -> tuple[bytes, Any]:
            root = self.root(root_rank)
            return pickle.dumps(obj) if self.rank == root else b"", [root]

        data = self._broadcast_bytes(self.together("broadcast_object", prepare), root_rank)
        return self.together(
            "broadcast_object", lambda: (obj if self.rank == root_rank else pickle.loads(data), "the object")
        )

    def broadcast_json(self, value: Any, root_rank: int = 0) -> Any:
        """Root's value, of anything that JSON can hold, on every rank. For values that all ranks have prepared together."""
        root = self.root(root_rank)
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

    def broadcast_memory(self, host: TensorLike, root_rank: int) -> None:
        """`broadcast_` of contiguous host memory that the ranks have compared already."""
        _c_api.check(
            _c_api.library().gtopk_broadcast(
                self.handle, _tensors.pointer(host), _tensors.byte_length(host), self.root(root_rank)
            )
        )

    def _broadcast_buffer(self, data: bytearray, root: int) -> None:
        if data:
            memory = (ctypes.c_char * len(data)).from_buffer(data)
            _c_api.check(_c_api.library().gtopk_broadcast(self.handle, memory, len(data), root))

    def root(self, root_rank: int) -> int:
        """`root_rank`, which is a rank."""
        if not isinstance(root_rank, int) or not 0 <= root_rank < self.size:
            raise InvalidError(f"root rank is {root_rank!r}, but must be one of 0 to {self.size - 1}")
        return root_rank


def _like(host: TensorLike, tensor: TensorLike, call: str) -> TensorLike:
    """On the device that `tensor` is on, and without a gradient."""
    if not _tensors.is_torch(tensor):
        return host
    moved = host.to(tensor.device)
    if not tensor.requires_grad or not moved.is_floating_point():
        return moved
    from .torch.no_backward import without_backward

    return without_backward(tensor, moved, call)


def _layout(host: TensorLike, tensor: TensorLike) -> list[Any]:
    return [_tensors.dtype_name(host), list(tensor.shape)]


def _words(described: Any) -> str:
    """["float32", [2, 3], 0] as a text."""
    return " ".join(str(part) for part in described) if isinstance(described, list) else str(described)
