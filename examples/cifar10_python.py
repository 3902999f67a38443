"""Reads CIFAR-10's Python version (cifar-10-batches-py), which other programs download: pickles of a NumPy array.

A pickle can run any code. This reader lets it make NumPy arrays and nothing else.
"""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TEST", "TRAIN", "is_cifar10_python", "read"]

TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
TEST = ["test_batch"]

_reconstruct = np.zeros(0).__reduce__()[0]  # where NumPy keeps it depends on its version
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes where Python 2 has to read them
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from None


def is_cifar10_python(folder: Path) -> bool:
    return all((folder / name).is_file() for name in TRAIN + TEST)


def read(file: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images (count, 3, 32, 32) and labels (count,). Raises ValueError when the file is anything else."""
    try:
        with file.open("rb") as stream:
            content = _ArraysOnly(stream, encoding="latin1").load()
        images, labels = content["data"], np.asarray(content["labels"], np.uint8)
        return images.reshape(len(labels), 3, 32, 32), labels
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file} is no batch of CIFAR-10 ({error})") from error
