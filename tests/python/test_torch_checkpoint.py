"""The state of a distributed optimizer as a file, and what is refused when it is loaded. One process."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim
from torch_support import make, train

import gtopk
from gtopk.torch.synchronizer import Synchronizer


@pytest.fixture
def exchanging(alone, monkeypatch):
    monkeypatch.setattr(Synchronizer, "solo", False)
    return alone


def new(model=None, **options):
    model = make() if model is None else model
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, gtopk.DistributedOptimizer(optimizer, model.named_parameters(), **{"density": 0.02, **options})


@pytest.fixture
def state(exchanging):
    model, optimizer = new()
    train(model, optimizer, 3)
    return optimizer.state_dict()


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_weights_only(state):
    loaded = through_a_file(state)
    assert loaded["gtopk"]["residual"]["conv.weight"].any()
    for name, values in state["gtopk"]["residual"].items():
        assert torch.equal(loaded["gtopk"]["residual"][name], values)
    _, optimizer = new()
    optimizer.load_state_dict(loaded, strict=True)
    assert torch.equal(
        optimizer.state_dict()["gtopk"]["residual"]["conv.weight"], state["gtopk"]["residual"]["conv.weight"]
    )


def test_a_loaded_state_is_a_copy(state):
    _, optimizer = new()
    optimizer.load_state_dict(state)
    state["gtopk"]["residual"]["conv.weight"].zero_()
    assert optimizer.state_dict()["gtopk"]["residual"]["conv.weight"].any()


def test_the_plain_optimizer_loads_it(state):
    plain = optim.SGD(make().parameters(), lr=1.0, momentum=0.9)
    plain.load_state_dict(state)
    assert plain.param_groups[0]["lr"] == 0.01
    assert plain.state_dict()["state"].keys() == state["state"].keys()


def test_safetensors(exchanging):
    """Residuals are plain tensors under plain names."""
    safetensors = pytest.importorskip("safetensors.torch")
    model, optimizer = new(make(channels_last=True))
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    data = safetensors.save(state["gtopk"]["residual"])
    for name, values in safetensors.load(data).items():
        assert torch.equal(values, state["gtopk"]["residual"][name])


def test_loading_replaces_the_residual(state):
    model, optimizer = new()
    train(model, optimizer, 2, 7)
    optimizer.load_state_dict(state)
    kept = optimizer.state_dict()["gtopk"]
    assert kept["step"] == 3
    assert all(torch.equal(kept["residual"][name], values) for name, values in state["gtopk"]["residual"].items())


def refused(state, error, text, **options):
    model, optimizer = new(**options)
    train(model, optimizer, 1)
    before = optimizer.state_dict()
    with pytest.raises(error, match=text):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()  # nothing was changed
    assert after["gtopk"]["step"] == before["gtopk"]["step"]
    for name, values in before["gtopk"]["residual"].items():
        assert torch.equal(after["gtopk"]["residual"][name], values)


def test_another_model(state):
    text = r"parameter 1 is conv\.weight of shape \[8, 3, 3, 3\], and here it is conv\.weight of shape \[8, 9, 3, 3\]"
    other = make()
    other.conv.weight = nn.Parameter(torch.zeros(8, 9, 3, 3))
    optimizer = gtopk.DistributedOptimizer(optim.SGD(other.parameters(), lr=0.1), other.named_parameters())
    with pytest.raises(gtopk.MismatchError, match=text):
        optimizer.load_state_dict(state)
    renamed = make()
    names = [("x." + name, p) for name, p in renamed.named_parameters()]
    optimizer = gtopk.DistributedOptimizer(optim.SGD(renamed.parameters(), lr=0.1), names)
    with pytest.raises(gtopk.MismatchError, match=r"parameter 0 is unused of shape \[7\], and here it is x\.unused"):
        optimizer.load_state_dict(state)
    fewer = make()
    optimizer = gtopk.DistributedOptimizer(optim.SGD(list(fewer.parameters())[:3], lr=0.1), fewer.named_parameters())
    with pytest.raises(
        gtopk.MismatchError, match=r"has 8 parameters, and there are 3 here; norm\.weight is in the state only"
    ):
        optimizer.load_state_dict(state)


def test_damaged_states(state):
    def damaged(change):
        copied = copy.deepcopy(state)
        change(copied["gtopk"])
        return copied

    for change, text in (
        (lambda s: s.pop("residual"), "has no 'residual'"),
        (lambda s: s.update(format=99), "format 99"),
        (lambda s: s["shapes"].pop(), "damaged"),
        (lambda s: s["residual"].update({"conv.weight": torch.zeros(3)}), "conv.weight has shape"),
        (
            lambda s: s["residual"].update({"conv.weight": torch.zeros(8, 3, 3, 3, dtype=torch.int32)}),
            "no float32 tensor",
        ),
        (lambda s: s["residual"].update({"nobody": torch.zeros(3)}), "nobody"),
        (lambda s: s["residual"]["conv.weight"].fill_(torch.inf), "Inf or NaN"),
    ):
        refused(damaged(change), gtopk.CorruptError, text)


def test_a_velocity_needs_momentum_correction(exchanging):
    model, optimizer = new(momentum_correction=True)
    train(model, optimizer, 2)
    state = through_a_file(optimizer.state_dict())
    assert state["gtopk"]["velocity"]["conv.weight"].any()
    refused(state, gtopk.MismatchError, "momentum_correction=True")
    _, resumed = new(momentum_correction=True)
    resumed.load_state_dict(state)
    assert torch.equal(
        resumed.state_dict()["gtopk"]["velocity"]["conv.weight"], state["gtopk"]["velocity"]["conv.weight"]
    )


def test_a_state_without_velocity_may_be_loaded_with_momentum_correction(state):
    model, optimizer = new(momentum_correction=True)
    optimizer.load_state_dict(state)
    train(model, optimizer, 1)
    assert optimizer.state_dict()["gtopk"]["velocity"]["conv.weight"].any()


def test_one_rank_adds_a_loaded_residual_to_the_first_gradient(state, monkeypatch):
    monkeypatch.undo()
    model, optimizer = new(make(channels_last=True))
    residual = state["gtopk"]["residual"]
    assert residual["conv.weight"].any()
    optimizer.load_state_dict(state)
    for added in (residual, {}):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        for name, p in model.named_parameters():
            assert torch.equal(p.grad, 1 + added.get(name, torch.zeros_like(p))), name
    assert optimizer.state_dict()["gtopk"]["residual"] == {}


def test_the_memory_format_may_change(state):
    """Residuals are saved in the shape of the parameter, so they find their entries again."""
    _, optimizer = new(make(channels_last=True))
    optimizer.load_state_dict(state)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = optimizer.state_dict()["gtopk"]["residual"]
    sent = {name: p.grad for name, p in zip(kept, optimizer.param_groups[0]["params"], strict=True)}
    for name, values in state["gtopk"]["residual"].items():
        torch.testing.assert_close(kept[name] + sent[name], values)


def test_distributed_checkpoint_traps_are_errors(exchanging):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model, optimizer = new()
    with pytest.raises(gtopk.StateError, match=r"learning rate of 0.*dcp\.save"):
        get_optimizer_state_dict(model, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    train(model, optimizer, 2)
    with pytest.raises(gtopk.StateError, match=r"drop the residual.*dcp\.save"):
        get_optimizer_state_dict(model, optimizer)


def test_a_learning_rate_of_0_is_allowed(exchanging):
    model, optimizer = new()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    assert optimizer.stats()["step"] == 0
