"""The exchange without an optimizer: blocks of memory in any order, one process. See cases_torch_session for several."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gtopk
from gtopk.torch.options import Options
from gtopk.torch.segments import Segment, disjoint, sharing
from gtopk.torch.session import Session
from gtopk.torch.warmup import DensitySchedule


def new(likes, density=1.0, **options):
    """A session for tensors like these, which sends everything as it is."""
    session = Session(gtopk.comm.current(), Options(value_type="fp32", **options), DensitySchedule(density, None))
    session.build([Segment(f"s{i}", like) for i, like in enumerate(likes)])
    return session


def values(shape=(2, 3)):
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)


@pytest.mark.parametrize("order", ["plain", "transposed"])
def test_blocks_in_any_memory_order(alone, order):
    """A tensor of the segment's shape keeps its values' places, and one dimension is the segment's memory."""
    like = values() if order == "plain" else values((3, 2)).t()
    memory = values().flatten() if order == "plain" else values().t().flatten()
    session = new([like])
    for given_tensor in (values(), values().t().contiguous().t(), memory.clone(), memory.double(), values().double()):
        (update,) = session.step([given_tensor])
        assert update is given_tensor
        assert torch.equal(update.float(), memory if update.dim() == 1 else values())
    assert session.steps == 5


@pytest.mark.parametrize("options", [{}, {"dense_below": 5}, {"dense_1d": True}, {"algorithm": "dense"}])
def test_tensors_that_cannot_be_overwritten(alone, options):
    """Those with gaps, without memory for each entry, or that share memory get their updates as new tensors."""
    base = torch.arange(1.0, 9.0)
    gaps, expanded = torch.arange(12.0).reshape(4, 3)[:, :2], torch.ones(1).expand(6)
    tensors = [base[:5], base[3:], gaps, expanded, values((4,)).double(), values((2,)).bfloat16()]
    expected = [tensor.clone() for tensor in tensors]
    updates = new(tensors, **options).step(tensors)
    for i, (update, value) in enumerate(zip(updates, expected, strict=True)):
        assert update.dtype == value.dtype
        assert torch.equal(update, value)
        assert (update is tensors[i]) == (i >= 4)


def test_one_tensor_in_two_segments(alone):
    ones = torch.ones(4)
    for options in ({}, {"algorithm": "dense"}, {"dense_below": 5}):
        updates = new([ones, ones], **options).step([ones, ones])
        assert [update.tolist() for update in updates] == [[1.0] * 4] * 2
        assert updates[0].data_ptr() != updates[1].data_ptr()


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=6))
def test_which_tensors_share_memory(pieces):
    base = torch.zeros(40)
    tensors = [base[begin : begin + length] for begin, length in pieces]
    expected = set()
    for i, (begin, length) in enumerate(pieces):
        for j, (other, extent) in enumerate(pieces):
            if i != j and max(begin, other) < min(begin + length, other + extent):
                expected.add(i)
    assert sharing(tensors) == expected
    assert disjoint([t.data_ptr() for t in tensors], [t.nbytes for t in tensors]) == (not expected)


def test_tensors_piece_by_piece(alone):
    session = new([values(), values((4,)), values((2,))], dense_below=3)
    whole = [values(), values((4,)), values((2,))]
    for _ in range(2):
        mine = [tensor.clone() for tensor in whole]
        session.begin()
        session.accumulate_some([1], mine[1:2])
        session.accumulate_some([2, 0], [mine[2], mine[0]])
        updates = session.finish()
        assert all(torch.equal(update, value) for update, value in zip(updates, whole, strict=True))
        session.begin()
        session.accumulate_some([0], [whole[0].clone()])  # the others count as zero
        assert [update.sum().item() for update in session.finish()] == [21.0, 0.0, 0.0]


def test_a_piece_given_twice_and_cancel(alone):
    session = new([values(), values((4,))])
    session.accumulate_some([1], [values((4,))])
    with pytest.raises(gtopk.StateError, match="already"):
        session.accumulate_some([1], [values((4,))])
    session.cancel()
    updates = session.step([torch.zeros(2, 3), values((4,))])
    assert torch.equal(updates[1], 2 * values((4,)))  # the first one's had stayed in the residual


def refused(session, tensors, error, *words):
    before = session.exchange.state()
    kept = [tensor.clone() if tensor.layout is torch.strided else tensor for tensor in tensors]
    with pytest.raises(error) as raised:
        session.step(tensors)
    assert all(word in str(raised.value) for word in words), raised.value
    for name, entry in session.exchange.state().items():
        assert torch.equal(entry.residual, before[name].residual)
    for tensor, value in zip(tensors, kept, strict=True):
        if tensor.layout is torch.strided and tensor.is_cpu:
            assert torch.equal(tensor, value)


@pytest.mark.parametrize("options", [{}, {"dense_below": 5}])
def test_what_cannot_be_exchanged_is_named_before_anything_was_changed(alone, options):
    session = new([values(), values((4,))], density=0.1, **options)
    session.step([values(), values((4,))])
    first = values()
    refused(session, [first, values((4,)).to_sparse()], gtopk.UnsupportedError, "s1 is a sparse tensor")
    refused(session, [first, values((4,)).to("meta")], gtopk.UnsupportedError, "s1 is on meta", "reducer works on cpu")
    refused(session, [first, values((5,))], gtopk.StateError, "s1 has shape [5] now", "has [4]", "new optimizer")
    session.step([values(), values((4,))])


def test_a_resized_segment_is_an_error_when_reducers_are_made(alone):
    session = new([values(), values((4,))], density=0.1)
    session.step([values(), values((4,))])
    with pytest.raises(gtopk.StateError, match=r"s1 has shape \[5\] now, but its residual has \[4\]"):
        session.build([Segment("s1", values((5,)))])
    assert session.exchange.state()["s0"].residual.any()


def test_nothing_to_exchange(alone):
    session = new([])
    assert session.step([]) == []
    assert session.stats["count"] == 0
    assert session.step_joined()
    session.build([Segment("s0", values())])
    assert torch.equal(session.step([values()])[0], values())
    assert session.stats["step"] == 2


def test_an_update_is_given_back(alone):
    session = new([values(), values((3, 2)).t()], density=0.2)
    before = [values().mul_(-1), values()]
    updates = session.step([tensor.clone() for tensor in before])
    flat = [updates[0].flatten(), updates[1].t().flatten()]
    assert sum(int(update.count_nonzero()) for update in flat) == 2
    for place in range(2):
        session.exchange.give_back(place, flat[place])
    kept = session.exchange.state()
    assert [torch.equal(kept[f"s{i}"].residual, before[i]) for i in range(2)] == [True, True]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]), dense=st.booleans())
def test_types(alone, dtype, dense):
    tensors = [values().to(dtype), values((3, 2)).t().to(dtype), values((5,)).to(dtype)]
    expected = [tensor.clone() for tensor in tensors]
    updates = new(tensors, dense_1d=dense).step(tensors)
    assert all(torch.equal(update, value) for update, value in zip(updates, expected, strict=True))
    assert all(update is tensor for update, tensor in zip(updates, tensors, strict=True))
