"""The stand-in for the CUDA driver (tests/support/cuda_standin.h), and how a test controls it. Needs no PyTorch."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

BUILD = Path(os.environ.get("GTOPK_BUILD", Path(__file__).resolve().parents[2] / "build")).resolve()
STANDIN = BUILD / "libcuda_standin.so"


class Control(ctypes.Structure):
    """standin_control_t"""

    _fields_ = (
        ("inject", ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)),
        ("failed", ctypes.CFUNCTYPE(ctypes.c_int)),
        ("lose", ctypes.CFUNCTYPE(None, ctypes.c_int)),
        ("gpu", ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.c_int)),
        ("driver", ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.c_char_p)),
        ("seed", ctypes.CFUNCTYPE(None, ctypes.c_uint64)),
        ("count", ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint64))),
        ("live", ctypes.CFUNCTYPE(ctypes.c_long)),
        ("peek", ctypes.CFUNCTYPE(None, ctypes.c_int)),
        ("enqueue", ctypes.c_void_p),
        ("allocate", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)),
        ("release", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("pass_", ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)),
    )


def controls():
    """Of the library that gtopk takes for the driver when GTOPK_CUDA_DRIVER names it."""
    return Control.in_dll(ctypes.CDLL(str(STANDIN)), "cuda_standin")
