"""A reducer's residual and velocity as a dict that can be saved: the library's bytes, and what they are."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from typing import Any

from . import _c_api, _tensors
from ._communicator import Comm
from ._tensors import TensorLike
from .errors import CorruptError

_log = logging.getLogger("gtopk")

_FORMAT = 1


def save(handle: int, kind: _tensors.Kind) -> dict[str, Any]:
    """`Reducer.state_dict`."""
    data = _room(handle, kind)
    _c_api.check(_c_api.library().gtopk_reducer_state_save(handle, _tensors.pointer(data), _tensors.byte_length(data)))
    return _document(data)


def consolidate(handle: int, kind: _tensors.Kind, rank: int, root: int) -> dict[str, Any] | None:
    """`Reducer.consolidate`, on `rank`."""
    data = _room(handle, kind) if rank == root else None
    address, size = (None, 0) if data is None else (_tensors.pointer(data), _tensors.byte_length(data))
    _c_api.check(_c_api.library().gtopk_reducer_state_consolidate(handle, address, size, root))
    return None if data is None else _document(data)


def load(handle: int, state: Mapping[str, Any], comm: Comm, strict: bool) -> None:
    """`Reducer.load_state_dict`."""
    data = state.get("state") if isinstance(state, Mapping) else None
    if data is None or not (_tensors.is_torch(data) or _tensors.is_numpy(data)):
        raise CorruptError("this is no state of a gtopk.Reducer: it has no array named 'state'")
    if _tensors.dtype_name(data) != "uint8":
        raise CorruptError(f"the array 'state' is {_tensors.dtype_name(data)}, but must be uint8")
    data = _tensors.host_contiguous(data, "state")
    library = _c_api.library()
    info = _inspect(data)
    foreign = info.rank >= 0 and (info.rank, info.size) != (comm.rank, comm.size)
    take = library.gtopk_reducer_state_adopt if foreign and not strict else library.gtopk_reducer_state_load
    _c_api.check(take(handle, _tensors.pointer(data), _tensors.byte_length(data)))
    if foreign:
        _log.warning(
            "the loaded state is that of rank %d of %d, this is rank %d of %d: the residual starts at zero. To "
            "keep it, save every rank's state, or a consolidated one (consolidate, consolidate_state_dict)",
            info.rank,
            info.size,
            comm.rank,
            comm.size,
        )


def _room(handle: int, kind: _tensors.Kind) -> TensorLike:
    return _tensors.empty(kind, int(_c_api.library().gtopk_reducer_state_size(handle)), "uint8")


def _document(data: TensorLike) -> dict[str, Any]:
    info = _inspect(data)
    return {
        "format": _FORMAT,
        "rank": info.rank,
        "size": info.size,
        "step": info.step,
        "run": info.run,
        "dim": info.dim,
        "state": data,
    }


def _inspect(data: TensorLike) -> _c_api.StateInfo:
    info = _c_api.StateInfo(struct_size=ctypes.sizeof(_c_api.StateInfo))
    _c_api.check(
        _c_api.library().gtopk_state_inspect(_tensors.pointer(data), _tensors.byte_length(data), ctypes.byref(info))
    )
    return info
