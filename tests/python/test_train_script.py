"""train.sh and `make train`: which command each variable makes. The commands are not started: test_workloads.py does that."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "resnet20": "cifar_resnet20.py",
    "vgg16": "cifar_vgg16.py",
    "alexnet": "imagenet_alexnet.py",
    "resnet50": "imagenet_resnet50.py",
    "lstm": "ptb_lstm.py",
    "lstman4": "an4_deepspeech.py",
}
MPIRUN = "mpirun -n 4 --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 /a/python"


def run(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line as it is typed, in this tree, with no other variables than PATH."""
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def shown(line: str, **variables: str) -> list[list[str]]:
    """The commands that the line would start."""
    done = run(line, show="1", **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(command) for command in done.stdout.splitlines()]


def expected(launcher: str, script: str, options: str) -> list[list[str]]:
    return [[*launcher.split(), f"{ROOT}/examples/{script}", *options.split()]]


@pytest.mark.parametrize("dnn", SCRIPTS)
def test_the_published_line(dnn: str) -> None:
    """For all that it leaves out, the script's own recipe."""
    commands = shown(f"dnn={dnn} nworkers=4 ./train.sh", PYTHON="/a/python")
    assert commands == expected(MPIRUN, SCRIPTS[dnn], "--algorithm gtopk --density 0.001")


def test_without_a_python_make_installs_one() -> None:
    install, train = shown("dnn=resnet20 nworkers=4 ./train.sh")
    assert install == ["make", "-s", "-C", str(ROOT), "workloads"]
    assert train[train.index("1") + 1] == f"{ROOT}/.venv/bin/python"
    assert shown("./train.sh") == [install, train]  # resnet20 on four is what nothing gives


@pytest.mark.parametrize(
    ("compressor", "algorithm"),
    [(name, name) for name in ("gtopk", "gtopk-split", "gtopk-tree", "topk", "auto", "dense")] + [("none", "dense")],
)
def test_compressors(compressor: str, algorithm: str) -> None:
    commands = shown(f"compressor={compressor} ./train.sh", PYTHON="/a/python")
    assert commands == expected(MPIRUN, "cifar_resnet20.py", f"--algorithm {algorithm} --density 0.001")


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ("launcher=mpirun nworkers=4", MPIRUN),
        ("hostfile='my hosts' nworkers=4", MPIRUN.replace("--over", "--hostfile my\\hosts --over")),
        ("launcher=torchrun nworkers=3", "/a/python -m torch.distributed.run --standalone --nproc-per-node 3"),
        ("launcher=srun nworkers=16", "srun --ntasks 16 --kill-on-bad-exit=1 /a/python"),
    ],
)
def test_launchers(variables: str, launcher: str) -> None:
    (command,) = shown(f"{variables} ./train.sh", PYTHON="/a/python")
    (wanted,) = expected(launcher, "cifar_resnet20.py", "--algorithm gtopk --density 0.001")
    assert command == [word.replace("my\\hosts", "my hosts") for word in wanted]


def test_every_other_variable_and_what_stands_behind() -> None:
    given = "dnn=lstm density=default batch_size=5 lr=0.5 max_epochs=7 nstepsupdate=1 data_dir='a folder'"
    (command,) = shown(f"{given} ./train.sh --steps 100 --plot 'a b.png'", PYTHON="/a/python")
    options = "--algorithm gtopk --density default --batch-size 5 --lr 0.5 --epochs 7 --data"
    (wanted,) = expected(MPIRUN, "ptb_lstm.py", options)
    assert command == [*wanted, "a folder", "--steps", "100", "--plot", "a b.png"]


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ("dnn=lenet", "dnn=lenet is none of resnet20, vgg16, alexnet, resnet50, lstm, lstman4"),
        ("compressor=topk2", "compressor=topk2 is not there: gtopk keeps the k largest of the sum, too"),
        ("compressor=qsgd", "compressor=qsgd is none of gtopk, gtopk-split, gtopk-tree, topk, auto, dense, none"),
        ("launcher=horovodrun", "launcher=horovodrun is none of mpirun, torchrun, srun"),
        ("launcher=torchrun hostfile=hosts", "hostfile=hosts is for mpirun"),
        ("launcher=srun hostfile=hosts", "hostfile=hosts is for mpirun"),
        ("nstepsupdate=2", "nstepsupdate=2: only 1 is there; a larger batch_size comes to the same"),
        ("nworkers=0", "nworkers=0 is no number of processes"),
        ("nworkers=four", "nworkers=four is no number of processes"),
    ],
)
def test_what_is_not_there_is_said(variables: str, complaint: str) -> None:
    """Before anything is installed or started."""
    done = run(f"{variables} ./train.sh")
    assert done.returncode == 2 and done.stderr.startswith(f"train.sh: {complaint}"), done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


def test_make_train_is_the_same_line() -> None:
    last = run("make -n train MODEL=vgg16 RANKS=3 ARGS='--steps 9' VENV=/a/venv | tail -1").stdout
    (command,) = shown(last)
    launcher = MPIRUN.replace("-n 4", "-n 3").replace("/a/python", "/a/venv/bin/python")
    assert [command] == expected(launcher, "cifar_vgg16.py", "--algorithm gtopk --density 0.001 --steps 9")
    last = run("make -n train VENV=/a/venv | tail -1").stdout
    assert shown(last) == expected(
        MPIRUN.replace("/a/", "/a/venv/bin/"), "cifar_resnet20.py", "--algorithm gtopk --density 0.001"
    )


@pytest.mark.long
def test_the_published_line_trains() -> None:
    """Installation, where that is needed, and data included."""
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("make train is for this tree's own .venv")
    home = {name: os.environ[name] for name in ("HOME", "GTOPK_CACHE") if name in os.environ}
    few = "--steps 2 --subset 320 --test-images 8 --batch-size 8"
    for line in (f"dnn=resnet20 nworkers=4 ./train.sh {few}", f"make train MODEL=vgg16 RANKS=4 ARGS='{few}'"):
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **home},
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "replicas identical: yes, bit for bit" in done.stdout
