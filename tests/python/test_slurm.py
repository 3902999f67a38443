"""Under Slurm itself: a cluster of two nodes on this machine, whose tasks train with gtopk."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import launcher
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "distributed"))
from jobs import build_folder, free_port
from slurm_cluster import Cluster, find_programs

pytestmark = pytest.mark.long
SCRIPT = ROOT / "tests" / "distributed" / "slurm_rank.py"
TRAIN = (sys.executable, SCRIPT)
LINE = re.compile(r"rank (\d+) of (\d+) local (\d+) through (\w+) digest (\w+)")


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("torch")
    folder = Path(os.environ.get("GTOPK_SLURM", ROOT / ".cache" / "slurm"))
    programs = find_programs(folder)
    if programs is None:
        pytest.skip(
            f"there is no Slurm on this machine and none in {folder}: scripts/find_slurm.sh fetches it on Debian"
        )
    with Cluster(programs, GTOPK_MPI_MODULE=str(build_folder() / "libgtopk_mpi.so")) as cluster:
        yield cluster
    assert not cluster.left


def trained(result):
    """The ranks' lines, in order: (local rank, transport) of each. All digests are the same."""
    status, output = result
    assert status == 0, output
    found = sorted(LINE.findall(output))
    assert [(int(rank), int(size)) for rank, size, *_ in found] == [(r, len(found)) for r in range(len(found))], output
    assert len({digest for *_, digest in found}) == 1, output
    return [(int(local), transport) for _, _, local, transport, _ in found]


def batch(cluster, folder, options, lines, limit=120):
    """Exit status and output of a script for sbatch, which runs in `folder` and finds srun on PATH."""
    script, log = folder / "job.sh", folder / "log"
    script.write_text("\n".join(["#!/bin/bash", "(", *lines, ")", 'echo "ended with $?"', ""]))
    path = {"PATH": f"{Path(cluster.programs.path('srun')).parent}:{os.environ['PATH']}"}
    status, output = cluster.run("sbatch", "-D", folder, "-o", log, *options, script, environment=path)
    assert status == 0, output
    end = time.monotonic() + limit  # sbatch --wait looks too seldom
    while time.monotonic() < end:
        output = log.read_text() if log.exists() else ""
        if ended := re.search(r"^ended with (\d+)$", output, re.MULTILINE):
            return int(ended.group(1)), output
        time.sleep(0.1)
    raise AssertionError(f"the job did not end within {limit} s:\n{output}")


@pytest.mark.parametrize("mode", ["optimizer", "ddp"])
def test_srun_alone_is_enough(cluster, mode):
    """Three tasks on two nodes. The local rank is Slurm's: by their name, both nodes are one host."""
    result = cluster.run("srun", "-N2", "-n3", *TRAIN, mode)
    assert trained(result) == [(0, "torch"), (1, "torch"), (0, "torch")]


def test_one_task_is_alone(cluster):
    assert trained(cluster.run("srun", "-n1", *TRAIN)) == [(0, "self")]


def test_place_that_the_user_names(cluster):
    given = {"MASTER_ADDR": "127.0.0.2", "MASTER_PORT": str(free_port())}
    assert len(trained(cluster.run("srun", "-N2", "-n2", *TRAIN, environment=given))) == 2


def test_place_that_does_not_exist(cluster):
    """Both variables are used: a task that did not use them would train."""
    port = free_port()
    given = {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": str(port), "DEADLINE": "3"}
    status, output = cluster.run("srun", "-n2", *TRAIN, environment=given)
    assert status == 3, output
    words = f"failed TransportError: torch.distributed.init_process_group failed at nowhere.invalid:{port}:"
    assert output.count(words) == 2, output


def test_group_that_the_script_makes(cluster):
    """As docs/guide/several-machines.md shows it. Nobody told gtopk the local rank: it compares the hosts."""
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    result = cluster.run("srun", "-N2", "-n2", *TRAIN, "own", environment=given)
    assert trained(result) == [(0, "torch"), (1, "torch")]


def test_steps_of_one_job_at_the_same_time(cluster, tmp_path):
    """Each step is a group of its own, at a port of its own. The script of sbatch is in no step: alone."""
    train = " ".join(map(str, TRAIN))
    lines = [
        f"{train} > alone.txt &",
        "export MEET=2 DEADLINE=20",
        f"srun --overlap -n2 {train} > one.txt 2>&1 & one=$!",
        f"srun --overlap -n3 {train} ddp > other.txt 2>&1 & other=$!",
        "wait $one && wait $other && wait",
    ]
    status, output = batch(cluster, tmp_path, ["-N2", "-n6"], lines)
    texts = {file.stem: file.read_text() for file in tmp_path.glob("*.txt")}
    assert status == 0, (output, texts)
    assert [len(trained((0, texts[name]))) for name in ("alone", "one", "other")] == [1, 2, 3]
    assert trained((0, texts["alone"])) == [(0, "self")]


def test_torchrun_in_a_step_wins(cluster):
    """One task a node starts torchrun, which starts two processes: four ranks, not two."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "1"]
    result = cluster.run("srun", "-N2", "-n2", *agent, SCRIPT)
    assert trained(result) == [(0, "torch"), (1, "torch"), (0, "torch"), (1, "torch")]


def test_mpirun_in_a_job_wins(cluster, tmp_path):
    command = [launcher.find("mpirun"), "--oversubscribe", "--bind-to", "none", "-n", "3", *TRAIN]
    lines = ["export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", " ".join(map(str, command))]
    status, output = batch(cluster, tmp_path, ["-N1", "-n3"], lines)
    assert [transport for _, transport in trained((status, output))] == ["mpi"] * 3


def test_srun_with_pmix_is_mpi(cluster):
    status, output = cluster.run("srun", "--mpi=pmix", "-n1", "true")
    if status:
        pytest.skip(f"this Slurm has no PMIx: {output.splitlines()[0]}")
    found = trained(cluster.run("srun", "--mpi=pmix", "-N1", "-n2", *TRAIN))
    assert found == [(0, "mpi"), (1, "mpi")]


def test_transport_asked_for_under_a_pmi(cluster):
    """A site's default may be a PMI that the MPI at hand does not speak, or there may be no MPI."""
    result = cluster.run("srun", "--mpi=pmi2", "-n2", *TRAIN, environment={"TRANSPORT": "torch"})
    assert trained(result) == [(0, "torch"), (1, "torch")]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "7"}, "failed InvalidError: RANK is '7', but srun made this process task"),
        ({"WORLD_SIZE": "1"}, "failed InvalidError: WORLD_SIZE is '1', but srun made this process task"),
        ({"MASTER_PORT": "http"}, "failed InvalidError: MASTER_PORT is 'http', but must be a number"),
    ],
)
def test_wrong_environment_is_said_by_every_task(cluster, environment, words):
    status, output = cluster.run("srun", "-n2", *TRAIN, environment=environment)
    assert status == 3, output
    assert output.count(words) == 2, output


def test_variables_that_do_not_arrive(cluster):
    """As in a container that lets some of them in."""
    status, output = cluster.run("srun", "-n2", "env", "-u", "SLURM_STEP_NODELIST", *TRAIN)
    assert status == 3, output
    assert output.count("SLURM_STEP_NODELIST is not set: pass Slurm's variables on") == 2, output


@pytest.mark.parametrize("victim", [0, 2])
def test_the_others_end_when_a_task_is_killed(cluster, victim):
    """Rank 0 keeps the addresses of all ranks. Their deadline is 60 s, of which the test does not wait for the end."""
    log = cluster.folder / f"killed-{victim}.txt"
    log.touch()
    pids = {}

    def kill_when_all_wait():
        end = time.monotonic() + 60
        while len(pids) < 3 and time.monotonic() < end:
            pids.update((int(rank), int(pid)) for rank, pid in re.findall(r"rank (\d+) pid (\d+)", log.read_text()))
            time.sleep(0.1)
        time.sleep(2)
        os.kill(pids[victim], signal.SIGKILL)

    killer = threading.Thread(target=kill_when_all_wait, daemon=True)
    killer.start()
    # So that Slurm does not end the others itself.
    options = ["--kill-on-bad-exit=0", f"--output={log}"]
    status, output = cluster.run("srun", "-N2", "-n3", *options, *TRAIN, "wait", str(victim), limit=90)
    killer.join()
    said = log.read_text()
    assert status != 0
    assert re.search(rf"task {victim}: Killed", output), output
    assert said.count("failed TransportError") == 2, (output, said)
