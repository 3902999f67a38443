"""Where a reducer's arrays lie, and everything that gtopk asks of PyTorch about a GPU: which one is in use, the stream that
work is queued on, and memory from its pool. Imports torch never: a program that uses it has done so already.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from typing import Any, NamedTuple

from . import _c_api
from .errors import InvalidError, StateError

_log = logging.getLogger("gtopk")


class Device(NamedTuple):
    """A place for arrays."""

    name: str  # as the library calls it in full: "cpu", "reference", "cuda:0"
    gpu: int  # its number; -1: host memory

    @property
    def is_gpu(self) -> bool:
        """True where the host cannot read."""
        return self.gpu >= 0

    @property
    def place(self) -> str:
        """As PyTorch calls it."""
        return self.name if self.is_gpu else "cpu"

    def holds(self, tensor: Any) -> bool:
        """Whether a torch tensor lies there."""
        if self.gpu < 0:
            return bool(tensor.is_cpu)
        return bool(tensor.is_cuda) and int(tensor.get_device()) == self.gpu

    def stream(self) -> int | None:
        """PyTorch's current stream on the GPU, on which tensors are written and read; None: the GPU's default stream."""
        cuda = _cuda() if self.is_gpu else None
        if cuda is None or self.gpu >= cuda.device_count():  # of the latter the library says that it is not there
            return None
        if cuda.is_current_stream_capturing():
            raise StateError(
                "a CUDA graph is being captured, which cannot hold an exchange with other ranks: capture forward and backward "
                "alone, and call step() outside"
            )
        return int(cuda.current_stream(self.gpu).cuda_stream)


HOST = Device("cpu", -1)


def of_name(name: str) -> Device:
    """Of the library's full name."""
    return Device(name, int(name[5:]) if name.startswith("cuda:") else -1)


def of_torch(device: Any) -> str | None:
    """What a reducer for tensors on a torch.device is to be made with; None for host memory: GTOPK_DEVICE names it then."""
    return str(device) if device.type == "cuda" else None


def wanted(device: Any) -> str | None:
    """The name to give to the library. A GPU without a number is PyTorch's current one, where PyTorch uses GPUs."""
    name = os.environ.get("GTOPK_DEVICE") or None if device is None else str(device)
    cuda = _cuda() if name == "cuda" else None
    if cuda is not None:
        return f"cuda:{cuda.current_device()}"
    return None if device is None else name


def _cuda() -> Any:
    """torch.cuda, where PyTorch is loaded and has a GPU; else None."""
    torch = sys.modules.get("torch")
    if torch is None or not (torch.cuda.is_initialized() or torch.cuda.is_available()):
        return None
    return torch.cuda


# ---- memory ----


def allocator(name: str | None) -> Any:
    """A pointer to a gtopk_allocator_t on PyTorch's pool for a GPU, so that its memory is counted and shared there; None for
    the library's own way."""
    named = name or os.environ.get("GTOPK_DEVICE") or ""
    if not named.startswith("cuda:") or not named[5:].isdigit() or _cuda() is None:
        return None
    pool = _pool(int(named[5:]))
    return None if pool is None else ctypes.pointer(pool)


@functools.cache  # kept for good: the library calls the functions as long as it has memory of theirs
def _pool(index: int) -> _c_api.Allocator | None:
    cuda = _cuda()
    if index >= cuda.device_count():
        return None  # the library says so

    def allocate(_context: int, size: int, stream: int | None) -> int | None:
        try:
            return int(cuda.caching_allocator_alloc(size, index, stream or 0))
        except Exception as error:  # noqa: BLE001 - the caller is C
            _log.warning("PyTorch has no %d bytes of cuda:%d for gtopk: %s", size, index, error)
            return None

    def release(_context: int, block: int) -> None:
        try:
            cuda.caching_allocator_delete(block)
        except Exception as error:  # noqa: BLE001 - the caller is C
            _log.warning("PyTorch does not take back memory of cuda:%d: %s", index, error)

    return _c_api.Allocator(
        struct_size=ctypes.sizeof(_c_api.Allocator),
        allocate=_c_api.AllocateFn(allocate),
        release=_c_api.ReleaseFn(release),
    )


# ---- arrays of other packages ----

_TYPES = {"f4": "float32", "f2": "float16"}


class Foreign(NamedTuple):
    """What `__cuda_array_interface__` says of an array on a GPU."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    contiguous: bool
    writable: bool
    stream: int | None  # on which it is written and read

    @property
    def size(self) -> int:
        """Entries."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


def foreign(x: Any, what: str) -> Foreign | None:
    """Of an array that is neither numpy's nor torch's, such as cupy's; None where it does not say."""
    said = getattr(x, "__cuda_array_interface__", None)
    if said is None:
        return None
    typestr = str(said["typestr"])
    dtype = _TYPES.get(typestr[1:])
    if dtype is None or typestr[0] == ">":
        raise InvalidError(f"{what} has type {typestr}, but must be float32 or float16 in this machine's byte order")
    address, read_only = said["data"]
    shape = tuple(int(extent) for extent in said["shape"])
    strides = said.get("strides")
    return Foreign(
        int(address or 0),
        shape,
        dtype,
        strides is None or _contiguous(shape, tuple(strides), int(typestr[2:])),
        not read_only,
        said.get("stream"),
    )


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> bool:
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent > 1 and stride != size:
            return False
        size *= extent
    return True
