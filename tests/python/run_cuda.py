"""The tests with tensors on GPUs where there is no pytest: python3 tests/python/run_cuda.py [one|ranks]

`one`: what one process does, on PyTorch's own GPU tensors where it finds a GPU, else on the stand-in. `ranks`: two ranks on one
host, by mpirun where the MPI module is there, and by torchrun. Both by default. A line for each; the exit status is 1 when
something failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = Path(os.environ.get("GTOPK_BUILD", ROOT / "build")).resolve()
LIMIT = int(os.environ.get("GTOPK_TEST_LIMIT", "240"))  # seconds for a launch of ranks
sys.path[:0] = [str(ROOT / "python"), str(HERE)]
os.environ.setdefault("GTOPK_LIBRARY", str(BUILD / "libgtopk.so"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])])


def say(passed, what, begin, error=""):
    print(f"{'passed' if passed else 'FAILED'} {what} ({time.monotonic() - begin:.1f} s){error}", flush=True)
    return passed


# ---- one process ----


def one_process():
    """Every case of cuda_one_process."""
    import cuda_one_process
    import torch_cuda

    import gtopk

    torch_cuda.install()
    good = True
    for name, case in list(vars(cuda_one_process).items()):
        if name.startswith("case_"):
            begin = time.monotonic()
            gtopk.init(transport="self")
            try:
                case()
                good &= say(True, name, begin)
            except Exception:
                good &= say(False, name, begin, "\n" + traceback.format_exc())
            gtopk.shutdown()
    return good


# ---- two ranks ----


def launches():
    """What is started, and with what environment."""
    harness = str(ROOT / "tests/distributed/harness.py")
    both = ["cases_cuda", "cases_torch_session", "cases_torch_optimizer", "cases_torch_amp"]
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mpirun = os.environ.get("GTOPK_MPIRUN") or shutil.which("mpirun", path=places)
    if mpirun and (BUILD / "libgtopk_mpi.so").is_file():
        command = [mpirun, "--oversubscribe", "--bind-to", "none", "-np", "2", sys.executable, harness, *both]
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
        yield "two ranks by mpirun", command, root
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", harness]
    yield "two ranks by torchrun", [*command, *both, "cases_cuda_ddp"], {"GTOPK_TEST_KIND": "torch"}


def ranks():
    good = True
    for what, command, environment in launches():
        begin = time.monotonic()
        everything = {**os.environ, "GTOPK_TEST_DEVICE": "cuda", "OMP_NUM_THREADS": "1", **environment}
        with tempfile.TemporaryFile("w+") as output:
            try:
                status = subprocess.run(command, env=everything, stdout=output, stderr=output, timeout=LIMIT).returncode
            except subprocess.TimeoutExpired:
                status = "no end within the limit"
            output.seek(0)
            text = output.read()
        passed = status == 0 and "cases passed on 2 ranks" in text
        good &= say(passed, what, begin, "" if passed else f"\nstatus {status}\n{text[-6000:]}")
    return good


if __name__ == "__main__":
    parts = sys.argv[1:] or ["one", "ranks"]
    results = [{"one": one_process, "ranks": ranks}[part]() for part in parts]
    sys.exit(0 if all(results) else 1)
