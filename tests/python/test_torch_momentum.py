"""Momentum correction that begins by itself: where the default density is low, of SGD with momentum."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

import gtopk
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


def test_a_velocity_where_there_is_none_yet(exchanging):
    """Nothing is lost: the state can be loaded as it was saved."""
    optimizer, weight = begun(momentum_correction=True)
    step(optimizer, weight, halves(1), EARLY)
    state = optimizer.state_dict()
    resumed, mine = new()
    resumed.load_state_dict(state)
    with pytest.raises(gtopk.MismatchError, match="momentum_correction=True"):
        step(resumed, mine, halves(2))
    kept = resumed.state_dict()["gtopk"]
    assert all(torch.equal(kept[what]["w"], state["gtopk"][what]["w"]) for what in ("residual", "velocity"))
