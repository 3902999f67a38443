"""The state of a distributed optimizer as a file, and what is refused when it is loaded. One process."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch_support import make, train

import gtopk
import gtopk.horovod as hvd
from gtopk.torch.state_form import FIELDS


def new(model=None, **options):
    model = make() if model is None else model
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return model, gtopk.DistributedOptimizer(optimizer, model.named_parameters(), **{"density": 0.02, **options})


@pytest.fixture
def state(exchanging):
    model, optimizer = new()
    train(model, optimizer, 3)
    return optimizer.state_dict()


@pytest.fixture
def resuming(state):
    return new()


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


def of_many(optimizer, residual, **more):
    """A consolidated state of four ranks, of a model with one parameter."""
    state = optimizer.state_dict()
    state["gtopk"] |= {
        "rank": -1,
        "size": 4,
        "run": 1,
        "step": 10,
        "residual_of": ["w"],
        "residual": {"w": residual},
        **more,
    }
    return state


@pytest.mark.parametrize(("op", "ranks"), [(hvd.Average, 4), (hvd.Sum, 1)])
def test_what_waits_on_many_moves_the_weights_as_far_on_one(either, op, ranks):
    weight, residual = nn.Parameter(torch.zeros(5)), torch.arange(5.0)
    sgd = optim.SGD([weight], lr=1.0)
    optimizer = hvd.DistributedOptimizer(sgd, [("w", weight)], op=op, algorithm="dense")
    optimizer.load_state_dict(of_many(optimizer, residual))
    assert torch.equal(optimizer.state_dict()["gtopk"]["residual"]["w"], residual / ranks)
    weight.grad = torch.ones(5)
    optimizer.step()
    assert torch.equal(weight.detach(), -1 - residual / ranks)


def test_changes_of_weights_that_wait_on_many_are_as_large_on_one(either):
    weight, residual = nn.Parameter(torch.ones(5)), torch.arange(5.0)
    sgd = optim.SGD([weight], lr=1.0)
    optimizer = gtopk.DistributedOptimizer(sgd, [("w", weight)], local_steps=2, outer_lr=0.5, algorithm="dense")
    local = {"local_steps": [20, 0], "start_of": ["w"], "start": {"w": torch.full((5,), 3.0)}}
    optimizer.load_state_dict(of_many(optimizer, residual, **local, outer_velocity_of=[], outer_velocity={}))
    assert torch.equal(weight.detach(), torch.full((5,), 3.0))
    for _ in range(2):
        weight.grad = torch.zeros(5)
        optimizer.step()
    assert torch.equal(weight.detach(), 3 - 0.5 * residual / 4)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_sharded_state_has_the_mean_of_as_many_as_have_saved_it(exchanging, tmp_path):
    import torch.distributed.checkpoint as dcp

    model, optimizer = new()
    train(model, optimizer, 3)
    saved, before = optimizer.sharded_state_dict(), optimizer.state_dict()["gtopk"]["residual"]
    for replicas, key in ((1, "one"), (4, "four")):  # as if the other three had nothing
        saved["progress"][1] = replicas
        dcp.save({key: saved}, checkpoint_id=tmp_path / key, no_dist=True)
        _, other = new()
        other.load_sharded_state(tmp_path / key, key=key)
        after = other.state_dict()["gtopk"]["residual"]
        for name, values in before.items():
            assert torch.equal(after[name], values / replicas)
    saved["progress"][1] = 2
    large = torch.full_like(saved["residual.0.conv.bias"], 3e38)
    twice = {f"residual.{replica}.conv.bias": large for replica in range(2)}
    alone = {name: values for name, values in saved.items() if name != "residual.0.conv.bias"}
    for key, wrong, text in (
        ("large", {**saved, **twice}, "conv.bias is too large"),
        ("alone", {**alone, "velocity.0.conv.bias": large}, r"velocity of conv\.bias, and no residual"),
    ):
        dcp.save({key: wrong}, checkpoint_id=tmp_path / key, no_dist=True)
        with pytest.raises(gtopk.CorruptError, match=text):
            new()[1].load_sharded_state(tmp_path / key, key=key)
    saved["progress"][1] = 0
    dcp.save({"none": saved}, checkpoint_id=tmp_path / "none", no_dist=True)
    with pytest.raises(gtopk.CorruptError, match=r"none\.progress says that 0 ranks.*residual of number 0"):
        new()[1].load_sharded_state(tmp_path / "none", key="none")


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

    def put(what, name, value):
        return lambda s: s[what].update({name: value})

    for change, text in (
        (lambda s: s.pop("residual"), "has no 'residual'"),
        (lambda s: s.update(format=99), "format 99.*install a newer"),
        (lambda s: s.update(format=True), "its format is True"),
        (lambda s: s.update(size=None), "its size is None"),
        (lambda s: s.update(size=0), "its size is 0"),
        (lambda s: s.update(rank="a"), "its rank is 'a'"),
        (lambda s: s.update(rank=-2), "its rank is -2"),
        (lambda s: s.update(rank=s["size"]), "its rank is 1"),
        (lambda s: s.update(run="x"), "its run is 'x'"),
        (lambda s: s.update(run=2**63), "its run is something of type int"),
        (lambda s: s.update(step=10**5000), "its step is something of type int"),
        (lambda s: s.update(step="seven"), "its step is 'seven'"),
        (lambda s: s.update(step=-5), "its step is -5"),
        (lambda s: s.update(step=3.0), r"its step is 3\.0"),
        (lambda s: s.update(names=3), "its names is 3"),
        (lambda s: s["names"].__setitem__(1, s["names"][0]), "list of different names"),
        (lambda s: s.update(shapes=None), "its shapes is None"),
        (lambda s: s["shapes"].pop(), "list of 8 shapes"),
        (lambda s: s["shapes"].__setitem__(0, 7), "its shapes has 7 for unused"),
        (lambda s: s["shapes"].__setitem__(0, [-7]), "its shapes has something of type list for unused"),
        (lambda s: s.update(residual=None), "its residual is None"),
        (lambda s: s.update(velocity=[]), "its velocity is something of type list"),
        (lambda s: s.update(residual_of=4), "its residual_of is 4"),
        (lambda s: s["residual"].pop("conv.weight"), "residual_of.*conv.weight' is in one of them only"),
        (lambda s: s["residual_of"].pop(), "residual_of.*is in one of them only"),
        (lambda s: s["velocity_of"].append("conv.weight"), "velocity_of.*conv.weight' is in one of them only"),
        (
            lambda s: (
                s.update(velocity_of=["conv.bias"], velocity={"conv.bias": s["residual"].pop("conv.bias")})
                or s["residual_of"].remove("conv.bias")
            ),
            "residual has nothing of 'conv.bias', of which there is a velocity",
        ),
        (put("residual", "conv.weight", torch.zeros(3)), r"conv\.weight has shape \[3\]"),
        (put("residual", "conv.weight", torch.zeros(8, 3, 3, 3, dtype=torch.int32)), "no float32 tensor"),
        (put("residual", "conv.weight", torch.zeros(8, 3, 3, 3).to_sparse()), "no ordinary tensor"),
        (put("residual", "conv.weight", torch.zeros(8, 3, 3, 3, device="meta")), "no ordinary tensor"),
        (lambda s: (put("residual", "nobody", torch.zeros(3))(s), s["residual_of"].append("nobody")), "nobody.*names"),
        (lambda s: s["residual"]["conv.weight"].fill_(torch.inf), "Inf or NaN"),
        (lambda s: s["residual"]["conv.weight"].view(-1)[5:6].fill_(torch.nan), "Inf or NaN"),
    ):
        refused(damaged(change), gtopk.CorruptError, text)
    for whole in (3, [], "gtopk"):
        refused({**state, "gtopk": whole}, gtopk.CorruptError, "no mapping")


TENSORS = [
    torch.zeros(7),
    torch.full((8, 3, 3, 3), 0.5),
    torch.full((8, 3, 3, 3), torch.nan),
    torch.ones(1).expand(8, 3, 3, 3),
    torch.ones(8, 3, 3, 3, requires_grad=True),
    torch.ones(8, 3, 3, 3).double(),
    torch.ones(8, 3, 3, 3).to_sparse(),
    torch.ones(8, 3, 3, 3, device="meta"),
    torch.tensor(1.0),
]
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.sampled_from(TENSORS),
)
NAMES = st.sampled_from(["unused", "conv.weight", "conv.bias", "nobody"])
ANYTHING = st.one_of(
    PLAIN,
    st.recursive(
        PLAIN,
        lambda inner: st.lists(inner, max_size=9) | st.dictionaries(NAMES | st.text(), inner, max_size=9),
        max_leaves=12,
    ),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(field=st.sampled_from(FIELDS), inside=st.booleans(), place=NAMES, value=ANYTHING)
def test_one_field_replaced_by_anything(state, resuming, field, inside, place, value):
    whole = state["gtopk"][field]
    if inside and isinstance(whole, dict):
        value = {**whole, place: value}
    elif inside and isinstance(whole, list):
        value = [value, *whole[1:]]
    refused_or_usable({**state["gtopk"], field: value}, state, *resuming)


@pytest.mark.parametrize("number", range(len(TENSORS)))
def test_a_residual_replaced_by_any_tensor(state, resuming, number):
    residual = {**state["gtopk"]["residual"], "conv.weight": TENSORS[number]}
    refused_or_usable({**state["gtopk"], "residual": residual}, state, *resuming)


def refused_or_usable(saved, state, model, optimizer):
    """Refused with nothing changed, or accepted; with the optimizer as usable as before."""
    before = optimizer.state_dict()["gtopk"]
    try:
        optimizer.load_state_dict({**state, "gtopk": saved})
    except gtopk.GtopkError:
        after = optimizer.state_dict()["gtopk"]
        assert {name: after[name] for name in ("step", "run")} == {name: before[name] for name in ("step", "run")}
        assert all(torch.equal(after["residual"][name], values) for name, values in before["residual"].items())
    train(model, optimizer, 1)
    assert all(p.isfinite().all() for p in model.parameters())
    through_a_file(optimizer.state_dict())


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


@pytest.mark.parametrize("dense", [{"dense_below": 10**6}, {"dense_1d": True, "dense_below": 300}])
def test_what_waits_of_a_parameter_that_is_sent_dense_from_now_on_goes_out_in_the_next_step(state, dense):
    residual = state["gtopk"]["residual"]
    model, optimizer = new(**dense)
    optimizer.load_state_dict(state)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = optimizer.state_dict()["gtopk"]["residual"]
    assert residual["conv.weight"].any()
    assert residual["conv.bias"].any()
    for name, p in model.named_parameters():
        if "dense_1d" not in dense or p.numel() < 300:
            assert torch.equal(p.grad, residual[name]), name
            assert not kept[name].any()


def test_distributed_checkpoint_drops_no_residual(exchanging):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model, optimizer = new()
    get_optimizer_state_dict(model, optimizer)  # it calls step(), which exchanges nothing here
    assert optimizer.stats() == {}
    train(model, optimizer, 2)
    for _ in range(2):
        with pytest.raises(gtopk.StateError, match=r"drop the residual.*sharded_state_dict.*dcp\.save"):
            get_optimizer_state_dict(model, optimizer)
        optimizer.sharded_state_dict()
        assert "state" in get_optimizer_state_dict(model, optimizer)
        train(model, optimizer, 1)


def test_a_learning_rate_of_0_is_allowed(exchanging):
    model, optimizer = new()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    assert optimizer.stats()["step"] == 0


def test_a_compiled_model_has_the_names_of_the_model(state):
    """torch.compile puts a prefix before them, also inside, where a part of the model is compiled."""
    residual = state["gtopk"]["residual"]
    model = make()
    model.conv = torch.compile(model.conv, backend="eager")
    compiled = torch.compile(model, backend="eager")
    names = [name for name, _ in compiled.named_parameters()]
    assert "_orig_mod.conv._orig_mod.weight" in names
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD(compiled.parameters(), lr=0.01, momentum=0.9), compiled.named_parameters(), density=0.02
    )
    optimizer.load_state_dict(state, strict=True)
    assert torch.equal(optimizer.state_dict()["gtopk"]["residual"]["conv.weight"], residual["conv.weight"])
    train(compiled, optimizer, 1, 3)
    assert optimizer.state_dict()["gtopk"]["names"] == state["gtopk"]["names"]


def test_a_state_with_the_names_of_a_compiled_model(state):
    saved = dict(state["gtopk"])
    saved["names"], saved["residual_of"] = ([f"_orig_mod.{n}" for n in saved[f]] for f in ("names", "residual_of"))
    saved["residual"] = {f"_orig_mod.{name}": values for name, values in saved["residual"].items()}
    _, optimizer = new()
    optimizer.load_state_dict({**state, "gtopk": saved}, strict=True)
    kept = optimizer.state_dict()["gtopk"]["residual"]
    assert all(torch.equal(kept[name], values) for name, values in state["gtopk"]["residual"].items())


@pytest.mark.parametrize("saved_inside", [False, True])
def test_a_state_from_inside_and_outside_of_ddp(state, saved_inside):
    """DistributedDataParallel puts "module." before every name."""
    saved = dict(state["gtopk"])
    if saved_inside:
        saved["names"], saved["residual_of"] = ([f"module.{n}" for n in saved[f]] for f in ("names", "residual_of"))
        saved["residual"] = {f"module.{name}": values for name, values in saved["residual"].items()}
    model = make()
    named = model.named_parameters(prefix="" if saved_inside else "module")
    optimizer = gtopk.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.01, momentum=0.9), named, density=0.02)
    optimizer.load_state_dict({**state, "gtopk": saved}, strict=True)
    kept = optimizer.state_dict()["gtopk"]["residual"]
    here = "" if saved_inside else "module."
    assert len(kept) > 3
    assert all(torch.equal(kept[here + name], values) for name, values in state["gtopk"]["residual"].items())


def test_a_module_that_is_called_module(state):
    """Where not every name begins so, it is a name as any other."""
    saved = dict(state["gtopk"])
    first = saved["names"][0]
    saved["names"] = [f"module.{first}", *saved["names"][1:]]
    saved["residual_of"] = ["module." + n if n == first else n for n in saved["residual_of"]]
    saved["residual"] = {"module." + n if n == first else n: values for n, values in saved["residual"].items()}
    _, optimizer = new()
    with pytest.raises(gtopk.MismatchError, match=f"its parameter 0 is module.{first}"):
        optimizer.load_state_dict({**state, "gtopk": saved})
