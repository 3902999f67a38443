"""DistributedOptimizer on several ranks: replicas, and what depends on the other ranks' gradients."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path

import torch
from harness import HIERARCHY, Warnings, assert_same_on_all_ranks, raises
from torch import nn, optim

import gtopk
from gtopk.torch.momentum import Handover

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from torch_support import DEVICE, batch, loss_of, make, train

ALL = {"density": 1.0, "value_type": "fp32"}


def flat(tensors):
    return torch.cat([t.detach().float().flatten().cpu() for t in tensors])


def assert_replicas(model):
    assert_same_on_all_ranks(flat(model.parameters()).cpu().numpy())


def wrapped(model, kind=optim.SGD, *, named=True, lr=0.1, more=None, **options):
    optimizer = kind(model.parameters(), lr=lr, **(more or {}))
    return gtopk.DistributedOptimizer(
        optimizer, model.named_parameters() if named else None, **{**HIERARCHY, **options}
    )


def mean_gradients(model, step):
    """What a dense all-reduce gives."""
    model.zero_grad()
    loss_of(model, batch(step, gtopk.rank())).backward()
    for p in model.parameters():
        p.grad = gtopk.allreduce(torch.zeros_like(p) if p.grad is None else p.grad)


def residuals(optimizer):
    return optimizer.state_dict()["gtopk"]["residual"]


def case_full_density_is_dense_training():
    # The bias before the normalisation has a gradient of rounding noise, which Adam without eps would make large.
    for kind, more in ((optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}), (optim.AdamW, {"eps": 0.01})):
        model, plain = make(), make()
        optimizer, reference = wrapped(model, kind, more=more, **ALL), kind(plain.parameters(), lr=0.1, **more)
        for step in range(3):
            train(model, optimizer, 1, step, gtopk.rank())
            mean_gradients(plain, step)
            reference.step()
        assert_replicas(model)
        torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()), rtol=1e-4, atol=1e-5)


def case_replicas_agree_and_nothing_is_lost():
    for algorithm in ("gtopk", "gtopk-split", "gtopk-tree", "topk", "dense", "auto"):
        model = make()
        optimizer = wrapped(model, density=0.01, algorithm=algorithm, lr=0.05)
        sent = torch.zeros_like(flat(model.parameters()))
        given = torch.zeros_like(sent)
        for step in range(4 if algorithm != "auto" else 10):
            optimizer.zero_grad()
            loss_of(model, batch(step, gtopk.rank())).backward()
            model.unused.grad = torch.full((7,), float(gtopk.rank()))
            given += flat(p.grad for p in model.parameters())
            optimizer.step()
            sent += flat(p.grad for p in model.parameters())
        assert_replicas(model)
        assert (sent != 0).any()
        kept = gtopk.allreduce(flat(residuals(optimizer)[name] for name, _ in model.named_parameters()), op=gtopk.Sum)
        total = gtopk.allreduce(given, op=gtopk.Sum)
        torch.testing.assert_close(kept + gtopk.size() * sent, total, rtol=1e-4, atol=1e-5)


def case_other_optimizers_and_options_have_replicas():
    for options in (
        {"warmup": [(2, 0.2), (1, 0.05)]},
        {"warmup": lambda step: 0.5 / (step + 1)},
        {"dense_below": 100},
        {"momentum_correction": True, "more": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}},
        {"momentum_correction": True, "dense_below": 100, "more": {"momentum": 0.9}},
        {"kind": optim.AdamW, "value_type": "int8"},
        {"kind": optim.Adam, "more": {"fused": True}},
        {"kind": optim.Adam, "more": {"foreach": True}, "merge_growth": 1.5},
        {"residual_policy": "paper"},
        {"named": False},
    ):
        model = make()
        optimizer = wrapped(model, **{"density": 0.02, "lr": 0.01, **options})
        train(model, optimizer, rank=gtopk.rank())
        assert_replicas(model)
        assert optimizer.stats()["step"] == 3


def case_a_gradient_that_is_missing_on_one_rank_counts_as_zero():
    model = nn.Linear(3, 2)
    gtopk.broadcast_parameters(model.state_dict())
    optimizer = wrapped(model, lr=1.0, more={"weight_decay": 0.5}, **ALL)
    before = model.weight.detach().clone()
    if gtopk.rank() != 0:
        model.weight.grad = torch.ones(2, 3)
    optimizer.step()
    mean = (gtopk.size() - 1) / gtopk.size()
    assert model.weight.grad.isclose(torch.tensor(mean)).all()
    assert not model.bias.grad.any()  # and the bias is decayed on every rank
    torch.testing.assert_close(model.weight.detach(), before - mean - before / 2)
    assert_replicas(model)


def case_clipping_before_and_after():
    for when in ("local", "global"):
        model, plain = make(), make()
        optimizer, reference = wrapped(model, **ALL), optim.SGD(plain.parameters(), lr=0.1)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(model, batch(step, gtopk.rank())).backward()
            plain.zero_grad()
            loss_of(plain, batch(step, gtopk.rank())).backward()
            if when == "local":
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
                optimizer.step()
            else:
                optimizer.synchronize()
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                assert_same_on_all_ranks(norm.cpu().numpy())
                with optimizer.skip_synchronize():
                    optimizer.step()
            for p in plain.parameters():
                p.grad = gtopk.allreduce(torch.zeros_like(p) if p.grad is None else p.grad)
            if when == "global":
                nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
            reference.step()
        assert_replicas(model)
        torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()), rtol=1e-4, atol=1e-6)


def case_types_and_layouts():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = make(channels_last=True).to(dtype)
        optimizer = wrapped(model, density=0.05, lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, batch(step, gtopk.rank()).to(dtype)).backward()
            optimizer.step()
        assert_replicas(model)
        assert flat(p.grad for p in model.parameters()).any()


def case_channels_last_on_one_rank_only_is_an_error_on_all():
    model = make(channels_last=gtopk.rank() == gtopk.size() - 1)
    optimizer = wrapped(model)
    loss_of(model, batch(0)).backward()
    raises(gtopk.MismatchError, optimizer.step, "conv.weight", "rank 0", f"rank {gtopk.size() - 1}", "memory format")


def case_different_parameters_are_an_error_on_all():
    model = make()
    model.linear.bias.requires_grad_(gtopk.rank() == 0)
    raises(gtopk.MismatchError, wrapped(model).step, "linear.bias", "frozen")
    model = make()
    raises(gtopk.MismatchError, wrapped(model, dense_below=10 * gtopk.rank()).step, "dense_below=0", "dense_below=10")
    algorithm = "gtopk" if gtopk.rank() == 0 else "gtopk-split"
    raises(gtopk.MismatchError, wrapped(model, algorithm=algorithm).step, "algorithm=gtopk ", "algorithm=gtopk-split ")


def case_frozen_unfrozen_and_added_parameters_keep_their_residuals():
    model = make()
    trunk = [p for name, p in model.named_parameters() if not name.startswith("linear")]
    optimizer = optim.SGD(trunk, lr=0.01, momentum=0.9)
    gtopk.DistributedOptimizer(optimizer, model.named_parameters(), density=0.02, momentum_correction=True)
    rank = gtopk.rank()
    train(model, optimizer, 2, 0, rank)
    model.conv.weight.requires_grad_(False)
    kept = optimizer.state_dict()["gtopk"]
    train(model, optimizer, 1, 2, rank)
    now = optimizer.state_dict()["gtopk"]
    for what in ("residual", "velocity"):
        assert kept[what]["conv.weight"].any()
        assert torch.equal(kept[what]["conv.weight"], now[what]["conv.weight"]), what
        assert not torch.equal(kept[what]["norm.weight"], now[what]["norm.weight"]), what
    model.conv.weight.requires_grad_(True)
    optimizer.add_param_group({"params": model.linear.parameters()})
    train(model, optimizer, 2, 3, rank)
    assert_replicas(model)
    now = optimizer.state_dict()["gtopk"]
    assert now["residual"]["linear.weight"].any()
    assert not torch.equal(kept["residual"]["conv.weight"], now["residual"]["conv.weight"])


def case_two_models_two_optimizers():
    torch.manual_seed(0)
    generator, critic = nn.Linear(4, 6), nn.Linear(6, 1)
    first, second = (wrapped(net, optim.Adam, density=0.2, lr=0.01) for net in (generator, critic))
    torch.manual_seed(gtopk.rank())
    for _ in range(4):
        noise, real = torch.randn(5, 4), torch.randn(5, 6)
        second.zero_grad()
        (critic(generator(noise).detach()).mean() - critic(real).mean()).backward()
        second.step()
        first.zero_grad()
        (-critic(generator(noise)).mean()).backward()
        first.step()
    assert_replicas(generator)
    assert_replicas(critic)


def case_nan_on_one_rank_skips_the_step_on_all():
    model = make()
    optimizer = wrapped(model, density=0.05)
    train(model, optimizer, 1, 0, gtopk.rank())
    before = flat(model.parameters())
    optimizer.zero_grad()
    loss_of(model, batch(1, gtopk.rank())).backward()
    if gtopk.rank() == gtopk.size() - 1:
        model.conv.weight.grad[0, 0, 0, 0] = torch.nan
    logging.disable(logging.WARNING)
    optimizer.step()
    logging.disable(logging.NOTSET)
    assert optimizer.stats()["nonfinite"] == 1
    assert flat(p.grad for p in model.parameters()).isnan().all()
    assert torch.equal(before, flat(model.parameters()))
    train(model, optimizer, 2, 2, gtopk.rank())
    assert optimizer.stats()["nonfinite"] == 0
    assert_replicas(model)


def case_with_rollback_a_skipped_step_is_as_if_it_had_not_been():
    """Without a scaler. What was finite in it is in no residual and no velocity, and moves nothing later."""
    logging.disable(logging.WARNING)
    for options in (
        {},
        {"algorithm": "dense"},
        {"dense_below": 10},
        {"momentum_correction": True, "more": {"momentum": 0.9}},
    ):
        model = nn.ParameterDict({"a": torch.zeros(20), "b": torch.zeros(5), "c": torch.zeros(3)})
        optimizer = wrapped(model, lr=1.0, density=0.2, rollback=True, **options)
        torch.manual_seed(gtopk.rank())
        for step in range(6):
            bad = step in (2, 3)
            model["a"].grad, model["b"].grad, model["c"].grad = torch.randn(20), torch.randn(5), None
            if bad:
                model["b"].grad = torch.tensor([1.0, 1e10, 1.0, 1.0, torch.inf if gtopk.rank() == step - 2 else 1.0])
            before, parameters = optimizer.state_dict()["gtopk"], flat(model.parameters())
            optimizer.step()
            assert optimizer.stats()["nonfinite"] == bad
            assert torch.equal(flat(model.parameters()), parameters) == bad
            if not bad:
                continue
            after = optimizer.state_dict()["gtopk"]
            for what in ("residual", "velocity"):
                assert all(torch.equal(after[what][name], values) for name, values in before[what].items())
        assert flat(model.parameters()).abs().max() < 100
        assert_replicas(model)
    logging.disable(logging.NOTSET)


def case_a_residual_in_bf16():
    """Rounded, so that mass is kept in the mean; and training that is resumed draws the same numbers."""
    for options in (
        {"rollback": True, "momentum_correction": True, "dense_below": 100, "more": {"momentum": 0.9}},
        {"kind": optim.AdamW, "local_steps": 2, "value_type": "fp32"},
    ):
        options = {"density": 0.02, "lr": 0.01, "residual_dtype": "bf16", **options}
        model = make()
        optimizer = wrapped(model, **options)
        train(model, optimizer, 4, 0, gtopk.rank())
        state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
        train(model, optimizer, 4, 4, gtopk.rank())
        assert_replicas(model)
        held = flat(values for values in residuals(optimizer).values() if values.numel() >= 100)
        assert held.any()
        assert torch.equal(held, held.bfloat16().float())
        again = make(seed=5)
        resumed = wrapped(again, **options)
        again.load_state_dict(weights)
        resumed.load_state_dict(state, strict=True)
        train(again, resumed, 4, 4, gtopk.rank())
        assert torch.equal(flat(again.parameters()), flat(model.parameters())), options
        assert torch.equal(flat(residuals(resumed).values()), flat(residuals(optimizer).values())), options


def case_a_residual_in_bf16_keeps_mass_in_the_mean():
    n, steps = 20000, 6
    weights = nn.Parameter(torch.zeros(n, device=DEVICE))
    optimizer = wrapped(nn.ParameterList([weights]), lr=0.0, density=0.01, residual_dtype="bf16")
    torch.manual_seed(gtopk.rank())
    given, sent = torch.zeros(n, device=DEVICE), torch.zeros(n, device=DEVICE)
    for _ in range(steps):
        weights.grad = (1 + 0.1 * torch.randn(n)).to(DEVICE)
        given += weights.grad
        optimizer.step()
        sent += weights.grad
    kept = next(iter(residuals(optimizer).values())).to(DEVICE)
    off = gtopk.allreduce(given - kept, gtopk.Sum) - gtopk.size() * sent
    rounding = 2.0**-7 * 2 * steps  # of sums below 8, in each step on each rank
    assert 0 < off.abs().max() < rounding * gtopk.size()
    assert off.mean().abs() < 5 * rounding * gtopk.size() ** 0.5 / n**0.5


def case_nan_in_one_part_leaves_the_residuals_of_the_other_as_accumulated():
    for bad in (0, 1):
        parameters = [nn.Parameter(torch.zeros(500)), nn.Parameter(torch.zeros(10))]
        optimizer = gtopk.DistributedOptimizer(optim.SGD(parameters, lr=1.0), density=0.1, dense_below=50)
        torch.manual_seed(gtopk.rank())
        mine = [torch.randn(500), torch.randn(10)]
        for parameter, gradient in zip(parameters, mine, strict=True):
            parameter.grad = gradient.clone()
        if gtopk.rank() == 0:
            parameters[bad].grad[:] = torch.nan
        logging.disable(logging.WARNING)
        optimizer.step()
        logging.disable(logging.NOTSET)
        assert all(parameter.grad.isnan().all() for parameter in parameters)
        assert torch.equal(residuals(optimizer)[f"group0.{1 - bad}"], mine[1 - bad].cpu())


def case_join():
    """Rank r has r batches more than rank 0."""
    momentum = {"momentum": 0.9}
    for options in (
        {},
        {"dense_below": 100, "more": momentum},
        {"kind": optim.AdamW},
        {"momentum_correction": True, "dense_1d": True, "more": momentum},
    ):
        model = make()
        optimizer = wrapped(model, density=0.05, lr=0.01, warmup=[(2, 0.5)], **options)
        given = torch.zeros_like(flat(model.parameters()))
        sent = torch.zeros_like(given)
        for step in range(1 + gtopk.rank()):
            optimizer.zero_grad()
            loss_of(model, batch(step, gtopk.rank())).backward()
            model.unused.grad = torch.zeros(7)
            given += flat(p.grad for p in model.parameters())
            optimizer.step()
            sent += flat(p.grad for p in model.parameters())
        last = optimizer.join()
        assert last == gtopk.size() - 1
        assert optimizer.stats()["all_joined"] == 1
        gtopk.broadcast_parameters(model.state_dict(), root_rank=last)
        gtopk.broadcast_optimizer_state(optimizer, root_rank=last)
        assert_replicas(model)
        gtopk.broadcast_(sent, last)  # the last rank saw all updates
        kept = gtopk.allreduce(flat(residuals(optimizer)[name] for name, _ in model.named_parameters()), op=gtopk.Sum)
        total = gtopk.allreduce(given, op=gtopk.Sum)
        if not options.get("momentum_correction"):
            torch.testing.assert_close(kept + gtopk.size() * sent, total, rtol=1e-4, atol=1e-5)
        # In the next epoch the first rank has the most.
        train(model, optimizer, gtopk.size() - gtopk.rank(), 20, gtopk.rank())
        assert optimizer.join() == 0
        gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
        gtopk.broadcast_optimizer_state(optimizer, root_rank=0)
        train(model, optimizer, 2, 40, gtopk.rank())
        assert_replicas(model)


def case_parameter_frozen_after_backward():
    """Its gradient is this rank's own, and is not applied."""
    for synchronize in (False, True):
        model = make()
        optimizer = wrapped(model, density=0.1, more={"momentum": 0.9, "weight_decay": 0.1})
        train(model, optimizer, 1, 0, gtopk.rank())
        optimizer.zero_grad()
        loss_of(model, batch(1, gtopk.rank())).backward()
        model.conv.weight.requires_grad_(False)
        before, grad = model.conv.weight.clone(), model.conv.weight.grad.clone()
        if synchronize:
            optimizer.synchronize()
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()
        assert torch.equal(model.conv.weight, before)
        assert torch.equal(model.conv.weight.grad, grad)
        assert_replicas(model)


def case_parameter_in_another_type_from_some_step_on():
    model = make()
    optimizer = wrapped(model, density=0.1)
    train(model, optimizer, 2, 0, gtopk.rank())
    norm = optimizer.stats(residual_norm=True)["residual_norm"]
    model.linear.double()
    optimizer.zero_grad()
    x = torch.relu(model.norm(model.conv(batch(2, gtopk.rank())))).flatten(1)
    model.linear(x.double()).pow(2).mean().backward()
    optimizer.step()
    assert optimizer.stats(residual_norm=True)["residual_norm"] > 0.1 * norm
    assert_replicas(model)


def case_broadcast_parameters():
    torch.manual_seed(gtopk.rank())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(700, 600)).to(torch.bfloat16)
    model.append(nn.Linear(300, 1000))
    if gtopk.rank() % 2:  # layouts may differ
        model[0].to(memory_format=torch.channels_last)
        model[2].weight.data = model[2].weight.data.t().contiguous().t()
    model[1].num_batches_tracked += gtopk.rank()
    root = gtopk.size() - 1
    mine = {name: value.clone() for name, value in model.state_dict().items()}
    gtopk.broadcast_parameters(model.state_dict(), root_rank=root)
    for name, value in model.state_dict().items():
        assert_same_on_all_ranks(value.float().cpu().numpy())
        if gtopk.rank() == root:
            assert torch.equal(value, mine[name])
    assert model[1].num_batches_tracked == root
    gtopk.broadcast_parameters(model.named_parameters(), root_rank=0)
    other = nn.Linear(2 + gtopk.rank(), 1)
    raises(gtopk.MismatchError, lambda: gtopk.broadcast_parameters(other.state_dict()), "weight", "[1, 2]", "[1, 3]")


def case_broadcast_optimizer_state():
    """One rank has trained, the others start anew."""
    for kind, more in ((optim.AdamW, {"amsgrad": True}), (optim.SGD, {"momentum": 0.9}), (optim.SGD, {})):
        for wrap in (True, False):
            model = make(channels_last=True)
            rank, root = gtopk.rank(), gtopk.size() - 1
            optimizer = kind(model.parameters(), lr=0.1 * (rank + 1), **more)
            if rank == root:
                train(model, optimizer, 2, 0, rank)
            if wrap:
                gtopk.DistributedOptimizer(optimizer, model.named_parameters(), density=0.05)
            gtopk.broadcast_parameters(model.state_dict(), root_rank=root)
            gtopk.broadcast_optimizer_state(optimizer, root_rank=root)
            assert optimizer.param_groups[0]["lr"] == 0.1 * (root + 1)
            assert bool(optimizer.state) == bool(more)
            for state in optimizer.state.values():
                for entry in state.values():
                    assert_same_on_all_ranks(entry.float().contiguous().cpu().numpy())
            if wrap:
                train(model, optimizer, 2, 5, rank)
                assert_replicas(model)
    smaller = optim.SGD([nn.Parameter(torch.zeros(3 + gtopk.rank()))], lr=1.0)
    raises(gtopk.MismatchError, lambda: gtopk.broadcast_optimizer_state(smaller), "parameter 0 of group 0")


class Unreadable(torch.optim.SGD):
    """An optimizer whose state one rank cannot read or take over."""

    def state_dict(self):
        if gtopk.rank() == 0:
            raise OSError("no such disk")
        return super().state_dict()

    def load_state_dict(self, state):
        if gtopk.rank() == gtopk.size() - 1:
            raise OSError("no such disk")
        super().load_state_dict(state)


def case_broadcast_errors_of_one_rank_are_errors_on_all():
    last = gtopk.size() - 1
    optimizer = Unreadable([torch.zeros(3, requires_grad=True)], lr=0.1)
    for root, guilty in ((0, 0), (1 if last > 1 else 0, 0 if last == 1 else last)):
        error = raises(
            (OSError, gtopk.MismatchError), lambda root=root: gtopk.broadcast_optimizer_state(optimizer, root)
        )
        assert isinstance(error, OSError) == (gtopk.rank() == guilty), error
        assert isinstance(error, OSError) or f"broadcast_optimizer_state failed on rank {guilty}" in str(error), error
    for wrong in (torch.zeros(3).to_sparse(), torch.zeros(1).expand(3), torch.zeros(3, device="meta")):
        tensors = {"weight": wrong if gtopk.rank() == last else torch.zeros(3)}
        error = raises(gtopk.GtopkError, lambda tensors=tensors: gtopk.broadcast_parameters(tensors), "weight is")
        assert isinstance(error, gtopk.InvalidError) == (gtopk.rank() == last), error


def case_allreduce_buffers():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(2).double())
    for buffer in model.buffers():
        buffer.fill_(gtopk.rank() + 1)
    weight = model[0].weight.detach().clone()
    gtopk.allreduce_buffers(model)
    for buffer in model.buffers():
        assert (buffer == ((gtopk.size() + 1) / 2 if buffer.is_floating_point() else 1)).all(), buffer
    assert torch.equal(weight, model[0].weight)
    other = torch.nn.BatchNorm1d(4 if gtopk.rank() == 1 else 3)
    raises(gtopk.MismatchError, lambda: gtopk.allreduce_buffers(other), "running_mean", "[3]", "[4]")


def case_broadcast_optimizer_state_keeps_each_ranks_residual():
    model = make()
    optimizer = wrapped(model, density=0.02, lr=0.01, momentum_correction=True, more={"momentum": 0.9})
    train(model, optimizer, 2, 0, gtopk.rank())
    before = optimizer.state_dict()["gtopk"]
    gtopk.broadcast_optimizer_state(optimizer, root_rank=gtopk.size() - 1)
    after = optimizer.state_dict()["gtopk"]
    for what in ("residual", "velocity"):
        assert any(values.any() for values in before[what].values())  # where this rank has a share
        for name, values in before[what].items():
            assert torch.equal(after[what][name], values), (what, name)
    train(model, optimizer, 2, 2, gtopk.rank())
    assert optimizer.stats()["step"] == 3
    assert_replicas(model)


def case_everything_frozen():
    """Then there is nothing to exchange, and nothing to apply; what had not been sent is sent later."""
    model = make()
    optimizer = wrapped(model, density=0.02, more={"momentum": 0.9})
    train(model, optimizer, 1, 0, gtopk.rank())
    kept, before = residuals(optimizer), flat(model.parameters())
    assert any(values.any() for values in kept.values())
    model.requires_grad_(False)
    for step in range(3):
        optimizer.zero_grad()
        optimizer.step()
        assert optimizer.stats()["count"] == 0
        assert optimizer.stats()["step"] == 1 + step
    if gtopk.rank() == 0:
        optimizer.step()  # one batch more
    assert optimizer.join() == 0
    assert torch.equal(flat(model.parameters()), before)
    assert all(torch.equal(values, kept[name]) for name, values in residuals(optimizer).items())
    model.requires_grad_(True)
    train(model, optimizer, 1, 7, gtopk.rank())
    assert_replicas(model)


def case_the_default_type_does_not_matter():
    """Rank 0's state is loaded everywhere, so that the others have no residual when it is added up."""
    model = make()
    optimizer = wrapped(model, density=0.02)
    train(model, optimizer, 2, 0, gtopk.rank())
    optimizer.load_state_dict(gtopk.broadcast_object(optimizer.state_dict(), 0))
    torch.set_default_dtype(torch.float64)
    try:
        state = optimizer.consolidate_state_dict(to=0)
        optimizer.load_state_dict(gtopk.broadcast_object(state, 0))
        torch.set_default_dtype(torch.float32)
        loss_of(model, batch(5, gtopk.rank())).backward()
        torch.set_default_dtype(torch.float64)
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_replicas(model)


def case_momentum_correction_begins_by_itself():
    """Where the default density is low. SGD's momentum, and what waits on each rank, go on in velocities."""
    ranks, many = gtopk.size(), 100_000
    model = nn.ParameterDict({"w": torch.zeros(many)})
    optimizer = wrapped(model, lr=1.0, more={"momentum": 0.5}, value_type="fp32")
    session = optimizer._gtopk.session
    generator = torch.Generator().manual_seed(gtopk.rank())
    model["w"].grad = torch.zeros(many)
    optimizer.step()  # a run begins
    for step in (200, 400, 401):
        waits = residuals(optimizer)["w"].clone()
        buffer = optimizer.state[model["w"]]["momentum_buffer"]
        session.steps = step
        mine = 48.0 * ranks * torch.randint(-3, 4, (many,), generator=generator, device="cpu")
        model["w"].grad = mine.to(DEVICE, copy=True)
        optimizer.step()
        assert_replicas(model)
        if step == 400 and session.options.momentum_correction is None:
            due = ranks * 0.5 * buffer + gtopk.allreduce(mine + waits, op=gtopk.Sum).to(DEVICE)
            sent, kept = ranks * model["w"].grad, gtopk.allreduce(residuals(optimizer)["w"], op=gtopk.Sum)
            assert torch.equal(sent + kept.to(DEVICE), due)
            assert optimizer.state[model["w"]]["momentum_buffer"] is None
    corrected = [part.corrected for part in session.exchange.parts]
    assert corrected == [session.options.momentum_correction is None]
    assert corrected[0] or HIERARCHY


def case_momentum_correction_begins_on_all_ranks_alike():
    """Also where they have different states of it: that of rank 0, or of a step in which it began on some ranks only."""
    many = 100_000
    sgd = {"momentum": 0.5, "weight_decay": 0.25}

    def new(start):
        model = nn.ParameterDict({"w": start.clone()})
        return model, wrapped(model, lr=1.0, more=sgd, value_type="fp32")

    def step(model, optimizer, at):
        optimizer._gtopk.session.steps = at
        generator = torch.Generator().manual_seed(1000 * at + gtopk.rank())
        mine = 48.0 * gtopk.size() * torch.randint(-3, 4, (many,), generator=generator, device="cpu")
        model["w"].grad = mine.to(DEVICE)
        optimizer.step()
        assert_replicas(model)

    model, optimizer = new(torch.zeros(many))
    if optimizer._gtopk.session.options.momentum_correction is not None:
        return
    for at in (0, 200):
        step(model, optimizer, at)
    start, before = model["w"].detach().clone(), copy.deepcopy(optimizer.state_dict())
    begun = Handover(optimizer, {"w": model["w"]}, 1.0).with_velocity("w", before["gtopk"]["residual"]["w"])
    step(model, optimizer, 400)
    after = copy.deepcopy(optimizer.state_dict())
    step(model, optimizer, 401)
    for state in (before, after):
        state["state"][0]["momentum_buffer"] = state["state"][0]["momentum_buffer"].cpu()  # as a file would be read
        other, resumed = new(start)
        resumed.load_state_dict(gtopk.broadcast_object(state, 0))
        for at in (400, 401):
            step(other, resumed, at)
    if gtopk.rank() == 1:
        before["state"][0]["momentum_buffer"] = None
        before["gtopk"] |= {"residual": {"w": begun.residual}, "velocity": {"w": begun.velocity}, "velocity_of": ["w"]}
    other, resumed = new(start)
    resumed.load_state_dict(before)
    for at in (400, 401):
        step(other, resumed, at)
    assert torch.equal(other["w"], model["w"])


def case_what_was_refused_on_one_rank_can_be_tried_again():
    """The other ranks are not told, and go on waiting for this one."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0), [("weight", weight)], **ALL)
    for step in range(3):
        weight.grad = torch.full((3,), float(gtopk.rank() * step))
        if gtopk.rank() == 0 and weight.is_cpu:
            weight.grad = torch.zeros(3).to_sparse()
            raises(gtopk.UnsupportedError, optimizer.step, "the gradient of weight is a sparse tensor")
            weight.grad = torch.zeros(3)
        optimizer.step()
    assert (weight == 1.5 * (1 - gtopk.size())).all()


def case_what_one_rank_cannot_set_up_is_an_error_on_all():
    """At once, naming the rank; and all can go on."""
    model = make()
    optimizer = wrapped(model, density=0.1)
    train(model, optimizer, 1, 0, gtopk.rank())
    bad = gtopk.rank() == 1
    more = nn.Parameter(torch.zeros(3, dtype=torch.complex64 if bad else torch.float32))
    optimizer.add_param_group({"params": [more]})
    loss_of(model, batch(1, gtopk.rank())).backward()
    if bad:
        raises(gtopk.UnsupportedError, optimizer.step, "complex")
    else:
        raises(gtopk.MismatchError, optimizer.step, "step() failed on rank 1", "complex")
    optimizer.param_groups.pop()
    optimizer.zero_grad()
    train(model, optimizer, 1, 2, gtopk.rank())
    assert_replicas(model)


def case_gradients_that_share_memory():
    for options in ({}, {"algorithm": "dense"}, {"dense_1d": True}, {"dense_below": 100}):
        a, b, c = (nn.Parameter(torch.zeros(6)) for _ in range(3))
        optimizer = gtopk.DistributedOptimizer(optim.SGD([a, b, c], lr=1.0), **ALL, **options)
        for step in range(2):
            a.grad, b.grad = torch.autograd.grad((a + b).sum(), [a, b])
            assert a.grad is b.grad
            both = torch.arange(8.0) * (1 + gtopk.rank())
            if step:
                a.grad, c.grad = both[:6], both[2:]
            optimizer.step()
        mean = torch.arange(8.0) * (1 + gtopk.size()) / 2
        assert torch.equal(-a, 1 + mean[:6]), options
        assert torch.equal(-b, torch.full((6,), 2.0)), options
        assert torch.equal(-c, mean[2:]), options


def case_the_same_data_everywhere_is_noticed():
    for same in (True, False):
        model = nn.Linear(6, 4)
        optimizer = wrapped(model, density=0.1)
        with Warnings() as texts:
            for step in range(5):
                optimizer.zero_grad()
                if step:  # in one of the first steps there may be no gradient
                    model(torch.full((2, 6), 1.0 + step + (0 if same else gtopk.rank()))).sum().backward()
                optimizer.step()
                assert optimizer._gtopk.session.needs_all == (step < 2 and (same or step == 0))
        assert len(texts) == (same and gtopk.rank() == 0), texts
        if texts:
            assert "DistributedSampler" in texts[0]


def case_other_ranks_than_those_of_init():
    with gtopk.Comm(transport=gtopk.comm.current().transport) as comm:
        model = make(seed=gtopk.rank())
        gtopk.broadcast_parameters(model.state_dict(), comm=comm)
        optimizer = wrapped(model, density=0.05, comm=comm)
        train(model, optimizer, 2, 0, gtopk.rank())
        gtopk.broadcast_optimizer_state(optimizer)
        train(model, optimizer, 1, 2, gtopk.rank())
        assert_replicas(model)
        optimizer._gtopk.session.exchange.close()


def case_one_rank_that_clips_keeps_momentum_out_of_all_updates():
    many = 100_000
    model = nn.ParameterDict({"w": torch.zeros(many)})
    optimizer = wrapped(model, lr=1.0, more={"momentum": 0.5})
    for step in (0, 200, 400, 401):
        if step:
            optimizer._gtopk.session.steps = step
        model["w"].grad = torch.randn(many)
        if gtopk.rank() == 0 and step == 200:
            optimizer.synchronize()
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()
        assert_replicas(model)
    assert not any(part.corrected for part in optimizer._gtopk.session.exchange.parts)
