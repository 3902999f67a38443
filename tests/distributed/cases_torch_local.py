"""Local steps on several ranks: differences of weights are exchanged, and nothing of them is lost."""

from __future__ import annotations

import copy

import torch
from cases_torch_optimizer import ALL, assert_replicas, flat, residuals, wrapped
from harness import Warnings, assert_same_on_all_ranks, raises
from torch import nn, optim
from torch.utils._pytree import tree_map
from torch_support import batch, loss_of, make, train

import gtopk

LOCAL = {"density": 0.05, "local_steps": 3, "lr": 0.01}
NODES = ({"hierarchy": "node"}, {"hierarchy": "node", "algorithm": "gtopk-split"})


def differ_between_ranks(tensor):
    everywhere = gtopk.allgather(tensor.reshape(1, -1))
    return any(not torch.equal(other, everywhere[0]) for other in everywhere)


def starts(optimizer):
    return optimizer.state_dict()["gtopk"]["start"]


def on_host(state):
    return tree_map(lambda x: x.detach().cpu() if isinstance(x, torch.Tensor) else x, state)


class Integers:
    """One parameter whose local steps are whole numbers: sums and means of them are exact. A start in bf16 rounds its own."""

    def __init__(self, seed=0, **options):
        self.weight = nn.Parameter(torch.arange(60.0) * 17 if "start_dtype" in options else torch.zeros(60))
        options = {"density": 0.1, "value_type": "fp32", "local_steps": 2, **options}
        self.optimizer = gtopk.DistributedOptimizer(optim.SGD([self.weight], lr=1.0), [("w", self.weight)], **options)
        self.generator = torch.Generator("cpu").manual_seed(100 * seed + gtopk.rank())

    def step(self):
        gradient = torch.randint(-3, 4, (60,), generator=self.generator, device="cpu") * 48.0 * gtopk.size()
        gradient = gradient.to(self.weight.device)
        self.weight.grad = gradient.clone()
        self.optimizer.step()
        return gradient

    def residual(self):
        return residuals(self.optimizer).get("w", torch.zeros(60)).to(self.weight.device)


def case_nothing_is_lost():
    """Promise 3, over exchanges: residuals before + differences = residuals after + P * mean difference."""
    for seed, options in enumerate(
        (
            {},
            {"outer_lr": 2.0},
            {"residual_decay": 0.5},
            {"algorithm": "topk"},
            {"algorithm": "gtopk-tree"},
            {"algorithm": "gtopk-split"},
            {"algorithm": "dense"},
            {"algorithm": "auto"},
            {"dense_1d": True},
            {"start_dtype": "bf16"},
            {"value_type": "bf16"},
            {"value_type": "int8"},
            {"local_steps": lambda step: 1 + step % 3},
            {"local_steps": 1, "exchange": "weights"},
            *NODES,
        )
    ):
        one = Integers(seed, **options)
        at, decay, exchanges = one.weight.detach().clone(), options.get("residual_decay", 1.0), 0
        for _ in range(3):
            before, given = gtopk.allreduce(one.residual(), op=gtopk.Sum), torch.zeros(60)
            while True:
                given += one.step()
                if one.optimizer.stats()["local_steps"] == 0:
                    break
                assert differ_between_ranks(one.weight.detach())
            assert_same_on_all_ranks(one.weight.detach().cpu().numpy())
            mean = (at - one.weight.detach()) / options.get("outer_lr", 1.0)
            at = one.weight.detach().clone()
            after = gtopk.allreduce(one.residual(), op=gtopk.Sum)
            total = gtopk.allreduce(given, op=gtopk.Sum)
            if "value_type" in options or "start_dtype" in options:
                # What was rounded need not be a multiple of the number of ranks.
                near = 1e-3 if "value_type" in options else 0.05
                torch.testing.assert_close(decay * before + total, after + gtopk.size() * mean, rtol=1e-6, atol=near)
            else:
                assert torch.equal(decay * before + total, after + gtopk.size() * mean), options
            exchanges += bool(mean.any())
        assert exchanges == 3, options


def case_every_step_dense_is_averaging_of_weights():
    for period in (1, 3):
        model, plain = make(), make()
        options = {"local_steps": period, "exchange": "weights", "algorithm": "dense"}
        more = {"weight_decay": 0.1, "eps": 0.01}  # the bias before the normalisation has a gradient of rounding noise
        optimizer, reference = (
            wrapped(model, optim.AdamW, lr=0.01, more=more, **options),
            optim.AdamW(plain.parameters(), lr=0.01, **more),
        )
        for step in range(6):
            train(model, optimizer, 1, step, gtopk.rank())
            train(plain, reference, 1, step, gtopk.rank())
            if (step + 1) % period == 0:
                assert_replicas(model)
                for p in plain.parameters():
                    p.data = gtopk.allreduce(p.detach())
                torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()), rtol=1e-5, atol=1e-6)


def case_every_optimizer_and_option_has_replicas():
    for options in (
        {"kind": optim.AdamW},
        {"kind": optim.AdamW, "value_type": "int8", "outer_lr": 1.5},
        {"kind": optim.Adam, "more": {"fused": True}},
        {"kind": optim.SGD, "more": {"momentum": 0.9, "nesterov": True}, "residual_decay": 0.9},
        {"kind": optim.RMSprop, "outer_momentum": 0.9},
        {"kind": optim.Adagrad, "outer_momentum": 0.5, "outer_lr": 0.7, "algorithm": "dense"},
        {"kind": optim.Adadelta, "dense_1d": True},
        {"kind": optim.NAdam, "dense_below": 100},
        {"kind": optim.AdamW, "start_dtype": "bf16", "residual_dtype": "bf16", "outer_momentum": 0.5},
        {"kind": optim.RAdam, "warmup": [(1, 0.5), (1, 0.2)]},
        {"kind": optim.Adamax, "merge_growth": 1.5, "residual_policy": "paper"},
        {"local_steps": lambda step: 1 if step < 1 else 3, "named": False},
    ):
        model = make()
        optimizer = wrapped(model, **{**LOCAL, **options})
        train(model, optimizer, 5, 0, gtopk.rank())
        assert differ_between_ranks(flat(model.parameters()))
        optimizer.synchronize()
        assert_replicas(model)
        assert optimizer.stats()["step"] == (2 if callable(options.get("local_steps")) else 1)
        train(model, optimizer, 3, 5, gtopk.rank())
        assert_replicas(model)
        assert optimizer.stats()["count"] > 0
        narrow = [torch.equal(start, start.bfloat16().float()) for start in starts(optimizer).values()]
        assert all(narrow) == ("start_dtype" in options)


def case_types_and_layouts():
    """Of 16-bit weights the sums are kept in float32, so that small updates are not rounded away."""
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = make(channels_last=True).to(dtype)
        optimizer = wrapped(model, **LOCAL)
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, batch(step, gtopk.rank()).to(dtype)).backward()
            optimizer.step()
        assert_same_on_all_ranks(torch.cat([p.detach().double().flatten() for p in model.parameters()]).cpu().numpy())
        for name, p in model.named_parameters():
            assert torch.equal(starts(optimizer)[name].to(dtype), p.cpu())
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = gtopk.DistributedOptimizer(optim.SGD([weight], lr=1.0), local_steps=1, exchange="weights", **ALL)
    for _ in range(64):
        weight.grad = torch.full((4,), 2.0**-7 if gtopk.rank() == 0 else 0.0, dtype=torch.bfloat16)
        optimizer.step()
    expected = 1 - 0.5 / gtopk.size()
    assert (weight - expected).abs().max() < 2.0**-7, weight


def case_a_failed_exchange_leaves_weights_and_residual():
    """Promise 4: bit for bit as before it; and it can be done again as if nothing had happened."""
    for options in ({}, {"residual_decay": 0.5}, {"dense_1d": True}, {"start_dtype": "bf16"}):
        for where in ("step", "joined"):
            model, other = make(), make()
            optimizer, undisturbed = (wrapped(m, optim.AdamW, **{**LOCAL, **options}) for m in (model, other))
            train(model, optimizer, 5, 0, gtopk.rank())
            train(other, undisturbed, 5, 0, gtopk.rank())
            exchange = optimizer._gtopk.session.exchange
            before, kept, start = flat(model.parameters()), residuals(optimizer), starts(optimizer)
            reduce = exchange._reduce

            def fail(*_, **__):
                raise gtopk.TransportError("the network is gone")

            exchange._reduce = fail
            raises(gtopk.TransportError, optimizer.synchronize if where == "step" else optimizer.join)
            assert torch.equal(before, flat(model.parameters()))
            for name, values in residuals(optimizer).items():
                assert torch.equal(values, kept[name]), (name, options)
                assert torch.equal(starts(optimizer)[name], start[name]), name
            exchange._reduce = reduce
            optimizer.synchronize()
            undisturbed.synchronize()
            assert_replicas(model)
            assert torch.equal(flat(model.parameters()), flat(other.parameters())), options


def case_a_rank_that_does_not_come():
    """The others end by the deadline, with weights and residuals as before."""
    transport = gtopk.comm.current().transport
    for joined, start_dtype in ((False, "bf16"), (True, "fp32")):
        with gtopk.Comm(transport=transport, timeout=1.5, setup_timeout=120.0) as comm:
            model = make()
            optimizer = wrapped(model, **LOCAL, comm=comm, residual_decay=0.5, start_dtype=start_dtype)
            for begin, steps in ((0, 2), (2, 4 if joined else 3)):
                gtopk.barrier()  # ranks come together to the exchanges of the first step and of the period
                train(model, optimizer, steps, begin, gtopk.rank())
            before, kept = flat(model.parameters()), residuals(optimizer)
            if gtopk.rank() == 0:
                comm.allgather_json([2 if joined else 1, None, True, 5])  # and no exchange
            else:
                raises(gtopk.GtopkError, optimizer.join if joined else optimizer.synchronize)
            assert torch.equal(before, flat(model.parameters()))
            assert all(torch.equal(values, kept[name]) for name, values in residuals(optimizer).items())
            gtopk.barrier()


def case_weights_that_are_not_finite_on_one_rank():
    """All skip the exchange, and that rank goes back to where the period started."""
    for bad, options in ((torch.nan, {}), (torch.inf, {"start_dtype": "bf16"})):
        model = make()
        optimizer = wrapped(model, optim.AdamW, **LOCAL, **options)
        train(model, optimizer, 5, 0, gtopk.rank())
        kept, start, before = residuals(optimizer), starts(optimizer), flat(model.parameters())
        guilty = gtopk.rank() == gtopk.size() - 1
        if guilty:
            with torch.no_grad():
                model.conv.weight[0, 0, 0, 0] = bad
            optimizer.state[model.conv.weight]["exp_avg"][1] = bad
        with Warnings() as texts:
            optimizer.synchronize()
        assert any("goes back" in text for text in texts) == guilty
        assert optimizer.stats()["nonfinite"] == 1
        assert all(torch.equal(values, kept[name]) for name, values in residuals(optimizer).items())
        if guilty:
            assert all(torch.equal(p.cpu(), start[name]) for name, p in model.named_parameters() if name in start)
            assert optimizer.state[model.conv.weight]["exp_avg"].isfinite().all()
        else:
            assert torch.equal(before, flat(model.parameters()))
        train(model, optimizer, 1, 7, gtopk.rank())  # the period is over, so the next step exchanges
        assert optimizer.stats()["local_steps"] == 0
        assert optimizer.stats()["nonfinite"] == 0
        assert_replicas(model)
        assert flat(model.parameters()).isfinite().all()


def case_gradients_that_are_not_finite():
    """That rank leaves out its local step; nobody else is concerned."""
    model = make()
    optimizer = wrapped(model, optim.AdamW, **LOCAL)
    guilty = gtopk.rank() == 1
    optimizer.zero_grad()
    loss_of(model, batch(0, gtopk.rank())).backward()
    before = flat(model.parameters())
    if guilty:
        model.linear.weight.grad[1, 1] = torch.nan
    with Warnings() as texts:
        optimizer.step()
    assert torch.equal(before, flat(model.parameters())) == guilty
    assert bool(optimizer.state) != guilty
    assert len(texts) == guilty
    assert not guilty or "left out its local step" in texts[0]
    train(model, optimizer, 2, 1, gtopk.rank())
    assert_replicas(model)


def case_a_grad_scaler():
    """Each rank's overflows are its own affair, and gradients are unscaled once."""
    for how in ("plain", "unscale and clip"):
        model, plain = make(), make()
        optimizer = wrapped(model, lr=0.01, local_steps=4, **ALL)
        reference = optim.SGD(plain.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
        overflows = 0
        for step in range(4):
            for net in (model, plain):
                net.zero_grad()
            overflow = step == gtopk.rank() % 3
            overflows += overflow
            scaler.scale(loss_of(model, batch(step, gtopk.rank()))).backward()
            loss_of(plain, batch(step, gtopk.rank())).backward()
            if overflow:
                model.linear.weight.grad[0, 0] = torch.inf
            if how == "unscale and clip":
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            if not overflow:
                reference.step()
        assert scaler.get_scale() == 1024.0 * 0.5**overflows
        assert optimizer.stats()["nonfinite"] == 0
        assert_replicas(model)
        for p in plain.parameters():
            p.data = gtopk.allreduce(p.detach())
        torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()), rtol=1e-4, atol=1e-6)


def case_frozen_unfrozen_and_added_parameters():
    model = make()
    trunk = [p for name, p in model.named_parameters() if not name.startswith("linear")]
    optimizer = optim.SGD(trunk, lr=0.01, momentum=0.9)
    gtopk.DistributedOptimizer(optimizer, model.named_parameters(), density=0.3, local_steps=3)
    rank = gtopk.rank()
    train(model, optimizer, 5, 0, rank)
    model.conv.weight.requires_grad_(False)  # it has moved, differently on each rank
    assert differ_between_ranks(model.conv.weight.detach())
    train(model, optimizer, 1, 5, rank)
    assert_replicas(model)
    kept, frozen = residuals(optimizer)["conv.weight"], model.conv.weight.clone()
    assert kept.any()
    train(model, optimizer, 3, 6, rank)
    assert torch.equal(kept, residuals(optimizer)["conv.weight"])
    assert torch.equal(frozen, model.conv.weight)
    assert_replicas(model)
    train(model, optimizer, 1, 9, rank)
    model.conv.weight.requires_grad_(True)
    optimizer.add_param_group({"params": model.linear.parameters(), "weight_decay": 0.1})
    train(model, optimizer, 2, 10, rank)
    assert_replicas(model)
    assert not torch.equal(frozen, model.conv.weight)
    assert residuals(optimizer)["linear.weight"].any()
    optimizer.param_groups.pop()
    train(model, optimizer, 3, 12, rank)
    assert_replicas(model)


def case_parameter_frozen_after_backward():
    model = make()
    optimizer = wrapped(model, **LOCAL, more={"momentum": 0.9, "weight_decay": 0.1})
    optimizer.zero_grad()
    loss_of(model, batch(1, gtopk.rank())).backward()
    model.conv.weight.requires_grad_(False)
    before = model.conv.weight.clone()
    optimizer.step()
    assert torch.equal(model.conv.weight, before)
    optimizer.synchronize()
    assert_replicas(model)


def case_everything_frozen():
    model = make()
    optimizer = wrapped(model, **LOCAL)
    train(model, optimizer, 3, 0, gtopk.rank())
    before = flat(model.parameters())
    model.requires_grad_(False)
    for _ in range(4):
        optimizer.zero_grad()
        optimizer.step()
    assert optimizer.join() == gtopk.size() - 1
    assert torch.equal(flat(model.parameters()), before)


def case_join():
    """Rank r has 2 r batches more than rank 0. All have the same weights in the end, and nothing is lost."""
    every = ({"outer_momentum": 0.5}, {"dense_below": 100}, {"start_dtype": "bf16"})
    for options in ({}, *every, {"local_steps": lambda step: 1 + step % 2}):
        for first in (0, 1, 3):
            model = make()
            optimizer = wrapped(model, optim.AdamW, **{**LOCAL, **options})
            train(model, optimizer, first + 2 * gtopk.rank(), 0, gtopk.rank())
            last = optimizer.join()
            assert last == gtopk.size() - 1
            assert optimizer.stats()["all_joined"] == 1
            assert optimizer.stats()["local_steps"] == 0
            assert_replicas(model)
            train(model, optimizer, 2 * (gtopk.size() - gtopk.rank()), 20, gtopk.rank())
            assert optimizer.join() == 0
            assert_replicas(model)
            gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
            gtopk.broadcast_optimizer_state(optimizer, root_rank=0)
            train(model, optimizer, 6, 40, gtopk.rank())
            optimizer.synchronize()
            assert_replicas(model)
    one = Integers(7)
    total = torch.zeros(60)
    for _ in range(gtopk.rank() * 3):
        total += one.step()
    one.optimizer.join()
    given = gtopk.allreduce(total, op=gtopk.Sum)
    kept = gtopk.allreduce(one.residual(), op=gtopk.Sum)
    assert torch.equal(given, kept - gtopk.size() * one.weight.detach())


def case_different_weights_to_begin_with_are_an_error_on_all():
    model = make(seed=gtopk.rank())
    optimizer = wrapped(model, **LOCAL)
    train(model, optimizer, 2, 0, gtopk.rank())
    raises(gtopk.MismatchError, optimizer.synchronize, "conv.weight", "broadcast_parameters")
    gtopk.broadcast_parameters(model.state_dict())
    gtopk.broadcast_optimizer_state(optimizer)
    train(model, optimizer, 2, 0, gtopk.rank())


def case_different_options_are_an_error_on_all():
    every = (
        {"local_steps": 2 + gtopk.rank()},
        {"local_steps": 2, "outer_lr": 1.0 + gtopk.rank()},
        {"local_steps": 2, "start_dtype": "bf16" if gtopk.rank() else "fp32"},
    )
    for option in every:
        model = make()
        optimizer = wrapped(model, density=0.1, **option)
        train(model, optimizer, 1, 0, gtopk.rank())
        raises(gtopk.MismatchError, optimizer.synchronize, next(reversed(option)))
    # Gradients on even ranks, weights on odd ones.
    model = make()
    optimizer = wrapped(model, density=0.1, local_steps=1 + gtopk.rank() % 2)
    texts = "exchange=gradients", "exchange=weights", "on every rank"
    if gtopk.rank() % 2:
        train(model, optimizer, 1, 0, gtopk.rank())
        raises(gtopk.MismatchError, optimizer.synchronize, *texts)
    else:
        raises(gtopk.MismatchError, lambda: train(model, optimizer, 1, 0, gtopk.rank()), *texts)
    model = make()
    optimizer = wrapped(model, density=0.1, local_steps=lambda step: 2 + gtopk.rank() * (step > 0))
    train(model, optimizer, 2, 0, gtopk.rank())
    before = flat(model.parameters())
    optimizer._gtopk.since = 1
    raises(gtopk.DesyncError, optimizer.synchronize, "period of 2 local steps", "on all ranks")
    assert torch.equal(before, flat(model.parameters()))


def case_broadcast_optimizer_state():
    """One rank has trained alone, with an outer momentum; then all go on from it."""
    model = make()
    root = gtopk.size() - 1
    optimizer = wrapped(model, optim.AdamW, **LOCAL, outer_momentum=0.5)
    train(model, optimizer, 4, 0, gtopk.rank())
    gtopk.broadcast_parameters(model.state_dict(), root_rank=root)
    gtopk.broadcast_optimizer_state(optimizer, root_rank=root)
    assert optimizer._gtopk.velocities["conv.weight"].any()
    for state in optimizer.state.values():
        for entry in state.values():
            assert_same_on_all_ranks(entry.float().contiguous().cpu().numpy())
    train(model, optimizer, 3, 4, gtopk.rank())
    assert_replicas(model)


def case_buffers_stay_each_ranks_own():
    """As the optimizer knows parameters only: they are averaged when somebody asks for it."""
    model = make()
    optimizer = wrapped(model, **LOCAL)
    train(model, optimizer, 3, 0, gtopk.rank())
    assert differ_between_ranks(model.norm.running_mean)
    gtopk.allreduce_buffers(model)
    assert not differ_between_ranks(model.norm.running_mean)


def case_the_same_data_everywhere_is_noticed():
    for same in (True, False):
        model = make()
        optimizer = wrapped(model, **LOCAL)
        with Warnings() as texts:
            train(model, optimizer, 9, 0, 0 if same else gtopk.rank())
        assert len(texts) == (same and gtopk.rank() == 0), texts


def case_checkpoints():
    """Of every rank: bit for bit; consolidated: nothing is lost. In the middle of a period, and between two."""
    for done in (6, 8):
        for options in (
            {"outer_momentum": 0.5},
            {"local_steps": lambda step: 3, "dense_1d": True},
            {"start_dtype": "bf16"},
        ):
            model = make()
            optimizer = wrapped(model, optim.AdamW, **{**LOCAL, **options})
            train(model, optimizer, done, 0, gtopk.rank())
            state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
            whole = copy.deepcopy(optimizer.consolidate_state_dict(to=gtopk.size() - 1))
            train(model, optimizer, 4, done, gtopk.rank())

            again = make(seed=5)
            resumed = wrapped(again, optim.AdamW, **{**LOCAL, **options})
            again.load_state_dict(weights)
            resumed.load_state_dict(state, strict=True)
            train(again, resumed, 4, done, gtopk.rank())
            assert torch.equal(flat(model.parameters()), flat(again.parameters())), options
            for name, values in residuals(optimizer).items():
                assert torch.equal(values, residuals(resumed)[name])

            whole = gtopk.broadcast_object(on_host(whole), gtopk.size() - 1)
            again = make(seed=5)
            resumed = wrapped(again, optim.AdamW, **{**LOCAL, **options})
            resumed.load_state_dict(whole, strict=True)
            assert_replicas(again)
            for name, value in again.named_parameters():
                mine = state["gtopk"]["start"][name] - weights[name].cpu() + state["gtopk"]["residual"][name]
                total = gtopk.allreduce(mine, op=gtopk.Sum)
                found = gtopk.allreduce(residuals(resumed)[name], op=gtopk.Sum)
                torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-6)
                assert torch.equal(value.cpu(), state["gtopk"]["start"][name])
            twice = {**whole, "gtopk": {**whole["gtopk"], "size": 2 * gtopk.size()}}  # as if of so many ranks
            fewer = wrapped(make(seed=5), optim.AdamW, **{**LOCAL, **options})
            fewer.load_state_dict(twice, strict=True)
            for name, values in residuals(resumed).items():
                torch.testing.assert_close(2 * residuals(fewer)[name], values)
            train(again, resumed, 3, done, gtopk.rank())
            assert_replicas(again)


def case_a_checkpoint_of_rank_0_only():
    model = make()
    optimizer = wrapped(model, optim.AdamW, **LOCAL)
    train(model, optimizer, 8, 0, gtopk.rank())
    saved = gtopk.broadcast_object(on_host([model.state_dict(), optimizer.state_dict()]), 0)
    again = make(seed=5)
    resumed = wrapped(again, optim.AdamW, **LOCAL)
    again.load_state_dict(saved[0])
    with Warnings() as texts:
        resumed.load_state_dict(saved[1])
    assert len(texts) == (gtopk.rank() != 0)
    train(again, resumed, 1, 8, gtopk.rank())
    assert resumed.stats()["local_steps"] == 0
    assert_replicas(again)


def case_states_of_gradients_and_of_weights_are_not_mixed_up():
    model = make()
    gradients, weights = wrapped(model, density=0.05), wrapped(make(), **LOCAL)
    train(model, gradients, 1, 0, gtopk.rank())
    train(make(), weights, 1, 0, gtopk.rank())
    states = gradients.state_dict(), weights.state_dict()
    raises(gtopk.MismatchError, lambda: weights.load_state_dict(states[0]), "residual of gradients")
    raises(gtopk.MismatchError, lambda: gradients.load_state_dict(states[1]), "local_steps")
    states[0].pop("gtopk")
    weights.load_state_dict(states[0])


def case_weights_loaded_between_two_periods():
    model = make()
    optimizer = wrapped(model, **LOCAL)
    train(model, optimizer, 3, 0, gtopk.rank())
    model.load_state_dict(make(seed=9).state_dict())
    loaded = flat(model.parameters())
    train(model, optimizer, 3, 3, gtopk.rank())
    assert_replicas(model)
    assert (flat(model.parameters()) - loaded).norm() < 0.2 * loaded.norm()
