"""Momentum correction that begins by itself: where the default density is low, of SGD with momentum."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

import gtopk
from gtopk.torch.momentum import Handover
from gtopk.torch.warmup import CORRECTED, DENSE, LEAST, at_least, default_density

MANY = 100_000  # a parameter that is large enough for it
EARLY, LATE = 200, 400  # steps before it begins, and after


def new(weight=None, momentum=0.5, lr=1.0, kind=optim.SGD, more=None, **options):
    weight = nn.Parameter(torch.zeros(MANY)) if weight is None else weight
    optimizer = kind([weight], lr=lr, momentum=momentum, **(more or {}))
    return gtopk.DistributedOptimizer(optimizer, [("w", weight)], value_type="fp32", **options), weight


def begun(*args, **options):
    """As `new`, and the number of steps may be set."""
    optimizer, weight = new(*args, **options)
    start = weight.detach().clone()
    step(optimizer, weight, torch.zeros_like(weight))
    with torch.no_grad():
        weight.copy_(start)
    optimizer.state.clear()
    return optimizer, weight


def step(optimizer, weight, gradient, at=None):
    if at is not None:
        optimizer._gtopk.session.steps = at
    weight.grad = gradient.clone()
    optimizer.step()
    return weight.grad.clone()


def step_by_hand(optimizer, weight, gradient):
    weight.grad = gradient
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        optimizer.step()


def halves(seed):
    """Numbers of which sums and halves are exact."""
    return torch.randint(-64, 65, (MANY,), generator=torch.Generator().manual_seed(seed)).float()


def is_corrected(optimizer):
    return [part.corrected for part in optimizer._gtopk.session.exchange.parts]


def test_the_steps_above_are_on_both_sides():
    assert at_least(default_density(EARLY), MANY) >= CORRECTED > at_least(default_density(LATE), MANY)


def test_few_entries_have_a_density_of_their_own():
    assert at_least(None, 10**9) is None
    for density in (0.1, 0.0005):
        assert at_least(density, 0) is at_least(density, int(LEAST / DENSE)) is None
        assert at_least(density, 12_000) == 0.25
        assert at_least(density, 10**8) == density
    assert at_least(0.0005, LEAST * 100) == 0.01


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("nesterov", [False, True])
def test_what_waits_and_sgds_momentum_go_on_in_it(exchanging, nesterov, weight_decay, maximize):
    more = {"nesterov": nesterov, "weight_decay": weight_decay, "maximize": maximize}
    optimizer, weight = begun(more=more)
    step(optimizer, weight, halves(1), EARLY)
    waits = optimizer.state_dict()["gtopk"]["residual"]["w"].clone()
    buffer = optimizer.state[weight]["momentum_buffer"].clone() * (-1 if maximize else 1)
    before = weight.detach().clone()
    assert waits.any()
    assert not torch.equal(waits, halves(1))
    assert is_corrected(optimizer) == [False]
    update = step(optimizer, weight, halves(2), LATE)
    assert is_corrected(optimizer) == [True]
    gradient = halves(2) + waits
    velocity = 0.5 * buffer + gradient  # as SGD would have it with all that has waited
    due = gradient + 0.5 * velocity if nesterov else velocity
    state = optimizer.state_dict()["gtopk"]
    chosen = state["residual"]["w"] == 0
    decay = weight_decay * before * (-1 if maximize else 1)  # SGD's own, which begins anew
    decay = decay * 1.5 if nesterov else decay
    assert torch.equal(update - decay + state["residual"]["w"], due)
    assert torch.equal(state["velocity"]["w"], torch.where(chosen & (due != 0), 0.0, velocity))
    assert torch.equal(weight, before + update if maximize else before - update)


def test_a_plain_training_of_few_entries_stays_that_of_sgd(exchanging):
    few = int(LEAST / DENSE)
    weight, plain = nn.Parameter(torch.zeros(few)), nn.Parameter(torch.zeros(few))
    optimizer, _ = begun(weight, 0.9)
    reference = optim.SGD([plain], lr=1.0, momentum=0.9)
    for at in (0, 100, 1000, 10**6):
        gradient = torch.randn(few)
        step(optimizer, weight, gradient, at)
        plain.grad = gradient
        reference.step()
        assert torch.equal(weight, plain)


class Other(optim.SGD):
    pass


@pytest.mark.parametrize(
    ("options", "automatic"),
    [
        ({}, None),
        ({"momentum": 0.0}, False),
        ({"more": {"dampening": 0.1}}, False),
        ({"kind": Other}, False),
        ({"kind": optim.RMSprop}, False),
        ({"density": 0.001}, False),
        ({"warmup": [(3, 0.1)]}, False),
        ({"algorithm": "topk"}, False),
        ({"algorithm": "auto"}, False),
        ({"residual_policy": "paper"}, False),
        ({"hierarchy": "node"}, False),
        ({"momentum_correction": False}, False),
        ({"momentum_correction": True}, True),
        ({"local_steps": 2}, False),
    ],
)
def test_where_it_begins_by_itself(exchanging, options, automatic):
    optimizer, weight = new(**options)
    assert optimizer._gtopk.session.options.momentum_correction is automatic
    if "local_steps" not in options and "hierarchy" not in options:
        for at in (None, EARLY, LATE):
            step(optimizer, weight, halves(1), at)
        assert is_corrected(optimizer) == [automatic is not False]


def test_groups_of_two_momenta_have_none(exchanging):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    groups = [{"params": [a]}, {"params": [b], "momentum": 0.9}]
    optimizer = gtopk.DistributedOptimizer(optim.SGD(groups, lr=1.0, momentum=0.5))
    assert optimizer._gtopk.session.options.momentum_correction is False


def test_updates_that_are_clipped_stay_gradients(exchanging):
    optimizer, weight = begun()
    step(optimizer, weight, halves(1), EARLY)
    step_by_hand(optimizer, weight, halves(2))
    step(optimizer, weight, halves(3), LATE)
    assert is_corrected(optimizer) == [False]
    other, weight = begun()
    step(other, weight, halves(1), LATE)
    step_by_hand(other, weight, halves(2))
    step(other, weight, halves(3))
    assert is_corrected(other) == [True]


def test_dense_parameters_keep_sgds_momentum(exchanging):
    weight, bias, plain = (nn.Parameter(torch.zeros(n)) for n in (MANY, 8, 8))
    sgd = {"lr": 1.0, "momentum": 0.5, "weight_decay": 0.25}
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD([weight, bias], **sgd), [("w", weight), ("b", bias)], dense_below=9
    )
    reference = optim.SGD([plain], **sgd)
    for at in (None, EARLY, LATE, LATE + 1):
        plain.grad, bias.grad = torch.arange(8.0), torch.arange(8.0)
        step(optimizer, weight, halves(at or 0), at)
        reference.step()
        assert torch.equal(bias, plain)
    assert optimizer.state[weight]["momentum_buffer"] is None or not is_corrected(optimizer)[0]
    assert any(is_corrected(optimizer))


def test_going_on_from_a_checkpoint_to_the_bit(exchanging):
    optimizer, weight = begun(more={"weight_decay": 0.25})
    step(optimizer, weight, halves(1), EARLY)
    states = []
    for at in (LATE, LATE + 1):
        states.append((weight.detach().clone(), copy.deepcopy(optimizer.state_dict())))
        step(optimizer, weight, halves(at), at)
    for at, (start, state) in enumerate(states, LATE):
        resumed, mine = new(nn.Parameter(start), more={"weight_decay": 0.25})
        resumed.load_state_dict(state)
        for now in range(at, LATE + 2):
            step(resumed, mine, halves(now), now)
        assert torch.equal(mine, weight)


def resumed(optimizer, weight, **options):
    """Another optimizer that goes on from the state of one, and its weight."""
    other, mine = new(nn.Parameter(weight.detach().clone()), **options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, mine


def test_a_state_with_a_velocity_goes_on_with_it_at_any_density(exchanging):
    one, weight = begun(momentum_correction=True)
    step(one, weight, halves(1), EARLY)
    for at in (EARLY, 1):  # sparse, and where gradients alone would be dense
        other, mine = resumed(one, weight)
        step(other, mine, halves(2), at)
        assert is_corrected(other) == [True]
        same, yours = resumed(one, weight, momentum_correction=True)
        step(same, yours, halves(2), at)
        assert torch.equal(mine, yours)
        for what in ("residual", "velocity"):
            kept = other.state_dict()["gtopk"][what]["w"]
            assert kept.any()
            assert torch.equal(kept, same.state_dict()["gtopk"][what]["w"])


def test_it_goes_on_where_few_entries_are_left(exchanging):
    """Layers are frozen, and of the others more is sent."""
    small, large = nn.Parameter(torch.zeros(9000)), nn.Parameter(torch.zeros(MANY))
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD([small, large], lr=1.0, momentum=0.5), [("s", small), ("l", large)], value_type="fp32"
    )
    for at in (None, LATE):
        large.grad = halves(1)
        step(optimizer, small, halves(2)[:9000], at)
    large.requires_grad_(False)
    before = optimizer.state_dict()["gtopk"]
    update = step(optimizer, small, torch.zeros(9000))
    after = optimizer.state_dict()["gtopk"]
    assert is_corrected(optimizer) == [True]
    assert torch.equal(update + after["residual"]["s"], before["residual"]["s"] + before["velocity"]["s"] / 2)
    assert before["velocity"]["l"].any()
    assert all(torch.equal(after[what]["l"], before[what]["l"]) for what in ("residual", "velocity"))


def test_a_state_remembers_that_updates_were_clipped(exchanging):
    optimizer, weight = begun()
    step(optimizer, weight, halves(1), EARLY)
    step_by_hand(optimizer, weight, halves(2))
    optimizer._gtopk.session.steps = LATE
    state = optimizer.state_dict()["gtopk"]
    for one in (state, optimizer.consolidate_state_dict()["gtopk"]):
        assert one["as_gradients"] is True
    other, mine = resumed(optimizer, weight)
    assert other.state_dict()["gtopk"]["as_gradients"] is True
    for one, its in ((optimizer, weight), (other, mine)):
        step(one, its, halves(3))
        assert is_corrected(one) == [False]
    assert torch.equal(mine, weight)
    del state["as_gradients"]
    other.load_state_dict({**other.state_dict(), "gtopk": state})
    step(other, mine, halves(4))
    assert is_corrected(other) == [True]
    assert "as_gradients" not in other.state_dict()["gtopk"]
    with pytest.raises(gtopk.CorruptError, match="as_gradients"):
        other.load_state_dict({**other.state_dict(), "gtopk": {**state, "as_gradients": 1}})


def test_one_that_goes_on_and_is_clipped_later_stays_corrected(exchanging):
    optimizer, weight = begun()
    step(optimizer, weight, halves(1), LATE)
    other, mine = resumed(optimizer, weight)
    for one, its in ((optimizer, weight), (other, mine)):
        step_by_hand(one, its, halves(2))
        assert is_corrected(one) == [True]
    assert torch.equal(mine, weight)


def test_another_momentum_that_comes_before_leaves_it_out(exchanging):
    optimizer, weight = begun()
    step(optimizer, weight, halves(1), EARLY)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "momentum": 0.75})
    step(optimizer, weight, halves(2), LATE)
    assert is_corrected(optimizer) == [False]
    assert optimizer.state_dict()["gtopk"]["as_gradients"] is True


def test_another_momentum_that_comes_after_is_an_error_that_loses_nothing(exchanging):
    optimizer, weight = begun()
    step(optimizer, weight, halves(1), LATE)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "momentum": 0.75})
    before = optimizer.state_dict()["gtopk"]
    with pytest.raises(gtopk.UnsupportedError, match=r"one momentum.*0\.5.*0\.75.*momentum_correction=False"):
        step(optimizer, weight, halves(2))
    after = optimizer.state_dict()["gtopk"]
    assert all(torch.equal(after[what]["w"], before[what]["w"]) for what in ("residual", "velocity"))
    optimizer.param_groups[1]["momentum"] = 0.5
    step(optimizer, weight, halves(2))
    assert is_corrected(optimizer) == [True]


def test_each_parameter_is_maximized_as_its_group_says(exchanging):
    up, down = nn.Parameter(torch.zeros(MANY)), nn.Parameter(torch.zeros(MANY))
    groups = [{"params": [up], "maximize": True}, {"params": [down]}]
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD(groups, lr=1.0, momentum=0.5), [("up", up), ("down", down)], value_type="fp32"
    )
    for at in (None, EARLY, LATE):
        up.grad = torch.randn(MANY, generator=torch.Generator().manual_seed(1))
        step(optimizer, down, up.grad, at)
    assert is_corrected(optimizer) == [True]
    assert down.any()
    assert (up != -down).sum() <= 4  # what is selected may end between the two


def test_what_cannot_begin_has_changed_nothing(exchanging, monkeypatch):
    a, b, plain_a, plain_b = (nn.Parameter(torch.zeros(MANY)) for _ in range(4))

    def trained(first, second, fails):
        optimizer = gtopk.DistributedOptimizer(optim.SGD([first, second], lr=1.0, momentum=0.5), value_type="fp32")
        for at in (None, EARLY):
            second.grad = halves(1)
            step(optimizer, first, halves(2), at)
        second.grad = halves(3)
        if fails:
            before = copy.deepcopy(optimizer.state_dict())
            with monkeypatch.context() as patch:
                patch.setattr(Handover, "with_velocity", only_the_first(Handover.with_velocity))
                with pytest.raises(MemoryError):
                    step(optimizer, first, halves(4), LATE)
            after = optimizer.state_dict()
            assert all(
                torch.equal(state["momentum_buffer"], before["state"][place]["momentum_buffer"])
                for place, state in after["state"].items()
            )
            assert not after["gtopk"]["velocity"]
            for name, values in before["gtopk"]["residual"].items():
                assert torch.equal(after["gtopk"]["residual"][name], values)
        step(optimizer, first, halves(4), LATE)
        assert is_corrected(optimizer) == [True]

    trained(a, b, False)
    trained(plain_a, plain_b, True)
    assert torch.equal(a, plain_a)
    assert torch.equal(b, plain_b)


def only_the_first(call):
    count = iter((1,))

    def limited(*args):
        if next(count, None) is None:
            raise MemoryError
        return call(*args)

    return limited


@pytest.mark.parametrize(("nesterov", "maximize"), [(False, True), (True, False)])
def test_one_process_that_goes_on_moves_as_far(exchanging, monkeypatch, nesterov, maximize):
    more = {"nesterov": nesterov, "maximize": maximize}
    optimizer, weight = begun(more=more)
    for at in (EARLY, LATE):
        step(optimizer, weight, halves(at), at)
    state = optimizer.state_dict()["gtopk"]
    residual, velocity = state["residual"]["w"], state["velocity"]["w"]
    assert residual.any()
    other, mine = resumed(optimizer, weight, more=more)
    monkeypatch.undo()
    for _ in range(25):
        step(other, mine, torch.zeros(MANY))
    moved = (mine - weight).detach() * (1 if maximize else -1)
    torch.testing.assert_close(moved, residual + velocity * (0.5 if nesterov else 1.0))  # with a momentum of .5


@pytest.mark.parametrize("dense", [{"dense_below": MANY + 1}, {"dense_1d": True}])
@pytest.mark.parametrize("wanted", [None, True])
@pytest.mark.parametrize(("nesterov", "maximize"), [(False, True), (True, False)])
def test_a_velocity_goes_on_in_sgds_momentum_where_its_parameter_is_sent_dense_from_now_on(
    exchanging, dense, wanted, nesterov, maximize
):
    more = {"nesterov": nesterov, "maximize": maximize}
    one, weight = begun(more=more, momentum_correction=wanted)
    for at in (EARLY, LATE):
        step(one, weight, halves(at), at)
    state = one.state_dict()["gtopk"]
    residual, velocity = state["residual"]["w"], state["velocity"]["w"]
    assert residual.any()
    assert velocity.any()
    other, mine = resumed(one, weight, more=more, momentum_correction=wanted, **dense)
    assert torch.equal(other.state_dict()["gtopk"]["velocity"]["w"], velocity)  # nothing has happened yet
    update = step(other, mine, torch.zeros(MANY))
    if not nesterov and wanted is None:  # with a momentum of .5; else SGD's step overwrites the mean update
        assert torch.equal(update, residual / 2 + velocity / 2)
    for _ in range(25):
        step(other, mine, torch.zeros(MANY))
    moved = (mine - weight).detach() * (1 if maximize else -1)
    torch.testing.assert_close(moved, residual + velocity * (0.5 if nesterov else 1.0))
    after = other.state_dict()["gtopk"]
    assert not after["residual"]["w"].any()
    assert not after["velocity"]


def test_a_velocity_that_cannot_go_on_is_not_lost(exchanging, monkeypatch):
    one, weight = begun()
    for at in (EARLY, LATE):
        step(one, weight, halves(at), at)
    before = one.state_dict()["gtopk"]
    other, mine = resumed(one, weight, dense_1d=True)
    with monkeypatch.context() as patch:
        patch.setattr(Handover, "without_velocity", only_the_first(lambda *args: next(iter(()))))
        with pytest.raises(StopIteration):
            step(other, mine, torch.zeros(MANY))
    after = other.state_dict()["gtopk"]
    for what in ("residual", "velocity"):
        assert torch.equal(after[what]["w"], before[what]["w"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("clipped", "wanted"), [(False, None), (True, None), (False, True)])
def test_torch_distributed_checkpoint(exchanging, tmp_path, clipped, wanted):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    models = [nn.ParameterDict({"w": torch.zeros(MANY)}) for _ in range(2)]
    one, other = (new(model["w"], momentum_correction=wanted)[0] for model in models)
    for at in (None, EARLY):
        step(one, models[0]["w"], halves(1), at)
    if clipped:
        step_by_hand(one, models[0]["w"], halves(2))
        one._gtopk.session.steps = LATE
    else:
        step(one, models[0]["w"], halves(2), LATE)
    residual = one.sharded_state_dict()
    weights, state = get_state_dict(models[0], one)
    dcp.save({"model": weights, "optimizer": state, "gtopk": residual}, checkpoint_id=tmp_path, no_dist=True)
    weights, state = get_state_dict(models[1], other)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(models[1], other, model_state_dict=weights, optim_state_dict=state)
    other.load_sharded_state(tmp_path)
    for optimizer, model in zip((one, other), models, strict=True):
        step(optimizer, model["w"], halves(3))
        assert is_corrected(optimizer) == [not clipped]
    assert torch.equal(models[0]["w"], models[1]["w"])
