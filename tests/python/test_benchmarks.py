"""The benchmarks: models are what they are called, programs start, and studies go on where they were."""

from __future__ import annotations

import json
import os
import subprocess
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
    command = ["-n", 2, "--wdir", tmp_path, program, "--sizes", 1000, "--iterations", 1]
    status, output = launcher.mpirun_of(*command, environment={"GTOPK_MPI_MODULE": ""})
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


ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "benchmarks" / "cluster" / "cluster.sh"


def cluster(*arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "CLUSTER": f"test{os.getpid() % 10000}"}
    done = subprocess.run(
        [str(CLUSTER), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=120,
    )
    return done.returncode, done.stdout


def test_an_emulated_cluster_comes_up_and_leaves_nothing_behind() -> None:
    status, output = cluster("up", "2", "100mbit")
    if status != 0 and ("need root" in output or "can be made" in output or "this kernel has no" in output):
        pytest.skip(output)
    assert status == 0, output
    try:
        assert '"latency_us"' in output
        status, output = cluster("exec", "1", "sh", "-c", "hostname; ping -c 1 -W 5 h0 || getent hosts h0")
        assert status == 0 and output.startswith("h1\n"), output
        counters = [line.split() for line in cluster("bytes")[1].splitlines()]
        assert [line[0] for line in counters] == ["0", "1"]
        assert int(counters[0][1]) > 1_000_000 and int(counters[1][2]) > 1_000_000  # what the probe sent
        status, output = cluster("mpirun", "3", "hostname")
        assert status != 0 and "multiple of the 2 nodes" in output, output
    finally:
        status, output = cluster("down")
    assert status == 0 and not output
    status, output = cluster("bytes")
    assert status != 0 and "there is no cluster" in output


def test_an_emulated_cluster_says_what_it_needs() -> None:
    status, output = cluster("up", "1", "1gbit")
    assert status != 0 and "NODES is 1: give 2 to 64" in output
    status, output = cluster("up", "2", "56k")
    assert status != 0 and "RATE is 56k: give 100mbit, 1gbit or 10gbit" in output
    status, output = cluster("up")
    assert status == 2 and "cluster.sh up NODES RATE" in output


# ---- convergence ----------------------------------------------------------------------------------------------------


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> object:
    """The study with one small task that needs no data: a line through points."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "convergence"))
    import study
    from tasks import Part, Task

    def draw(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.rand(count, 50, generator=generator)
        return x, x.sum(1, keepdim=True)

    def line() -> torch.nn.Module:
        return torch.nn.Linear(50, 1)

    def loss(model: torch.nn.Module, samples: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.mse_loss(model(samples[0]), samples[1])

    def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.02)

    task = Task("line", line, (Part(sgd, loss),), loss, draw, lambda: draw(torch.Generator().manual_seed(0), 64))
    monkeypatch.setattr(study, "TASKS", [task])
    monkeypatch.setattr(study, "MARKS", (4, 20))
    return study


def test_the_study_of_convergence_goes_on_where_it_was(
    study: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"

    def start(*arguments: str) -> list[dict[str, object]]:
        monkeypatch.setattr(sys, "argv", ["study.py", "--ranks", "3", "--steps", "20", "--out", str(file), *arguments])
        study.main()
        return json.loads(file.read_text())["rows"]

    rows = start("--settings", "dense;.01")
    assert [row["setting"] for row in rows] == ["dense", ".01"]
    dense, sparse = rows
    # Of 51 entries one is sent.
    assert (
        dense["start"] == sparse["start"] > sparse["losses"]["4"] > sparse["losses"]["20"] > dense["losses"]["20"] > 0
    )
    assert 0 < sparse["bytes_sent"]["4"] < sparse["bytes_sent"]["20"] < dense["bytes_sent"]["20"]
    part = (sparse["losses"]["20"] - dense["losses"]["20"]) / (dense["start"] - dense["losses"]["20"])
    assert f"| .01 | 3 | 20 | 0 of 1 | {part:.0%} | {part:.0%} |" in capsys.readouterr().out

    def no_training(*_: object) -> None:
        raise AssertionError("what is there is not trained again")

    monkeypatch.setattr(study, "train", no_training)
    assert start("--settings", "dense;.01") == rows
    with pytest.raises(SystemExit, match="these are other data"):
        study.same_data({**dense, "start": 2 * dense["start"]}, rows)


def test_a_rank_that_fails_ends_the_study(study: object) -> None:
    from ranks import on_ranks

    def part(comm: object) -> None:
        if comm.rank == 1:
            raise ValueError("rank 1 broke")
        comm.allreduce(torch.zeros(1))

    with pytest.raises(ValueError, match="rank 1 broke"):
        on_ranks(3, part, timeout=60.0)
