"""Collectives for set-up and small dense data, on numpy arrays and CPU torch tensors: what a communicator can do."""

from __future__ import annotations

import ctypes
import enum
import json
import pickle
import struct
from typing import Any

from . import _c_api, _tensors
from ._tensors import TensorLike
from .errors import InvalidError, MismatchError


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
