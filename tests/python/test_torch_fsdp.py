"""FSDP2 under torchrun: nodes are neighbouring ranks, each with a mesh of its own."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import launcher
import pytest
from jobs import Job, by_hand, free_port

pytest.importorskip("torch")


def run(nodes, shards, *cases, **environment):
    ranks = nodes * shards
    environment = {"GTOPK_TEST_KIND": "torch", "GTOPK_TEST_NODES": str(nodes), **environment}
    status, output = launcher.torchrun(ranks, "harness.py", *cases, environment=environment)
    assert status == 0, output[-8000:]
    assert f"cases passed on {ranks} ranks" in output, output[-8000:]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of sharded checkpoints of two nodes with two shards, by processes that have ended."""
    folder = tmp_path_factory.mktemp("saved")
    run(2, 2, "cases_torch_fsdp_save", GTOPK_TEST_FOLDER=str(folder))
    return folder


def test_training_and_checkpoints_on_as_many_nodes_and_shards(saved):
    """One launch for both: starting its processes takes as long as half of the cases."""
    run(2, 2, "cases_torch_fsdp", "cases_torch_fsdp_load", GTOPK_TEST_FOLDER=str(saved))


def test_training_with_three_shards():
    """Six ranks that were two nodes are three afterwards."""
    run(2, 3, "cases_torch_fsdp", GTOPK_TEST_NODES_TOO="3")


@pytest.mark.long
def test_training_on_three_nodes():
    run(3, 2, "cases_torch_fsdp")


def test_the_example_learns_and_goes_on_with_other_nodes(tmp_path):
    script = Path(__file__).resolve().parents[2] / "examples" / "fsdp.py"
    losses = []
    for nodes, ranks in ((2, 4), (3, 3)):
        arguments = ["--nodes", str(nodes), "--steps", "13", "--checkpoint", str(tmp_path / "saved")]
        status, output = launcher.torchrun(ranks, script, *arguments)
        assert status == 0, output[-8000:]
        losses += [float(loss) for loss in re.findall(r"loss ([\d.]+)", output)]
    assert len(losses) == 4, losses
    assert losses[0] > 5.3, losses
    assert losses[2] < losses[0] - 0.5, losses
    assert losses[3] < losses[2], losses


def test_sharded_checkpoints_on_other_nodes_and_shards(saved):
    run(3, 1, "cases_torch_fsdp_load", GTOPK_TEST_FOLDER=str(saved))


@pytest.mark.long
def test_sharded_checkpoints_of_more_ranks(tmp_path):
    folder = {"GTOPK_TEST_FOLDER": str(tmp_path)}
    run(3, 2, "cases_torch_fsdp_save", **folder)
    for nodes, shards in ((2, 3), (1, 2), (3, 2)):
        run(nodes, shards, "cases_torch_fsdp_load", **folder)


@pytest.mark.parametrize(
    ("name", "deadline", "shards"),
    [
        ("SIGKILL", 60.0, 2),
        pytest.param("SIGKILL", 60.0, 3, marks=pytest.mark.long),
        pytest.param("SIGSTOP", 4.0, 2, marks=pytest.mark.long),
    ],
)
def test_every_rank_that_is_left_returns_an_error(name, deadline, shards):
    """The one with the same shard, the peer, and the one that exchanged with neither. Of a rank that ends they hear at once."""
    limit, port = (30.0 if name == "SIGKILL" else 2 * deadline + 10), free_port()
    command = [sys.executable, str(launcher.DISTRIBUTED / "faults_fsdp_rank.py"), str(deadline)]
    failed = r"rank (\d) failed (\w+) at ([\d.]+) kept (\d) later (\d)"
    ranks = 2 * shards
    job = Job([(command, by_hand(rank, ranks, port)) for rank in range(ranks)])
    try:
        job.wait_for(lambda text: "step 10\n" in text and len(job.pids) == ranks, 120, "the tenth step")
        struck = time.time()
        os.kill(job.pids[ranks - 1], getattr(signal, name))
        lines = job.wait_for(
            lambda text: found if len(found := re.findall(failed, text)) == ranks - 1 else None,
            90,
            "an error on the others",
        )
        text = job.text()
    finally:
        job.end()
    assert {rank for rank, *_ in lines} == {str(rank) for rank in range(ranks - 1)}, text
    for _, _, when, kept, later in lines:
        assert float(when) - struck < limit, text
        assert (kept, later) == ("1", "1"), text
