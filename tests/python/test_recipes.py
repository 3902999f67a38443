"""The six published workloads: their recipes, the exchange that is asked for, and what ends a run on all ranks."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import Any

import launcher
import pytest
from test_example_data import EXAMPLES

torch = pytest.importorskip("torch")
pytest.importorskip("jiwer")


pytestmark = pytest.mark.usefixtures("examples_on_path")


def options_of(workload: Any, *arguments: str) -> Any:
    from recipe import make_parser, parse

    parser = make_parser("", workload.recipe, workload.unit)
    workload.add_options(parser)
    return parse(parser, list(arguments))


# ---- as published ---------------------------------------------------------------------------------------------------

IMAGES = {"momentum": 0.9, "warmup_epochs": 10, "lr_divisor": 1, "clip": None}
CIFAR = {**IMAGES, "epochs": 141, "batch_size": 32, "lr": 0.1, "weight_decay": 1e-4, "lr_drops": [81, 122, 155]}
IMAGENET = {**IMAGES, "epochs": 95, "lr": 0.01, "weight_decay": 5e-4, "lr_drops": [30, 60, 80]}
SPEECH = {"epochs": 100, "batch_size": 8, "lr": 3e-4, "momentum": 0.9, "weight_decay": 1e-4, "lr_drops": []}
TEXT = {"epochs": 50, "batch_size": 20, "lr": 1, "momentum": 0, "weight_decay": 0, "lr_drops": [], "lr_divisor": 1}
# The recipe, and learning rates on four ranks: at the beginning, in the fifth, tenth, eightieth and last epoch.
PUBLISHED: dict[str, tuple[dict[str, Any], list[float]]] = {
    "cifar_resnet20": (CIFAR, [0.025, 0.0625, 0.1, 0.1, 0.001]),
    "cifar_vgg16": (CIFAR, [0.025, 0.0625, 0.1, 0.1, 0.001]),
    "imagenet_alexnet": ({**IMAGENET, "batch_size": 256}, [0.0025, 0.00625, 0.01, 1e-5, 1e-5]),
    "imagenet_resnet50": ({**IMAGENET, "batch_size": 64}, [0.0025, 0.00625, 0.01, 1e-5, 1e-5]),
    "ptb_lstm": ({**TEXT, "warmup_epochs": 0, "clip": 0.25}, [1, 1, 1, 1, 1]),
    "an4_deepspeech": (
        {**SPEECH, "warmup_epochs": 0, "lr_divisor": 1.01, "clip": 400},
        [3e-4, 3e-4 / 1.01**5, 3e-4 / 1.01**10, 3e-4 / 1.01**80, 3e-4 / 1.01**99],
    ),
}


def workload_of(script: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the script gives to the trainer when it is started."""
    import trainer

    given: list[Any] = []
    monkeypatch.setattr(trainer, "main", lambda workload, description: given.append(workload))
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    (workload,) = given
    return workload


@pytest.mark.parametrize("script", PUBLISHED)
def test_recipes_are_the_published_ones(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipe import Plan

    recipe, rates = PUBLISHED[script]
    options = options_of(workload_of(script, monkeypatch))
    assert {name: getattr(options, name) for name in recipe} == recipe
    assert (options.algorithm, options.density, options.clip_of) == ("gtopk", 0.001, "update")
    plan = Plan.make(options, epoch=100, ranks=4)
    assert plan.steps == 100 * recipe["epochs"]
    assert plan.density_warmup == [(100, 0.25), (100, 0.0725), (100, 0.015), (100, 0.004)]
    steps = [0, 500, 1000, 8000, plan.steps - 1]
    assert [plan.learning_rate(step) for step in steps] == pytest.approx(rates)


def test_models_are_of_the_published_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the scripts make them: with their own defaults and data, which is little text, few utterances and made-up images."""
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text("a b c d e f g\n" * 100)
    sizes = {}
    for script in PUBLISHED:
        workload = workload_of(script, monkeypatch)
        options = options_of(workload, *(["--data", str(tmp_path)] if script == "ptb_lstm" else []))
        if not script.startswith("cifar"):
            workload.load(options, 0, 1)
        with torch.device("meta"):
            model = workload.build()
        sizes[script] = sum(parameter.numel() for parameter in model.parameters())
        if script == "ptb_lstm":
            assert (model.lstm.num_layers, model.lstm.hidden_size) == (2, 1500)
            assert (model.lstm.dropout, model.drop.p) == (pytest.approx(0.65), pytest.approx(0.65))
            assert workload.batch(0)[0].shape == (35, 20)
        if script == "an4_deepspeech":
            assert [lstm.hidden_size for lstm in model.lstms] == [800] * 5
    words = 9  # seven, the unknown one, and the end of a sentence
    assert sizes.pop("ptb_lstm") == 66_034_000 - (10_000 - words) * 3001
    assert sizes == {
        "cifar_resnet20": 269_722,
        "cifar_vgg16": 14_728_266,
        "imagenet_alexnet": 61_100_840,
        "imagenet_resnet50": 25_557_032,
        "an4_deepspeech": 27_568_768,
    }


# ---- the exchange ---------------------------------------------------------------------------------------------------


def exchange_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """What the trainer gives to `gtopk.DistributedOptimizer` beside the optimizer and its parameters."""
    import trainer
    from cifar import Cifar
    from recipe import Plan

    given: dict[str, Any] = {}
    monkeypatch.setattr(trainer.gtopk, "DistributedOptimizer", lambda optimizer, **options: given.update(options))
    model = torch.nn.Linear(2, 1)
    options = options_of(Cifar("", torch.nn.Identity), *arguments)
    trainer.distributed(torch.optim.SGD(model.parameters()), model, Plan.make(options, epoch=100, ranks=4), options)
    assert len(list(given.pop("named_parameters"))) == 2
    return given


def test_the_librarys_default_is_built_as_with_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import gtopk

    defaults = {
        name: parameter.default for name, parameter in inspect.signature(gtopk.DistributedOptimizer).parameters.items()
    }
    given = exchange_of(monkeypatch, "--density", "default")
    assert given == {name: defaults[name] for name in given}
    assert exchange_of(monkeypatch)["density"] == 0.001


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--merge-growth=1.5", "merge_growth", 1.5),
        ("--dense-1d", "dense_1d", True),
        ("--momentum-correction", "momentum_correction", True),
        ("--no-momentum-correction", "momentum_correction", False),
        ("--hierarchy=node", "hierarchy", "node"),
        ("--value-type=int8", "value_type", "int8"),
        ("--algorithm=topk", "algorithm", "topk"),
    ],
)
def test_options_of_the_exchange_arrive(
    argument: str, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = exchange_of(monkeypatch, "--density", "default")
    assert exchange_of(monkeypatch, "--density", "default", argument) == {**without, name: value}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--density", "defualt"], "argument --density: 'defualt' is neither above 0 and at most 1 nor 'default'"),
        (["--density", "0"], "argument --density: '0' is neither above 0"),
        (["--density", "nan"], "argument --density: 'nan' is neither above 0"),
        (["--density", "default", "--density-warmup", "0.1"], "--density-warmup is for a --density in numbers"),
    ],
)
def test_densities_that_are_none(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    from cifar import Cifar

    with pytest.raises(SystemExit):
        options_of(Cifar("", torch.nn.Identity), *arguments)
    assert complaint in capsys.readouterr().err


# ---- devices --------------------------------------------------------------------------------------------------------


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import trainer

    losing_a_rank = runpy.run_path(str(EXAMPLES / "losing_a_rank" / "train.py"))["choose_device"]
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(trainer.gtopk, "local_rank", lambda: 6)
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert trainer.choose_device("cpu") == torch.device("cpu")
        for wrong in ("tpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""):
            with pytest.raises(ValueError, match=rf"--device {wrong} is none of auto, cpu, cuda and cuda:N"):
                trainer.choose_device(wrong)
        if there:
            with pytest.raises(ValueError, match=r"--device cuda:9: PyTorch sees 4, the last one is cuda:3"):
                trainer.choose_device("cuda:9")
            continue
        assert trainer.choose_device("auto") == torch.device("cpu")
        for name in ("cuda", "cuda:9"):
            with pytest.raises(ValueError, match=rf"--device {name}: PyTorch sees no GPU"):
                trainer.choose_device(name)
        with pytest.raises(SystemExit, match="--device cuda: PyTorch sees no GPU"):
            losing_a_rank("cuda")
    assert not chosen
    names = ("auto", "cuda", "cuda:3")
    assert [trainer.choose_device(name) for name in names] == chosen == [torch.device("cuda", i) for i in (2, 2, 3)]


# ---- on two ranks ---------------------------------------------------------------------------------------------------


def test_what_ends_a_run_ends_all_ranks_and_made_up_images_are_announced(tmp_path: Path) -> None:
    """All cases in one launch: tests/distributed/example_runs.py."""
    status, output = launcher.mpirun(2, "example_runs.py", tmp_path)
    assert status == 0, output[-8000:]
    assert output.count("as expected on all 2 ranks") == 9, output[-8000:]
