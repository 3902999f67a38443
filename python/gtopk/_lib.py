"""Finds libgtopk.so, loads it and checks its version. Declares nothing: that is `_c_api`'s."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from ._version import __version__
from .errors import NotFoundError

LIBRARY_NAME = "libgtopk.so"
_PACKAGE = Path(__file__).resolve().parent


def source_tree() -> Path | None:
    """Root of the source tree that this package lies in, or None when it is installed."""
    root = _PACKAGE.parent.parent
    return root if (root / "include" / "gtopk.h").is_file() and (root / "csrc").is_dir() else None


def candidates() -> list[Path]:
    """Files that are tried, best first. With GTOPK_LIBRARY set it is the only one."""
    named = os.environ.get("GTOPK_LIBRARY")
    if named:
        return [Path(named)]
    places = [_PACKAGE / LIBRARY_NAME]
    root = source_tree()
    if root is not None:
        places.append(root / "build" / LIBRARY_NAME)
    return places


def find() -> Path:
    """The library's file. `NotFoundError` says where it was looked for."""
    places = candidates()
    for place in places:
        if place.is_file():
            return place.resolve()
    looked = ", ".join(str(place) for place in places)
    if os.environ.get("GTOPK_LIBRARY"):
        raise NotFoundError(f"GTOPK_LIBRARY names {looked}, which is no file: correct it or unset it")
    advice = "run `make build` in the source tree" if source_tree() else "install gtopk again with pip"
    raise NotFoundError(
        f"{LIBRARY_NAME} was not found (looked for {looked}): {advice}, or set GTOPK_LIBRARY to its file"
    )


def load() -> ctypes.CDLL:
    """Loads the library and checks that it belongs to this version of the package."""
    path = find()
    try:
        library = ctypes.CDLL(str(path))
        version = int(library.gtopk_version())
    except (OSError, AttributeError) as error:
        raise NotFoundError(
            f"{path} cannot be used as the gtopk library ({error}): build or install gtopk again on this machine"
        ) from error
    found = (version // 10000, version // 100 % 100)
    if found != tuple(int(part) for part in __version__.split(".")[:2]):
        raise NotFoundError(
            f"{path} is version {found[0]}.{found[1]}.{version % 100}, but this Python package is {__version__}: "
            "build both from one source (`make build`), or unset GTOPK_LIBRARY"
        )
    return library
