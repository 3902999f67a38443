"""Promises of the reducer, seen through the Python API on every rank: replicas agree, mass is kept, state resumes."""

from __future__ import annotations

import logging

import numpy as np
from harness import Warnings, as_numpy, assert_same_on_all_ranks, gather, given, raises

import gtopk

ALGORITHMS = ("gtopk", "gtopk-split", "gtopk-tree", "topk", "dense", "auto")
VALUE_TYPES = ("fp32", "bf16", "fp16", "int8")
LENGTHS = (700, 0, 1, 299)


def reals(step, lengths=LENGTHS):
    """Gradients that partly agree between ranks, as in training."""
    common = np.random.default_rng(step)
    own = np.random.default_rng([step, gtopk.rank()])
    return [(common.standard_normal(n) + own.standard_normal(n)).astype(np.float32) for n in lengths]


def integers(step, lengths=LENGTHS):
    own = np.random.default_rng([step, gtopk.rank()])
    return [own.integers(-20, 21, n).astype(np.float32) for n in lengths]


def residual(reducer):
    return np.concatenate([as_numpy(reducer.residual(i)) for i in range(len(reducer.segment_lengths))])


def step(reducer, grads, **options):
    """One step; the update as one flat array."""
    reducer.accumulate_many(None, [given(g.copy()) for g in grads])
    outputs = [np.full(n, 7, np.float32) for n in reducer.segment_lengths]
    reducer.reduce([given(o) for o in outputs], **options)
    return np.concatenate(outputs)


def check_mass(reducer, grads, exact):
    before = gather(residual(reducer)).astype(np.float64)
    given_in = gather(np.concatenate(grads)).astype(np.float64)
    mean = step(reducer, grads).astype(np.float64)
    assert_same_on_all_ranks(mean)
    after = gather(residual(reducer)).astype(np.float64)
    update = mean * gtopk.size()
    total = (before + given_in).sum(0)
    if exact:
        # The mean is rounded when the size is no power of two, the sum is not: a multiple of 2^-12 after three steps.
        update = np.rint(update * 4096) / 4096
        assert (after.sum(0) + update == total).all()
    else:
        scale = np.abs(before).sum(0) + np.abs(given_in).sum(0)
        assert (np.abs(after.sum(0) + update - total) <= 1e-5 * scale + 1e-6).all()
    return mean


def each_reducer(**options):
    for algorithm in ALGORITHMS:
        for value_type in VALUE_TYPES:
            with gtopk.Reducer(LENGTHS, density=0.05, algorithm=algorithm, value_type=value_type, **options) as reducer:
                yield reducer


def case_replicas_agree_and_mass_is_kept_on_reals():
    for reducer in each_reducer():
        for number in range(3):
            mean = check_mass(reducer, reals(number), exact=False)
            assert reducer.stats()["count"] >= np.count_nonzero(mean) > 0


def case_mass_is_kept_exactly_on_integers():
    for reducer in each_reducer():
        for number in range(3):
            check_mass(reducer, integers(number), exact=True)


def case_growing_merges_keep_mass():
    for reducer in each_reducer(merge_growth=1.5):
        for number in range(2):
            check_mass(reducer, integers(number), exact=True)


def case_paper_policy_has_identical_replicas():
    for reducer in each_reducer(residual_policy="paper"):
        for number in range(3):
            assert_same_on_all_ranks(step(reducer, reals(number)))


def case_everything_sent_is_the_mean():
    grads = integers(0)
    mean = (gather(np.concatenate(grads)).sum(0) / np.float32(gtopk.size())).astype(np.float32)
    for algorithm in ALGORITHMS:
        with gtopk.Reducer(LENGTHS, density=1.0, algorithm=algorithm, value_type="fp32") as reducer:
            assert (step(reducer, grads) == mean).all(), algorithm
            assert not residual(reducer).any(), algorithm


def case_largest_entries_are_chosen():
    """All ranks agree on which entries are large, so they are the top k of the sum too."""
    n, k = 1000, 10
    grad = np.random.default_rng(3).standard_normal(n).astype(np.float32)
    expected = np.sort(np.argsort(-np.abs(grad))[:k])
    for algorithm in ("gtopk", "gtopk-tree", "topk"):
        with gtopk.Reducer([n], density=k / n, algorithm=algorithm, value_type="fp32") as reducer:
            assert (np.flatnonzero(step(reducer, [grad])) == expected).all(), algorithm


def case_algorithms_change_between_steps():
    """By hand, and where a state that one algorithm has left is for another one to go on with."""
    names = list(ALGORITHMS[:-1])
    with gtopk.Reducer(LENGTHS, density=0.05, algorithm="auto") as reducer:
        for number, name in enumerate(names + names[::-1]):
            reducer.set_algorithm(name)
            check_mass(reducer, integers(number), exact=True)
            stats = reducer.stats()
            assert (stats["algorithm"], stats["predicted_seconds"], stats["measured_seconds"]) == (name, {}, {})
            state, kept = reducer.state_dict(), residual(reducer)
        for algorithm in ALGORITHMS:
            with gtopk.Reducer(LENGTHS, density=0.05, algorithm=algorithm) as other:
                other.load_state_dict(state)
                assert (residual(other) == kept).all()
                check_mass(other, integers(77), exact=True)
        mine = "topk" if gtopk.rank() == 0 else "gtopk"
        raises(gtopk.MismatchError, lambda: reducer.set_algorithm(mine), "algorithm is")
        raises(gtopk.InvalidError, lambda: reducer.set_algorithm("auto"), "algorithm is 'auto'", "gtopk-split")
        check_mass(reducer, integers(78), exact=True)
        whole = reducer.consolidate()
    with gtopk.Reducer(LENGTHS, density=0.05, algorithm="auto") as other:
        state = gtopk.broadcast_object(whole)
        other.load_state_dict(state)
        check_mass(other, integers(79), exact=False)


def case_auto_takes_what_is_fastest():
    logging.getLogger("gtopk").setLevel(logging.INFO)
    with Warnings() as lines, gtopk.Reducer([50_000], density=0.01, algorithm="auto") as reducer:
        assert any("algorithm auto" in line and line.endswith("is taken") for line in lines), lines
        for number in range(13):  # times are looked at after 4 steps, and 8 more where that changed nothing
            check_mass(reducer, integers(number, [50_000]), exact=True)
            stats = reducer.stats()
            assert_same_on_all_ranks(np.array([ALGORITHMS.index(stats["algorithm"])]))
        assert set(stats["predicted_seconds"]) == set(ALGORITHMS[:-1])
        assert stats["measured_seconds"]
        reducer.set_density(0.5)
        check_mass(reducer, integers(50, [50_000]), exact=True)
        assert reducer.stats()["measured_seconds"] == {}
    if gtopk.rank() == 0:
        raises(gtopk.MismatchError, lambda: gtopk.Reducer([5], algorithm="auto"), "algorithm is", "100")
    else:
        raises(gtopk.MismatchError, lambda: gtopk.Reducer([5]), "algorithm is")
    logging.getLogger("gtopk").setLevel(logging.NOTSET)
    costs = gtopk.Costs.measure()
    assert_same_on_all_ranks(np.array([costs.near_message_s, costs.near_byte_s, costs.dense_s]))
    assert costs.each_node == gtopk.size()
    assert costs.near_byte_s > 0
    assert costs.best(10**6, ranks=gtopk.size())[1] > min(costs.accumulate_s, costs.dense_s) * 10**6


def case_sparse_and_dense_results_may_be_mixed():
    for algorithm in ALGORITHMS:
        with gtopk.Reducer(LENGTHS, density=0.05, algorithm=algorithm) as reducer:
            for number in range(2):
                grads = reals(number)
                if (gtopk.rank() + number) % 2:
                    update = step(reducer, grads)
                else:
                    reducer.accumulate_many(None, [given(g) for g in grads])
                    indices, values = map(as_numpy, reducer.reduce_sparse())
                    assert indices.dtype == np.uint32
                    assert values.dtype == np.float32
                    assert (np.diff(indices.astype(np.int64)) > 0).all()
                    update = np.zeros(sum(LENGTHS), np.float32)
                    update[indices] = values
                assert_same_on_all_ranks(update)


def case_segments_come_in_any_order_and_may_be_missing():
    """Every other rank leaves a segment out and gives the rest backwards; that counts as zeros."""
    grads = integers(5)
    if gtopk.rank() % 2:
        grads[0][:] = 0
    with gtopk.Reducer(LENGTHS, density=0.1) as reducer:
        if gtopk.rank() % 2:
            reducer.accumulate(3, given(grads[3]))
            reducer.accumulate_many([2, 1], [given(grads[2]), given(grads[1])])
        else:
            reducer.accumulate_many(None, [given(g) for g in grads])
        total = gather(np.concatenate(grads)).sum(0)
        assert (gather(residual(reducer)).sum(0) == total).all()
        outputs = [np.empty(n, np.float32) for n in LENGTHS]
        reducer.reduce([given(o) for o in outputs])
        update = np.rint(np.concatenate(outputs).astype(np.float64) * gtopk.size() * 4096) / 4096
        assert (gather(residual(reducer)).sum(0) + update == total).all()


def case_scaling_and_zeroing():
    grad = np.full(50, 8 * (gtopk.rank() + 1), np.float32)
    with gtopk.Reducer([50], density=1.0, value_type="fp32") as reducer:
        reducer.accumulate(0, given(grad), 0.25, zero_input=True)
        assert not grad.any()
        reducer.reduce([given(grad)], outputs_are_zero=True)
        assert (grad == np.float32(gtopk.size() + 1)).all()


def case_different_configurations_are_an_error_on_every_rank():
    odd = gtopk.rank() == gtopk.size() - 1
    common = {
        "density": 0.1,
        "algorithm": "gtopk",
        "value_type": "bf16",
        "residual_policy": "share",
        "merge_growth": 1.0,
    }
    for name, other in (
        ("density", 0.2),
        ("algorithm", "gtopk-tree"),
        ("value_type", "fp32"),
        ("residual_policy", "paper"),
        ("merge_growth", 1.5),
        ("momentum_correction", True),
    ):
        options = {**common, name: other} if odd else common
        raises(gtopk.MismatchError, lambda options=options: gtopk.Reducer([100], **options))
    for lengths in ([101], [100, 1], [99, 1]):
        raises(gtopk.MismatchError, lambda lengths=lengths: gtopk.Reducer(lengths if odd else [100]), "rank")
    with gtopk.Reducer([100], **common) as reducer:  # the communicator is not broken by it
        assert_same_on_all_ranks(step(reducer, reals(1, [100])))


def case_density_can_change():
    with gtopk.Reducer([1000], density=0.25) as reducer:
        for density, k in ((0.25, 250), (0.01, 10), (1.0, 1000), (0.001, 1)):
            reducer.set_density(density)
            check_mass(reducer, integers(k, [1000]), exact=False)
            assert reducer.stats()["k"] == k
            assert reducer.density == density
        odd = 0.5 if gtopk.rank() == 0 else 0.25
        raises(gtopk.MismatchError, lambda: reducer.set_density(odd))
        step(reducer, reals(9, [1000]))
        assert reducer.stats()["k"] == 1
        assert reducer.density == 0.001


def case_joined_when_all_are():
    with gtopk.Reducer([100], density=0.1) as reducer:
        for number in range(gtopk.size() + 1):
            joined = number >= gtopk.rank()
            if not joined:
                reducer.accumulate(0, given(reals(number, [100])[0]))
            outputs = [np.empty(100, np.float32)]
            stats = reducer.reduce([given(outputs[0])], joined=joined)
            assert stats["all_joined"] == int(number >= gtopk.size() - 1), number
            assert_same_on_all_ranks(outputs[0])


def case_non_finite_step_on_one_rank_is_one_on_all():
    for algorithm in ALGORITHMS:
        with gtopk.Reducer([100], density=0.1, algorithm=algorithm, value_type="fp32") as reducer:
            grad = np.ones(100, np.float32)
            if gtopk.rank() == gtopk.size() - 1:
                grad[3] = np.inf
            assert np.isnan(step(reducer, [grad])).all()
            assert reducer.stats()["nonfinite"] == 1
            kept = np.where(np.isfinite(grad), grad, 0)
            assert (residual(reducer) == kept).all()
            mean = step(reducer, [np.zeros(100, np.float32)])
            assert reducer.stats()["nonfinite"] == 0
            assert mean.any()
            assert_same_on_all_ranks(mean)


def case_found_inf_leaves_everything_alone():
    with gtopk.Reducer([100], density=0.1) as reducer:
        grad = np.ones(100, np.float32)
        found = gtopk.rank() == 0
        reducer.accumulate(0, given(grad), zero_input=True, found_inf=found)
        assert grad.any() == found
        assert residual(reducer).any() != found
        output = np.zeros(100, np.float32)
        assert reducer.reduce([given(output)])["nonfinite"] == 1
        assert np.isnan(output).all()


def case_state_resumes_bit_for_bit():
    for algorithm in ("gtopk", "gtopk-split", "topk"):
        options = {"density": 0.02, "algorithm": algorithm, "momentum_correction": True}
        straight = gtopk.Reducer(LENGTHS, **options)
        straight.set_momentum(0.9, nesterov=True)
        for number in range(3):
            step(straight, reals(number))
        state = straight.state_dict()
        assert state["rank"] == gtopk.rank()
        assert state["step"] == 3
        resumed = gtopk.Reducer(LENGTHS, **options)
        resumed.load_state_dict(state, strict=True)
        resumed.set_momentum(0.9, nesterov=True)
        for number in range(3, 6):
            a, b = step(straight, reals(number)), step(resumed, reals(number))
            assert (a.view(np.uint32) == b.view(np.uint32)).all()
        assert resumed.stats()["step"] == 5
        assert (residual(straight).view(np.uint32) == residual(resumed).view(np.uint32)).all()
        straight.close()
        resumed.close()


def case_consolidated_state_keeps_the_mass():
    root = gtopk.size() - 1
    with gtopk.Reducer(LENGTHS, density=0.02) as reducer, gtopk.Reducer(LENGTHS, density=0.02) as fresh:
        for number in range(2):
            step(reducer, reals(number))
        total = gather(residual(reducer)).astype(np.float64).sum(0)
        state = reducer.consolidate(root)
        assert (state is None) == (gtopk.rank() != root)
        state = gtopk.broadcast_object(state, root)
        assert state["rank"] == -1
        fresh.load_state_dict(state, strict=True)
        share = gather(residual(fresh))
        assert (share == share[0]).all()
        assert np.abs(share.astype(np.float64).sum(0) - total).max() <= 1e-5 * np.abs(total).max()
        assert_same_on_all_ranks(step(fresh, reals(7)))


def case_another_ranks_state_starts_at_zero_with_a_warning():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("gtopk").addHandler(handler)
    with gtopk.Reducer(LENGTHS, density=0.02) as reducer, gtopk.Reducer(LENGTHS, density=0.02) as fresh:
        step(reducer, reals(0))
        state = gtopk.broadcast_object(reducer.state_dict(), 0)
        foreign = gtopk.rank() != 0
        if foreign:
            raises(gtopk.MismatchError, lambda: fresh.load_state_dict(state, strict=True))
        fresh.load_state_dict(state)
        assert residual(fresh).any() != foreign
        assert bool(records) == foreign
        assert not foreign or "consolidate" in records[0].getMessage()
        assert_same_on_all_ranks(step(fresh, reals(1)))
        assert fresh.stats()["step"] == 1
    logging.getLogger("gtopk").removeHandler(handler)


def case_two_reducers_on_one_communicator():
    with gtopk.Reducer([64], density=0.1) as a, gtopk.Reducer([32], density=0.2, algorithm="topk") as b:
        for number in range(2):
            grad_a, grad_b = reals(number, [64, 32])
            a.accumulate(0, given(grad_a))
            b.accumulate(0, given(grad_b))
            for reducer, grad in ((b, grad_b), (a, grad_a)):
                reducer.reduce([given(grad)])
                assert_same_on_all_ranks(grad)
                assert gtopk.stats() == reducer.stats()


def case_statistics_count_bytes():
    with gtopk.Reducer([100_000], density=0.001) as reducer:
        step(reducer, reals(0, [100_000]))
        stats = reducer.stats()
        assert stats["k"] == stats["selected"] == 100
        assert stats["count"] <= 100
        assert stats["rounds"] >= 1
        # 64 bytes of header, 12 bits of index (less well packed for so few) and 2 of value for each entry.
        assert stats["bytes_sent"] <= stats["rounds"] * (64 + 100 * 4)
        assert gather(np.array([stats["bytes_sent"]])).sum() == gather(np.array([stats["bytes_received"]])).sum()
        assert 0 <= stats["wait_s"] <= stats["exchange_s"]


def case_hierarchies():
    """All ranks share this machine, so they are one node: each has a share, and the update is of everything."""
    lengths, size = [700, 1, 299], gtopk.size()
    total, sent = np.zeros(1000, np.float64), np.zeros(1000, np.float64)
    with gtopk.Reducer(lengths, density=0.05, hierarchy="node") as reducer:
        assert reducer.hierarchy == "node"
        for step in range(4):
            gradient = np.random.default_rng(100 * step + gtopk.rank()).standard_normal(1000).astype(np.float32)
            total += gather(gradient).sum(0)
            parts = np.split(gradient, np.cumsum(lengths)[:-1])
            reducer.accumulate_many(None, [given(part) for part in parts], input_stays=step % 2 == 0)
            stats = reducer.reduce([given(part) for part in parts])
            assert stats["hierarchy"] == "node"
            assert stats["network_bytes_sent"] == 0
            assert_same_on_all_ranks(gradient)
            sent += gradient
        left = np.concatenate([as_numpy(reducer.residual(segment)) for segment in range(3)])
        assert np.count_nonzero(left) <= -(-1000 // size)
        assert np.allclose(gather(left).sum(0) + size * sent, total, atol=1e-3)
    with gtopk.Reducer([100_000], density=0.01, hierarchy="auto") as reducer:
        tried = reducer.hierarchy_seconds
        assert tried.keys() == {"off", "node"}
        assert reducer.hierarchy == ("node" if tried["node"] < tried["off"] else "off")
        assert_same_on_all_ranks(np.array([tried["off"], tried["node"]]))
    raises(gtopk.InvalidError, lambda: gtopk.Reducer([5], hierarchy="rack"), "hierarchy is 'rack'", "off, node, auto")
    if gtopk.rank() == 0:
        raises(gtopk.MismatchError, lambda: gtopk.Reducer([5], hierarchy="node"), "hierarchy is")
    else:
        raises(gtopk.MismatchError, lambda: gtopk.Reducer([5]), "hierarchy is")
