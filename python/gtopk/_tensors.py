"""numpy arrays, torch tensors and arrays on GPUs as memory: pointer, length, type. Imports no package until it is needed.

An object can only be a torch tensor when torch was imported already, so `sys.modules` is asked, not the import system.
`TensorTable` is the hot path: it fills the array of gtopk_tensor_t for all parameters of a model in one go.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from . import _c_api, _devices
from ._devices import HOST, Device
from .errors import InvalidError

Kind: TypeAlias = Literal["numpy", "torch"]
# What users pass: numpy.ndarray, torch.Tensor, or an array on a GPU. Any, so that type checking needs neither package.
TensorLike: TypeAlias = Any

_DTYPE_NAMES = {"float32": _c_api.F32, "float16": _c_api.F16, "bfloat16": _c_api.BF16}
_WANTED = "float32, float16 or bfloat16"
# gtopk_tensor_t as three 64-bit words: data, length, dtype with reserved.
_WORDS = 3
_DTYPE_SHIFT = 0 if sys.byteorder == "little" else 32


def is_torch(x: TensorLike) -> bool:
    """True for a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_numpy(x: TensorLike) -> bool:
    """True for a numpy array."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(x, numpy.ndarray)


def kind_of(x: TensorLike, what: str) -> Kind:
    """Which package's tensor it is; `InvalidError` for anything else."""
    if is_torch(x):
        return "torch"
    if is_numpy(x):
        return "numpy"
    raise InvalidError(
        f"{what} is a {type(x).__module__}.{type(x).__qualname__}, but must be a numpy array or a torch tensor: "
        "convert it, for example with numpy.asarray(x, dtype=numpy.float32)"
    )


def default_kind() -> Kind:
    """torch where it is in use already, else numpy."""
    return "torch" if "torch" in sys.modules else "numpy"


def dtype_name(x: TensorLike) -> str:
    """The name both packages use: "float32", "bfloat16", "int64"."""
    return str(x.dtype).removeprefix("torch.")


def empty(kind: Kind, shape: Any, dtype: str, place: str = "cpu") -> TensorLike:
    """A new contiguous array, not filled; numpy's are in host memory."""
    if kind == "torch":
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device=place)
    import numpy

    return numpy.empty(shape, dtype=getattr(numpy, dtype))


def pointer(x: TensorLike) -> int:
    """Address of the first entry."""
    return int(x.data_ptr()) if is_torch(x) else int(x.__array_interface__["data"][0])


def byte_length(x: TensorLike) -> int:
    """Bytes of all entries."""
    return int(x.numel() * x.element_size()) if is_torch(x) else int(x.nbytes)


def host_contiguous(x: TensorLike, what: str) -> TensorLike:
    """The tensor itself where it is contiguous host memory of plain numbers, else such a copy; never with autograd."""
    if kind_of(x, what) == "torch":
        torch = sys.modules["torch"]
        if x.layout is not torch.strided:
            raise InvalidError(f"{what} is a sparse tensor: call .to_dense() first")
        return x.detach().to("cpu").contiguous()
    if x.dtype.hasobject:
        raise InvalidError(f"{what} holds Python objects: convert it to an array of numbers")
    return x if x.flags.c_contiguous else x.copy(order="C")


def as_indices(x: TensorLike, what: str) -> TensorLike:
    """The tensor as contiguous uint32: itself, or a converted copy of other integers."""
    host = host_contiguous(x, what)
    name = dtype_name(host)
    if name == "uint32":
        return host
    if not name.startswith(("int", "uint")):
        raise InvalidError(f"{what} are {name}, but must be integers (uint32)")
    if is_torch(host):
        host = host.long()
    if byte_length(host) and (int(host.min()) < 0 or int(host.max()) >= 1 << 32):
        raise InvalidError(f"{what} must be from 0 to 2**32 - 1")
    return host.to(sys.modules["torch"].uint32) if is_torch(host) else host.astype("uint32")


def writable(x: TensorLike) -> bool:
    """False for a numpy array that is read-only; torch has no such tensors."""
    return is_torch(x) or bool(x.flags.writeable)


def is_expanded(x: TensorLike) -> bool:
    """True for a torch tensor whose entries share memory, which torch does not write to. numpy's are read-only."""
    return is_torch(x) and any(length > 1 and not stride for length, stride in zip(x.shape, x.stride(), strict=True))


class Described(NamedTuple):
    """An array as memory."""

    address: int
    length: int
    dtype: int  # code
    stream: int | None  # of an array of another package: on which it is written and read


def describe(
    x: TensorLike, what: str, *, write: bool = False, length: int | None = None, device: Device = HOST
) -> Described:
    """One contiguous array of float32, float16 or bfloat16 on `device`.

    Raises `InvalidError`, which says what is wrong with `what` and what to do about it.
    """
    x = _known(x, what, device)
    stream: int | None = None
    if is_torch(x):
        _check_torch(x, what, device)
        count, dtype, address = int(x.numel()), dtype_name(x), int(x.data_ptr())
    elif isinstance(x, _devices.Foreign):
        _check_foreign(x, what, write, device)
        count, dtype, address, stream = x.size, x.dtype, x.address, x.stream
    else:
        if device.is_gpu:
            raise InvalidError(
                f"{what} is a numpy array, but this reducer works on {device.name}: use a torch tensor there"
            )
        _check_numpy(x, what, write)
        count, dtype, address = int(x.size), dtype_name(x), pointer(x)
    code = _DTYPE_NAMES.get(dtype)
    if code is None:
        raise InvalidError(f"{what} is {dtype}, but must be {_WANTED}: convert it")
    if length is not None and count != length:
        raise InvalidError(
            f"{what} has {count} entries (shape {tuple(x.shape)}), but its segment has {length}: give tensors in the "
            "order and of the lengths that the reducer was made with"
        )
    if count and address == 0:
        raise InvalidError(f"{what} has no memory of its own (a fake, meta or lazy tensor): give a real tensor")
    return Described(address, count, code, stream)


def _known(x: TensorLike, what: str, device: Device) -> TensorLike:
    """A numpy array, a torch tensor, or what another package's array says of itself."""
    if is_torch(x) or is_numpy(x):
        return x
    found = _devices.foreign(x, what)
    if found is not None:
        return found
    torch = sys.modules.get("torch")
    if device.is_gpu and torch is not None and hasattr(x, "__dlpack__"):
        return torch.from_dlpack(x)
    kind_of(x, what)  # raises
    return x


def _check_torch(x: TensorLike, what: str, device: Device) -> None:
    torch = sys.modules["torch"]
    if x.layout is not torch.strided:
        raise InvalidError(f"{what} is a sparse tensor: call .to_dense(), or make the layer with sparse=False")
    if not device.holds(x):
        if device.is_gpu:
            raise InvalidError(
                f"{what} is on {x.device}, but this reducer works on {device.name}: move it there with .to()"
            )
        raise InvalidError(
            f"{what} is on {x.device}, but this works on host memory: call .cpu(), or for GPU tensors make the reducer with "
            'device="cuda"'
        )
    if not x.is_contiguous():
        raise InvalidError(
            f"{what} is not contiguous (shape {tuple(x.shape)}, strides {x.stride()}): call .contiguous(), or for a "
            "dense tensor of another memory format pass a flat view of its memory on every rank"
        )


def _check_foreign(x: _devices.Foreign, what: str, write: bool, device: Device) -> None:
    if not device.is_gpu:
        raise InvalidError(f'{what} is on a GPU, but this works on host memory: make the reducer with device="cuda"')
    if not x.contiguous:
        raise InvalidError(f"{what} is not contiguous (shape {x.shape}): copy it")
    if write and not x.writable:
        raise InvalidError(f"{what} is read-only, but it is going to be written: give a writable array or a copy")


def _check_numpy(x: TensorLike, what: str, write: bool) -> None:
    if not x.flags.c_contiguous:
        raise InvalidError(f"{what} is not contiguous (strides {x.strides}): use numpy.ascontiguousarray")
    if not x.dtype.isnative or not x.flags.aligned:
        raise InvalidError(f"{what} is not in this machine's byte order or not aligned: copy it")
    if write and not x.flags.writeable:
        raise InvalidError(f"{what} is read-only, but it is going to be written: give a writable array or a copy")


class TensorTable:
    """A reusable array of gtopk_tensor_t for up to `capacity` tensors on one device. What it says of tensors, it says of the
    latest fill."""

    def __init__(self, capacity: int, device: Device = HOST) -> None:
        self.device = device
        self._words = array("Q", bytes(8 * _WORDS * max(capacity, 1)))
        self.address = self._words.buffer_info()[0]
        self.starts: list[int] = []  # each tensor's address
        self._count = 0
        self._lengths: Sequence[int] = []
        self._dtypes: list[Any] = []
        self._sizes: list[int] | None = None
        self._stream: int | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tensor, after `fill_torch`."""
        if self._sizes is None:
            self._sizes = [length * x.itemsize for length, x in zip(self._lengths, self._dtypes, strict=True)]
        return self._sizes

    def stream(self) -> int | None:
        """On which the tensors are written and read."""
        return self.device.stream() if self._stream is None else self._stream

    def fill(
        self,
        tensors: Sequence[TensorLike],
        lengths: Sequence[int],
        name: Callable[[int], str],
        *,
        write: bool,
    ) -> None:
        """Writes the entries of `tensors`, which must have `lengths` entries each; `name(i)` is for error texts.

        Lists of torch tensors alone are checked by whole-list comparisons, some 0.2 microseconds a tensor. Whatever
        does not pass goes through `describe`, which finds the culprit.
        """
        if not self.fill_torch(tensors, lengths):
            self._fill_any(tensors, lengths, name, write)

    def fill_torch(self, tensors: Sequence[TensorLike], lengths: Sequence[int]) -> bool:
        """The same, and False where they are not all torch tensors that can be written as they are."""
        torch = sys.modules.get("torch")
        if torch is None:
            return False
        tensor_type, strided = torch.Tensor, torch.strided
        index = self.device.gpu
        if index < 0:
            good = [isinstance(x, tensor_type) and x.layout is strided and x.is_cpu for x in tensors]
        else:
            good = [
                isinstance(x, tensor_type) and x.layout is strided and x.is_cuda and x.get_device() == index
                for x in tensors
            ]
        if False in good:
            return False
        if [x.numel() for x in tensors] != lengths or False in [x.is_contiguous() for x in tensors]:
            return False
        dtypes = [x.dtype for x in tensors]
        codes: list[int] | None = None
        if dtypes != self._dtypes:
            known = {getattr(torch, dtype): code for dtype, code in _DTYPE_NAMES.items()}
            if any(dtype not in known for dtype in dtypes):
                return False
            codes = [known[dtype] for dtype in dtypes]
        addresses = [x.data_ptr() for x in tensors]
        if 0 in addresses and any(length and not address for length, address in zip(lengths, addresses, strict=True)):
            return False
        self._store(addresses, lengths, codes)
        self._dtypes, self._stream = dtypes, None
        return True

    def copy_rows(self, other: TensorTable, rows: Sequence[int]) -> None:
        """Row ``rows[i]`` becomes row i of the other one. `starts` and `sizes` do not know of it."""
        mine, theirs = self._words, other._words
        at = 0
        for row in rows:
            to = row * _WORDS
            mine[to : to + _WORDS] = theirs[at : at + _WORDS]
            at += _WORDS
        self._count = max(self._count, 1 + max(rows, default=-1))
        self._dtypes = []

    def _fill_any(
        self, tensors: Sequence[TensorLike], lengths: Sequence[int], name: Callable[[int], str], write: bool
    ) -> None:
        rows = [
            describe(x, name(i), write=write, length=length, device=self.device)
            for i, (x, length) in enumerate(zip(tensors, lengths, strict=True))
        ]
        streams = {row.stream for row in rows}
        if len(streams) > 1:
            raise InvalidError(
                f"{name(0)} and the others belong to different streams ({', '.join(map(str, streams))}): give arrays of one "
                "package, written on one stream"
            )
        self._dtypes, self._stream = [], streams.pop() if streams else None
        self._store([row.address for row in rows], lengths, [row.dtype for row in rows])

    def _store(self, addresses: list[int], lengths: Sequence[int], codes: list[int] | None) -> None:
        end = _WORDS * len(addresses)
        self._words[0:end:_WORDS] = array("Q", addresses)
        self._words[1:end:_WORDS] = array("Q", lengths)
        if codes is not None or lengths is not self._lengths:
            self._sizes = None
        if codes is not None:
            self._words[2:end:_WORDS] = array("Q", [code << _DTYPE_SHIFT for code in codes])
        self.starts, self._lengths, self._count = addresses, lengths, len(addresses)
