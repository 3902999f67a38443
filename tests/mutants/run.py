"""Breaks the library in named ways (mutants.py) and says which test notices: make test-mutants.

Works on a copy of the tree. The tests in C run on the scalar kernels, which are the ones that are broken, and with few
ranks; those in Python with the library of the copy, first in one process. The first one that fails has caught the mutant.
Exit status 1 when a mutant survives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
# In this order, since the first ones are fast and catch most. After the program: the device and the transport.
TESTS = [
    "property/test_exchange",
    "property/test_split",
    "property/test_nodes",
    "unit/test_nodes_reducer",
    "unit/test_rollback",
    "unit/test_residual_bf16",
    "unit/test_cost",
    "unit/test_choice",
    "property/test_cpu_large",
    "unit/test_reducer",
    "unit/test_reducer_ranks",
    "unit/test_reducers_together",
    "unit/test_peers",
    "unit/test_collectives",
    "unit/test_link",
    "unit/test_survivors",
    "unit/test_state",
    "unit/test_schedule",
    "unit/test_wire",
    "unit/test_wire_indices",
    "unit/test_wire_convert",
    "unit/test_message",
    "unit/test_device_reference",
    "unit/test_device_reference_message",
    "property/test_device",
    "unit/test_transport",
    "faults/test_faults",
    "faults/test_memory",
    "unit/test_reducer guarded thread",
    "property/test_exchange guarded thread",
    "property/test_exchange guarded ordered",
    "unit/test_reducer_ranks guarded ordered",
    "faults/test_queue guarded thread",
    "faults/test_queue guarded ordered",
    "faults/test_faults guarded ordered",
    "unit/test_cuda_driver",
]
# For what is about NCCL: these notice first.
NCCL_TESTS = ["unit/test_wire", "property/test_device", "faults/test_nccl", "faults/test_nccl_processes"]
# For the kernels, which these have compiled as C: the library needs no others then.
KERNEL_TESTS = ["unit/test_cuda_nodes", "unit/test_cuda_kernels", "unit/test_cuda_races", "property/test_cuda"]
# The same for mutants of the Python package: arguments of pytest.
PYTHON_TESTS = [
    "test_torch_session.py",
    "test_torch_local.py",
    "test_torch_wrapping.py",
    "test_torch_optimizer.py",
    "test_torch_rebuild.py",
    "test_torch_checkpoint.py",
    "test_torch_momentum.py",
    "test_torch_ddp.py",
    "test_torch_distributed.py::test_mpirun[2]",
    "test_torch_distributed.py::test_checkpoints_in_new_processes[3-2]",
    "test_torch_distributed.py::test_torchrun[2]",
    "test_torch_fsdp.py::test_training_and_checkpoints_on_as_many_nodes_and_shards",
    "test_torch_fsdp.py::test_sharded_checkpoints_on_other_nodes_and_shards",
    "test_cuda_reducer.py",
    "test_cuda_ranks.py::test_mpirun",
    "test_cuda_ranks.py::test_torchrun",
]
# For what comes after the loss of a rank.
LOSS_TESTS = ["test_roll_call.py", "test_elastic.py::test_three_go_on"]
MPI_LOSS_TESTS = ["test_elastic.py::test_mpi_goes_on_without_ranks_that_are_lost"]
EXAMPLE_TESTS = ["test_examples.py::test_runs_are_compared_up_to_a_step_that_both_have_done", "test_workloads.py"]
# What stands in for a GPU; the tests in Python take it as it was built, with the kernels that are not broken.
STANDIN = ("libcuda_standin.so", "libtorch_cuda_standin.so")
LIMIT = 1500  # seconds: what hangs ends by deadlines of its own, and a mutant that is late is not one that was noticed
ENVIRONMENT = {"GTOPK_ISA": "scalar", "GTOPK_TEST_SIZES": "6", "GTOPK_TEST_CYCLES": "20"}


def copy_tree(to: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in names.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


def build(tree: Path, cache: str, target: str, *settings: str) -> None:
    done = subprocess.run(
        ["make", "-j2", f"CACHE={cache}", "CFLAGS=-O1", "BUILD=build", *settings, target],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"{target} does not build:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def run(tree: Path, command: list[str], environment: dict[str, str], limit: int) -> str | None:
    """What the test said when it failed; None when it passed."""
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return "ran into the time limit"
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line or "FAILED" in line]
    return (lines or [f"status {done.returncode}"])[0].strip()[:200]


def run_c(tree: Path, cache: str, test: str) -> str | None:
    program, *where = test.split()
    build(tree, cache, f"build/tests/{program}", *(["CUDA=0"] if test in KERNEL_TESTS else []))
    settings = dict(zip(("GTOPK_DEVICE", "GTOPK_TEST_TRANSPORT"), where, strict=False))
    return run(tree, [f"build/tests/{program}"], {**ENVIRONMENT, **settings}, LIMIT)


def run_python(tree: Path, cache: str, test: str) -> str | None:
    build(tree, cache, "lib")
    build(tree, cache, "module")
    environment = {
        "GTOPK_BUILD": str(tree / "build"),
        "GTOPK_LIBRARY": str(tree / "build" / "libgtopk.so"),
        "GTOPK_MPI_MODULE": str(tree / "build" / "libgtopk_mpi.so"),
        "PYTHONPATH": str(tree / "python"),
        "PYTHONDONTWRITEBYTECODE": "1",  # two mutants of one second and one length have the same bytecode's name
    }
    return run(tree, [sys.executable, "-m", "pytest", "-x", "-q", f"tests/python/{test}"], environment, LIMIT)


def is_python(mutant: Mutant) -> bool:
    """Whether tests in Python are to notice."""
    return mutant.file.endswith(".py") or is_of_mpi_losses(mutant)


def is_of_mpi_losses(mutant: Mutant) -> bool:
    return mutant.name.startswith("over MPI: ")


def is_of_losses(mutant: Mutant) -> bool:
    return mutant.name.startswith("loss: ")


def is_of_nccl(mutant: Mutant) -> bool:
    return "nccl" in mutant.file or "data.c" in mutant.file or "NCCL" in mutant.name


def is_of_kernels(mutant: Mutant) -> bool:
    return mutant.name.startswith("bf16 on a GPU: ") or mutant.file.endswith(
        (".cu", "cuda/launch.c", "cuda/launch_spans.c", "cuda/keys.h", "cuda/sets.h")
    )


def tests_for(mutants: list[Mutant]) -> list[str]:
    """Of mutants that are all in Python, or none of them."""
    if all(is_of_mpi_losses(mutant) for mutant in mutants):
        return MPI_LOSS_TESTS
    if all(is_of_losses(mutant) for mutant in mutants):
        return LOSS_TESTS
    if is_python(mutants[0]):
        return EXAMPLE_TESTS if all(mutant.file.startswith("examples/") for mutant in mutants) else PYTHON_TESTS
    if all(is_of_kernels(mutant) for mutant in mutants):
        return KERNEL_TESTS
    return NCCL_TESTS if all(is_of_nccl(mutant) for mutant in mutants) else TESTS


def caught_by(tree: Path, cache: str, mutants: list[Mutant]) -> tuple[str, str] | None:
    for test in tests_for(mutants):
        said = (run_python if is_python(mutants[0]) else run_c)(tree, cache, test)
        if said is not None:
            return test, said
    return None


def misfits() -> list[str]:
    """Mutants whose text does not stand once in their file of this tree."""
    counts = [(mutant, (ROOT / mutant.file).read_text().count(mutant.old)) for mutant in MUTANTS]
    return [
        f"'{mutant.name}' stands {count} times in {mutant.file}: mend mutants.py"
        for mutant, count in counts
        if count != 1
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", default=str(ROOT / ".cache"), help="where cmocka was unpacked")
    parser.add_argument("--json", type=Path, help="write the list here")
    parser.add_argument("--only", help="mutants whose name or file contains this")
    parser.add_argument("--check", action="store_true", help="only see that every mutant applies")
    options = parser.parse_args()
    if misfits():
        raise SystemExit("\n".join(misfits()))
    if options.check:
        return 0
    chosen = [mutant for mutant in MUTANTS if not options.only or options.only in f"{mutant.name} {mutant.file}"]
    results, survivors = [], []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        (tree / "build").mkdir(exist_ok=True)
        for name in STANDIN:
            if (ROOT / "build" / name).is_file():
                shutil.copy(ROOT / "build" / name, tree / "build")
        for in_python in sorted({is_python(mutant) for mutant in chosen}):
            whole = caught_by(tree, options.cache, [mutant for mutant in chosen if is_python(mutant) == in_python])
            if whole:
                raise SystemExit(f"a test fails though nothing is broken: {whole}")
        for number, mutant in enumerate(chosen, 1):
            path = tree / mutant.file
            text = path.read_text()
            path.write_text(text.replace(mutant.old, mutant.new))
            caught = caught_by(tree, options.cache, [mutant])
            path.write_text(text)
            os.utime(path)
            test, said = caught or ("", "SURVIVED")
            results.append({"mutant": mutant.name, "file": mutant.file, "caught_by": test, "said": said})
            if not caught:
                survivors.append(mutant.name)
            print(f"{number:3}/{len(chosen)} {mutant.name}: {test or 'SURVIVED'}", flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"mutants": len(results), "survived": survivors, "list": results}, indent=1) + "\n"
        )
    print(f"{len(results) - len(survivors)} of {len(results)} mutants caught; survivors: {survivors or 'none'}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
