"""Threads for the library, which starts none of its own to compute with."""

from __future__ import annotations

import sys

from . import _c_api


def parallel_for() -> int | None:
    """A gtopk_parallel_for_fn on PyTorch's own threads where it is loaded; results do not depend on their number."""
    if "torch" not in sys.modules:
        return None
    found: int | None = _c_api.library().gtopk_torch_parallel_for()
    return found
