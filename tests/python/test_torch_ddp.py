"""The DDP hook with one rank: gradients stay as they are, but for a loaded residual. See cases_torch_ddp for more ranks."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
from torch_support import batch

import gtopk


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    gtopk.shutdown()
    dist.destroy_process_group()


def test_one_rank(one_rank):
    from gtopk.torch.ddp_hook import GTopKState, gtopk_hook

    model = torch.nn.Conv2d(3, 8, 3, bias=False).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model)
    state = GTopKState(named_parameters=model.named_parameters(), density=0.001)
    net = torch.nn.parallel.DistributedDataParallel(model)
    net.register_comm_hook(state, gtopk_hook)

    def gradients(step):
        for one in (net, plain):
            one.zero_grad()
            one(batch(step)).pow(2).mean().backward()
        return model.weight.grad, plain.weight.grad

    for step in range(2):
        assert torch.equal(*gradients(step))
    for damaged in ({"format": 1}, 3, ["x"]):
        with pytest.raises(gtopk.CorruptError, match="part of the state"):
            state.load_state_dict(damaged)
    residual = torch.arange(216.0).reshape(8, 3, 3, 3)
    saved = {"format": 1, "rank": -1, "size": 4, "run": 1, "step": 10, "names": ["weight"], "shapes": [[8, 3, 3, 3]]}
    held = {"residual_of": ["weight"], "velocity_of": [], "residual": {"weight": residual}, "velocity": {}}
    with pytest.raises(gtopk.CorruptError, match="its step is -5"):
        state.load_state_dict({**saved, **held, "step": -5})
    state.load_state_dict({**saved, **held})
    with pytest.raises(gtopk.CorruptError, match="its step is -5"):
        state.load_state_dict({**saved, **held, "step": -5})  # which leaves the one before
    found, expected = gradients(2)
    assert torch.equal(found, expected + residual / 4)  # the mean over the four ranks that there were
    assert torch.equal(*gradients(3))


def test_a_loaded_state_is_consolidated_before_a_step_has_taken_it_over(one_rank, monkeypatch):
    from gtopk.torch.ddp_hook import GTopKState, gtopk_hook
    from gtopk.torch.session import Session

    monkeypatch.setattr(Session, "solo", False)
    model = torch.nn.Linear(6, 3)
    first, second = (GTopKState(named_parameters=model.named_parameters(), density=0.1) for _ in range(2))
    assert first.consolidate_state_dict() == first.state_dict() == {}
    net = torch.nn.parallel.DistributedDataParallel(model)
    net.register_comm_hook(first, gtopk_hook)
    states = []
    for _ in range(2):
        for _ in range(3):
            net(torch.randn(4, 6)).pow(2).mean().backward()
        states.append(first.consolidate_state_dict())
    for state in (first, second):
        state.load_state_dict(states[0])
        found = state.consolidate_state_dict()
        for name, values in found.pop("residual").items():
            assert values.any()
            assert torch.equal(values, states[0]["residual"][name])
        assert found == {name: value for name, value in states[0].items() if name != "residual"}


def test_static_graph_with_parameters_of_two_types(one_rank):
    """DDP then says of no bucket of the first iteration that it is the last one."""
    from gtopk.torch.ddp_hook import GTopKState, gtopk_hook

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2).double())
    plain = copy.deepcopy(model)
    net = torch.nn.parallel.DistributedDataParallel(model, static_graph=True)
    state = GTopKState(named_parameters=model.named_parameters())
    net.register_comm_hook(state, gtopk_hook)
    for step in range(3):
        for one, layers in ((net, model), (plain, plain)):
            one.zero_grad()
            hook = layers[0].register_forward_hook(lambda _, __, y: y.double())
            one(torch.full((2, 3), 1.0 + step)).sum().backward()
            hook.remove()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
    assert state.stats()["step"] == 2


def test_an_interrupt_inside_the_hook_ends_its_step(one_rank, monkeypatch):
    """What had been accumulated stays in the residual, and the next step can begin."""
    from gtopk.torch.ddp_hook import GTopKState, gtopk_hook
    from gtopk.torch.session import Session

    monkeypatch.setattr(Session, "solo", False)
    model = torch.nn.Linear(3, 1, bias=False)
    state = GTopKState(named_parameters=model.named_parameters(), density=1.0, value_type="fp32")
    net = torch.nn.parallel.DistributedDataParallel(model)
    net.register_comm_hook(state, gtopk_hook)
    for _ in range(2):
        net(torch.ones(1, 3)).sum().backward()
        net.zero_grad()

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gtopk.torch.exchange.reduce_together", interrupt)
        with pytest.raises(KeyboardInterrupt):
            net(torch.ones(1, 3)).sum().backward()
    assert state.state_dict()["residual"]["weight"].tolist() == [[1, 1, 1]]
    assert state.session.step([torch.ones(3)])[0].tolist() == [2, 2, 2]


def test_a_parameter_given_under_two_names_is_one(one_rank):
    from gtopk.torch.ddp_hook import GTopKState

    weight = torch.nn.Parameter(torch.zeros(2))
    GTopKState(named_parameters=[("a", weight), ("b", weight)])
    with pytest.raises(gtopk.InvalidError, match="two parameters named 'a'"):
        GTopKState(named_parameters=[("a", weight), ("a", torch.nn.Parameter(torch.zeros(2)))])
    with pytest.raises(gtopk.InvalidError, match=r"process_group is a list.*named_parameters="):
        GTopKState([("a", weight)])
