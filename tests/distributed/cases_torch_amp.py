"""Mixed precision: the stock GradScaler, autocast and 16-bit parameters."""

from __future__ import annotations

import logging

import torch
from cases_torch_optimizer import assert_replicas, flat, wrapped
from harness import Warnings, raises
from torch import nn, optim
from torch_support import DEVICE, batch, loss_of, make

import gtopk


def scaled_step(model, optimizer, scaler, step, overflow, how):
    optimizer.zero_grad()
    loss = loss_of(model, batch(step, gtopk.rank()))
    scaler.scale(loss).backward()
    if overflow:
        model.linear.weight.grad[0, 0] = torch.inf
    if how == "unscale and clip":
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    elif how == "synchronize and clip":
        optimizer.synchronize()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    elif how == "unscale, synchronize":
        scaler.unscale_(optimizer)
        optimizer.synchronize()
    if optimizer._gtopk.synchronized:
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
    else:
        scaler.step(optimizer)
    scaler.update()


def case_random_overflows_for_100_steps():
    """Each rank overflows by itself; all skip the same steps, and each scale is its own rank's."""
    logging.disable(logging.WARNING)
    own = torch.Generator().manual_seed(gtopk.rank())
    for how in ("plain", "unscale and clip", "synchronize and clip", "unscale, synchronize"):
        for kind, more in ((optim.SGD, {"momentum": 0.9}), (optim.Adam, {"fused": True})):
            model = make()
            scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0, growth_interval=10**6)
            given = {} if "synchronize" not in how else {"grad_scaler": scaler}
            optimizer = wrapped(model, kind, lr=0.001, density=0.05, more=more, **given)
            overflows = 0
            steps = 100 if how == "plain" and not more.get("fused") else 20
            for step in range(steps if DEVICE == "cpu" else steps // 5):
                overflow = bool(torch.rand((), generator=own, device="cpu") < 0.1)
                before = flat(model.parameters())
                scaled_step(model, optimizer, scaler, step, overflow, how)
                anywhere = gtopk.allreduce(torch.tensor(float(overflow)), op=gtopk.Sum).item() > 0
                assert optimizer.stats()["nonfinite"] == anywhere, (how, step)
                assert torch.equal(before, flat(model.parameters())) == anywhere, (how, step)
                overflows += overflow
                assert scaler.get_scale() == 1024.0 * 0.5**overflows, (how, step)
            assert_replicas(model)
            assert not hasattr(optimizer, "found_inf")
            assert not hasattr(optimizer, "grad_scale")
    logging.disable(logging.NOTSET)


def case_a_skipped_step_is_not_applied_later():
    """What the other ranks had found finite in it stays out of their residuals, and of the velocity."""
    logging.disable(logging.WARNING)
    for options in (
        {},
        {"algorithm": "dense"},
        {"dense_below": 10},
        {"momentum_correction": True, "more": {"momentum": 0.9}},
    ):
        model = nn.ParameterDict({"a": torch.zeros(20), "b": torch.zeros(5)})
        scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
        optimizer = wrapped(model, lr=1.0, density=0.1, **options)
        torch.manual_seed(gtopk.rank())
        for step in range(6):
            bad = gtopk.rank() == 1 and step > 0
            scaler.scale(torch.zeros(()))
            for p in model.values():
                p.grad = torch.full_like(p, torch.inf) if bad else torch.randn(p.shape) * scaler.get_scale()
            scaler.step(optimizer)
            if step == 0:
                before, parameters = optimizer.state_dict()["gtopk"], flat(model.parameters())
            else:
                assert optimizer.stats()["nonfinite"] == 1
                assert all(p.grad.isnan().all() for p in model.values())
                after = optimizer.state_dict()["gtopk"]
                for what in ("residual", "velocity"):
                    assert all(torch.equal(after[what][name], values) for name, values in before[what].items())
                assert torch.equal(flat(model.parameters()), parameters)
            scaler.update()
        assert before["residual"]["a"].any() == (options.get("algorithm") != "dense")
        assert_replicas(model)
    logging.disable(logging.NOTSET)


def case_gradients_that_overflowed_elsewhere_move_nothing():
    """Five steps in which one rank overflows, and one without gradients."""
    logging.disable(logging.WARNING)
    for options in ({}, {"algorithm": "dense"}):
        model = nn.ParameterDict({"a": torch.zeros(20)})
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**16)
        optimizer = wrapped(model, lr=1.0, density=1.0, **options)
        for step in range(6):
            scaler.scale(torch.zeros(()))
            model["a"].grad = torch.full((20,), scaler.get_scale() if step < 5 else 0.0)
            if gtopk.rank() == 1 and step < 5:
                model["a"].grad[3] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        assert not model["a"].any()
    logging.disable(logging.NOTSET)


def case_the_scale_does_not_change_the_result():
    """Gradients are unscaled on their way into the residual, so that it survives a change of the scale."""
    results = []
    for scale in (1.0, 4096.0):
        model = make()
        scaler = torch.amp.GradScaler(DEVICE, init_scale=scale, growth_interval=2)
        optimizer = wrapped(model, density=0.02)
        for step in range(6):
            scaled_step(model, optimizer, scaler, step, False, "plain")
        assert scaler.get_scale() == scale * 8
        assert_replicas(model)
        results.append(flat(model.parameters()))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


def case_a_disabled_scaler():
    model = make()
    scaler = torch.amp.GradScaler(DEVICE, enabled=False)
    optimizer = wrapped(model, density=0.02, grad_scaler=scaler)
    for how in ("plain", "synchronize and clip"):
        scaled_step(model, optimizer, scaler, 0, False, how)
    assert_replicas(model)


def case_synchronize_without_grad_scaler_is_an_error():
    """The branch for mixed precision in Horovod's examples is such a program."""
    model = make()
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    optimizer = wrapped(model, density=0.02)
    scaler.scale(loss_of(model, batch(0, gtopk.rank()))).backward()
    optimizer.synchronize()
    scaler.unscale_(optimizer)
    with optimizer.skip_synchronize():
        raises(gtopk.StateError, lambda: scaler.step(optimizer), "grad_scaler=scaler")


def case_bf16_autocast():
    model = make()
    optimizer = wrapped(model, optim.AdamW, lr=0.01, density=0.02)
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = loss_of(model, batch(step, gtopk.rank()))
        loss.backward()
        optimizer.step()
    assert_replicas(model)


def case_a_rank_without_any_gradient():
    """found_inf is then no tensor but the number 0, and scaler.update() fails unless gtopk knows the scaler."""
    for known in (False, True):
        model = make()
        scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
        optimizer = wrapped(model, density=0.02, **({"grad_scaler": scaler} if known else {}))
        scaler.scale(torch.ones(1))
        if gtopk.rank() == 0:
            scaler.scale(loss_of(model, batch(0))).backward()
        with Warnings() as texts:
            scaler.step(optimizer)
        if known or gtopk.rank() == 0:
            assert texts == []
            scaler.update()
        else:
            assert "rank " in texts[0] and "grad_scaler=scaler" in texts[0]
            raises(AssertionError, scaler.update, "No inf checks were recorded")
        assert_replicas(model)


def case_a_rank_without_gradient_that_leaves_out_the_scaler():
    model = make()
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    optimizer = wrapped(model, density=0.02)
    scaler.scale(torch.ones(1))
    if gtopk.rank() == 0:
        scaler.scale(loss_of(model, batch(0))).backward()
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    assert_replicas(model)


def case_synchronize_by_hand_on_a_rank_without_any_gradient():
    model = make()
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    optimizer = wrapped(model, density=0.02, grad_scaler=scaler)
    for step in range(2):
        optimizer.zero_grad()
        scaler.scale(torch.ones(1))
        if gtopk.rank() == 0:
            scaler.scale(loss_of(model, batch(step))).backward()
        optimizer.synchronize()
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
    assert_replicas(model)
