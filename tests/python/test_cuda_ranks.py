"""Several ranks with tensors on GPUs, or on what stands in for one: the cases of optimizer, hook and reducer, and their own."""

from __future__ import annotations

import launcher
import pytest

pytest.importorskip("torch")
import cuda_standin
import torch_cuda

pytestmark = pytest.mark.skipif(not torch_cuda.available(), reason="there is no GPU, and nothing stands in for one")

ON_GPU = {"GTOPK_TEST_DEVICE": "cuda", "OMP_NUM_THREADS": "1"}


def passed(result, ranks):
    status, output = result
    assert status == 0, output[-8000:]
    assert f"cases passed on {ranks} ranks" in output, output[-8000:]


def test_mpirun():
    cases = ("cases_cuda", "cases_torch_session", "cases_torch_optimizer", "cases_torch_amp")
    passed(launcher.mpirun(2, "harness.py", *cases, environment=ON_GPU), 2)


def test_torchrun():
    environment = {**ON_GPU, "GTOPK_TEST_KIND": "torch"}
    passed(launcher.torchrun(2, "harness.py", "cases_cuda", "cases_cuda_ddp", environment=environment), 2)


# Two nodes of two ranks, by their names.
ON_NODES = {**ON_GPU, "GTOPK_TEST_EACH_NODE": "2"}


def test_nodes_with_mpirun():
    passed(launcher.mpirun(4, "harness.py", "cases_torch_session", environment=ON_NODES), 4)


def test_nodes_with_torchrun():
    environment = {**ON_NODES, "GTOPK_TEST_KIND": "torch"}
    passed(launcher.torchrun(4, "harness.py", "cases_cuda_ddp", environment=environment), 4)


@pytest.mark.skipif(torch_cuda.REAL, reason="several ranks on one GPU: tests/distributed/nccl_on_one_gpu.py")
def test_nodes_over_nccl():
    nccl = {"GTOPK_TEST_TRANSPORT": "nccl", "GTOPK_NCCL_LIBRARY": str(cuda_standin.BUILD / "libnccl_standin.so")}
    nccl |= {"GTOPK_CUDA_DRIVER": str(cuda_standin.STANDIN), "GTOPK_TEST_GPU": "0"}
    passed(launcher.mpirun(4, "harness.py", "cases_torch_session", environment={**ON_NODES, **nccl}), 4)


@pytest.mark.long
def test_local_steps():
    passed(launcher.mpirun(2, "harness.py", "cases_torch_local", environment=ON_GPU, limit=900), 2)


@pytest.mark.long
def test_three_ranks():
    passed(launcher.mpirun(3, "harness.py", "cases_cuda", "cases_torch_optimizer", environment=ON_GPU), 3)


def test_checkpoints_in_new_processes(tmp_path):
    environment = {**ON_GPU, "GTOPK_TEST_FOLDER": str(tmp_path)}
    passed(launcher.mpirun(2, "harness.py", "cases_torch_checkpoint_save", environment=environment), 2)
    passed(launcher.mpirun(2, "harness.py", "cases_torch_checkpoint_load", environment=environment), 2)
