"""Every ctypes declaration of gtopk.h, and nothing else that ctypes could be needed for to call the library.

The order is the header's. `library()` loads on first use; `check()` turns a status into an exception.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Mapping
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

from . import _lib, _signals, errors

# Names as Python gives them, codes as gtopk.h does.
ALGORITHMS = {"dense": 0, "topk": 1, "gtopk": 2, "gtopk-tree": 3, "gtopk-split": 4}
AUTO = {"auto": 100}  # the choice among these is the library's
VALUE_TYPES = {"fp32": 0, "fp16": 1, "bf16": 2, "int8": 3}
RESIDUAL_POLICIES = {"share": 0, "paper": 1}
RESIDUAL_DTYPES = {"fp32": 0, "bf16": 2}
HIERARCHIES = {"off": 0, "node": 1, "auto": 2}


def code(table: Mapping[str, int], name: str, what: str) -> int:
    """The code of a name in one of these tables."""
    found = table.get(name) if isinstance(name, str) else None
    if found is None:
        raise errors.InvalidError(f"{what} is {name!r}, but must be one of {', '.join(table)}")
    return found


F32, F16, BF16, F64 = 0, 1, 2, 3
ZERO_INPUT, FOUND_INF, OUTPUT_IS_ZERO, JOINED, INPUT_STAYS = 1, 2, 4, 8, 16
LOG_ERROR, LOG_WARN, LOG_INFO, LOG_TRACE = 0, 1, 2, 3

LogFn = CFUNCTYPE(None, c_void_p, c_int, c_char_p)
ExchangeFn = CFUNCTYPE(c_int, c_void_p, c_int32, c_void_p, c_size_t, c_int32, c_void_p, c_size_t, c_double, c_void_p)
AllreduceFn = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, c_double, c_void_p)
AbortFn = CFUNCTYPE(None, c_void_p)
InterruptFn = CFUNCTYPE(c_int, c_void_p)
AllocateFn = CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_void_p)
ReleaseFn = CFUNCTYPE(None, c_void_p, c_void_p)
ERROR_TEXT_SIZE = 256


class Callbacks(Structure):
    """gtopk_callbacks_t"""

    _fields_ = (
        ("struct_size", c_size_t),
        ("context", c_void_p),
        ("exchange", ExchangeFn),
        ("allreduce", AllreduceFn),
        ("abort", AbortFn),
    )


class CommConfig(Structure):
    """gtopk_comm_config_t"""

    _fields_ = (
        ("struct_size", c_size_t),
        ("transport", c_char_p),
        ("size", c_int32),
        ("rank", c_int32),
        ("timeout", c_double),
        ("warn_after", c_double),
        ("mpi_module", c_char_p),
        ("mpi_comm", c_void_p),
        ("group", c_void_p),
        ("callbacks", POINTER(Callbacks)),
        ("interrupt", InterruptFn),
        ("interrupt_context", c_void_p),
        ("node", c_char_p),
        ("data", c_char_p),
        ("data_library", c_char_p),
        ("peers", c_void_p),
        ("survivors_of", c_void_p),
        ("setup_timeout", c_double),
    )


class Tensor(Structure):
    """gtopk_tensor_t"""

    _fields_ = (("data", c_void_p), ("length", c_uint64), ("dtype", c_int32), ("reserved", c_int32))


class Allocator(Structure):
    """gtopk_allocator_t"""

    _fields_ = (("struct_size", c_size_t), ("context", c_void_p), ("allocate", AllocateFn), ("release", ReleaseFn))


class ReducerConfig(Structure):
    """gtopk_reducer_config_t"""

    _fields_ = (
        ("struct_size", c_size_t),
        ("device", c_char_p),
        ("density", c_double),
        ("algorithm", c_int32),
        ("value_type", c_int32),
        ("residual_policy", c_int32),
        ("momentum_correction", c_int32),
        ("merge_growth", c_double),
        ("parallel_for", c_void_p),
        ("parallel_context", c_void_p),
        ("rollback", c_int32),
        ("hierarchy", c_int32),
        ("allocator", POINTER(Allocator)),
        ("stream", c_void_p),
        ("residual_dtype", c_int32),
        ("reserved", c_int32),
        ("steps_before", c_uint64),
    )


class Stats(Structure):
    """gtopk_stats_t"""

    _fields_ = (
        ("struct_size", c_size_t),
        ("step", c_uint64),
        ("k", c_uint64),
        ("selected", c_uint64),
        ("count", c_uint64),
        ("bytes_sent", c_uint64),
        ("bytes_received", c_uint64),
        ("candidates", c_uint64),
        ("hint_misses", c_uint64),
        ("rounds", c_uint32),
        ("nonfinite", c_int32),
        ("all_joined", c_int32),
        ("slowest_peer", c_int32),
        ("accumulate_s", c_double),
        ("select_s", c_double),
        ("exchange_s", c_double),
        ("commit_s", c_double),
        ("wait_s", c_double),
        ("network_bytes_sent", c_uint64),
    )


class HierarchyInfo(Structure):
    """gtopk_hierarchy_info_t"""

    _fields_ = (
        ("struct_size", c_size_t),
        ("hierarchy", c_int32),
        ("nodes", c_int32),
        ("begin", c_uint64),
        ("end", c_uint64),
        ("off_s", c_double),
        ("node_s", c_double),
    )


class Costs(Structure):
    """gtopk_costs_t"""

    _fields_ = (
        ("struct_size", c_size_t),
        ("message_s", c_double),
        ("byte_s", c_double),
        ("near_message_s", c_double),
        ("near_byte_s", c_double),
        ("sum_message_s", c_double),
        ("sum_byte_s", c_double),
        ("accumulate_s", c_double),
        ("select_s", c_double),
        ("merge_s", c_double),
        ("dense_s", c_double),
        ("each_node", c_int32),
        ("gathers", c_int32),
    )


CHOICES = 8


class ChoiceInfo(Structure):
    """gtopk_choice_info_t"""

    _fields_ = (
        ("struct_size", c_size_t),
        ("algorithm", c_int32),
        ("is_auto", c_int32),
        ("predicted_s", c_double * CHOICES),
        ("measured_s", c_double * CHOICES),
    )


class Set(Structure):
    """gtopk_set_t"""

    _fields_ = (("indices", c_void_p), ("values", c_void_p), ("capacity", c_uint64), ("count", c_uint64))


class StateInfo(Structure):
    """gtopk_state_info_t"""

    _fields_ = (
        ("struct_size", c_size_t),
        ("dim", c_uint64),
        ("segments", c_uint64),
        ("step", c_uint64),
        ("run", c_uint64),
        ("rank", c_int32),
        ("size", c_int32),
        ("has_velocity", c_int32),
        ("reserved", c_int32),
    )


# name: (result, arguments). Handles, buffers and arrays are c_void_p, which takes an address as a plain int.
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "gtopk_status_name": (c_char_p, (c_int,)),
    "gtopk_status_text": (c_char_p, (c_int,)),
    "gtopk_last_error": (c_char_p, ()),
    "gtopk_version": (c_int, ()),
    "gtopk_build_info": (c_char_p, ()),
    "gtopk_device_describe": (c_int, (c_char_p, c_void_p, c_size_t)),
    "gtopk_set_log": (None, (LogFn, c_void_p, c_int)),
    "gtopk_finalize": (c_int, ()),
    "gtopk_finalize_at_exit": (c_int, ()),
    "gtopk_comm_create": (c_int, (POINTER(c_void_p), POINTER(CommConfig))),
    "gtopk_comm_destroy": (None, (c_void_p,)),
    "gtopk_comm_rank": (c_int32, (c_void_p,)),
    "gtopk_comm_size": (c_int32, (c_void_p,)),
    "gtopk_comm_local_rank": (c_int32, (c_void_p,)),
    "gtopk_comm_describe": (c_char_p, (c_void_p,)),
    "gtopk_comm_abort": (c_int, (c_void_p, c_char_p)),
    "gtopk_comm_survives": (c_int32, (c_void_p,)),
    "gtopk_broadcast": (c_int, (c_void_p, c_void_p, c_size_t, c_int32)),
    "gtopk_allgather": (c_int, (c_void_p, c_void_p, c_size_t, c_void_p)),
    "gtopk_allreduce": (c_int, (c_void_p, c_void_p, c_size_t, c_int32)),
    "gtopk_barrier": (c_int, (c_void_p,)),
    "gtopk_reducer_create": (c_int, (POINTER(c_void_p), c_void_p, POINTER(ReducerConfig), c_void_p, c_size_t)),
    "gtopk_reducer_destroy": (None, (c_void_p,)),
    "gtopk_reducer_accumulate": (
        c_int,
        (c_void_p, c_void_p, c_void_p, c_size_t, c_double, c_uint32, c_void_p),
    ),
    "gtopk_reducer_reduce": (c_int, (c_void_p, c_void_p, c_size_t, c_uint32, c_void_p, POINTER(Stats))),
    "gtopk_reducer_reduce_sparse": (c_int, (c_void_p, POINTER(Set), c_uint32, c_void_p, POINTER(Stats))),
    "gtopk_reducers_reduce": (c_int, (c_void_p, c_void_p, c_void_p, c_size_t, c_uint32, c_void_p, c_void_p)),
    "gtopk_reducer_cancel": (c_int, (c_void_p,)),
    "gtopk_reducer_wait": (c_int, (c_void_p, POINTER(Stats))),
    "gtopk_reducer_max_count": (c_uint64, (c_void_p,)),
    "gtopk_reducer_dim": (c_uint64, (c_void_p,)),
    "gtopk_reducer_hierarchy": (c_int, (c_void_p, POINTER(HierarchyInfo))),
    "gtopk_reducer_device": (c_char_p, (c_void_p,)),
    "gtopk_reducer_set_density": (c_int, (c_void_p, c_double)),
    "gtopk_reducer_set_algorithm": (c_int, (c_void_p, c_int32)),
    "gtopk_comm_measure": (c_int, (c_void_p, POINTER(ReducerConfig), POINTER(Costs))),
    "gtopk_predict": (c_int, (POINTER(Costs), POINTER(ReducerConfig), c_uint64, c_int32, POINTER(c_double))),
    "gtopk_reducer_choice": (c_int, (c_void_p, POINTER(ChoiceInfo))),
    "gtopk_reducer_set_momentum": (c_int, (c_void_p, c_double, c_int)),
    "gtopk_reducer_state_size": (c_size_t, (c_void_p,)),
    "gtopk_reducer_state_save": (c_int, (c_void_p, c_void_p, c_size_t)),
    "gtopk_reducer_state_consolidate": (c_int, (c_void_p, c_void_p, c_size_t, c_int32)),
    "gtopk_state_inspect": (c_int, (c_void_p, c_size_t, POINTER(StateInfo))),
    "gtopk_reducer_state_load": (c_int, (c_void_p, c_void_p, c_size_t)),
    "gtopk_reducer_state_adopt": (c_int, (c_void_p, c_void_p, c_size_t)),
    "gtopk_reducer_residual": (c_int, (c_void_p, c_uint32, c_void_p, c_uint64)),
    "gtopk_reducer_set_residual": (c_int, (c_void_p, c_uint32, c_void_p, c_uint64)),
    "gtopk_reducer_velocity": (c_int, (c_void_p, c_uint32, c_void_p, c_uint64)),
    "gtopk_reducer_set_velocity": (c_int, (c_void_p, c_uint32, c_void_p, c_uint64)),
    "gtopk_reducer_residual_norm": (c_int, (c_void_p, POINTER(c_double))),
    "gtopk_select": (c_int, (c_void_p, c_uint64, c_uint64, POINTER(Set))),
    "gtopk_select_parallel": (c_int, (c_void_p, c_uint64, c_uint64, POINTER(Set), c_void_p, c_void_p)),
    "gtopk_merge": (c_int, (POINTER(Set), POINTER(Set), c_uint64, POINTER(Set))),
    "gtopk_select_on": (c_int, (c_char_p, c_void_p, c_uint64, c_uint64, POINTER(Set), c_void_p)),
    "gtopk_merge_on": (c_int, (c_char_p, POINTER(Set), POINTER(Set), c_uint64, POINTER(Set), c_void_p)),
    "gtopk_encode_bound": (c_size_t, (c_uint64, c_uint64, c_int32)),
    "gtopk_encode": (c_int, (POINTER(Set), c_uint64, c_int32, c_void_p, POINTER(c_size_t))),
    "gtopk_decode_header": (c_int, (c_void_p, c_size_t, POINTER(c_uint64), POINTER(c_uint64))),
    "gtopk_decode": (c_int, (c_void_p, c_size_t, POINTER(Set), POINTER(c_uint64))),
    "gtopk_thread_group_create": (c_int, (POINTER(c_void_p), c_int32, c_uint32)),
    "gtopk_thread_group_destroy": (None, (c_void_p,)),
    "gtopk_torch_register": (c_int, ()),
    "gtopk_torch_parallel_for": (c_void_p, ()),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library with all its functions declared."""
    loaded = _lib.load()
    for name, (result, arguments) in FUNCTIONS.items():
        try:
            function = getattr(loaded, name)
        except AttributeError:
            raise errors.NotFoundError(
                f"{loaded._name} has no function {name}: build or install gtopk again, so that library and Python "
                "package come from one source"
            ) from None
        function.restype = result
        function.argtypes = arguments
    _route_log(loaded)
    return loaded


def check(status: int) -> None:
    """Raises the exception of a failed call of this thread, or what a signal's handler raised in the meantime."""
    if _signals.pending():
        _signals.raise_again()
    if status != 0:
        text: bytes | None = library().gtopk_last_error()
        raise errors.from_status(status, (text or b"").decode("utf-8", "replace") or describe_status(status))


def describe_status(status: int) -> str:
    """Name and meaning of a status code."""
    name, text = library().gtopk_status_name(status), library().gtopk_status_text(status)
    return f"{name.decode()}: {text.decode()}"


_logger = logging.getLogger("gtopk")
_LEVELS = {LOG_ERROR: logging.ERROR, LOG_WARN: logging.WARNING, LOG_INFO: logging.INFO, LOG_TRACE: logging.DEBUG}


def _log(level: int, text: bytes) -> None:
    _logger.log(_LEVELS.get(level, logging.DEBUG), "%s", text.decode("utf-8", "replace"))


_log_fn = LogFn(_signals.shield_log(_log))


def _route_log(loaded: ctypes.CDLL) -> None:
    """Sends the library's warnings to `logging`. With GTOPK_DEBUG set the library writes to stderr by itself, so that
    its lines show without any set-up of logging."""
    if not os.environ.get("GTOPK_DEBUG"):
        loaded.gtopk_set_log(_log_fn, None, LOG_WARN)


def silence_log() -> None:
    """Back to stderr: Python is about to end, and the library's threads must not call into it any more."""
    if library.cache_info().currsize:
        library().gtopk_set_log(LogFn(), None, LOG_WARN)
