"""The parts of a step for one's own algorithms: select, merge, encode, decode. No communicator is involved.

Sets are pairs (indices, values): strictly increasing uint32 indices and non-zero float32 values. Functions take numpy
arrays or torch tensors and give back what they were given, on the same device; torch indexes with ``indices.long()``. On a
GPU, where they may be given any array that PyTorch can take over (``__cuda_array_interface__``, DLPack), select and merge
work on PyTorch's current stream and return when they are done; messages are bytes of the host.
"""

from __future__ import annotations

import ctypes
import operator
import sys

from . import _c_api, _devices, _tensors, _threads
from ._devices import HOST, Device
from ._tensors import TensorLike
from .errors import InvalidError

__all__ = ["decode", "encode", "merge", "select"]


def select(x: TensorLike, k: int) -> tuple[TensorLike, TensorLike]:
    """The k entries of largest magnitude, sorted by index. On equal magnitude the lower index wins.

    Parameters
    ----------
    x : numpy.ndarray or torch.Tensor
        float32, contiguous; taken as flat.
    k : int
        At most this many; zeros are never selected.

    Notes
    -----
    Runs on PyTorch's threads where it is loaded (``torch.set_num_threads``). The set does not depend on their number.

    Returns
    -------
    indices : uint32 array
    values : float32 array

    Raises
    ------
    InvalidError
        x is of another type or not contiguous, or an entry is not finite.

    Examples
    --------
    >>> import numpy, gtopk
    >>> gtopk.select(numpy.array([1, -5, 0, 3], dtype=numpy.float32), 2)
    (array([1, 3], dtype=uint32), array([-5.,  3.], dtype=float32))
    """
    x, device = _taken(x)
    address, length, dtype, _ = _tensors.describe(x, "x", device=device)
    if dtype != _c_api.F32:
        raise InvalidError(f"x is {_tensors.dtype_name(x)}, but select takes float32: convert it")
    count = _count(k)
    out = _Set.new(_tensors.kind_of(x, "x"), min(count, length), device)
    library, found = _c_api.library(), ctypes.byref(out.raw)
    if device.is_gpu:
        _c_api.check(library.gtopk_select_on(device.name.encode(), address, length, count, found, device.stream()))
    else:
        _c_api.check(library.gtopk_select_parallel(address, length, count, found, _threads.parallel_for(), None))
    return out.arrays()


def merge(a: tuple[TensorLike, TensorLike], b: tuple[TensorLike, TensorLike], k: int) -> tuple[TensorLike, TensorLike]:
    """The k largest entries of the sum of two sets. Entries that add up to zero leave it.

    Raises
    ------
    InvalidError
        a or b is no set, or a sum overflows.

    Examples
    --------
    >>> import numpy, gtopk
    >>> a = gtopk.select(numpy.array([1, 2, 0], dtype=numpy.float32), 2)
    >>> b = gtopk.select(numpy.array([0, 2, 3], dtype=numpy.float32), 2)
    >>> gtopk.merge(a, b, 2)
    (array([1, 2], dtype=uint32), array([4., 3.], dtype=float32))
    """
    left = _Set.of(a, "a")
    right = _Set.of(b, "b", left.device)
    count = _count(k)
    out = _Set.new(left.kind, min(count, left.raw.count + right.raw.count), left.device)
    library, sets = _c_api.library(), (ctypes.byref(left.raw), ctypes.byref(right.raw), count, ctypes.byref(out.raw))
    if left.device.is_gpu:
        _c_api.check(library.gtopk_merge_on(left.device.name.encode(), *sets, left.device.stream()))
    else:
        _c_api.check(library.gtopk_merge(*sets))
    return out.arrays()


def encode(indices: TensorLike, values: TensorLike, dim: int, value_type: str = "bf16") -> bytes:
    """The message that a set travels as.

    Parameters
    ----------
    indices, values
        A set; indices are below `dim`.
    dim : int
        Entries of the dense vector.
    value_type : {"bf16", "fp16", "int8", "fp32"}
        Values are rounded to it. An entry whose value rounds to zero leaves the set.

    Examples
    --------
    >>> import numpy, gtopk
    >>> indices, values = gtopk.select(numpy.array([1, -5, 0, 3], dtype=numpy.float32), 2)
    >>> message = gtopk.encode(indices, values, 4)
    >>> gtopk.decode(message)
    (array([1, 3], dtype=uint32), array([-5.,  3.], dtype=float32), 4)
    """
    code = _c_api.VALUE_TYPES.get(value_type)
    if code is None:
        raise InvalidError(f"value_type is {value_type!r}, but must be one of {', '.join(_c_api.VALUE_TYPES)}")
    source = _Set.of((_tensors.host_contiguous(_taken(indices)[0], "indices"), _host(values)), "the set", HOST)
    entries = _count(dim, "dim")
    library = _c_api.library()
    size = ctypes.c_size_t(library.gtopk_encode_bound(entries, source.raw.count, code))
    message = ctypes.create_string_buffer(max(1, size.value))
    _c_api.check(library.gtopk_encode(ctypes.byref(source.raw), entries, code, message, ctypes.byref(size)))
    return message.raw[: size.value]


def decode(
    message: bytes | bytearray | memoryview, *, kind: _tensors.Kind = "numpy"
) -> tuple[TensorLike, TensorLike, int]:
    """The set that a message holds: (indices, values, dim).

    Parameters
    ----------
    message : bytes-like
        Any bytes may be given: they are decoded to a valid set or refused.
    kind : {"numpy", "torch"}
        Whose arrays to make.

    Raises
    ------
    CorruptError
        The message is malformed; the text says in which way.
    """
    if kind not in ("numpy", "torch"):
        raise InvalidError(f'kind is {kind!r}, but must be "numpy" or "torch"')
    try:
        data = bytes(memoryview(message))
    except TypeError:
        raise InvalidError(f"message is a {type(message).__name__}, but must be bytes") from None
    library = _c_api.library()
    dim, count = ctypes.c_uint64(), ctypes.c_uint64()
    _c_api.check(library.gtopk_decode_header(data, len(data), ctypes.byref(dim), ctypes.byref(count)))
    out = _Set.new(kind, count.value)
    _c_api.check(library.gtopk_decode(data, len(data), ctypes.byref(out.raw), ctypes.byref(dim)))
    return (*out.arrays(), dim.value)


class _Set:
    """A gtopk_set_t together with the arrays that it points into."""

    def __init__(
        self, indices: TensorLike, values: TensorLike, capacity: int, count: int, device: Device = HOST
    ) -> None:
        self._indices, self._values, self.device = indices, values, device
        self.kind = _tensors.kind_of(values, "values")
        self.raw = _c_api.Set(_tensors.pointer(indices), _tensors.pointer(values), capacity, count)

    @classmethod
    def new(cls, kind: _tensors.Kind, capacity: int, device: Device = HOST) -> _Set:
        indices = _tensors.empty(kind, capacity, "uint32", device.place)
        return cls(indices, _tensors.empty(kind, capacity, "float32", device.place), capacity, 0, device)

    @classmethod
    def of(cls, pair: tuple[TensorLike, TensorLike], what: str, device: Device | None = None) -> _Set:
        """`device` None: where its values are."""
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidError(f"{what} must be a pair (indices, values)")
        (indices, _), (values, found) = map(_taken, pair)
        device = found if device is None else device
        _, count, dtype, _ = _tensors.describe(values, f"values of {what}", device=device)
        if dtype != _c_api.F32:
            raise InvalidError(f"values of {what} are {_tensors.dtype_name(values)}, but must be float32: convert them")
        indices = _tensors.as_indices(indices, f"indices of {what}")
        if device.is_gpu:
            indices = indices.to(device.place)
        if _tensors.byte_length(indices) != 4 * count:
            raise InvalidError(f"{what} has {_tensors.byte_length(indices) // 4} indices, but {count} values")
        return cls(indices, values, count, count, device)

    def arrays(self) -> tuple[TensorLike, TensorLike]:
        count = self.raw.count
        return self._indices[:count], self._values[:count]


def _taken(x: TensorLike) -> tuple[TensorLike, Device]:
    """The array and where it lies; that of another package on a GPU as a tensor on the same memory."""
    torch = sys.modules.get("torch")
    if torch is not None and not _tensors.is_torch(x) and not _tensors.is_numpy(x):
        if hasattr(x, "__cuda_array_interface__"):
            x = torch.as_tensor(x, device="cuda")
        elif hasattr(x, "__dlpack__"):
            x = torch.from_dlpack(x)
    if _tensors.is_torch(x) and x.is_cuda:
        return x, _devices.of_name(str(x.device))
    return x, HOST


def _host(x: TensorLike) -> TensorLike:
    x, device = _taken(x)
    return x.detach().to("cpu") if device.is_gpu else x


def _count(value: int, what: str = "k") -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidError(f"{what} is {value!r}, but must be an integer") from None
    if not 0 <= number < 1 << 64:
        raise InvalidError(f"{what} is {number}, but must not be negative")
    return number
