"""gtopk: sparse gradient exchange for data-parallel training over slow networks.

Three lines change in a training script::

    import gtopk
    gtopk.init()
    optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

Everything is loaded when it is first used: importing the package imports neither numpy nor torch, and the C library is
opened by the first call that needs it.
"""

from __future__ import annotations

import importlib

from ._version import __version__

TYPE_CHECKING = False  # true for type checkers; typing itself takes longer to import than this package
if TYPE_CHECKING:
    from typing import Any

    from .blocks import *
    from .comm import *
    from .costs import *
    from .errors import *
    from .reducer import *
    from .step_stats import *
    from .torch import *

# Where each public name lives: the modules' own __all__, known without importing them.
_EXPORTS = {
    "blocks": ("decode", "encode", "merge", "select"),
    "comm": (
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
    ),
    "costs": ("Costs",),
    "errors": (
        "AbortedError",
        "CorruptError",
        "DeadlineError",
        "DesyncError",
        "DeviceError",
        "GtopkError",
        "InternalError",
        "InterruptError",
        "InvalidError",
        "MismatchError",
        "NotFoundError",
        "OutOfMemoryError",
        "StateError",
        "TransportError",
        "UnsupportedError",
    ),
    "reducer": ("Reducer", "reduce_together"),
    "step_stats": ("stats",),
    "torch": ("DistributedOptimizer", "allreduce_buffers", "broadcast_optimizer_state", "broadcast_parameters"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_SUBMODULES = ("blocks", "comm", "costs", "elastic", "errors", "horovod", "reducer", "torch")

__all__: list[str] = ["__version__"]
__all__.extend(sorted(_HOME))


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
