"""Reducers are made anew when parameters are frozen or added, and after a broadcast: what this rank keeps. One process."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim

import gtopk


def new(nesterov=False):
    """Of `weight` entry 0 is sent in each step, and entry 1 collects; `other` is there to be frozen."""
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD([weight, other], lr=1.0, momentum=0.5, nesterov=nesterov),
        momentum_correction=True,
        density=1e-9,
        value_type="fp32",
    )
    return optimizer, weight, other


def step(optimizer, weight):
    optimizer.zero_grad()
    weight.grad = torch.tensor([100.0, 1.0])
    optimizer.step()
    assert weight.grad[0] > 0 and weight.grad[1] == 0


def kept(optimizer):
    state = optimizer.state_dict()["gtopk"]
    return state["residual"]["group0.0"].tolist(), state["velocity"]["group0.0"].tolist()


@pytest.mark.parametrize("change", ["freeze", "add"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_velocity_and_momentum_go_on_in_new_reducers(exchanging, change, nesterov):
    optimizer, weight, other = new(nesterov)
    unchanged, same, _ = new(nesterov)
    for _ in range(2):
        step(optimizer, weight)
        step(unchanged, same)
    if change == "freeze":
        other.requires_grad_(False)
    else:
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    before = optimizer._gtopk.session.exchange.parts
    for _ in range(2):
        step(optimizer, weight)
        step(unchanged, same)
    assert optimizer._gtopk.session.exchange.parts is not before
    assert kept(optimizer) == kept(unchanged)
    assert kept(optimizer)[1] == [0.0, 1.875]


def test_a_residual_stays_when_another_ranks_progress_is_adopted(exchanging):
    """What gtopk.broadcast_optimizer_state does on each rank; see cases_torch_optimizer for several."""
    optimizer, weight, _ = new()
    for _ in range(2):
        step(optimizer, weight)
    assert kept(optimizer) == ([0.0, 2.5], [0.0, 1.5])
    optimizer._gtopk.adopt_progress(7, 30)
    assert kept(optimizer) == ([0.0, 2.5], [0.0, 1.5])
    step(optimizer, weight)
    assert kept(optimizer) == ([0.0, 4.25], [0.0, 1.75])
    assert optimizer.stats()["step"] == 30
