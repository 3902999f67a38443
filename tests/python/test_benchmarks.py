"""The models that benchmarks train are what they are called."""

from __future__ import annotations

import sys
from pathlib import Path

import launcher
import pytest
from conftest import BUILD

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


def test_the_benchmark_of_exchanges_finds_the_mpi_module(tmp_path: Path) -> None:
    """Started as its usage line says it, from wherever."""
    program = BUILD / "benchmarks" / "allreduce_bench"
    for file in (program, BUILD / "libgtopk_mpi.so"):
        if not file.exists():
            pytest.skip(f"{file} was not built")
    command = [launcher.find("mpirun"), "--oversubscribe", "-n", "2", "--wdir", str(tmp_path), str(program)]
    command += ["--sizes", "1000", "--iterations", "1"]
    environment = {"GTOPK_MPI_MODULE": "", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    status, output = launcher.run(command, environment, 60)
    assert status == 0, output
    assert "2 ranks, mpi" in output, output


def test_resnet50_is_the_published_one() -> None:
    from resnet50 import ResNet50

    model = ResNet50()
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == 53
    images = torch.zeros(1, 3, 224, 224)
    assert model.blocks(model.stem(images)).shape == (1, 2048, 14, 14)  # 7 x 7 after the pooling that is left out here
    assert model.eval()(images).shape == (1, 1000)
