"""Second half of the checkpoint test, in new processes: as many as there were, or another number."""

from __future__ import annotations

import torch
from cases_torch_checkpoint_save import RUNS, file, new, total
from cases_torch_optimizer import HIERARCHY, assert_replicas, flat, residuals, wrapped
from harness import Warnings, raises
from torch import optim
from torch_support import make, train

import gtopk
import gtopk.horovod as hvd


def load(run, what, **options):
    model, optimizer = new(run)
    saved = torch.load(file(run, what), weights_only=True, map_location="cpu")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"], **options)
    return model, optimizer, saved


def moved(model, optimizer, steps=1, momentum=0.0):
    """How far the weights are moved by what waits, and nothing else."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.update(lr=1.0, momentum=momentum, weight_decay=0.0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert_replicas(model)
    return {name: -p.detach().cpu() for name, p in model.named_parameters()}


def same_size():
    saved = torch.load(file("sgd", 0), weights_only=True, map_location="cpu")
    return saved["optimizer"]["gtopk"]["size"] == gtopk.size()


def case_own_state_resumes_bit_for_bit():
    if not same_size():
        return
    for run in (*RUNS, "local"):
        with Warnings() as texts:
            model, optimizer, _ = load(run, gtopk.rank(), strict=True)
        assert texts == []
        train(model, optimizer, 10, 10, gtopk.rank())
        end = torch.load(file(run, f"end-{gtopk.rank()}"), weights_only=True, map_location="cpu")
        assert torch.equal(
            flat(model.parameters()), flat(end["model"][name] for name, _ in model.named_parameters())
        ), run
        for name, values in residuals(optimizer).items():
            assert torch.equal(values, end["residual"][name]), (run, name)
        assert optimizer.stats()["step"] == (4 if run == "local" else 19)


def case_consolidated_state_loads_on_any_number_of_ranks():
    for run in RUNS:
        with Warnings() as texts:
            model, optimizer, saved = load(run, "consolidated", strict=True)
        assert texts == []
        for what, expected in saved["sums"].items():
            assert expected.any()
            mean = total(optimizer, model, what) / gtopk.size()
            torch.testing.assert_close(mean, expected / saved["optimizer"]["gtopk"]["size"], rtol=1e-6, atol=1e-7)
        train(model, optimizer, 3, 10, gtopk.rank())
        assert_replicas(model)
        assert optimizer.stats()["step"] == 12


def case_local_steps_go_on_on_any_number_of_ranks():
    """From where the period started, with the mean of what waited and of what ranks had done since."""
    with Warnings() as texts:
        model, optimizer, saved = load("local", "consolidated", strict=True)
    assert texts == []
    state = saved["optimizer"]["gtopk"]
    for name, p in model.named_parameters():
        assert torch.equal(p.detach().cpu(), state["start"][name])
    mean = total(optimizer, model).cpu() / gtopk.size()
    torch.testing.assert_close(mean, saved["waiting"] / state["size"], rtol=1e-5, atol=1e-7)
    train(model, optimizer, 4, 10, gtopk.rank())
    assert optimizer.stats()["local_steps"] == 0
    assert_replicas(model)

    with Warnings():  # one rank's own, on all
        model, optimizer, _ = load("local", 0)
    train(model, optimizer, 2, 10, gtopk.rank())
    assert optimizer.stats()["local_steps"] == 0
    assert_replicas(model)


def case_what_waits_moves_the_weights_as_far_on_any_number_of_ranks():
    """Where the update is the mean; as a sum it stays the sum."""
    saved = torch.load(file("sgd", "consolidated"), weights_only=True, map_location="cpu")["optimizer"]
    for op in (hvd.Average, hvd.Sum):
        model = make()
        sgd = optim.SGD(model.parameters(), lr=0.1)
        optimizer = hvd.DistributedOptimizer(sgd, model.named_parameters(), op=op, algorithm="dense", **HIERARCHY)
        optimizer.load_state_dict(saved)
        found = moved(model, optimizer)
        ranks = saved["gtopk"]["size"] if op is hvd.Average else 1
        for name, summed in saved["gtopk"]["residual"].items():
            torch.testing.assert_close(found[name], summed / ranks, rtol=1e-6, atol=0)


def case_a_velocity_goes_on_where_its_parameter_is_sent_dense_from_now_on():
    """In SGD's own momentum, here Nesterov's, of 0.5."""
    saved = torch.load(file("correction", "consolidated"), weights_only=True, map_location="cpu")["optimizer"]
    state = saved["gtopk"]
    assert state["velocity"]
    for dense, with_velocity in ((1000, 2), (400, 1)):  # all parameters, and some
        model = make()
        assert (
            sum(p.numel() < dense and name in state["velocity"] for name, p in model.named_parameters())
            == with_velocity
        )
        optimizer = wrapped(model, **{**RUNS["correction"], "warmup": None, "density": 1.0, "dense_below": dense})
        optimizer.load_state_dict(saved)
        found = moved(model, optimizer, 25, 0.5)
        for name, p in model.named_parameters():
            if p.numel() < dense:
                expected = state["residual"][name] + 0.5 * state["velocity"].get(
                    name, torch.zeros(p.shape, device="cpu")
                )
                torch.testing.assert_close(found[name], expected / state["size"], rtol=1e-5, atol=1e-6)


def case_a_checkpoint_of_rank_0_only():
    for run in RUNS:
        mine = same_size() and gtopk.rank() == 0
        if not mine:
            raises(gtopk.MismatchError, lambda run=run: load(run, 0, strict=True), "consolidate_state_dict")
        with Warnings() as texts:
            model, optimizer, _ = load(run, 0)
        assert len(texts) == (0 if mine else 1)
        assert mine or "consolidate_state_dict" in texts[0]
        assert mine == bool(residuals(optimizer))
        train(model, optimizer, 3, 10, gtopk.rank())
        assert_replicas(model)


def case_loading_on_one_rank_and_broadcasting():
    """As Horovod's ImageNet example does."""
    model, optimizer = new("sgd")
    if gtopk.rank() == 0:
        with Warnings():
            model, optimizer, _ = load("sgd", 0)
    gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
    gtopk.broadcast_optimizer_state(optimizer, root_rank=0)
    assert bool(residuals(optimizer)) == (same_size() and gtopk.rank() == 0)
    train(model, optimizer, 3, 10, gtopk.rank())
    assert optimizer.stats()["step"] == 12
    assert_replicas(model)


def case_ranks_at_different_steps_are_an_error_on_all():
    optimizer = (load if gtopk.rank() == 0 else lambda run, _: new(run))("sgd", "consolidated")[1]
    for call in (optimizer.consolidate_state_dict, optimizer.step):
        raises(gtopk.DesyncError, call, "after step 10", "starts anew", "broadcast_optimizer_state")
    saved = torch.load(file("sgd", "consolidated"), weights_only=True, map_location="cpu")["optimizer"]
    saved["gtopk"]["step"] += gtopk.rank()
    optimizer.load_state_dict(saved)
    raises(gtopk.DesyncError, optimizer.step, "after step 10", "after step 11")
    raises(gtopk.DesyncError, optimizer.consolidate_state_dict, "after step 10", "after step 11")
    other = make()
    if gtopk.rank() == 0:
        other.gate = torch.nn.Linear(3, 2)
    optimizer = wrapped(other)
    raises(gtopk.MismatchError, optimizer.consolidate_state_dict, "gate.weight", "on rank 0 only")


def case_a_state_without_gtopk():
    model, optimizer, _ = load("sgd", "consolidated")
    saved = torch.load(file("sgd", "consolidated"), weights_only=True, map_location="cpu")["optimizer"]
    del saved["gtopk"]
    optimizer.load_state_dict(saved)
    assert residuals(optimizer) == {}
    train(model, optimizer, 2, 10, gtopk.rank())
    assert_replicas(model)
