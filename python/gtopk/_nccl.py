"""Where NCCL is, and which versions of it there is something to say of. Opens nothing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

_NAME = "libnccl.so.2"
_OLDEST = 21800
# ncclCommAbort is known to hang in these: NVIDIA/nccl issue 992, pytorch/pytorch issue 149153.
_HANGING = (21801, 22501)


def package_file() -> str | None:
    """The libnccl.so.2 that lies beside PyTorch, in the package nvidia-nccl; None: there is none."""
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "lib" / _NAME
        if file.is_file():
            return str(file)
    return None


def files() -> list[str]:
    """Where the library looks, but for what the process has loaded, in order."""
    named = os.environ.get("GTOPK_NCCL_LIBRARY")
    if named:
        return [named]
    found = package_file()
    return [found, _NAME] if found else [_NAME]


def version_text(version: int) -> str:
    """21805 as 2.18.5."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def judge(version: int) -> tuple[bool, str]:
    """Whether gtopk can use this version, and advice where there is any."""
    if version < _OLDEST:
        return False, "too old for gtopk: update PyTorch, or pip install nvidia-nccl-cu12 (2.18 or newer)"
    if version in _HANGING:
        return True, "known to hang when a rank fails: use another version (pip install nvidia-nccl-cu12)"
    return True, ""
