"""The PyTorch integration under real launchers: one launch for each number of ranks runs all cases."""

from __future__ import annotations

import launcher
import pytest

pytest.importorskip("torch")

OPTIMIZER = (
    "cases_torch_optimizer",
    "cases_torch_amp",
    "cases_torch_horovod",
    "cases_torch_session",
    "cases_torch_local",
)


def passed(result, ranks):
    status, output = result
    assert status == 0, output[-8000:]
    assert f"cases passed on {ranks} ranks" in output, output[-8000:]


def long(ranks):
    return pytest.param(ranks, marks=pytest.mark.long)


@pytest.mark.parametrize("ranks", [2, long(3), 4, long(5), long(8)])
def test_mpirun(ranks):
    passed(launcher.mpirun(ranks, "harness.py", *OPTIMIZER, environment={"OMP_NUM_THREADS": "1"}), ranks)


@pytest.mark.parametrize("ranks", [long(2), 3, long(4)])
def test_torchrun(ranks):
    environment = {"GTOPK_TEST_KIND": "torch"}
    passed(launcher.torchrun(ranks, "harness.py", *OPTIMIZER, "cases_torch_ddp", environment=environment), ranks)


@pytest.mark.parametrize(("saved", "loaded"), [(2, 2), (3, 2), pytest.param(4, 4, marks=pytest.mark.long)])
def test_checkpoints_in_new_processes(saved, loaded, tmp_path):
    environment = {"GTOPK_TEST_FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1"}
    passed(launcher.mpirun(saved, "harness.py", "cases_torch_checkpoint_save", environment=environment), saved)
    passed(launcher.mpirun(loaded, "harness.py", "cases_torch_checkpoint_load", environment=environment), loaded)


# Every two (three) ranks on a node, by its name, and hierarchy="node". Optimizer, hook and checkpoints as above.
def nodes(each, **more):
    return {"GTOPK_TEST_EACH_NODE": str(each), "OMP_NUM_THREADS": "1", **more}


def test_nodes_with_mpirun():
    cases = ("cases_torch_optimizer", "cases_torch_session")
    passed(launcher.mpirun(4, "harness.py", *cases, environment=nodes(2)), 4)


def test_nodes_with_torchrun():
    environment = nodes(2, GTOPK_TEST_KIND="torch")
    passed(launcher.torchrun(4, "harness.py", "cases_torch_memory", "cases_torch_ddp", environment=environment), 4)


@pytest.mark.long
def test_every_row_of_the_table_on_memory():
    environment = nodes(2, GTOPK_TEST_KIND="torch", GTOPK_TEST_ALL_ROWS="1")
    passed(launcher.torchrun(4, "harness.py", "cases_torch_memory", environment=environment), 4)


@pytest.mark.long
def test_nodes_in_mixed_precision():
    passed(launcher.mpirun(6, "harness.py", "cases_torch_amp", "cases_torch_horovod", environment=nodes(3)), 6)


@pytest.mark.parametrize(("saved", "loaded"), [((4, 2), (3, 3)), pytest.param((4, 2), (4, 2), marks=pytest.mark.long)])
def test_checkpoints_on_other_nodes(saved, loaded, tmp_path):
    folder = {"GTOPK_TEST_FOLDER": str(tmp_path)}
    for (ranks, each), cases in ((saved, "cases_torch_checkpoint_save"), (loaded, "cases_torch_checkpoint_load")):
        passed(launcher.mpirun(ranks, "harness.py", cases, environment=nodes(each, **folder)), ranks)
