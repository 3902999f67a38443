"""Transport "nccl" from Python: on the stand-ins for the driver and for NCCL, under both launchers."""

from __future__ import annotations

import subprocess
import sys

import launcher
import pytest

from gtopk import _lib, _nccl


@pytest.fixture
def standins():
    """Makes the stand-ins of this build and names them to a rank's process."""
    folder = _lib.find().parent
    files = {"GTOPK_CUDA_DRIVER": folder / "libcuda_standin.so", "GTOPK_NCCL_LIBRARY": folder / "libnccl_standin.so"}
    for file in files.values():
        if not file.is_file():
            pytest.skip(f"there is no {file}: make {file.name}")
    return {name: str(file) for name, file in files.items()}


@pytest.mark.parametrize(("launch", "transport"), [(launcher.mpirun, "nccl"), (launcher.torchrun, "auto")])
def test_exchanges_between_gpus(launch, transport, standins):
    status, output = launch(3, "nccl_rank.py", transport, environment=standins, limit=200)
    if "has no kernels for GPU" in output:
        pytest.skip("this build has no CUDA kernels")
    assert status == 0, output[-4000:]
    assert "the same bits on 3 ranks: nccl (NCCL 2.21.5), control" in output


def test_what_a_gpu_is_to_run(standins):
    """The rehearsal of tests/distributed/nccl_on_one_gpu.py: exchanges, nodes, a trace, and ranks that are killed."""
    script = str(launcher.DISTRIBUTED / "nccl_on_one_gpu.py")
    command = [sys.executable, script, "--standin", "--kills", "2", "--build", str(_lib.find().parent)]
    status, output = launcher.run(command, {}, 250)
    if "has no kernels for GPU" in output:
        pytest.skip("this build has no CUDA kernels")
    assert status == 0, output
    assert output.count('"ok": true') == 5, output
    assert output.count('"skipped"') == 1, output


def test_without_a_gpu_auto_is_what_it_was_started_with():
    command = "import gtopk; gtopk.init(transport='auto'); print(gtopk.comm.current().description)"
    environment = {"GTOPK_CUDA_DRIVER": "/nowhere/libcuda.so.1"}
    status, output = launcher.run([sys.executable, "-c", command], environment, 60)
    assert (status, output.strip()) == (0, "self")


def test_without_a_gpu_nccl_is_an_error():
    # In a process of its own: one that has opened a driver keeps it.
    command = "import gtopk; gtopk.Comm(transport='nccl')"
    environment = {"GTOPK_CUDA_DRIVER": "/nowhere/libcuda.so.1"}
    status, output = launcher.run([sys.executable, "-c", command], environment, 60)
    assert status == 1
    assert "NotFoundError" in output and "no CUDA driver" in output


def test_versions():
    assert _nccl.version_text(22105) == "2.21.5"
    assert _nccl.judge(22105) == (True, "")
    assert not _nccl.judge(21703)[0]
    assert _nccl.judge(22501)[0]
    assert "hang" in _nccl.judge(22501)[1]


def test_doctor_judges_the_version(standins):
    done = subprocess.run(
        [sys.executable, "-m", "gtopk", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env={**launcher.os.environ, **standins, "GTOPK_STANDIN_NCCL": "21703"},
    )
    assert "--  NCCL" in done.stdout
    assert "2.17.3" in done.stdout
    assert "too old" in done.stdout
