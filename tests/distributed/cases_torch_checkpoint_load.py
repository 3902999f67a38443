"""Second half of the checkpoint test, in new processes: as many as there were, or another number."""

from __future__ import annotations

import torch
from cases_torch_checkpoint_save import RUNS, file, new, total
from cases_torch_optimizer import assert_replicas, flat, residuals
from harness import Warnings, raises
from torch_support import train

import gtopk


def load(run, what, **options):
    model, optimizer = new(run)
    saved = torch.load(file(run, what), weights_only=True, map_location="cpu")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"], **options)
    return model, optimizer, saved


def same_size():
    saved = torch.load(file("sgd", 0), weights_only=True, map_location="cpu")
    return saved["optimizer"]["gtopk"]["size"] == gtopk.size()


def case_own_state_resumes_bit_for_bit():
    if not same_size():
        return
    for run in RUNS:
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
        assert optimizer.stats()["step"] == 19


def case_consolidated_state_loads_on_any_number_of_ranks():
    for run in RUNS:
        with Warnings() as texts:
            model, optimizer, saved = load(run, "consolidated", strict=True)
        assert texts == []
        for what, expected in saved["sums"].items():
            assert expected.any()
            torch.testing.assert_close(total(optimizer, model, what), expected, rtol=1e-6, atol=1e-7)
        train(model, optimizer, 3, 10, gtopk.rank())
        assert_replicas(model)
        assert optimizer.stats()["step"] == 12


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
    raises(gtopk.DesyncError, optimizer.step, "after step 10", "starts anew", "broadcast_optimizer_state")
    saved = torch.load(file("sgd", "consolidated"), weights_only=True, map_location="cpu")["optimizer"]
    saved["gtopk"]["step"] += gtopk.rank()
    optimizer.load_state_dict(saved)
    raises(gtopk.DesyncError, optimizer.step, "after step 10", "after step 11")


def case_a_state_without_gtopk():
    model, optimizer, _ = load("sgd", "consolidated")
    saved = torch.load(file("sgd", "consolidated"), weights_only=True, map_location="cpu")["optimizer"]
    del saved["gtopk"]
    optimizer.load_state_dict(saved)
    assert residuals(optimizer) == {}
    train(model, optimizer, 2, 10, gtopk.rank())
    assert_replicas(model)
