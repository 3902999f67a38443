"""FSDP2 under torchrun: nodes are neighbouring ranks, each with a mesh of its own."""

from __future__ import annotations

import re
from pathlib import Path

import launcher
import pytest

pytest.importorskip("torch")


def run(nodes, shards, cases, **environment):
    ranks = nodes * shards
    environment = {"GTOPK_TEST_KIND": "torch", "GTOPK_TEST_NODES": str(nodes), **environment}
    status, output = launcher.torchrun(ranks, "harness.py", cases, environment=environment)
    assert status == 0, output[-8000:]
    assert f"cases passed on {ranks} ranks" in output, output[-8000:]


@pytest.mark.parametrize(("nodes", "shards"), [(2, 2), (2, 3), pytest.param(3, 2, marks=pytest.mark.long)])
def test_training(nodes, shards):
    run(nodes, shards, "cases_torch_fsdp")


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


def test_sharded_checkpoints_on_other_nodes_and_shards(tmp_path):
    folder = {"GTOPK_TEST_FOLDER": str(tmp_path)}
    run(2, 2, "cases_torch_fsdp_save", **folder)
    for nodes, shards in ((2, 2), (2, 3), (3, 1)):
        run(nodes, shards, "cases_torch_fsdp_load", **folder)
