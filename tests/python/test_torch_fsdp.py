"""FSDP2 under torchrun: nodes are neighbouring ranks, each with a mesh of its own."""

from __future__ import annotations

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
