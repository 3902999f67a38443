"""The benchmarks: models are what they are called, programs start, and studies go on where they were."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import launcher
import numpy
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
NO_CLUSTER = ("need root", "can be made", "this kernel has no")  # reasons why there is none


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
    if status != 0 and any(reason in output for reason in NO_CLUSTER):
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


def test_the_formula_of_a_node_has_the_librarys_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a transport that does not queue, as the simulated one: what is compared with the formula is sent in them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "scale"))
    import scale

    source = (ROOT / "csrc" / "exchange" / "scatter.c").read_text()
    shift = re.search(r"^#define PIECE \(\(uint64_t\)1 << (\d+)\)$", source, re.MULTILINE)
    assert shift is not None
    assert 2 ** int(shift[1]) == scale.PIECE


def test_pictures_open_no_window() -> None:
    """Whatever the environment asks for; and nothing else chooses how matplotlib draws."""
    pytest.importorskip("matplotlib")
    program = "import matplotlib, pictures; print(matplotlib.get_backend())"
    environment = {**os.environ, "MPLBACKEND": "svg", "PYTHONPATH": str(ROOT / "benchmarks")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.strip().lower() == "agg", done.stderr
    files = [file for folder in ("benchmarks", "scripts") for file in (ROOT / folder).rglob("*.py")]
    assert [file.name for file in files if ".use(" in file.read_text()] == ["pictures.py"]
    drawn = [
        file.name for file in files if re.search(r"import (matplotlib\.)?pyplot|matplotlib.pyplot", file.read_text())
    ]
    imports = [file.name for file in files if "from pictures import pyplot" in file.read_text()]
    assert sorted(drawn) == sorted(["pictures.py", *imports])


# ---- trainings over networks ----------------------------------------------------------------------------------------

TRAINING = ROOT / "benchmarks" / "network_training.py"


@pytest.fixture
def network_training(monkeypatch: pytest.MonkeyPatch) -> object:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import network_training

    return network_training


def test_when_a_training_has_reached_a_loss(network_training: object) -> None:
    curve = [
        {"step": 0, "seconds": 0.0, "loss": 4.0},
        {"step": 4, "seconds": 2.0, "loss": 3.0},
        {"step": 8, "seconds": 6.0, "loss": 3.5},
        {"step": 12, "seconds": 10.0, "loss": 1.5},
    ]
    reached = network_training.reached
    assert reached(curve, 4.5) == 0.0
    assert reached(curve, 3.25) == 1.5
    assert reached(curve, 3.0) == 2.0
    assert reached(curve, 2.5) == 8.0  # not on the way to the first rise
    assert reached(curve, 2.5, over="step") == 10.0
    assert reached(curve, 1.5) == 10.0
    assert reached(curve, 1.4) is None


def test_losses_are_parts_of_what_dense_training_reaches(network_training: object) -> None:
    guessing = network_training.Characters.guessing
    dense = [{"step": 0, "seconds": 0.0, "loss": guessing + 1}, {"step": 4, "seconds": 8.0, "loss": guessing - 2}]
    losses = network_training.losses_to_reach(dense, guessing)
    assert losses == pytest.approx({0.6: guessing - 1.2, 0.8: guessing - 1.6, 0.95: guessing - 1.9})

    row = {"task": "transformer", "ranks": 2, "rate": "1gbit", "steps": 4, "every": 4, "seed": 1, "batch": 4}
    row |= {"alone_ms": 500.0, "step_ms": 2000.0, "bytes": 3_000_000}
    fast = [{"step": 0, "seconds": 0.0, "loss": guessing + 1}, {"step": 4, "seconds": 2.0, "loss": guessing - 1.6}]
    rows = [
        {**row, "method": "gtopk", "curve": fast, "loss": guessing - 1.6},
        {**row, "method": "DDP", "curve": dense, "loss": guessing - 2},
        {**row, "method": "gtopk", "curve": fast, "loss": guessing - 1.6, "seed": 2},
        {**row, "method": "gtopk", "curve": fast, "loss": guessing - 1.6, "rate": "local"},
    ]
    lines = network_training.summary(rows)
    assert [line["method"] for line in lines] == ["gtopk", "DDP"], "what has no dense training of its kind is left out"
    sparse, base = lines
    assert sparse["alone_share"] == 0.25 and sparse["megabytes"] == 3.0
    assert (sparse["seconds to 80%"], base["seconds to 80%"]) == (2.0, pytest.approx(6.93, abs=0.005))
    assert (sparse["DDP / this at 80%"], base["DDP / this at 80%"]) == (pytest.approx(3.47, abs=0.005), 1.0)
    assert sparse["seconds to 95%"] is None and sparse["DDP / this at 95%"] is None


def trainings(out: Path, *arguments: str) -> tuple[int, str]:
    """Of the transformer, for eight steps."""
    options = ["--task", "transformer", "--steps", "8", "--every", "4", "--out", str(out), *arguments]
    return launcher.run([sys.executable, str(TRAINING), *options], {}, launcher.LIMIT)


def test_a_training_study_goes_on_where_it_was(network_training: object, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    both = ("--case", "2:local", "--method", "DDP", "gtopk, 4 local steps")
    status, output = trainings(out, *both[:-1])
    assert status == 0, output
    first = json.loads(out.read_text())
    assert [row["method"] for row in first["trainings"]] == ["DDP"]
    status, output = trainings(out, *both)
    assert status == 0, output
    result = json.loads(out.read_text())
    assert result["trainings"][0] == first["trainings"][0], "what is there is not measured again"
    dense, local = result["trainings"]
    assert local["method"] == "gtopk, 4 local steps"
    for row in (dense, local):
        assert [point["step"] for point in row["curve"]] == [0, 4, 8]
        times = [point["seconds"] for point in row["curve"]]
        assert times == sorted(set(times)) and row["alone_ms"] > 0 and row["loss"] == row["curve"][-1]["loss"]
        assert row["loss"] < row["curve"][0]["loss"]
    assert dense["curve"][0]["loss"] == local["curve"][0]["loss"], "all begin with the same weights"
    assert [line["method"] for line in result["summary"]] == ["DDP", "gtopk, 4 local steps"]
    picture = out.with_suffix(".png")
    assert picture.read_bytes().startswith(b"\x89PNG")

    picture.unlink()
    status, output = trainings(out, *both, "--minutes", "0")
    assert status == 0 and "gtopk, 4 local steps" in output, output
    assert json.loads(out.read_text()) == result and not picture.exists()


def test_a_training_over_an_emulated_network(network_training: object, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    name = f"train{os.getpid() % 10000}"
    status, output = trainings(out, "--case", "2:100mbit", "--method", "DDP", "--cluster", name)
    if status != 0 and any(reason in output for reason in NO_CLUSTER):
        pytest.skip(output)
    assert status == 0, output
    result = json.loads(out.read_text())
    (row,) = result["trainings"]
    entries = sum(parameter.numel() for parameter in network_training.characters.Transformer().parameters())
    dense = row["steps"] * 4 * entries  # two ranks send all of it once
    assert dense < row["bytes"] < 2 * dense
    assert row["seconds"] > 0.9 * 8 * dense / 1e8, "no faster than the link"
    assert [(link["ranks"], link["rate"]) for link in result["links"]] == [(2, "100mbit")]
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert name not in left


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--case", "4:56k"), "'4:56k' is no RANKS:RATE"),
        (("--case", "1:local"), "'1:local' is no RANKS:RATE"),
        (("--every", "6"), "--every is 6: give a multiple of 4"),
        (("--steps", "0"), "--steps is 0: give 1 or more"),
    ],
)
def test_a_training_study_says_what_it_needs(
    network_training: object,
    arguments: tuple[str, ...],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["network_training.py", *arguments])
    with pytest.raises(SystemExit):
        network_training.parse()
    assert text in capsys.readouterr().err


def running(word: str) -> bool:
    """Whether there is a process with this in its command line."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in file.read_text(errors="replace"):
                return True
    return False


def test_a_command_that_is_given_up_ends_with_what_it_started(network_training: object) -> None:
    sleep = f"1000.{os.getpid()}"
    with pytest.raises(TimeoutError, match="took more than 1 s"):
        network_training.run_to_end(["sh", "-c", f"sleep {sleep} & wait"], {}, 1)
    deadline = time.monotonic() + 60
    while running(sleep) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(sleep)
    with pytest.raises(RuntimeError, match="failed:\nsaid before"):
        network_training.run_to_end(["sh", "-c", "echo said before; exit 3"], {}, None)


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

    def near(model: torch.nn.Module, samples: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return ((model(samples[0]) - samples[1]).abs() < 3).float().mean()

    def test() -> tuple[torch.Tensor, torch.Tensor]:
        return draw(torch.Generator().manual_seed(0), 64)

    task = Task("line", line, (Part(sgd, loss),), loss, draw, test, accuracy=near)
    monkeypatch.setattr(study, "TASKS", [task])
    monkeypatch.setattr(study, "FACTOR_TASKS", [task])
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
    monkeypatch.setattr(study, "train", lambda *_: {**dense, "start": dense["start"], "seconds": -1.0})
    again = start("--settings", "dense", "--again")
    assert [row["seconds"] for row in again] == [-1.0, sparse["seconds"]], "that which was named is trained anew"
    assert again[1] == sparse
    with pytest.raises(SystemExit, match="these are other data"):
        study.same_data({**dense, "start": 2 * dense["start"]}, rows)


def test_a_row_says_how_it_came_about(study: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there was before keeps its own machine; a training of two steps has everything that a row has."""
    file = tmp_path / "rows.json"
    older = {
        "task": "line",
        "setting": "dense",
        "ranks": 4,
        "seed": 7,
        "start": 1.0,
        "losses": {},
        "machine": "another",
    }
    file.write_text(json.dumps({"rows": [older]}))
    arguments = ["--ranks", "2", "--steps", "2", "--marks", "1,2,4000", "--ratio", "1", "--settings", "base;dense"]
    monkeypatch.setattr(sys, "argv", ["study.py", "--factors", "--out", str(file), *arguments])
    study.main()
    kept, dense, row = json.loads(file.read_text())["rows"]
    assert kept == older
    assert row["commit"] == study.commit() and row["machine"]["cores"] >= 1 and len(row["date"].split("-")) == 3
    assert [point["step"] for point in row["curve"]] == [0, 1, 2]
    for point in row["curve"][1:]:
        mark = str(point["step"])
        assert point["loss"] == row["losses"][mark] and point["bytes_sent"] == row["bytes_sent"][mark] > 0
        assert 0 <= point["accuracy"] == row["accuracies"][mark] <= 1
    assert [(found["step"], found["entries"]) for found in row["ratio"]] == [(1, 51), (2, 51)]
    for found in row["ratio"]:
        assert 0 < found["error_ratio"] < 1 <= found["union_share"] <= 2
    assert "ratio" not in dense

    picture = tmp_path / "picture.png"
    monkeypatch.setattr(
        sys, "argv", ["study.py", "--factors", "--out", str(file), "--ranks", "2", "--plot", str(picture)]
    )
    study.main()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_factor_has_settings_that_train(study: object) -> None:
    from factors import FACTORS, fits, options_of, ranks_a_node

    from gtopk import _c_api

    options = {setting: options_of(setting, 16, True) for setting in FACTORS}

    def values(name: str, default: object) -> set[object]:
        return {found.get(name, default) for found in options.values()}

    assert values("algorithm", None) == set(_c_api.ALGORITHMS) - {"dense"}
    assert values("residual_policy", "share") == set(_c_api.RESIDUAL_POLICIES)
    assert values("value_type", "bf16") == set(_c_api.VALUE_TYPES)
    assert values("merge_growth", None) == {1.0, 1.19, 1.41, 2.0}
    assert {0.001, 0.002, 0.005, 0.01} < values("density", None)
    assert values("momentum_correction", None) == values("dense_1d", False) == {True, False}
    # In 16 ranks, topk sends 15 messages of k entries where gtopk sends 4.
    few, many = (options[f"base: {name}"]["density"] for name in ("topk, bytes of gtopk", "gtopk, bytes of topk"))
    assert 0.9 * 4 / 15 < few / 0.001 < 4 / 15 and 15 / 4 < many / 0.001 < 1.1 * 15 / 4
    assert not any(options_of(setting, 16, False)["momentum_correction"] for setting in FACTORS)
    assert not fits("base: nodes of four", 4) and fits("base: nodes of four", 8)

    (task,) = study.FACTOR_TASKS
    for setting in FACTORS:
        nodes = ranks_a_node(setting) is not None
        curve = study.train(task, setting, 8 if nodes else 2, 1, 1, (1,))["curve"]
        assert curve[-1]["loss"] < curve[0]["loss"] and curve[-1]["bytes_sent"] > 0, setting
        if nodes:
            assert 0 < curve[-1]["network_bytes_sent"] < curve[-1]["bytes_sent"]


def test_lines_of_the_picture_are_means_over_seeds(study: object) -> None:
    from over_bytes import lines_of

    def row(setting: str, *points: tuple[int, int, float | None]) -> dict[str, object]:
        curve = [{"step": step, "bytes_sent": sent, "loss": loss} for step, sent, loss in points]
        return {"setting": setting, "curve": curve}

    rows = [
        row("a", (0, 0, 9.0), (1, 10, 2.0), (2, 20, 1.0), (3, 30, 0.5)),
        row("a", (0, 0, 9.0), (1, 14, 4.0), (2, 28, None)),
        row("b", (0, 0, 9.0), (1, 5, 3.0)),
    ]
    assert lines_of(rows, "loss") == {"a": [(12, 3.0, 2.0, 4.0)], "b": [(5, 3.0, 3.0, 3.0)]}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--again",), "--again trains anew what there is: name the settings"),
        (("--settings", "bas"), "there is no setting 'bas'"),
        (("--settings", "base: nodes of four", "--ranks", "6"), "needs several nodes of 4 ranks: --ranks is 6"),
        (("--steps", "3"), "--steps is 3, and the first of --marks 4"),
        (("--marks", "10,x"), "--marks is '10,x'"),
        (("--ranks", "1"), "--ranks is 1: give 2 or more"),
        (("--tasks", "circle"), "no task has what --tasks says"),
    ],
)
def test_the_study_of_convergence_says_what_it_needs(
    study: object,
    arguments: tuple[str, ...],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    with pytest.raises(SystemExit):
        study.main()
    assert text in capsys.readouterr().err


def test_the_error_of_what_was_sent_beside_that_of_random_entries(study: object) -> None:
    """Two ranks, of four entries one is sent. S = (4, 2, 0, 3), of which 4 goes: 13 is left, and 3/4 of 29 at random. The ranks
    have chosen different entries. They share the 3 that was dropped, so both choose it in the next step: of S = (0, 2, 0, 3) 4
    is left, and 3/4 of 13."""
    from ranks import on_ranks
    from sparsity import Board, error_ratio, union_share, watch

    import gtopk

    first, second = (numpy.array(rank, numpy.float32) for rank in ((4, 1, 0, 0), (0, 1, 0, 3)))
    assert error_ratio([first, second], numpy.array((4, 0, 0, 0)), 1) == pytest.approx(13 / (29 * 3 / 4))
    assert error_ratio([first, second], first + second, 4) is None, "nothing is left by random entries either"
    assert union_share([first, second], 1) == 2.0 and union_share([first, first], 2) == 1.0

    board = Board(2, 1)

    def part(comm: gtopk.Comm) -> None:
        weight = torch.nn.Parameter(torch.zeros(4))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        optimizer = gtopk.DistributedOptimizer(optimizer, density=0.25, value_type="fp32", comm=comm)
        watch(optimizer, board)
        for gradient in ((first, second)[comm.rank], numpy.zeros(4, numpy.float32)):
            weight.grad = torch.from_numpy(gradient.copy())
            optimizer.step()

    on_ranks(2, part, timeout=60.0)
    assert [found["error_ratio"] for found in board.found] == pytest.approx([13 / (29 * 3 / 4), 4 / (13 * 3 / 4)])
    assert [(found["step"], found["k"], found["union_share"]) for found in board.found] == [(1, 1, 2.0), (2, 1, 1.0)]


def test_a_rank_that_fails_ends_the_study(study: object) -> None:
    from ranks import on_ranks

    def part(comm: object) -> None:
        if comm.rank == 1:
            raise ValueError("rank 1 broke")
        comm.allreduce(torch.zeros(1))

    with pytest.raises(ValueError, match="rank 1 broke"):
        on_ranks(3, part, timeout=60.0)
