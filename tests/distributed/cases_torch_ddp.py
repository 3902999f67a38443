"""The DDP communication hook, under torchrun with gloo."""

from __future__ import annotations

import copy
import io
import logging
from pathlib import Path

import torch
import torch.distributed as dist
from cases_torch_optimizer import assert_replicas, flat
from harness import EACH_NODE, HIERARCHY, Warnings, raises
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch_support import DEVICE, batch, loss_of, make

import gtopk
from gtopk.torch.ddp_hook import GTopKState, gtopk_hook

ALL = {"density": 1.0, "value_type": "fp32"}
# Small buckets: several from the second iteration on, in another order than in the first.
SMALL = {"bucket_cap_mb": 0.001}


def hooked(model, state, **options):
    ddp = DistributedDataParallel(model, **{**SMALL, **options})
    ddp.register_comm_hook(state, gtopk_hook)
    return ddp


def named_state(model, **options):
    return GTopKState(named_parameters=model.named_parameters(), **{**HIERARCHY, **options})


def assert_same_as_ddp(steps=4, accumulate=1, **options):
    model, plain = make(), make()
    if not options.get("find_unused_parameters") and not options.get("static_graph"):
        del model.unused, plain.unused
    state = named_state(model, **ALL)
    nets = [hooked(model, state, **options), DistributedDataParallel(plain, **SMALL, **options)]
    optimizers = [optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]
    for step in range(steps):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            for part in range(accumulate - 1):
                with net.no_sync():
                    loss_of(net, batch(100 * step + part, gtopk.rank())).backward()
            loss_of(net, batch(100 * step + 99, gtopk.rank())).backward()
            optimizer.step()
    assert state.stats()["step"] == steps - 1
    assert_replicas(model)
    torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()), rtol=1e-4, atol=1e-5)


def case_everything_sent_is_plain_ddp():
    assert_same_as_ddp()
    assert_same_as_ddp(gradient_as_bucket_view=True)
    assert_same_as_ddp(accumulate=3)
    assert_same_as_ddp(find_unused_parameters=True)
    assert_same_as_ddp(static_graph=True)


def case_rebuilt_buckets_keep_residuals():
    """What was sent and what is kept add up to the gradients of all steps, parameter by parameter."""
    for options in ({}, {"dense_below": 100}, {"algorithm": "topk"}):
        model = make()
        del model.unused
        local = copy.deepcopy(model)
        state = named_state(model, density=0.01, **options)
        net = hooked(model, state)
        given = torch.zeros_like(flat(model.parameters()))
        sent = torch.zeros_like(given)
        for step in range(5):
            for one in (net, local):
                one.zero_grad()
                loss_of(one, batch(step, gtopk.rank())).backward()
            given += flat(p.grad for p in local.parameters())
            sent += flat(p.grad for p in model.parameters())
        entries = state.state_dict()["residual"]
        kept = gtopk.allreduce(flat(entries[name] for name, _ in model.named_parameters()), op=gtopk.Sum)
        assert kept.any() and sent.any()
        total = gtopk.allreduce(given, op=gtopk.Sum)
        torch.testing.assert_close(kept + gtopk.size() * sent, total, rtol=1e-4, atol=1e-5)


def case_a_state_is_for_one_ddp():
    first, second = make(), make(seed=1)
    del first.unused, second.unused
    state = GTopKState(density=0.01)
    for model in (first, second):
        net = hooked(model, state)
        raising = model is second
        step = loss_of(net, batch(0, gtopk.rank())).backward
        raises(gtopk.StateError, step, "another DistributedDataParallel") if raising else step()


def case_types_and_layouts():
    for dtype in (torch.bfloat16, torch.float64):
        model = make(channels_last=True).to(dtype)
        del model.unused
        net = hooked(model, named_state(model, density=0.05))
        optimizer = optim.SGD(net.parameters(), lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            loss_of(net, batch(step, gtopk.rank()).to(dtype)).backward()
            optimizer.step()
        assert_replicas(model)


def case_indices_are_places_in_memory():
    """With channels-last parameters too: what the optimizer's wrapper keeps, so that states fit both."""
    model = make(channels_last=True)
    del model.unused
    plain = copy.deepcopy(model)
    state = named_state(model, density=0.02, value_type="fp32", hierarchy="off")  # shares go by the order of parameters
    net = hooked(model, state)
    optimizer = gtopk.DistributedOptimizer(
        optim.SGD(plain.parameters(), lr=0.0), plain.named_parameters(), density=0.02, value_type="fp32"
    )
    for one in (net, plain):
        loss_of(one, batch(0, gtopk.rank())).backward()
    optimizer.step()
    kept, expected = state.state_dict()["residual"], optimizer.state_dict()["gtopk"]["residual"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(kept[name], expected[name], msg=name)
        torch.testing.assert_close(p.grad, plain.get_parameter(name).grad, msg=name)


def case_sparse_gradients_are_a_clear_error():
    net = hooked(nn.Embedding(5, 2, sparse=True), GTopKState())
    raises(gtopk.UnsupportedError, lambda: net(torch.tensor([1])).sum().backward(), "sparse=False")


def case_grad_scaler():
    """An overflow on one rank gives NaN to all, so all scales stay equal."""
    logging.disable(logging.WARNING)
    model = make()
    del model.unused
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0, growth_interval=3)
    state = named_state(model, density=0.05, grad_scaler=scaler)
    net = hooked(model, state)
    optimizer = optim.SGD(net.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(gtopk.rank())
    for step in range(30):
        overflow = bool(torch.rand((), generator=generator, device="cpu") < 0.1)
        anywhere = gtopk.allreduce(torch.tensor(float(overflow)), op=gtopk.Sum).item() > 0
        before = flat(model.parameters())
        optimizer.zero_grad()
        loss = loss_of(net, batch(step, gtopk.rank())) * (torch.inf if overflow else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        assert state.stats()["nonfinite"] == anywhere
        assert torch.equal(before, flat(model.parameters())) == anywhere
    scales = gtopk.allgather(torch.tensor([scaler.get_scale()]))
    assert (scales == scales[0]).all()
    assert_replicas(model)
    logging.disable(logging.NOTSET)


def case_the_scale_does_not_change_the_result():
    results = []
    for scale in (1.0, 4096.0):
        model = make()
        del model.unused
        scaler = torch.amp.GradScaler(DEVICE, init_scale=scale, growth_interval=2)
        net = hooked(model, named_state(model, density=0.02, grad_scaler=scaler))
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, batch(step, gtopk.rank()))).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(flat(model.parameters()))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


def trained(state_of, steps, begin=0, model=None):
    if model is None:
        model = make()
        del model.unused
    state = state_of(model)
    net = hooked(model, state)
    optimizer = optim.SGD(net.parameters(), lr=0.05)
    for step in range(begin, begin + steps):
        optimizer.zero_grad()
        loss_of(net, batch(step, gtopk.rank())).backward()
        optimizer.step()
    return model, state


def case_a_skipped_step_is_not_applied_later():
    """Five steps in which one rank overflows, and one without gradients."""
    logging.disable(logging.WARNING)
    for options in ({}, {"algorithm": "dense"}, {"dense_below": 10}):
        model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)).to(torch.float64 if options else torch.float32)
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**16)
        state = named_state(model, grad_scaler=scaler, density=1.0, **options)
        net = hooked(model, state)
        optimizer = optim.SGD(net.parameters(), lr=1.0)
        before = flat(model.parameters())
        for step in range(6):
            optimizer.zero_grad()
            factor = torch.inf if gtopk.rank() == 1 and step < 5 else 1.0 if step < 5 else 0.0
            loss = net(torch.ones(3, 6, dtype=model[0].weight.dtype)).sum() * factor
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            assert state.stats()["nonfinite"] == (step < 5)
        assert torch.equal(flat(model.parameters()), before)
        assert not any(values.any() for values in state.state_dict()["residual"].values())
    logging.disable(logging.NOTSET)


def case_with_rollback_a_skipped_step_is_as_if_it_had_not_been():
    """Without a scaler, so buckets were accumulated before anybody knew."""
    logging.disable(logging.WARNING)
    for options in ({}, {"algorithm": "dense"}, {"dense_below": 10}):
        model = nn.Sequential(nn.Linear(60, 40), nn.Linear(40, 20), nn.Linear(20, 2))
        state = named_state(model, density=0.1, rollback=True, **options)
        net = hooked(model, state)
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        for step in range(9):
            optimizer.zero_grad()
            before = state.state_dict()
            bad = step in (6, 7)  # later than the steps in which the hook waits for all buckets
            x = torch.randn(3, 60, generator=torch.Generator().manual_seed(10 * step + gtopk.rank()))
            if bad and gtopk.rank() == 1:
                x[0, 0] = torch.inf
            net(x).pow(2).sum().backward()
            assert state.stats()["nonfinite"] == bad
            if not bad:
                optimizer.step()
                continue
            assert all(torch.equal(state.state_dict()["residual"][k], v) for k, v in before["residual"].items())
        assert_replicas(model)
    logging.disable(logging.NOTSET)


class Tasks(nn.Module):
    """A head for each task, of which a step uses one. Gradients are integers, and sums over ranks divide, also when what
    was divided comes back to be sent again, a few times over."""

    def __init__(self, count=3, dtype=torch.float32):
        super().__init__()
        self.heads = nn.ParameterList([torch.zeros(10, dtype=dtype) for _ in range(count)])
        self.shared = nn.Parameter(torch.zeros(10, dtype=dtype))

    def forward(self, task, step):
        factors = torch.arange(1.0, 11.0).roll(step + gtopk.rank()) * 48 * gtopk.size() ** 4
        return ((self.heads[task] + self.shared) * factors).sum()


def case_what_no_rank_used_is_not_lost():
    """DDP does not apply the update of a parameter that nobody used, so its entries are still to be sent."""
    for options, more in (
        ({}, {}),
        ({}, {"gradient_as_bucket_view": True}),
        ({"dense_below": 1000}, {}),
        ({"algorithm": "topk"}, {}),
        ({"algorithm": "gtopk-split"}, {}),
        ({"algorithm": "auto"}, {}),
        ({"grad_scaler": True}, {}),
    ):
        for dtype in (torch.float32, torch.float64):
            model = Tasks(dtype=dtype)
            scaler = torch.amp.GradScaler(DEVICE, init_scale=4.0, enabled=options.get("grad_scaler", False))
            state = named_state(model, density=0.1, value_type="fp32", **{**options, "grad_scaler": scaler})
            net = hooked(model, state, find_unused_parameters=True, **more)
            names = [name for name, _ in model.named_parameters()]
            given = {name: torch.zeros(10) for name in names}
            sent = {name: torch.zeros(10) for name in names}
            unused = 0
            for step in range(12):
                # All ranks at one task, in turn; in some steps rank 0 is at another one.
                task = (step + (gtopk.rank() == 0 and step % 4 == 3)) % 3
                for p in model.parameters():
                    p.grad = None
                loss = net(task, step)
                mine = dict(
                    zip(names, torch.autograd.grad(loss, list(model.parameters()), allow_unused=True), strict=True)
                )
                scaler.scale(net(task, step)).backward()
                scale = scaler.get_scale() if scaler.is_enabled() else 1.0
                for name, p in model.named_parameters():
                    given[name] += 0 if mine[name] is None else mine[name].float()
                    sent[name] += 0 if p.grad is None else p.grad.float() / scale
                    unused += p.grad is None
            kept = state.state_dict()["residual"]
            assert unused
            for name in names:
                total = gtopk.allreduce(given[name], op=gtopk.Sum)
                left = gtopk.allreduce(kept[name], op=gtopk.Sum)
                assert total.any()
                assert torch.equal(left + gtopk.size() * sent[name], total), (name, options, more)


class TwoTypes(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3).double()

    def forward(self, x):
        return self.second(self.first(x).double())


def case_static_graph_with_parameters_of_two_types():
    """DDP then says of no bucket of the first iteration that it is the last one."""
    nets, models = [], [TwoTypes(), TwoTypes()]
    state = named_state(models[0], **ALL)
    nets = [hooked(models[0], state, static_graph=True), DistributedDataParallel(models[1], static_graph=True)]
    for step in range(4):
        generator = torch.Generator().manual_seed(100 * step + gtopk.rank())
        x = torch.randn(4, 6, generator=generator)
        for net in nets:
            net.zero_grad()
            net(x).pow(2).sum().backward()
        torch.testing.assert_close(
            flat(p.grad for p in models[0].parameters()), flat(p.grad for p in models[1].parameters())
        )
    assert state.stats()["step"] == 3


def case_the_same_gradients_everywhere_are_noticed():
    for same in (True, False):
        model = nn.Linear(6, 4)
        state = named_state(model, density=0.1)
        net = hooked(model, state)
        with Warnings() as texts:
            for step in range(5):
                net(torch.full((2, 6), 1.0 + step + (0 if same else gtopk.rank()))).sum().backward()
                assert state.session.needs_all == (same and step < 2)
        assert len(texts) == (same and gtopk.rank() == 0), texts


def case_ddp_and_a_distributed_optimizer_are_noticed():
    model = nn.Linear(6, 4)
    net = DistributedDataParallel(model)
    optimizer = gtopk.DistributedOptimizer(optim.SGD(net.parameters(), lr=0.1), net.named_parameters(), density=0.1)
    with Warnings() as texts:
        for step in range(4):
            optimizer.zero_grad()
            net(torch.full((2, 6), float(step + gtopk.rank()))).sum().backward()
            optimizer.step()
    assert len(texts) == (gtopk.rank() == 0), texts
    if gtopk.rank() == 0:
        assert "leave out DistributedDataParallel" in texts[0]


def case_zero_redundancy_optimizer():
    """It has a consolidate_state_dict of its own, without which it cannot be saved."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def new():
        model = make()
        del model.unused
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=optim.Adam, lr=0.01)
        return model, gtopk.DistributedOptimizer(optimizer, model.named_parameters(), density=0.05)

    model, optimizer = new()
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, batch(step, gtopk.rank())).backward()
        optimizer.step()
    assert_replicas(model)
    state = gtopk.broadcast_object(optimizer.consolidate_state_dict(to=0), 0)
    assert len(state["state"]) == len(list(model.parameters()))
    assert any(values.any() for values in state["gtopk"]["residual"].values())
    other, resumed = new()
    other.load_state_dict(model.state_dict())
    for net, one in ((model, optimizer), (other, resumed)):
        one.load_state_dict(copy.deepcopy(state))  # it takes out what belongs to other ranks
        one.zero_grad()
        loss_of(net, batch(3, gtopk.rank())).backward()
        one.step()
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))
    assert_replicas(other)


def case_dtensors_are_a_clear_error():
    from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (gtopk.size(),))
    weight = nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Replicate()]))
    raises(
        gtopk.UnsupportedError,
        lambda: gtopk.DistributedOptimizer(optim.SGD([weight], lr=0.1), [("weight", weight)]),
        "parameter weight is a DTensor",
        "fully_shard",
    )


def case_states_resume_bit_for_bit():
    """Through state_dict with weights_only, and pickled as PyTorch's own hook states are."""
    for named in (True, False):

        def fresh(model, named=named):
            dtype = "bf16" if named and DEVICE != "cuda" else "fp32"
            make_state = named_state if named else lambda _, **options: GTopKState(**options)
            return make_state(model, density=0.02, residual_dtype=dtype)

        straight, _ = trained(fresh, 8)
        for pickled in (False, True):
            model, state = trained(fresh, 4)
            file = io.BytesIO()
            torch.save(state if pickled else state.state_dict(), file)
            file.seek(0)
            saved = torch.load(file, weights_only=not pickled)

            def resumed(model, saved=saved, pickled=pickled, fresh=fresh):
                if pickled:
                    return saved
                state = fresh(model)
                state.load_state_dict(saved, strict=True)
                return state

            copied = copy.deepcopy(model)
            _, state = trained(resumed, 4, 4, copied)
            assert torch.equal(flat(copied.parameters()), flat(straight.parameters())), (named, pickled)
            assert state.stats()["step"] == 7


def case_loading_in_the_middle_of_training():
    """By then DDP hands parameters over in another order than in the first iteration; numbers stay as they were."""
    model = make()
    del model.unused
    state = GTopKState(density=0.02)
    net = hooked(model, state)
    for step in range(3):
        loss_of(net, batch(step, gtopk.rank())).backward()
    saved = state.state_dict()
    loss_of(net, batch(3, gtopk.rank())).backward()
    state.load_state_dict(saved, strict=True)
    loss_of(net, batch(3, gtopk.rank())).backward()
    assert state.stats()["step"] == 3
    assert state.state_dict()["names"] == saved["names"]


def case_consolidated_state():
    model, state = trained(lambda m: named_state(m, density=0.02), 3)
    one = state.consolidate_state_dict(to=0)
    everywhere = gtopk.broadcast_object(one, 0)
    mine = state.state_dict()["residual"]
    state.load_state_dict(everywhere)
    again = gtopk.broadcast_object(state.consolidate_state_dict(to=0), 0)  # before a step has taken it over
    for name, values in everywhere["residual"].items():
        torch.testing.assert_close(again["residual"][name], values, rtol=1e-6, atol=0)
    assert {**again, "residual": {}} == {**everywhere, "residual": {}}
    expected = gtopk.allreduce(flat(mine[n] for n, _ in model.named_parameters()), op=gtopk.Sum)
    torch.testing.assert_close(flat(everywhere["residual"][n] for n, _ in model.named_parameters()), expected)

    # As if of twice as many ranks: the mean over those is what waits.
    other = make()
    del other.unused
    fewer = named_state(other, algorithm="dense")
    fewer.load_state_dict({**everywhere, "size": 2 * gtopk.size()})
    net = hooked(other, fewer)
    (loss_of(net, batch(0, gtopk.rank())) * 0).backward()
    torch.testing.assert_close(flat(p.grad for p in other.parameters()), expected / (2 * gtopk.size()))

    def renamed(model):
        state = GTopKState(named_parameters=[(f"x.{name}", p) for name, p in model.named_parameters()])
        state.load_state_dict(everywhere)
        return state

    raises(gtopk.MismatchError, lambda: trained(renamed, 1), "parameter 0 is conv.weight", "here it is x.conv.weight")
    raises(gtopk.InvalidError, lambda: state.consolidate_state_dict(to=gtopk.size()), "root rank is")
    if gtopk.rank() == 0:
        state.load_state_dict({**everywhere, "step": 2})
    raises(gtopk.DesyncError, state.consolidate_state_dict, "after step 2", "after step 3")


def case_a_group_of_some_ranks():
    members = [r for r in range(dist.get_world_size()) if r != 0]
    group = dist.new_group(members, backend="gloo")
    if dist.get_rank() in members:
        model = make()
        del model.unused
        net = DistributedDataParallel(model, process_group=group)
        net.register_comm_hook(named_state(model, process_group=group, density=0.05), gtopk_hook)
        loss_of(net, batch(0, gtopk.rank())).backward()
        grads = flat(p.grad for p in model.parameters())
        others = [torch.empty_like(grads) for _ in members]
        dist.all_gather(others, grads, group=group)
        assert all(torch.equal(grads, other) for other in others)


def case_local_steps_with_dense_gradients_inside_a_node():
    """DDP over the ranks of a node averages their gradients in every step, and gtopk exchanges weights between nodes."""
    if not EACH_NODE:
        return
    group, _ = dist.new_subgroups(EACH_NODE, backend="gloo")
    first = gtopk.rank() - gtopk.rank() % EACH_NODE
    mine = slice(first, first + EACH_NODE)
    options = {"lr": 0.1, "momentum": 0.9}
    for density in (ALL, {"density": 0.05}):
        model, plain = make(), make()
        del model.unused, plain.unused
        net = DistributedDataParallel(model, process_group=group)
        optimizer = gtopk.DistributedOptimizer(
            optim.SGD(model.parameters(), **options), model.named_parameters(), local_steps=3, **HIERARCHY, **density
        )
        reference = optim.SGD(plain.parameters(), **options)
        with Warnings() as texts:
            for step in range(6):
                for one, its in ((net, optimizer), (plain, reference)):
                    its.zero_grad()
                    loss_of(one, batch(step, gtopk.rank())).backward()
                gradients = gtopk.allgather(nn.utils.parameters_to_vector(p.grad for p in plain.parameters())[None])
                nn.utils.vector_to_parameters(gradients[mine].mean(dim=0), [p.grad for p in plain.parameters()])
                optimizer.step()
                reference.step()
                everywhere = gtopk.allgather(flat(model.parameters())[None])
                assert all(torch.equal(weights, everywhere[first]) for weights in everywhere[mine])
                assert torch.equal(everywhere[0], everywhere[-1]) == (step % 3 == 2)
                if step % 3 == 2:
                    mean = gtopk.allreduce(nn.utils.parameters_to_vector(plain.parameters()).detach())
                    nn.utils.vector_to_parameters(mean, plain.parameters())
        assert texts == []  # the ranks of a node have the same differences, but not all ranks have
        if density is ALL:
            torch.testing.assert_close(everywhere[0], flat(plain.parameters()), rtol=1e-4, atol=1e-5)
    dist.destroy_process_group(group)


def case_distributed_checkpoint():
    """torch.distributed.checkpoint with each rank's state under a name of its own; what would drop it is an error."""
    import tempfile

    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = make()
    optimizer = gtopk.DistributedOptimizer(optim.AdamW(model.parameters()), model.named_parameters(), density=0.02)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, batch(step, gtopk.rank())).backward()
        optimizer.step()
    raises(gtopk.StateError, lambda: get_optimizer_state_dict(model, optimizer), "drop the residual", "dcp.save")

    folder = gtopk.broadcast_object(tempfile.mkdtemp() if gtopk.rank() == 0 else None, 0)
    state = optimizer.state_dict()
    mine = f"gtopk.{gtopk.rank()}"
    dcp.save({"optimizer": state, mine: state.pop("gtopk")}, checkpoint_id=folder)
    assert list(Path(folder).iterdir())

    other = make()
    resumed = gtopk.DistributedOptimizer(optim.AdamW(other.parameters()), other.named_parameters(), density=0.02)
    loaded = optimizer.state_dict()
    template = copy.deepcopy({"optimizer": loaded, mine: loaded.pop("gtopk")})
    for entry in template[mine]["residual"].values():
        entry.zero_()
    dcp.load(template, checkpoint_id=folder)
    resumed.load_state_dict({**template["optimizer"], "gtopk": template[mine]}, strict=True)
    kept, expected = (one.state_dict()["gtopk"]["residual"] for one in (resumed, optimizer))
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    assert any(values.any() for values in kept.values())
