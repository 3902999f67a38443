"""FSDP2: every promise for models whose parameters are sharded on each node, exchanged among the nodes."""

from __future__ import annotations

import copy
import gc
import os
from collections import OrderedDict
from pathlib import Path

import torch
import torch.distributed as dist
from fsdp_support import (
    ALL,
    assert_replicas,
    flat,
    give,
    local,
    loss_of,
    mesh,
    node,
    nodes,
    on_nodes,
    parts,
    plain,
    residuals,
    shard,
    sharded,
    tokens,
    train,
    whole,
    wrapped,
)
from harness import Warnings, raises
from torch import nn, optim
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.utils import clip_grad_norm_

import gtopk
from gtopk.torch.ddp_hook import GTopKState, gtopk_hook, register_hook

SPARSE = {"density": 0.05}


def on_four_ranks(case):
    """Of what is the same on more of them, and takes long."""
    return lambda: case() if gtopk.size() == 4 else None


def with_two_shards(case):
    """Of what does not depend on how many shards there are."""
    return lambda: case() if mesh()["shards"].size() == 2 else None


def whatever_the_shards(options, first):
    """All options with two shards a node, the first ones with more: what they change there is the same, and takes long."""
    return options if mesh()["shards"].size() == 2 else options[:first]


def dense_step(model, step, passes=1):
    """Gradients that are the mean over all ranks, of a model that is not sharded."""
    model.zero_grad()
    for number in range(passes):
        loss_of(model, tokens(step + number, gtopk.rank())).backward()
    for p in model.parameters():
        p.grad = gtopk.allreduce(torch.zeros_like(p) if p.grad is None else p.grad)


def replicas_of(optimizer):
    return optimizer._gtopk.session.comm


def total(optimizer, values):
    """The sum over the replicas of this rank's shard."""
    return replicas_of(optimizer).allreduce(values, gtopk.Sum)


# ---- training is what it is without shards ----


def case_full_density_is_dense_training():
    for kind, more in ((optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}), (optim.AdamW, {"eps": 0.01})):
        model, dense = sharded(), plain()
        optimizer, reference = wrapped(model, kind, more=more, **ALL), kind(dense.parameters(), lr=0.1, **more)
        for step in range(3):
            train(model, optimizer, 1, step)
            dense_step(dense, step)
            reference.step()
            torch.testing.assert_close(flat(model), flat(dense), rtol=1e-5, atol=1e-6)
        assert_replicas(model)


def case_every_way_to_name_the_group():
    kinds = {"replicas": "replicas", "mesh": mesh()["replicas"], "group": mesh().get_group("replicas")}
    found = []
    for group in kinds.values():
        model = sharded()
        train(model, wrapped(model, group=group, **SPARSE), 3)
        found.append(flat(model))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def case_replicas_agree_whatever_the_options():
    every = (
        {"density": 0.01},
        {"algorithm": "gtopk-split"},
        {"algorithm": "gtopk-tree", "value_type": "int8"},
        {"algorithm": "topk", "value_type": "fp16"},
        {"algorithm": "auto"},
        {"algorithm": "dense"},
        {"dense_below": 8, "merge_growth": 1.5},
        {"dense_1d": True, "residual_policy": "paper"},
        {"momentum_correction": True, "more": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}},
        {"rollback": True, "kind": optim.AdamW},
        {"residual_dtype": "bf16"},
        {"warmup": [(2, 0.5), (2, 0.2)], "kind": optim.Adam, "more": {"foreach": False}},
    )
    for options in whatever_the_shards(every, 1):
        model = sharded()
        optimizer = wrapped(model, **{**SPARSE, **options})
        before = flat(model)
        steps = 5 if "warmup" in options else 3
        train(model, optimizer, steps)
        assert_replicas(model)
        assert not torch.equal(before, flat(model))
        assert optimizer.stats()["step"] == steps - 1


@with_two_shards
def case_training_brings_the_loss_down():
    model = sharded()
    optimizer = wrapped(model, optim.AdamW, lr=0.05, density=0.2)
    x = tokens(0, gtopk.rank())

    def loss_of_all():
        return gtopk.allreduce(loss_of(model, x).detach().reshape(1)).item()

    first = loss_of_all()
    for _ in range(30):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
    assert loss_of_all() < 0.8 * first


# ---- what people do beside it ----


def case_mixed_precision_and_offload():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    for options in ({"mp_policy": policy}, {"mp_policy": policy, "offload_policy": CPUOffloadPolicy(pin_memory=False)}):
        model = sharded(**options)
        train(model, wrapped(model, **SPARSE), 3)
        assert_replicas(model)
    model = sharded(plain().to(torch.bfloat16))
    train(model, wrapped(model, **SPARSE), 3)
    assert_replicas(model)
    assert model.gate.weight.grad.dtype is torch.bfloat16


def case_gradient_accumulation():
    model, dense = sharded(), plain()
    optimizer, reference = wrapped(model, **ALL), optim.SGD(dense.parameters(), lr=0.1)
    for number in range(3):
        model.set_requires_gradient_sync(number == 2)
        loss_of(model, tokens(number, gtopk.rank())).backward()
    optimizer.step()
    dense_step(dense, 0, passes=3)
    reference.step()
    torch.testing.assert_close(flat(model), flat(dense), rtol=1e-5, atol=1e-6)


def only_shards(model):
    return [p for p in model.parameters() if isinstance(p, DTensor)]


def case_clipping_before_and_after_the_exchange():
    for mean in (False, True):
        model = sharded()
        optimizer = wrapped(model, **SPARSE)
        loss_of(model, tokens(0, gtopk.rank())).backward()
        if mean:
            optimizer.synchronize()
        norm = clip_grad_norm_(only_shards(model), 0.01).full_tensor()
        clipped = torch.stack([whole(p.grad).norm() for p in only_shards(model) if p.grad is not None]).norm()
        torch.testing.assert_close(clipped, torch.tensor(0.01), rtol=1e-3, atol=0)
        same = gtopk.allgather(norm.reshape(1))
        assert bool((same == same[0]).all()) == mean
        if mean:
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()
        assert_replicas(model)


@on_four_ranks
def case_checkpointing_of_activations_and_compile():
    def checkpointed(model):
        apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, nn.LayerNorm))

    reference = sharded()
    train(reference, wrapped(reference, **SPARSE), 3)
    for change in (checkpointed, lambda model: [block.compile(backend="eager") for block in model.blocks]):
        model = sharded(change=change)
        optimizer = wrapped(model, **SPARSE)
        train(model, optimizer, 3)
        assert torch.equal(flat(model), flat(reference))
        assert "blocks.0.norm.weight" in optimizer.state_dict()["gtopk"]["names"]
    model = sharded()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = wrapped(compiled, **SPARSE)
    train(compiled, optimizer, 3)
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-4, atol=1e-5)
    assert_replicas(model)


@on_four_ranks
def case_a_loop_as_torchtitan_has_it():
    """All at once: blocks checkpointed, compiled and sharded one by one, micro-batches, clipping, a schedule."""

    def prepare(model):
        for i, block in enumerate(model.blocks):
            model.blocks[i] = checkpoint_wrapper(block)
            model.blocks[i].compile(backend="eager")

    def falling(optimizer):
        return optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    more = {"eps": 0.01, "weight_decay": 0.1}
    model, dense = sharded(change=prepare, whole=()), plain()
    optimizer = wrapped(model, optim.AdamW, more=more, **ALL)
    reference = optim.AdamW(dense.parameters(), lr=0.1, **more)
    schedules = falling(optimizer), falling(reference)
    for step in range(3):
        optimizer.zero_grad()
        for number in range(2):
            model.set_requires_gradient_sync(number == 1)
            (loss_of(model, tokens(step + number, gtopk.rank())) / 2).backward()
        optimizer.synchronize()
        clip_grad_norm_(model.parameters(), 0.1)
        with optimizer.skip_synchronize():
            optimizer.step()
        dense_step(dense, step, passes=2)
        for p in dense.parameters():
            p.grad.div_(2)
        clip_grad_norm_(dense.parameters(), 0.1)
        reference.step()
        for schedule in schedules:
            schedule.step()
    torch.testing.assert_close(flat(model), flat(dense), rtol=1e-4, atol=1e-5)
    assert_replicas(model)
    # And in its own order, each node clipping its own gradient, in bf16.
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded(change=prepare, whole=(), mp_policy=policy)
    optimizer = wrapped(model, optim.AdamW, **SPARSE)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(model, tokens(step, gtopk.rank())).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert_replicas(model)


def case_frozen_parameters():
    model = sharded()
    optimizer = wrapped(model, **SPARSE)
    train(model, optimizer, 2)
    for p in model.blocks[0].parameters():
        p.requires_grad_(False)
    frozen = [local(p).clone() for p in model.blocks[0].parameters()]
    train(model, optimizer, 2, 2)
    assert all(torch.equal(local(p), before) for p, before in zip(model.blocks[0].parameters(), frozen, strict=True))
    model.blocks[0].requires_grad_(True)
    train(model, optimizer, 2, 4)
    assert_replicas(model)


def case_a_node_that_has_fewer_batches():
    model = sharded()
    optimizer = wrapped(model, more={"momentum": 0.9}, **SPARSE)
    train(model, optimizer, 2 if node() == 0 else 4)
    last = optimizer.join()
    assert last == nodes() - 1
    gtopk.broadcast_parameters(model.state_dict(), root_rank=last)
    gtopk.broadcast_optimizer_state(optimizer, root_rank=last)
    train(model, optimizer, 2, 4)
    assert_replicas(model)


def case_starting_from_one_node():
    model = sharded(plain(seed=node()))
    with torch.no_grad():
        model.scale.mul_(1 + gtopk.rank())
    gtopk.broadcast_parameters(model.state_dict(), root_rank=nodes() - 1)
    assert_replicas(model)
    expected = plain(seed=nodes() - 1)
    with torch.no_grad():
        expected.scale.mul_(1 + gtopk.size() - mesh()["shards"].size())
    assert torch.equal(flat(model), flat(expected))


# ---- mass ----


def integers(seed):
    """Whole numbers, so that sums and means are exact; what is not sharded is the same on all ranks of a node."""
    ranks = torch.Generator().manual_seed(1000 * seed + gtopk.rank())
    same = torch.Generator().manual_seed(1000 * seed + 500 + node())

    def values(name, shape):
        return torch.randint(-3, 4, shape, generator=same if name == "scale" else ranks) * 48.0 * nodes()

    return values


def case_nothing_is_lost():
    """Residuals before + gradients = residuals after + nodes * mean update, to the bit, of every shard."""
    for options in (
        {},
        {"algorithm": "gtopk-split"},
        {"algorithm": "topk"},
        {"dense_below": 4},
        {"momentum_correction": True},
        {"dtype": torch.bfloat16},
    ):
        own = dict(options)
        model = sharded(plain().to(own.pop("dtype", torch.float32)))
        optimizer = wrapped(model, density=0.1, value_type="fp32", **own)
        before = torch.zeros_like(parts_of_weights(model), dtype=torch.float32)
        for step in range(5):
            give(model, integers(step))
            given = total(optimizer, parts(model).float())
            optimizer.synchronize()
            after = total(optimizer, residuals(optimizer))
            assert torch.equal(before + given, after + nodes() * parts(model).float()), options
            assert after.any()
            with optimizer.skip_synchronize():
                optimizer.step()
            before = after
        assert_replicas(model)


def case_shards_are_exchanged_as_any_tensors_are():
    """Bit for bit what an optimizer of as many small tensors does among the same ranks."""
    model = sharded(whole=())
    optimizer = wrapped(model, density=0.1)
    comm = replicas_of(optimizer)
    same = {name: nn.Parameter(local(p).clone()) for name, p in model.named_parameters()}
    assert comm.size == nodes() and (local(model.gate.bias).numel() == 0) == (shard() > 0)
    other = gtopk.DistributedOptimizer(optim.SGD(same.values(), lr=0.1), same.items(), comm=comm, density=0.1)
    for step in range(5):
        random = torch.Generator().manual_seed(100 * step + gtopk.rank())
        give(model, lambda _, shape: torch.randn(shape, generator=random))  # noqa: B023
        for name, p in model.named_parameters():
            same[name].grad = local(p.grad).clone()
        optimizer.step()
        other.step()
        assert all(torch.equal(local(p), same[name]) for name, p in model.named_parameters())


def parts_of_weights(model):
    return torch.cat([local(p).flatten() for _, p in sorted(model.named_parameters())])


def case_memory_is_that_of_a_shard():
    """4 n / L bytes for the residual, of n parameters in L shards."""
    n, ranks = 12_000_000, mesh()["shards"].size()
    model = fully_shard(nn.Linear(n // 1000, 1000, bias=False), mesh=mesh()["shards"])
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    model.weight.grad = torch.zeros_like(model.weight)
    local(model.weight.grad).fill_(1.0)
    gc.collect()
    before = resident()
    optimizer = gtopk.DistributedOptimizer(optimizer, model.named_parameters(), group="replicas", density=0.001)
    optimizer.step()
    taken, residual = resident() - before, 4 * n / ranks
    assert 0.9 * residual < taken < 1.25 * residual + 4e6, (taken, residual)


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return 4096 * pages


# ---- a step happens or it does not ----


def case_an_overflow_of_one_shard_is_everybodys():
    last = gtopk.size() - 1
    every = ({"rollback": True}, {}, {"rollback": True, "algorithm": "dense"}, {"rollback": True, "dense_below": 8})
    for options in whatever_the_shards(every, 2):
        for where in ("embed.weight", "scale"):
            model = sharded()
            optimizer = wrapped(model, **{**SPARSE, **options})
            train(model, optimizer, 2)
            weights, kept = flat(model), residuals(optimizer)
            optimizer.zero_grad()
            loss_of(model, tokens(9, gtopk.rank())).backward()
            own = parts(model)
            if gtopk.rank() == last:
                local(dict(model.named_parameters())[where].grad).view(-1)[0] = torch.inf
            with Warnings():
                optimizer.step()
            assert optimizer.stats()["nonfinite"] == 1
            assert torch.equal(flat(model), weights)
            if options:
                assert torch.equal(residuals(optimizer), kept), (options, where)
            elif gtopk.rank() != last and where != "scale":
                rest = residuals(optimizer) - kept  # of what is whole the mean is in the residual
                near = torch.isclose(rest, own, rtol=1e-4, atol=1e-6)
                assert near.sum() >= len(own) - 6
            train(model, optimizer, 2, 2)
            assert_replicas(model)


def case_a_gradient_scaler():
    """It takes no model of which some parameters are sharded and some are not."""
    model = sharded(whole=())
    optimizer = wrapped(model, **SPARSE)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, tokens(step, gtopk.rank()))).backward()
        if step == 2 and gtopk.rank() == 1:
            local(model.embed.weight.grad)[0, 0] = torch.nan
        weights, kept = flat(model), residuals(optimizer)
        with Warnings():
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.stats()["nonfinite"] == (step == 2)
        assert torch.equal(flat(model), weights) == (step == 2)
        assert torch.equal(residuals(optimizer), kept) == (step == 2)
    assert_replicas(model)


# ---- local steps ----


def case_local_steps():
    every = (
        {"start_dtype": "bf16"},
        {},
        {"outer_momentum": 0.5, "outer_lr": 0.7},
        {"kind": optim.AdamW},
        {"algorithm": "dense"},
    )
    for options in whatever_the_shards(every, 2):
        model = sharded()
        optimizer = wrapped(model, local_steps=3, lr=0.01, **{**SPARSE, **options})
        for step in range(6):
            train(model, optimizer, 1, step)
            at = optimizer.stats()["local_steps"]
            assert at == (step + 1) % 3
            if at == 0:
                assert_replicas(model)
        scale = optimizer._gtopk.shards.peers.allgather(model.scale.detach()[None])
        assert torch.equal(scale[0], scale[-1])


def case_local_steps_lose_nothing():
    for start_dtype in ("fp32", "bf16"):
        local_steps_lose_nothing(start_dtype)


def local_steps_lose_nothing(start_dtype):
    """To the bit; what a start in bf16 rounds away need not be a multiple of the number of nodes."""
    model = sharded()
    optimizer = wrapped(model, local_steps=2, lr=1.0, density=0.1, value_type="fp32", start_dtype=start_dtype)
    with torch.no_grad():
        for p in model.parameters():
            local(p).fill_(0.0 if start_dtype == "fp32" else 17001.0)  # which bf16 has not
    at, before = parts_of_weights(model), torch.zeros_like(parts_of_weights(model))
    for period in range(3):
        given = torch.zeros_like(at)
        for step in range(2):
            give(model, integers(10 * period + step))
            given += parts(model)
            optimizer.step()
        after, now = total(optimizer, residuals(optimizer)), parts_of_weights(model)
        had, has = before + total(optimizer, given), after + nodes() * (at - now)
        assert torch.equal(had, has) if start_dtype == "fp32" else torch.allclose(had, has, rtol=1e-6, atol=0.05)
        at, before = now, after
        assert_replicas(model)


def case_a_local_step_that_overflows_is_left_out_by_all_shards():
    model = sharded()
    optimizer = wrapped(model, local_steps=2, lr=0.01, **SPARSE)
    train(model, optimizer, 2)
    before = parts_of_weights(model)
    optimizer.zero_grad()
    loss_of(model, tokens(5, gtopk.rank())).backward()
    if gtopk.rank() == 0:
        local(model.embed.weight.grad)[0, 0] = torch.inf
    with Warnings():
        optimizer.step()
    assert torch.equal(parts_of_weights(model), before) == (node() == 0)
    with torch.no_grad():
        if gtopk.rank() == 1:  # weights that went wrong: nobody exchanges, all of this node go back
            local(model.embed.weight)[0, 0] = torch.nan
    start = optimizer.state_dict()["gtopk"]["start"]["embed.weight"]
    optimizer.zero_grad()
    with Warnings():
        optimizer.synchronize()
    assert torch.equal(local(model.embed.weight), start) == (node() == 0)
    train(model, optimizer, 4, 6)
    optimizer.synchronize()
    assert_replicas(model)


# ---- mistakes ----


def case_mistakes_are_named_on_every_rank():
    def wrap(model, **options):
        return lambda: wrapped(model, **options)

    model = sharded()
    raises(gtopk.UnsupportedError, wrap(model, group=None), "is a DTensor", 'group="replicas"')
    error = (gtopk.InvalidError, gtopk.UnsupportedError, gtopk.MismatchError)
    raises(error, wrap(plain()), "no parameter here is sharded", "ddp_hook")
    hsdp = fully_shard(plain(), mesh=mesh())
    raises(error, wrap(hsdp), "replicated over dimension 'replicas'", "mesh['shards']")
    ddp = nn.parallel.DistributedDataParallel(plain(), device_mesh=mesh()["replicas"])
    raises(error, wrap(ddp), "no parameter here is sharded", "ddp_hook")
    raises(error, wrap(model, group=mesh()), "a mesh of 2 dimensions", "mesh['replicas']")
    raises(error, wrap(model, group="nodes"), "group is 'nodes'", '"replicas"')
    raises(error, wrap(model, group=mesh()["shards"]), "group has ranks", "mesh['replicas']")
    raises(error, wrap(model, group=dist.group.WORLD), "group has ranks", "mesh['replicas']")
    raises(error, wrap(model, comm=gtopk.comm.current()), "give one of them")
    raises(error, wrap(model, hierarchy="node"), "leave out hierarchy")
    # One rank alone makes it: the others hear of it.
    wrong = 1
    raises(error, wrap(model, group="nodes" if gtopk.rank() == wrong else "replicas"), "group is 'nodes'")
    other = plain() if gtopk.rank() == wrong else sharded()
    raises(error, wrap(other), "no parameter here is sharded")
    # And all of that changed nothing.
    train(model, wrapped(model, **SPARSE), 2)
    assert_replicas(model)


def case_ddp_on_a_dimension_of_a_mesh():
    """The hook takes DDP's ranks; those that were given otherwise are an error on all of them."""

    def wrap():
        model = plain(seed=shard())
        return nn.parallel.DistributedDataParallel(model, device_mesh=mesh()["replicas"], find_unused_parameters=True)

    ddp = wrap()
    state = register_hook(ddp, **SPARSE)
    loss_of(ddp, tokens(0, gtopk.rank())).backward()
    assert state.stats()["count"] > 0
    gradients = torch.cat([p.grad.flatten() for p in ddp.parameters() if p.grad is not None])
    everywhere = gtopk.allgather(gradients[None])[shard() :: mesh()["shards"].size()]
    assert (everywhere == everywhere[0]).all() and gradients.any()
    ddp = wrap()
    ddp.register_comm_hook(GTopKState(**SPARSE), gtopk_hook)
    loss = loss_of(ddp, tokens(0, gtopk.rank()))
    raises((gtopk.InvalidError, gtopk.MismatchError), loss.backward, "process_group=ddp.process_group")


def case_other_placements_are_named_on_every_rank():
    """What tensor parallelism makes: shards over two dimensions beside fully_shard's, and copies over one."""
    error = (gtopk.UnsupportedError, gtopk.MismatchError)
    grid = init_device_mesh("cpu", tuple(mesh().mesh.shape), mesh_dim_names=("shards", "tensors"))

    def refused(change, names, *words):
        parts = {"norm": nn.LayerNorm(6), "first": nn.Linear(6, 6), "last": nn.Linear(6, 6)}
        model = nn.Sequential(OrderedDict(parts))
        change(model, *names)
        raises(error, lambda: wrapped(model, **SPARSE), "leave out tensor parallelism", "gtopk.Reducer", *words)
        raises(gtopk.UnsupportedError, lambda: wrapped(model, group=None, **SPARSE), "leave out tensor parallelism")

    plans = {"norm": SequenceParallel(), "first": ColwiseParallel(), "last": RowwiseParallel()}

    def tensors(model, *names):
        parallelize_module(model, grid["tensors"], {name: plans[name] for name in names})

    def tensors_and_shards(model, *names):
        tensors(model, *names)
        fully_shard(model, mesh=grid["shards"])

    def over_two(model):
        weight = distribute_tensor(model.last.weight, grid, [Shard(0), Shard(1)])
        model.last.register_parameter("weight", nn.Parameter(weight))

    refused(tensors_and_shards, ["norm"], "norm.weight", "Replicate()")
    refused(tensors_and_shards, ["first"], "first.weight", "Shard(dim=0)")
    refused(tensors, ["last"], "last.bias", "(Replicate(),)")
    refused(over_two, [], "last.weight", "(Shard(dim=0), Shard(dim=1))")

    def all_in_shards(model):
        parts = {"first": ColwiseParallel(), "last": ColwiseParallel()}
        del model.norm
        parallelize_module(model, grid["tensors"], parts)

    beside = sharded()  # another model in this process, which is between forward and backward
    before, named = optim.SGD(beside.parameters(), lr=0.1), list(beside.named_parameters())
    loss = loss_of(beside, tokens(0, gtopk.rank()))
    refused(all_in_shards, [], "first.weight is sharded over", "but not by fully_shard")
    optimizer = gtopk.DistributedOptimizer(before, named, group="replicas", **SPARSE)
    loss.backward()
    optimizer.step()
    assert_replicas(beside)


def case_shards_of_columns():
    """A module may be sharded along another dimension than the first."""
    n = 2 * mesh()["shards"].size()
    dense, linear = nn.Linear(n, 3, bias=False), nn.Linear(n, 3, bias=False)
    linear.load_state_dict(dense.state_dict())
    model = fully_shard(linear, mesh=mesh()["shards"], shard_placement_fn=lambda p: Shard(p.ndim - 1))
    with torch.no_grad():
        for p in (*dense.parameters(), *(local(p) for p in model.parameters())):
            p.fill_(1.0)
    optimizer = wrapped(model, **ALL)
    x = torch.arange(float(n)).repeat(2, 1) + gtopk.rank()
    model(x).square().sum().backward()
    optimizer.step()
    dense(x).square().sum().backward()
    with torch.no_grad():
        dense.weight.sub_(gtopk.allreduce(dense.weight.grad), alpha=0.1)
    assert model.weight.placements == (Shard(1),)
    torch.testing.assert_close(whole(model.weight), dense.weight.detach())


def case_ranks_with_other_parameters():
    model = sharded()
    optimizer = wrapped(model, **SPARSE)
    if node() == 0:
        model.blocks[0].requires_grad_(False)
    loss_of(model, tokens(0, gtopk.rank())).backward()
    raises(gtopk.MismatchError, optimizer.step, "blocks.0")
    model.blocks[0].requires_grad_(True)
    train(model, optimizer, 2)
    assert_replicas(model)


def case_one_replica_says_so():
    one = fully_shard(plain(), mesh=init_device_mesh("cpu", (gtopk.size(),)))
    with Warnings() as texts:
        optimizer = wrapped(one, **SPARSE)
    assert len(texts) == (gtopk.rank() == 0)
    assert all("nothing is exchanged" in text for text in texts)
    train(one, optimizer, 2)
    assert_replicas(one)


# ---- checkpoints of each rank ----


def case_own_states_resume_bit_for_bit():
    for options in (
        {"kind": optim.AdamW},
        {"more": {"momentum": 0.9}, "momentum_correction": True},
        {"local_steps": 2},
        {"local_steps": 2, "start_dtype": "bf16"},
    ):
        model = sharded()
        optimizer = wrapped(model, **{**SPARSE, **options})
        train(model, optimizer, 3)
        state = copy.deepcopy(optimizer.state_dict())
        weights = {name: local(p).clone() for name, p in model.named_parameters()}
        train(model, optimizer, 3, 3)
        again = sharded()
        resumed = wrapped(again, **{**SPARSE, **options})
        with torch.no_grad():
            for name, p in again.named_parameters():
                local(p).copy_(weights[name])
        resumed.load_state_dict(state, strict=True)
        train(again, resumed, 3, 3)
        assert torch.equal(flat(again), flat(model))
        assert torch.equal(residuals(resumed), residuals(optimizer))
        state["gtopk"]["shard"][0] = (shard() + 1) % mesh()["shards"].size()
        raises(gtopk.MismatchError, lambda one=resumed, state=state: one.load_state_dict(state), "sharded_state_dict")


# ---- the same ranks as other nodes ----


def case_as_other_nodes():
    """GTOPK_TEST_NODES_TOO: what depends on how many nodes and shards there are."""
    if "GTOPK_TEST_NODES_TOO" not in os.environ:
        return
    with on_nodes(int(os.environ["GTOPK_TEST_NODES_TOO"])):
        case_a_node_that_has_fewer_batches()
        case_starting_from_one_node()
        case_nothing_is_lost()
        case_memory_is_that_of_a_shard()
