"""What `make run` shows: ResNet-20 trained by four processes, with a dense all-reduce and with gTop-k, side by side.

Both runs see the same images in the same order for the same number of steps. A short trial run measures how fast this
machine is; the number of steps is then chosen so that all of it ends within --seconds. Ends with a table of what was
measured, a table of what is predicted for slower networks, and a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import data
import report

EXAMPLES = Path(__file__).resolve().parent
BATCH = 32  # images a process
TRIAL_STEPS = 8
LINES = 12
TEST_IMAGES = 1000
FORWARD_SHARE = 1 / 3  # of a training step is the forward pass, all that testing takes

# The paper's density is 0.001. In a run of some hundred steps an entry would wait for its turn as long as the run lasts.
SPARSE = ["--density", "0.01", "--density-warmup", "0.25,0.1,0.05,0.025", "--momentum-correction"]

NETWORKS = [report.Network("1 Gb/s", 1e9, 50e-6), report.Network("10 Gb/s", 1e10, 50e-6)]
OTHER_ENTRIES = 25_000_000
OTHER_COMPUTING = 0.1

WHAT_WAS_MEASURED = (
    "gTop-k sent {less:.0f} times fewer bytes in all, {less_a_step:.0f} times fewer a step at density {density:.2g}. It is "
    "no faster here and cannot be: all processes are on one machine, and shared memory moves the dense gradient at once. "
    "What fewer bytes save is time on a network, and that was not measured. The run is too short for the paper's density "
    "of 0.001; examples/cifar_resnet20.py has the full recipe."
)
SLOWER = (
    "This machine became slower than in the trial: of {planned} steps the first {steps} are compared, before density and "
    "learning rate have come to their end. Start it again when nothing else runs, or give it more time:"
)
PREDICTED = (
    "PREDICTED for {ranks} machines with a network, {latency:.0f} us a message, by the formula in examples/README.md"
)
WHAT_WAS_PREDICTED = (
    "Rest of the step: as measured above for ResNet-20 ({measured:.2f}M parameters). For {other:.0f}M parameters "
    "{computing:.0f} ms of computing are assumed, and what gTop-k does on each rank (accumulate, select, commit) is "
    "scaled up to them; dense is assumed to do nothing but the all-reduce."
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=4, help="processes (%(default)s)")
    parser.add_argument("--steps", type=int, default=640, help="at most so many steps a run (%(default)s)")
    parser.add_argument("--seconds", type=float, default=390.0, help="for everything (%(default)s)")
    parser.add_argument("--data", help="as for cifar_resnet20.py")
    parser.add_argument("--launcher", choices=("mpirun", "torchrun"), help="mpirun if there is one")
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="folder (%(default)s)")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    end = time.monotonic() + options.seconds
    launcher = find_launcher(options)
    folder = data.locate(options.data, download_seconds=60.0)
    subset = 80 * BATCH * options.ranks  # images: an epoch of 80 steps
    recipe = ["--data", str(folder), "--subset", str(subset), "--test-images", str(TEST_IMAGES)]
    recipe += ["--batch-size", str(BATCH)]

    print(f"trial: {TRIAL_STEPS} steps, to see how fast this machine is", flush=True)
    began = time.monotonic()
    length = ["--steps", str(TRIAL_STEPS), "--report-every", str(TRIAL_STEPS // 2)]
    trial = train(launcher, "dense", [*recipe, *length], quiet=True)
    start_up = max(0.0, time.monotonic() - began - TRIAL_STEPS / trial["steps_per_s"])
    planned = steps = steps_that_fit(trial, (end - time.monotonic()) / 2 - start_up, options.steps)
    recipe += [*schedule(steps, subset // (BATCH * options.ranks)), "--report-every", str(steps // LINES)]

    runs: list[dict[str, Any]] = []
    limit = 2 * LINES / steps_per_second(trial)  # so that the fewest steps are done on a machine that is very slow
    for algorithm, exchange in (("dense", []), ("gtopk", SPARSE)):
        print(f"\n{algorithm}: {steps} steps with {options.ranks} processes", flush=True)
        # The second run has no less than the first one had.
        limit = max(limit, (end - time.monotonic()) / (2 - len(runs)) - start_up)
        length = ["--steps", str(steps), "--time-limit", f"{limit:.0f}"]
        runs.append(train(launcher, algorithm, [*recipe, *exchange, *length]))
        steps = runs[-1]["steps"]
    runs = report.same_steps(runs)
    if not runs:
        raise SystemExit("this machine became so slow that there is nothing to compare: give more time, --seconds 1200")
    conclude(runs, planned, launcher, options.output)


# ---- the runs -------------------------------------------------------------------------------------------------------


def find_launcher(options: argparse.Namespace) -> list[str]:
    """The command that starts the processes: the environment's or the system's mpirun, else torchrun."""
    beside_python = Path(sys.executable).parent
    mpirun = shutil.which("mpirun", path=os.pathsep.join([str(beside_python), os.environ.get("PATH", "")]))
    if options.launcher == "torchrun" or (options.launcher is None and mpirun is None):
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
    if mpirun is None:
        raise SystemExit("no mpirun was found: install an MPI, or use --launcher torchrun")
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    extra = []
    if "Open MPI" in version or "OpenRTE" in version:
        # More processes than cores: let them share, and let those that wait give way to those that compute.
        extra = ["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    return [mpirun, "-n", str(options.ranks), *extra, sys.executable]


def train(launcher: list[str], algorithm: str, arguments: list[str], *, quiet: bool = False) -> dict[str, Any]:
    environment = dict(os.environ)
    if os.geteuid() == 0:  # in a container, say: Open MPI wants to be told twice that this is meant
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "run.json"
        command = [*launcher, str(EXAMPLES / "cifar_resnet20.py"), "--algorithm", algorithm, *arguments]
        output, errors = (subprocess.PIPE, subprocess.STDOUT) if quiet else (None, None)
        done = subprocess.run(
            [*command, "--json", str(result)], env=environment, check=False, stdout=output, stderr=errors, text=True
        )
        if done.returncode != 0:
            print(done.stdout or "", end="", flush=True)
            raise SystemExit(f"exit status {done.returncode} of: {shlex.join(command)}")
        run: dict[str, Any] = json.loads(result.read_text())
        return run


def steps_per_second(trial: dict[str, Any]) -> float:
    """The trial's second half counts: its first steps also warm up caches and allocators."""
    return float(trial["history"][-1]["samples_per_s"] / (trial["batch_size"] * trial["ranks"]))


def steps_that_fit(trial: dict[str, Any], seconds: float, most: int) -> int:
    """A multiple of LINES.

    Some time is left over, for a machine that becomes slower; a run that is late all the same stops at its time limit,
    and both are compared up to where both have come.
    """
    testing = LINES * TEST_IMAGES * FORWARD_SHARE / (trial["batch_size"] * trial["ranks"])  # in steps
    fitting = int(0.9 * seconds * steps_per_second(trial) - testing)
    return max(LINES, min(most, fitting) // LINES * LINES)


def schedule(steps: int, steps_an_epoch: int) -> list[str]:
    """The recipe's shape, shortened: density and learning rate warm up for 40 %, the last quarter is at a tenth."""
    epochs = steps / steps_an_epoch
    warmup = f"{0.4 * epochs:.4f}"
    return ["--warmup-epochs", warmup, "--density-warmup-epochs", warmup, "--lr-drops", f"{0.75 * epochs:.4f}"]


# ---- the end --------------------------------------------------------------------------------------------------------


def conclude(runs: list[dict[str, Any]], planned: int, launcher: list[str], output: Path) -> None:
    dense, sparse = runs
    predictions = report.predict(runs, NETWORKS, other_entries=OTHER_ENTRIES, other_computing=OTHER_COMPUTING)
    print(f"\nMEASURED on this machine ({report.cores()} cores, {dense['ranks']} processes, {dense['data']})\n")
    print(report.table(runs))
    say(
        WHAT_WAS_MEASURED,
        less=dense["bytes_sent"] / sparse["bytes_sent"],
        less_a_step=last_bytes(dense) / last_bytes(sparse),
        density=sparse["history"][-1]["k"] / sparse["parameters"],
    )
    say(PREDICTED, ranks=dense["ranks"], latency=NETWORKS[0].latency * 1e6)
    print()
    print(report.prediction_table(predictions))
    say(
        WHAT_WAS_PREDICTED,
        measured=dense["parameters"] / 1e6,
        other=OTHER_ENTRIES / 1e6,
        computing=OTHER_COMPUTING * 1e3,
    )
    if dense["steps"] < planned:
        say(SLOWER, steps=dense["steps"], planned=planned)
        print("  make run ARGS='--seconds 1200'")
    output.mkdir(parents=True, exist_ok=True)
    picture, numbers = output / "run_demo.png", output / "run_demo.json"
    report.plot(runs, picture, predictions)
    numbers.write_text(
        json.dumps(
            {
                "machine": report.machine(),
                "command": as_typed(["python", *sys.argv]),
                "launcher": as_typed(launcher),
                "measured": runs,
                "predicted": [
                    {"parameters": p.model, "network": p.network, "algorithm": p.algorithm}
                    | {"exchange_ms": p.exchange * 1e3, "rest_ms": p.other * 1e3, "step_ms": p.step * 1e3}
                    for p in predictions
                ],
            },
            indent=1,
        )
        + "\n"
    )
    print(f"\npicture: {picture}\nnumbers: {numbers}")


def say(text: str, **numbers: float) -> None:
    print("\n" + textwrap.fill(text.format(**numbers), 110))


def last_bytes(run: dict[str, Any]) -> float:
    return float(run["history"][-1]["bytes_sent_per_step"])


def as_typed(command: list[str]) -> str:
    """The command without the paths of this machine."""
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in command)


if __name__ == "__main__":
    main()
