"""Checks gtopk on a machine with a GPU, from a tree with `build/gpu` in it (`make gpu-check-build`, made elsewhere).

    python3 scripts/gpu_check.py [--out FOLDER] [--phases bits,bench,...] [--standin]

Needs this Python alone: no compiler, no network; PyTorch, numpy and compute-sanitizer are used where they are there, and said
to be missing where not. Phases, in the order in which their results matter, each with a time limit of its own:

    bits       every kernel against the CPU, bit for bit: random steps, all 16-bit values, many entries, the last indices
    c          tests in C with the GPU as their device: reducers, exchanges, states, faults, memory
    bench      accumulate, select, a merge round, 200 parameters, beside a copy; calls of the driver in a step
    python     tests in Python on CUDA tensors
    ranks      two and four ranks on this GPU, through MPI and through gloo: the CPU's bits on all of them
    nccl       two and four ranks on this GPU, through NCCL: nothing wrong, also on nodes; the host's calls in a step; killed
               ranks; DistributedDataParallel
    torch      the same work by PyTorch's add_, abs, topk and zero_; memory; waits for the GPU in PyTorch's profile
    sanitizer  compute-sanitizer's memcheck, racecheck, initcheck and synccheck on small bits
    training   ResNet-20 and VGG-16, dense beside gtopk

Into FOLDER ($OUT, else build/gpu-check) go, as soon as they are there: results.json, log.txt (all output), bench.json,
torch.json, training.json, nccl_trace.json. Ends with 1 when a check failed. --standin runs on what stands in for a GPU, with
small sizes: a rehearsal. That is also what happens where there is no GPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GPU = ROOT / "build" / "gpu"
PARTS = ROOT / "tests" / "gpu"
TOTAL = 540  # seconds for all phases; a rehearsal may take longer
# Lines that say what went wrong, of any of the programs.
TELLING = re.compile(
    r"\[ +(ERROR|FAILED) +\]|^E  |^FAILED |Error\b|error:|ERROR|differ|\babort|Traceback|assert|not equal|Segmentation|"
    r"hangs|CUDA_ERROR|GTOPK_ERR|=========.*(Invalid|race|Uninit|Barrier|hazard)"
)


class Run:
    """Results and output of all phases."""

    def __init__(self, out: Path, standin: bool) -> None:
        self.out, self.standin = out, standin
        self.begin = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        self.log = (out / "log.txt").open("w", buffering=1)
        self.results: dict = {"command": " ".join(sys.argv), "standin": standin, "machine": {}, "phases": {}}
        self.environment = environment(standin)

    def keep(self) -> None:
        partial = self.out / ".results"
        partial.write_text(json.dumps(self.results, indent=1) + "\n")
        partial.replace(self.out / "results.json")

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.log.write(text + "\n")

    def left(self) -> float:
        return TOTAL * (6 if self.standin else 1) - (time.monotonic() - self.begin)


def environment(standin: bool) -> dict[str, str]:
    """For all that is started: this tree's package and libraries, and no settings of the caller's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GTOPK_", "OMPI_", "PMIX_"))}
    paths = [str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    mpi = GPU / "mpi"
    kept.update(
        PATH=os.pathsep.join([str(mpi / "bin"), os.environ.get("PATH", os.defpath)]),
        PYTHONPATH=os.pathsep.join(paths),
        PYTHONUNBUFFERED="1",
        GTOPK_BUILD=str(GPU),
        GTOPK_LIBRARY=str(GPU / "libgtopk.so"),
        GTOPK_MPI_MODULE=str(GPU / "libgtopk_mpi.so"),
        GTOPK_MPIRUN=str(mpi / "bin" / "mpirun"),
        LD_LIBRARY_PATH=os.pathsep.join(
            [str(mpi / "lib"), str(mpi / "lib" / "openmpi"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        ),
        OPAL_PREFIX=str(mpi),
        PMIX_PREFIX=str(mpi),
        PRTE_PREFIX=str(mpi),
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
        OMP_NUM_THREADS="2",
        GLOO_SOCKET_IFNAME="lo",
    )
    if standin:
        kept.update(
            GTOPK_CUDA_DRIVER=str(GPU / "libcuda_standin.so"), GTOPK_STANDIN_STRICT="1", GTOPK_TEST_DEVICE="cuda"
        )
    return kept


def has_module(name: str) -> bool:
    command = [sys.executable, "-c", f"import {name}"]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0


def end(process: subprocess.Popen[bytes]) -> bytes:
    """Lets it end what it has started, then kills its group. Returns its output."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)[0]
    return b"(its output stayed open)"


def run(check: Run, name: str, command: list[str], limit: float, **environment: str) -> dict:
    """Status, seconds, and of a failure the lines that tell. The whole group ends at the limit."""
    limit = max(1.0, min(limit, check.left()))
    begin = time.monotonic()
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env={**check.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return {"name": name, "status": "failed", "seconds": 0.0, "text": str(error)}
    try:
        output, _ = process.communicate(timeout=limit)
        status = "passed" if process.returncode == 0 else f"failed (status {process.returncode})"
    except subprocess.TimeoutExpired:
        output = end(process)
        status = f"failed (cut after {limit:.0f} s)"
    text = output.decode(errors="replace")
    if status == "passed" and text.startswith("skipped: "):
        return missing(text.splitlines()[0].removeprefix("skipped: "))
    result = {"name": name, "status": status, "seconds": round(time.monotonic() - begin, 2)}
    check.log.write(f"\n==== {name}: {status}, {result['seconds']} s: {' '.join(map(str, command))}\n{text}\n")
    if status != "passed":
        lines = [line.rstrip()[:400] for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if TELLING.search(line)][:8]
        result["text"] = "\n".join(dict.fromkeys([*telling, "...", *lines[-6:]]))
    result["output"] = text
    return result


def together(check: Run, items: list[dict], at_once: int) -> list[dict]:
    """Runs several programs, some at once; reports each when it ends."""
    done = []
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(run, check, **item) for item in items]
        for future in concurrent.futures.as_completed(running):
            done.append(future.result())
            report(check, done[-1])
    return done


def report(check: Run, result: dict) -> None:
    check.say(f"  {result['name']}: {result['status']} ({result['seconds']} s)")
    if "text" in result:
        check.say("    " + result["text"].replace("\n", "\n    "))


# ---- phases: each gives a list of results, and may keep more ----


def phase_bits(check: Run, limit: float) -> list[dict]:
    small = {"GTOPK_TEST_RUNS": "5", "GTOPK_TEST_LARGE": "60000", "GTOPK_TEST_FAR": "0"} if check.standin else {}
    return together(check, [{"name": "bits", "command": [GPU / "bin" / "bits"], "limit": limit, **small}], 1)


def phase_c(check: Run, limit: float) -> list[dict]:
    names = [
        "reducer",
        "reducers_together",
        "exchange",
        "reducer_ranks",
        "nodes",
        "nodes_reducer",
        "faults",
        "state",
        "memory",
    ]
    sizes = {"faults": "3"}  # it makes a thousand reducers, each with memory of its own
    items = [
        {
            "name": f"test_{name}",
            "command": [GPU / "bin" / f"test_{name}"],
            "limit": limit,
            "GTOPK_DEVICE": "cuda",
            "GTOPK_TEST_SIZES": "2" if check.standin else sizes.get(name, "5"),
        }
        for name in names
    ]
    return together(check, items, 4 if not check.standin else 2)


def phase_bench(check: Run, limit: float) -> list[dict]:
    counted = check.environment.get("GTOPK_CUDA_DRIVER", "libcuda.so.1")
    command = [GPU / "bin" / "gpu_bench", "--json", check.out / "bench.json"]
    if check.standin:
        command += ["--sizes", "5k,40k", "--repeats", "2", "--flush", "1M"]
    result = run(
        check,
        "gpu_bench",
        command,
        limit,
        GTOPK_CUDA_DRIVER=str(GPU / "bin" / "libcuda_count.so"),
        GTOPK_COUNTED_DRIVER=counted,
    )
    check.say(result["output"].rstrip())
    report(check, result)
    return [result]


def phase_python(check: Run, limit: float) -> list[dict]:
    return run_cuda(check, "one", limit)


def run_cuda(check: Run, what: str, limit: float) -> list[dict]:
    """The package's own tests on CUDA tensors."""
    if not check.has_torch:
        return [missing("this Python has no PyTorch")]
    command = [sys.executable, ROOT / "tests" / "python" / "run_cuda.py", what]
    item = {"name": f"run_cuda {what}", "command": command, "limit": limit, "GTOPK_TEST_LIMIT": str(int(limit))}
    return together(check, [item], 1)


def phase_ranks(check: Run, limit: float) -> list[dict]:
    if not check.has_torch:
        return [missing("this Python has no PyTorch")]
    script = str(PARTS / "ranks.py")
    small = ["--entries", "20000"] if check.standin else []
    mpirun = [GPU / "mpi" / "bin" / "mpirun", "--oversubscribe", "--bind-to", "none"]
    mpirun += ["--mca", "mpi_yield_when_idle", "1", "-np"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    counts = (2,) if check.standin else (2, 4)
    nodes = ["--each-node", "2", "--hierarchy", "node"]
    items = [
        {
            "name": f"mpi, {ranks} ranks",
            "command": [*mpirun, str(ranks), sys.executable, script, "--transport", "mpi", *small],
            "limit": limit,
        }
        for ranks in counts
    ]
    items += [
        {
            "name": f"gloo, {ranks} ranks",
            "command": [*torchrun, str(ranks), script, "--transport", "torch", *small],
            "limit": limit,
        }
        for ranks in counts
    ]
    items += [
        {
            "name": "mpi, 4 ranks on 2 nodes",
            "command": [*mpirun, "4", sys.executable, script, "--transport", "mpi", *nodes, *small],
            "limit": limit,
        },
        {
            "name": "gloo, 4 ranks on 2 nodes",
            "command": [*torchrun, "4", script, "--transport", "torch", *nodes, *small],
            "limit": limit,
        },
    ]
    done = together(check, items, 1)
    done += run_cuda(check, "ranks", limit)
    return done


def find_nccl(check: Run) -> str:
    """A libnccl.so.2 that loads; "": there is none."""
    if check.standin:
        return str(GPU / "libnccl_standin.so")
    command = [sys.executable, "-c", "from gtopk import _nccl; print(*_nccl.files(), sep='\\n')"]
    done = subprocess.run(command, env=check.environment, capture_output=True, text=True, timeout=60, check=False)
    for file in done.stdout.split("\n"):
        with contextlib.suppress(OSError):
            if file and ctypes.CDLL(file):
                return file
    return ""


def phase_nccl(check: Run, limit: float) -> list[dict]:
    nccl = find_nccl(check)
    if not nccl:
        return [missing("there is no NCCL")]
    parts = ["exchanges", "nodes", "trace", *(["ddp"] if check.has_torch and not check.standin else []), "kills"]
    command = [sys.executable, ROOT / "tests" / "distributed" / "nccl_on_one_gpu.py", "--build", GPU]
    command += ["--trace", check.out / "nccl_trace.json"]
    command += ["--kills", "2", "--standin"] if check.standin else ["--kills", str(check.kills)]
    done, until = [], time.monotonic() + limit
    for part in parts:
        left = until - time.monotonic()
        few = ["--seconds", f"{max(1.0, left - 20):.0f}"] if part == "kills" else []
        done.append(run(check, f"nccl, {part}", [*command, "--parts", part, *few], left, GTOPK_NCCL_LIBRARY=nccl))
        done[-1]["said"] = done[-1].get("output", "").strip()[-2000:]
        report(check, done[-1])
    return done


def phase_torch(check: Run, limit: float) -> list[dict]:
    if not check.has_torch:
        return [missing("this Python has no PyTorch")]
    small = ["--standin"] if check.standin else []
    command = [sys.executable, PARTS / "torch_bench.py", "--json", check.out / "torch.json", *small]
    result = run(check, "torch_bench", command, limit)
    check.say(result["output"].rstrip()[-3000:] if result["status"] == "passed" else "")
    report(check, result)
    return [result]


def phase_training(check: Run, limit: float) -> list[dict]:
    if not check.has_torch:
        return [missing("this Python has no PyTorch")]
    command = [
        sys.executable,
        PARTS / "training.py",
        "--json",
        check.out / "training.json",
        "--seconds",
        str(limit - 15),
    ]
    if check.standin:  # which trains no networks: the same on the CPU
        command += ["--device", "cpu", "--batch", "4", "--steps", "4"]
    result = run(check, "training", command, limit)
    check.say(result["output"].rstrip()[-3000:] if result["status"] == "passed" else "")
    report(check, result)
    return [result]


def phase_sanitizer(check: Run, limit: float) -> list[dict]:
    found = shutil.which("compute-sanitizer", path=check.environment["PATH"])
    for place in ("/usr/local/cuda/bin", "/opt/cuda/bin", "/usr/local/cuda/compute-sanitizer"):
        found = found or shutil.which("compute-sanitizer", path=place)
    if not found:
        return [missing("there is no compute-sanitizer")]
    tools = {
        "memcheck": ["--leak-check", "no"],
        "racecheck": ["--racecheck-report", "all"],
        "synccheck": [],
        "initcheck": [],
    }
    # 40,000 entries do not fit into the pool of candidates: the path on which it overflows is taken.
    items = [
        {
            "name": tool,
            "command": [found, "--tool", tool, *options, "--error-exitcode", "9", GPU / "bin" / "bits"],
            "limit": limit,
            "GTOPK_TEST_RUNS": "2",
            "GTOPK_TEST_LARGE": "80000",
            "GTOPK_TEST_FAR": "0",
        }
        for tool, options in tools.items()
    ]
    return together(check, items, 4)


def missing(why: str) -> dict:
    return {"name": "not there", "status": "skipped", "seconds": 0.0, "why": why, "output": ""}


# Name, seconds that it may take.
PHASES = {
    "bits": (phase_bits, 60),
    "c": (phase_c, 70),
    "bench": (phase_bench, 50),
    "python": (phase_python, 70),
    "ranks": (phase_ranks, 70),
    "nccl": (phase_nccl, 170),
    "torch": (phase_torch, 40),
    "sanitizer": (phase_sanitizer, 80),
    "training": (phase_training, 90),
}


# ---- all of it ----


def first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not there ({type(error).__name__})"
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "not there"


def machine() -> dict:
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,ecc.mode.current"
    return {
        "gpu": first_line(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]),
        "python": platform.python_version(),
        "torch": first_line(
            [sys.executable, "-c", "import torch; print(torch.__version__, torch.cuda.is_available())"]
        ),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("OUT") or str(ROOT / "build" / "gpu-check")
    parser.add_argument("--out", type=Path, default=Path(default), help="folder for results (%(default)s)")
    parser.add_argument("--phases", default=os.environ.get("PHASES", ""), help="some only, with commas between")
    parser.add_argument("--standin", action="store_true", help="without a GPU")
    parser.add_argument("--kills", type=int, default=20, help="ranks that are killed in phase nccl (%(default)s)")
    options = parser.parse_args()
    chosen = options.phases.split(",") if options.phases else list(PHASES)
    for name in chosen:
        if name not in PHASES:
            parser.error(f"there is no phase {name!r}; phases: {', '.join(PHASES)}")
    if not (GPU / "bin" / "bits").is_file():
        parser.error(f"{GPU} is not there: run `make gpu-check-build` where there is a compiler")
    found = machine()
    has_gpu = not found["gpu"].startswith("not there")
    check = Run(options.out.resolve(), options.standin or not has_gpu)
    check.has_torch = has_module("torch")
    check.kills = options.kills
    check.results["machine"] = found
    check.say(
        f"{found}"
        + ("" if has_gpu or options.standin else "\nno GPU is found here: this is a rehearsal on the stand-in")
    )
    check.keep()
    for name in chosen:
        phase, limit = PHASES[name]
        limit = min(limit * (4 if check.standin else 1), check.left())
        if limit < 3:
            check.results["phases"][name] = {"status": "skipped: no time was left"}
            check.say(f"{name}: no time was left")
            continue
        check.say(f"{name}:")
        begin = time.monotonic()
        try:
            items = phase(check, limit)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next phase is to run
            items = [{"name": name, "status": "failed", "seconds": 0.0, "text": f"{type(error).__name__}: {error}"}]
            report(check, items[0])
        for item in items:
            item.pop("output", None)
            if item["status"] == "skipped":
                check.say(f"  skipped: {item['why']}")
        seconds = round(time.monotonic() - begin, 1)
        failed = [item["name"] for item in items if item["status"].startswith("failed")]
        check.results["phases"][name] = {"seconds": seconds, "failed": failed, "items": items}
        check.keep()
    check.say("---- " + ("a rehearsal without a GPU" if check.standin else found["gpu"]))
    bad = 0
    for name, phase_result in check.results["phases"].items():
        failed = phase_result.get("failed", [])
        bad += len(failed)
        items = phase_result.get("items", [])
        skipped = [item for item in items if item["status"] == "skipped"]
        says = f"FAILED: {', '.join(failed)}" if failed else "skipped" if len(skipped) == len(items) else "passed"
        check.say(f"{name:10} {phase_result.get('seconds', 0):7.1f} s  {says}")
    check.results["seconds"] = round(time.monotonic() - check.begin, 1)
    check.keep()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
