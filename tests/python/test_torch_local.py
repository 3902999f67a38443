"""Local steps in one process: arguments, whatever worked before, and states. See cases_torch_local for several ranks."""

from __future__ import annotations

import copy
from dataclasses import fields

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim import lr_scheduler
from torch_support import ALL, assert_equal, batch, loss_of, make, train, twins

import gtopk
import gtopk.horovod as hvd
from gtopk.torch.ddp_hook import GTopKState
from gtopk.torch.local_options import LocalOptions
from gtopk.torch.options import Options
from gtopk.torch.session import Session
from gtopk.torch.start import Start, all_finite
from gtopk.torch.state_form import LOCAL_FIELDS


def wrapped(model, kind=optim.AdamW, lr=0.01, **options):
    options = {"local_steps": 3, **options}
    return gtopk.DistributedOptimizer(kind(model.parameters(), lr=lr), model.named_parameters(), **options)


def test_arguments(alone):
    def refused(error, text, **options):
        with pytest.raises(error, match=text):
            wrapped(make(), **options)

    for wrong in (0, -1, 1.5, True, "4", None):
        refused(gtopk.InvalidError, "local_steps is", local_steps=wrong)
    refused(gtopk.InvalidError, "exchange is 'moments'", exchange="moments")
    refused(gtopk.InvalidError, "gradients are exchanged in every step", exchange="gradients")
    for name, wrong in (("outer_lr", 0), ("outer_lr", torch.inf), ("outer_lr", "1"), ("outer_momentum", 1.0)):
        refused(gtopk.InvalidError, f"{name} is", **{name: wrong})
    for wrong in (-0.1, 1.1, torch.nan):
        refused(gtopk.InvalidError, "residual_decay is", residual_decay=wrong)
    for name in ("outer_lr", "outer_momentum", "residual_decay"):
        refused(gtopk.InvalidError, f"{name}=0.5 is for weights", local_steps=1, **{name: 0.5})
    refused(gtopk.InvalidError, "start_dtype is 'fp16'", start_dtype="fp16")
    refused(gtopk.InvalidError, "start_dtype=bf16 is for weights", local_steps=1, start_dtype="bf16")
    refused(gtopk.UnsupportedError, "each rank applies its own momentum", kind=optim.SGD, momentum_correction=True)
    optimizer = wrapped(make(), local_steps=lambda step: step)
    with pytest.raises(gtopk.InvalidError, match=r"local_steps\(0\) is 0"):
        train(make(), optimizer, 1)
    with pytest.raises(gtopk.StateError, match="clip them between"):
        optimizer.skip_synchronize()


def test_the_ddp_hook_says_what_to_use(alone):
    own = [field for field in fields(LocalOptions) if field not in fields(Options)]
    assert {field.name for field in own} >= {"local_steps", "outer_lr", "start_dtype"}
    values = {field.name: field.default for field in own} | {"local_steps": 4}
    for options in (
        {"local_steps": lambda step: 4},
        {"exchange": "weights"},
        *({name: value} for name, value in values.items()),
    ):
        assert f"``{next(iter(options))}``" in GTopKState.__doc__ or "local_steps" in options
        with pytest.raises(gtopk.UnsupportedError, match=r"leave out DistributedDataParallel.*local_steps"):
            GTopKState(**options)
    with pytest.raises(gtopk.UnsupportedError, match=r"leave out DistributedDataParallel.*momentum_correction=True"):
        GTopKState(momentum_correction=True)
    with pytest.raises(TypeError, match="no option 'densty'"):
        GTopKState(densty=0.1)


def test_horovod_has_the_average_only(alone):
    optimizer = optim.SGD(make().parameters(), lr=0.1)
    with pytest.raises(gtopk.UnsupportedError, match=r"hvd\.Sum is for gradients"):
        hvd.DistributedOptimizer(optimizer, op=hvd.Sum, local_steps=3)
    assert hvd.DistributedOptimizer(optimizer, local_steps=3).stats()["local_steps"] == 0


def test_horovods_sum_is_that_of_the_communicator(alone, monkeypatch):
    with gtopk.Comm() as comm:
        monkeypatch.setattr(comm, "size", 3)
        optimizer = optim.SGD(make().parameters(), lr=0.1)
        assert hvd.DistributedOptimizer(optimizer, op=hvd.Sum, comm=comm)._gtopk.multiplier == 3.0


def test_zero_redundancy_is_refused(alone):
    class ZeroRedundancyOptimizer(optim.Adam):
        pass

    with pytest.raises(gtopk.UnsupportedError, match="wrap an optimizer of the class"):
        wrapped(make(), ZeroRedundancyOptimizer)


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW, optim.Adagrad, optim.Adadelta, optim.RAdam, optim.Adafactor])
def test_every_optimizer_does_what_it_did(either, kind):
    """One rank that sends all goes on where it is, to rounding: theta0 - (theta0 - theta)."""
    model, plain = twins()
    optimizer, reference = wrapped(model, kind, **ALL), kind(plain.parameters(), lr=0.01)
    for step in range(7):
        for net, one in ((model, optimizer), (plain, reference)):
            one.zero_grad()
            loss_of(net, batch(step)).backward()
            assert one.step() is None
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        if name != "conv.bias":  # before a normalisation its gradient is rounding noise
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert optimizer.stats()["step"] == 1
    assert optimizer.stats()["local_steps"] == 1


def test_one_rank_is_the_plain_optimizer(alone):
    """Whatever the outer step: there is none."""
    model, plain = twins()
    optimizer = wrapped(model, outer_lr=1.5, outer_momentum=0.5, density=0.01)
    reference = optim.AdamW(plain.parameters(), lr=0.01)
    schedulers = [lr_scheduler.ExponentialLR(one, 0.9) for one in (optimizer, reference)]
    for step in range(8):
        for net, one, scheduler in zip((model, plain), (optimizer, reference), schedulers, strict=True):
            one.zero_grad()
            loss = one.step(lambda net=net, step=step: _backward(net, step))
            assert loss is not None
            scheduler.step()
    assert_equal(model, plain)
    assert optimizer.join() == 0
    assert optimizer.state_dict()["gtopk"]["start"] == {}


def _backward(net, step):
    loss = loss_of(net, batch(step))
    loss.backward()
    return loss


def test_clipping_param_groups_and_schedulers(exchanging):
    model, plain = twins()

    def groups(net):
        return [{"params": net.conv.parameters(), "lr": 0.1}, {"params": net.linear.parameters(), "weight_decay": 0.3}]

    reference = optim.SGD(groups(plain), lr=0.05)
    scheduled = lr_scheduler.StepLR(reference, 2)
    optimizer = optim.SGD(groups(model), lr=0.05)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    gtopk.DistributedOptimizer(optimizer, model.named_parameters(), local_steps=2, **ALL)
    for step in range(6):
        for net, one, later in ((model, optimizer, scheduler), (plain, reference, scheduled)):
            one.zero_grad()
            loss_of(net, batch(step)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            one.step()
            later.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_momentum_and_rate_of_the_outer_step(exchanging):
    """As SGD applies them to the differences."""
    weight, other = (nn.Parameter(torch.zeros(5)) for _ in range(2))
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD([weight], lr=1.0), local_steps=2, outer_lr=0.7, outer_momentum=0.9, **ALL
    )
    reference = optim.SGD([other], lr=0.7, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        other.grad = torch.zeros(5)
        for _ in range(2):
            weight.grad = torch.randn(5, generator=generator)
            other.grad += weight.grad
            optimizer.step()
        reference.step()
    torch.testing.assert_close(weight, other)


def test_sparse_gradients_and_none(exchanging):
    """They stay on this rank, so they may be whatever the wrapped optimizer takes."""
    embedding = nn.Embedding(10, 3, sparse=True)
    unused = nn.Parameter(torch.ones(2))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([embedding.weight, unused], lr=0.1), local_steps=2, **ALL)
    before = embedding.weight.detach().clone()
    for _ in range(4):
        optimizer.zero_grad()
        embedding(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
    assert unused.grad is None
    torch.testing.assert_close(before[1] - 0.4, embedding.weight.detach()[1])
    assert torch.equal(before[3], embedding.weight.detach()[3])


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=9),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_all_finite(values, dtype):
    tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
    assert all_finite([torch.ones(3), tensor]) == bool(tensor.isfinite().all())


def test_all_finite_where_sums_overflow():
    assert all_finite([torch.full((9,), 3e38), torch.full((9,), 6e4, dtype=torch.float16), torch.zeros(0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("order", ["plain", "transposed", "gaps", "scalar"])
def test_a_start(order, dtype):
    """Differences are exact, in the memory order of the parameter without gaps; an update moves it."""
    whole = torch.arange(12.0, dtype=dtype).reshape(3, 4)
    parameter = {"plain": whole, "transposed": whole.t(), "gaps": whole[:, 1:3], "scalar": whole[1, 1]}[order].clone(
        memory_format=torch.preserve_format
    )
    if order == "gaps":
        parameter = whole[:, 1:3]
    start = Start(parameter)
    assert start.is_at(parameter)
    parameter += 0.25
    assert not start.is_at(parameter)
    assert (start.difference(parameter) == -0.25).all()
    before = parameter.clone()
    start.move(parameter, torch.full((parameter.numel(),), -0.125), 2.0)
    assert start.is_at(parameter)
    assert torch.equal(before, parameter)
    start.move(parameter, torch.full((parameter.numel(),), 2.0**-20), 1.0)
    assert start.is_at(parameter)
    assert (before - parameter).abs().max() <= (0 if dtype is torch.bfloat16 else 2.0**-20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_start_in_bf16(dtype):
    """Of float32 only. What is rounded away is part of the next difference."""
    parameter = torch.linspace(0.5, 1.5, 101).to(dtype).reshape(1, 101)
    exact = parameter.clone()
    start = Start(parameter, bf16=True)
    assert start.weights.element_size() == {torch.float32: 2, torch.float64: 8}.get(dtype, 4)
    assert start.is_at(parameter)
    if dtype is not torch.float32:
        return
    assert torch.equal(start.difference(parameter), exact.bfloat16() - exact)
    assert torch.equal(parameter, exact)
    parameter += 1.0
    assert not start.is_at(parameter)
    start.move(parameter, torch.full((101,), 0.125), 2.0)
    assert torch.equal(parameter, exact.bfloat16().float() - 0.25)
    assert start.is_at(parameter)
    assert torch.equal(start.difference(parameter), parameter.bfloat16() - parameter)


@pytest.fixture
def state(exchanging):
    model = make(channels_last=True)
    optimizer = wrapped(model, density=0.02, outer_momentum=0.5)
    train(model, optimizer, 8)
    return copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())


def test_a_state_goes_on_bit_for_bit_in_any_memory_order(state):
    results = []
    for channels_last in (True, False):
        model = make(channels_last)
        model.load_state_dict(state[1])
        optimizer = wrapped(model, density=1.0, outer_momentum=0.5)
        optimizer.load_state_dict(copy.deepcopy(state[0]), strict=True)
        assert optimizer.stats()["local_steps"] == 2
        optimizer.synchronize()
        results.append(model)
    assert_equal(*results)


def test_a_state_of_a_model_inside_another(state):
    """All names begin with "module.", as inside DataParallel."""
    results = []
    for inside in (False, True):
        model = make(channels_last=True)
        model.load_state_dict(state[1])
        holder = nn.ModuleDict({"module": model}) if inside else model
        optimizer = wrapped(holder, density=0.02, outer_momentum=0.5)
        optimizer.load_state_dict(copy.deepcopy(state[0]), strict=True)
        train(model, optimizer, 3)
        results.append(model)
    assert_equal(*results)


def test_damaged_states(state):
    def refused(change, text):
        damaged = copy.deepcopy(state[0])
        change(damaged["gtopk"])
        model = make()
        optimizer = wrapped(model)
        before = copy.deepcopy(model)
        with pytest.raises(gtopk.CorruptError, match=text):
            optimizer.load_state_dict(damaged)
        assert_equal(model, before)
        assert optimizer.stats()["local_steps"] == 0

    for field in LOCAL_FIELDS:
        refused(lambda s, field=field: s.pop(field), f"its {field} is missing")
    for wrong in (None, [1], [1, -1], [1, 2.0], [True, 1], "ab"):
        refused(lambda s, wrong=wrong: s.update(local_steps=wrong), "its local_steps is")
    refused(lambda s: s["start"].pop("conv.weight"), "is in one of them only")
    refused(lambda s: s["start"].update({"conv.weight": torch.zeros(3)}), r"has shape \[3\]")
    refused(lambda s: s["start"]["conv.weight"].fill_(torch.nan), "Inf or NaN")
    refused(lambda s: s["outer_velocity"].update({"conv.weight": torch.zeros(8, 3, 3, 3).double()}), "no float32")


ANYTHING = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from([torch.zeros(7), torch.full((8, 3, 3, 3), 0.5), torch.full((8, 3, 3, 3), torch.nan)]),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    field=st.sampled_from(LOCAL_FIELDS),
    inside=st.booleans(),
    name=st.sampled_from(["conv.weight", "nobody"]),
    value=ANYTHING,
)
def test_one_field_replaced_by_anything(state, field, inside, name, value):
    """Refused, or usable; and the optimizer is usable after either."""
    saved = copy.deepcopy(state[0])
    whole = saved["gtopk"][field]
    saved["gtopk"][field] = {**whole, name: value} if inside and isinstance(whole, dict) else value
    model = make()
    optimizer = wrapped(model, density=0.02, outer_momentum=0.5)
    try:
        optimizer.load_state_dict(saved)
    except gtopk.GtopkError:
        assert optimizer.stats()["local_steps"] == 0
    train(model, optimizer, 3)
    assert all(p.isfinite().all() for p in model.parameters())


def test_one_rank_takes_over_what_several_had(state, monkeypatch):
    """The weights are those where the period started, less the residual."""
    monkeypatch.undo()
    saved = copy.deepcopy(state[0])
    saved["gtopk"]["rank"] = -1
    model = make()
    optimizer = wrapped(model, outer_lr=2.0)
    optimizer.load_state_dict(saved)
    for name, p in model.named_parameters():
        assert name not in saved["gtopk"]["start"] or torch.equal(p, saved["gtopk"]["start"][name])
    residual = saved["gtopk"]["residual"]["conv.weight"]
    expected = model.conv.weight.detach() - 2.0 * residual
    assert residual.any()
    optimizer.synchronize()
    torch.testing.assert_close(model.conv.weight.detach(), expected)


@pytest.mark.parametrize("steps", [0, 1, 3, 7])
def test_what_one_rank_has_done_since_it_took_over_is_in_the_weights(state, monkeypatch, steps):
    """So a state of it goes on from there, on one rank or several, and not from a period of those that were."""
    monkeypatch.undo()
    saved = copy.deepcopy(state[0])
    saved["gtopk"]["rank"] = -1
    model = make()
    optimizer = wrapped(model, optim.SGD, outer_lr=2.0)
    saved["state"], saved["param_groups"] = optimizer.state_dict()["state"], optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(saved)
    train(model, optimizer, steps)
    if steps in (0, 3):
        optimizer.synchronize()  # what waited is in the weights from here on
    for exchanges in (False, True):
        if exchanges:
            monkeypatch.setattr(Session, "solo", False)
        again, other = copy.deepcopy(optimizer.consolidate_state_dict()), copy.deepcopy(model)
        goes_on = wrapped(other, optim.SGD, outer_lr=2.0)
        goes_on.load_state_dict(again)
        assert_equal(other, model)
        waiting = again["gtopk"]["residual"]
        assert bool(waiting) == (steps == 1)
