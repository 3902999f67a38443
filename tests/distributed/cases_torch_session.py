"""The exchange without an optimizer: blocks in any memory order, and differences of weights after local steps."""

from __future__ import annotations

import torch
from harness import assert_same_on_all_ranks
from torch_support import DEVICE

import gtopk
from gtopk.torch.options import Options
from gtopk.torch.segments import Segment
from gtopk.torch.session import Session
from gtopk.torch.warmup import DENSE_STEPS, LEAST, DensitySchedule, default_density, grown_share

MANY = 40_000  # entries: of fewer more are sent


def session(*likes, density=1.0, warmup=None, **options):
    one = Session(gtopk.comm.current(), Options(value_type="fp32", **options), DensitySchedule(density, warmup))
    one.build([Segment(f"s{i}", like) for i, like in enumerate(likes)])
    return one


def case_every_rank_in_another_memory_order():
    values = torch.arange(1.0, 7.0).reshape(2, 3)
    for like in (values, values.t().contiguous().t()):
        one = session(like)
        flat = torch.as_strided(like, (6,), (1,))
        orders = [values.clone(), values.t().contiguous().t(), flat.clone()]
        (update,) = one.step([orders[gtopk.rank() % 3]], gtopk.rank() + 1.0)
        mean = (gtopk.size() + 1) / 2
        assert torch.equal(update, mean * (flat if update.dim() == 1 else values))


def case_pieces_on_some_ranks_and_all_at_once_on_others():
    for options in ({}, {"dense_below": 5}):
        one = session(torch.zeros(20), torch.zeros(4), torch.zeros(10), density=0.2, **options)
        while one.needs_all:  # ranks look at all tensors in the first steps
            one.step([torch.randn(20), torch.randn(4), torch.randn(10)])
        for _ in range(3):
            mine = [torch.randn(20), torch.randn(4), torch.randn(10)]
            if gtopk.rank() % 2:
                one.begin()
                one.accumulate_some([2, 1], [mine[2], mine[1]])
                one.accumulate_some([0], mine[:1])
                updates = one.finish()
            else:
                updates = one.step(mine)
            assert_same_on_all_ranks(torch.cat(updates).cpu().numpy())


def case_the_default_density():
    """Dense at first where the algorithm may change, then fewer and fewer entries; what one step leaves a later one sends."""
    for options in (
        {},
        {"merge_growth": 2.0},
        {"algorithm": "gtopk-split", "dense_below": 5},
        {"algorithm": "topk"},
        {"algorithm": "dense"},
        {"algorithm": "auto"},
        {"momentum_correction": True},
        {"hierarchy": "node"},
    ):
        if options.get("algorithm") == "auto" and gtopk.size() > 3:
            continue  # measuring what steps cost takes long on few cores
        one = session(torch.zeros(MANY), torch.zeros(4), density=None, **options)
        given, sent, kept = (torch.zeros(MANY) for _ in range(3))
        generator = torch.Generator().manual_seed(gtopk.rank())
        for step in (0, DENSE_STEPS - 1, DENSE_STEPS, 2 * DENSE_STEPS, 10**6, 3, 10**6):
            one.steps = step
            mine = torch.randint(-3, 4, (MANY,), generator=generator, device="cpu").to(DEVICE) * 48.0 * gtopk.size()
            given += mine
            due = kept + gtopk.allreduce(mine, op=gtopk.Sum)
            update = one.step([mine, torch.ones(4)])[0]
            sent += update
            assert_same_on_all_ranks(update.cpu().numpy())
            if (
                step < DENSE_STEPS
                and options.get("algorithm") != "auto"
                and not {"momentum_correction", "hierarchy"} & {*options}
            ):
                assert torch.equal(update * gtopk.size(), due)
            kept = gtopk.allreduce(one.exchange.state()["s0"].residual.to(DEVICE), op=gtopk.Sum)
            if options == {"merge_growth": 2.0} and step == DENSE_STEPS:
                sent_k = one.stats["k"]
                assert sent_k == round((MANY + 4) * default_density(step) * grown_share(gtopk.size(), 2.0))
                assert gtopk.size() == 1 or update.count_nonzero() > sent_k
            if "hierarchy" not in options:  # there residuals lie with other ranks
                assert torch.equal(kept + gtopk.size() * sent, gtopk.allreduce(given, op=gtopk.Sum)), (options, step)
        if options.get("algorithm") not in ("dense", "auto"):  # which may have taken dense
            assert one.stats["k"] <= LEAST + 5 * (1 + gtopk.size())


def case_local_steps():
    """Each rank trains by itself; then the differences to where all began are exchanged, and nothing of them is lost."""
    start = torch.zeros(50)
    one = session(start, density=0.1, warmup=[(2, 0.5)])
    given = torch.zeros(50)
    generator = torch.Generator().manual_seed(gtopk.rank())
    for _ in range(4):
        weights = start.clone()
        for _ in range(3):
            weights -= torch.randint(-3, 4, (50,), generator=generator, device="cpu").to(DEVICE) * 48.0 * gtopk.size()
        given += start - weights
        (update,) = one.step([start - weights])
        start -= update
        assert_same_on_all_ranks(start.cpu().numpy())
    total = gtopk.allreduce(given, op=gtopk.Sum)
    kept = gtopk.allreduce(one.exchange.state()["s0"].residual.to(DEVICE), op=gtopk.Sum)
    assert kept.any()
    assert torch.equal(kept - gtopk.size() * start, total)
