"""Reducer with one process: results, states of a step, and what wrong arguments say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gtopk

F32 = np.float32
KINDS = ("numpy", "torch")


def tensor(kind, x):
    if kind == "torch":
        return pytest.importorskip("torch").from_numpy(x)
    return x


def one_step(reducer, *grads):
    reducer.accumulate_many(None, grads)
    out = [np.empty(n, F32) for n in reducer.segment_lengths]
    reducer.reduce(out)
    return np.concatenate(out)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_steps_against_numpy(data):
    """P = 1, a few steps: exact selection with carried residual, whatever the cut into segments."""
    lengths = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(sum))
    density = data.draw(st.floats(0.001, 1))
    n = sum(lengths)
    k = min(n, max(1, round(density * n)))
    gtopk.init(transport="self")
    residual = np.zeros(n, F32)
    elements = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))
    with gtopk.Reducer(lengths, density=density) as reducer:
        for _ in range(3):
            grad = data.draw(arrays(F32, n, elements=elements))
            residual = residual + grad
            order = sorted(np.flatnonzero(residual), key=lambda i: (-abs(residual[i]), i))[:k]
            expected = np.zeros(n, F32)
            expected[order] = residual[order]
            residual[order] = 0
            parts = np.split(grad, np.cumsum(lengths)[:-1])
            assert (one_step(reducer, *parts) == expected).all()
            kept = np.concatenate([reducer.residual(i) for i in range(len(lengths))])
            assert (kept == residual).all()
            assert reducer.residual_norm() == pytest.approx(np.linalg.norm(residual.astype(float)))


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_and_zeroing(alone, kind):
    grad = np.array([3, -1, 2, 0], F32)
    with gtopk.Reducer([4], density=0.5) as reducer:
        reducer.accumulate(0, tensor(kind, grad), zero_input=True)
        assert not grad.any()
        stats = reducer.reduce([tensor(kind, grad)], outputs_are_zero=True)
        assert grad.tolist() == [3, 0, 2, 0]
        assert stats == reducer.stats() == gtopk.stats()
        assert stats["count"] == stats["k"] == 2
        left = reducer.residual(0)
        assert type(left).__module__.split(".")[0] == kind
        assert left.tolist() == [0, -1, 0, 0]
        reducer.accumulate(0, tensor(kind, np.array([0, 0, 0, 5], F32)), 0.5)
        indices, values = reducer.reduce_sparse()
        assert (indices.tolist(), values.tolist()) == ([1, 3], [-1, 2.5])


def test_16_bit_gradients(alone):
    torch = pytest.importorskip("torch")
    with gtopk.Reducer([2, 2, 2], density=1.0) as reducer:
        grads = [torch.ones(2, dtype=t) for t in (torch.bfloat16, torch.float16, torch.float32)]
        for _ in range(3):
            reducer.accumulate_many(None, grads)
            grads = [g.to(t) for g, t in zip(grads, (torch.float16, torch.float32, torch.bfloat16), strict=True)]
            reducer.reduce(grads)
            assert all(g.tolist() == [1, 1] for g in grads)
        half = np.full(2, 0.5, np.float16)
        reducer.accumulate(0, half)
        reducer.reduce([half, np.empty(2, F32), np.empty(2, F32)])
        assert half.tolist() == [0.5, 0.5]


def test_segments_by_number(alone):
    with gtopk.Reducer([1, 2, 3], density=1.0) as reducer:
        reducer.accumulate_many([2, 0], [np.full(3, 3, F32), np.full(1, 1, F32)])
        assert [reducer.residual(i).tolist() for i in range(3)] == [[1], [0, 0], [3, 3, 3]]
        with pytest.raises(gtopk.StateError):
            reducer.set_residual(1, np.full(2, 2, F32))
        assert one_step_after(reducer).tolist() == [1, 0, 0, 3, 3, 3]
        reducer.set_residual(1, np.full(2, 2, F32))
        assert one_step_after(reducer).tolist() == [0, 2, 2, 0, 0, 0]


def one_step_after(reducer):
    out = [np.empty(n, F32) for n in reducer.segment_lengths]
    reducer.reduce(out)
    return np.concatenate(out)


def test_momentum_correction(alone):
    with gtopk.Reducer([2], density=0.5, momentum_correction=True) as reducer:
        reducer.set_momentum(0.5)
        assert one_step(reducer, np.array([4, 1], F32)).tolist() == [4, 0]
        assert reducer.residual(0).tolist() == [0, 1]
        assert one_step(reducer, np.array([0, 0], F32)).tolist() == [0, 1.5]
        assert reducer.velocity(0).tolist() == [0, 0]
    with gtopk.Reducer([2]) as plain, pytest.raises(gtopk.GtopkError):
        plain.set_momentum(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_state(alone, kind, tmp_path):
    grad = tensor(kind, np.array([3, -1, 2, 0], F32))
    with gtopk.Reducer([3, 1], density=0.25) as reducer, gtopk.Reducer([3, 1], density=0.25) as other:
        reducer.accumulate_many(None, [grad[:3], grad[3:]])
        with pytest.raises(gtopk.StateError):
            reducer.state_dict()
        reducer.reduce_sparse()
        state = reducer.state_dict()
        assert {name: state[name] for name in ("rank", "size", "step", "dim")} == {
            "rank": 0,
            "size": 1,
            "step": 1,
            "dim": 4,
        }
        if kind == "torch":
            torch = pytest.importorskip("torch")
            torch.save(state, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
        other.load_state_dict(state)
        assert other.residual(0).tolist() == [0, -1, 2]
        assert (other.state_dict()["state"] == state["state"]).all()
        assert other.consolidate()["rank"] == -1
        damaged = {**state, "state": state["state"] + 0}
        damaged["state"][-1] ^= 1
        for bad in ({}, None, {"state": [1]}, {"state": np.zeros(9)}, {"state": state["state"][:-1]}, damaged):
            with pytest.raises(gtopk.CorruptError):
                other.load_state_dict(bad)
        assert other.residual(0).tolist() == [0, -1, 2]
    with gtopk.Reducer([2, 2]) as different, pytest.raises(gtopk.MismatchError, match="segment 0"):
        different.load_state_dict(state)


def test_a_segment_twice_in_a_step(alone):
    with gtopk.Reducer([2, 2], density=1.0) as reducer:
        reducer.accumulate(0, np.ones(2, F32))
        with pytest.raises(gtopk.StateError):
            reducer.accumulate(0, np.ones(2, F32))
        with pytest.raises(gtopk.GtopkError):
            reducer.accumulate_many([1, 1], [np.ones(2, F32)] * 2)
        assert one_step_after(reducer).tolist() == [1, 1, 0, 0]


def test_non_finite(alone):
    with gtopk.Reducer([3], density=1.0) as reducer:
        assert np.isnan(one_step(reducer, np.array([1, np.nan, 2], F32))).all()
        assert reducer.stats()["nonfinite"] == 1
        assert one_step(reducer, np.zeros(3, F32)).tolist() == [1, 0, 2]
        reducer.accumulate(0, np.array([np.inf, 0, 0], F32))
        indices, values = reducer.reduce_sparse()
        assert (len(indices), len(values), reducer.stats()["nonfinite"]) == (0, 0, 1)


def test_residual_in_bf16(alone):
    """Rounded to one of two neighbours; what is sent was stored, and leaves exactly."""
    n = 5000
    with gtopk.Reducer([n], density=1 / n, residual_dtype="bf16") as reducer:
        reducer.set_residual(0, np.full(n, 1.001, F32))
        low, high = np.float32(1.0), np.float32(1.0078125)
        found = reducer.residual(0)
        assert set(found.tolist()) == {low, high}
        assert abs(float(found.mean()) - 1.001) < 5 * 2**-8 / n**0.5
        update = one_step(reducer, np.zeros(n, F32))
        assert update[update != 0].tolist() == [high]
        assert reducer.residual(0)[update != 0].tolist() == [0]


@pytest.mark.parametrize("rollback", [False, True])
def test_rollback(alone, rollback):
    """A gradient that is not finite: what the others were is in the residual, or nothing is."""
    with gtopk.Reducer([3, 2], density=0.5, momentum_correction=True, rollback=rollback) as reducer:
        reducer.set_momentum(0.5)
        assert one_step(reducer, np.array([1, 2, 3], F32), np.zeros(2, F32)).tolist() == [0, 2, 3, 0, 0]
        assert np.isnan(one_step(reducer, np.array([1, np.nan, 2], F32), np.array([1e10, 0], F32))).all()
        assert reducer.residual(0).tolist() == ([1, 0, 0] if rollback else [2.5, 0, 2])
        assert reducer.velocity(0).tolist() == ([1, 0, 0] if rollback else [1.5, 0, 2])
        assert reducer.residual(1).tolist() == ([0, 0] if rollback else [1e10, 0])


WRONG_OPTIONS = [
    ({"density": 0}, "density"),
    ({"density": -0.1}, "density"),
    ({"density": 1.5}, "density"),
    ({"density": float("nan")}, "density"),
    ({"density": "much"}, "density"),
    ({"algorithm": "best"}, "gtopk-tree"),
    ({"algorithm": 3}, "gtopk-tree"),
    ({"algorithm": "AUTO"}, "auto"),
    ({"value_type": "fp8"}, "int8"),
    ({"residual_policy": "keep"}, "paper"),
    ({"residual_dtype": "fp16"}, "residual_dtype is 'fp16'.*bf16"),
    ({"merge_growth": 0.5}, "growth"),
    ({"merge_growth": float("inf")}, "growth"),
]


@pytest.mark.parametrize(("options", "words"), WRONG_OPTIONS)
def test_wrong_options(alone, options, words):
    with pytest.raises(gtopk.InvalidError, match=words):
        gtopk.Reducer([4], **options)


def test_wrong_lengths_and_device(alone):
    for lengths, words in (
        ([-1], "0 to"),
        ([2**32], "more reducers"),
        ([2**31] * 2, "in all"),
        (["a"], "integers"),
        (5, "sequence"),
    ):
        with pytest.raises(gtopk.InvalidError, match=words):
            gtopk.Reducer(lengths)
    with pytest.raises(gtopk.UnsupportedError, match="cpu"):
        gtopk.Reducer([4], device="abacus")


def read_only():
    x = np.ones(4, F32)
    x.flags.writeable = False
    return x


WRONG_TENSORS = [
    (lambda: np.ones(4), "float64"),
    (lambda: np.ones(4, np.int32), "int32"),
    (lambda: np.ones(3, F32), "3 entries"),
    (lambda: np.ones(8, F32)[::2], "contiguous"),
    (lambda: np.ones((2, 2), F32).T, "contiguous"),
    (lambda: np.ones(4, ">f4"), "byte order"),
    (lambda: np.frombuffer(b"\0" * 17, F32, 4, offset=1), "aligned"),
    (lambda: [1.0, 2.0, 3.0, 4.0], "numpy.asarray"),
    (lambda: None, "NoneType"),
]


@pytest.mark.parametrize(("make", "words"), [*WRONG_TENSORS, (read_only, "read-only")])
def test_wrong_arrays(alone, make, words):
    with gtopk.Reducer([4, 4], density=1.0) as reducer:
        good = np.ones(4, F32)
        for call in (
            lambda: reducer.accumulate(1, make(), zero_input=True),
            lambda: reducer.accumulate_many(None, [good, make()], zero_input=True),
            lambda: reducer.reduce([good, make()]),
        ):
            with pytest.raises(gtopk.InvalidError, match=words) as raised:
                call()
            assert "segment 1" in str(raised.value)
        assert good.all()
        assert not reducer.residual(0).any()


def test_wrong_torch_tensors(alone):
    torch = pytest.importorskip("torch")
    wrong = [
        (torch.ones(4, dtype=torch.float64), "float64"),
        (torch.ones(3), "3 entries"),
        (torch.ones(8)[::2], "contiguous"),
        (torch.ones(2, 2).T, "contiguous"),
        (torch.ones(4).to_sparse(), "sparse"),
        (torch.ones(4, device="meta"), "meta"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
    ]
    with gtopk.Reducer([4, 4], density=1.0) as reducer:
        good = torch.ones(4)
        for bad, words in wrong:
            for call in (
                lambda bad=bad: reducer.accumulate(1, bad),
                lambda bad=bad: reducer.accumulate_many(None, [good, bad]),
                lambda bad=bad: reducer.reduce([good, bad]),
            ):
                with pytest.raises(gtopk.InvalidError, match=words):
                    call()
        reducer.accumulate_many(None, [good, good.numpy()])  # kinds may be mixed
        out = [torch.empty(4), np.empty(4, F32)]
        reducer.reduce(out)
        assert out[0].tolist() == out[1].tolist() == [1] * 4


def test_wrong_segments_and_counts(alone):
    one = np.ones(4, F32)
    with gtopk.Reducer([4, 4]) as reducer:
        for call in (
            lambda: reducer.accumulate(2, one),
            lambda: reducer.accumulate(-1, one),
            lambda: reducer.accumulate("a", one),
            lambda: reducer.accumulate_many([0, 1, 0], [one] * 3),
            lambda: reducer.accumulate_many([0, 1], [one]),
            lambda: reducer.accumulate_many(None, [one]),
            lambda: reducer.reduce([one]),
            lambda: reducer.reduce([one] * 3),
            lambda: reducer.residual(2),
            lambda: reducer.set_residual(0, np.ones(3, F32)),
            lambda: reducer.set_residual(0, np.full(4, np.inf, F32)),
            lambda: reducer.set_residual(0, np.ones(4, np.float16)),
            lambda: reducer.accumulate(0, one, float("nan")),
            lambda: reducer.accumulate(0, one, "x"),
            lambda: reducer.set_density(0),
            lambda: reducer.set_density(float("nan")),
        ):
            with pytest.raises(gtopk.InvalidError):
                call()
        assert not reducer.residual_norm()


def test_a_reducer_does_not_outlive_its_communicator():
    """The library would go on exchanging; what was not sent can still be read and saved."""
    comm = gtopk.Comm()
    reducer = gtopk.Reducer([4], comm=comm)
    reducer.set_residual(0, np.arange(4, dtype=F32))
    comm.close()
    grad = np.ones(4, F32)
    for call in (
        lambda: reducer.accumulate(0, grad, zero_input=True),
        lambda: reducer.reduce([grad]),
        reducer.reduce_sparse,
        lambda: reducer.set_density(0.5),
        reducer.consolidate,
        lambda: gtopk.reduce_together([reducer], [[grad]]),
    ):
        with pytest.raises(gtopk.StateError, match="shutdown"):
            call()
    assert (grad == 1).all()
    assert (reducer.residual(0) == np.arange(4)).all()
    assert reducer.state_dict()["dim"] == 4
    reducer.close()


def test_closed_and_not_initialised():
    gtopk.shutdown()
    for call in (gtopk.rank, gtopk.barrier, lambda: gtopk.Reducer([4]), lambda: gtopk.allreduce(np.ones(2))):
        with pytest.raises(gtopk.StateError, match=r"gtopk\.init\(\)"):
            call()
    comm = gtopk.Comm()
    reducer = gtopk.Reducer([4], comm=comm)
    assert "Reducer" in repr(reducer)
    reducer.close()
    reducer.close()
    for call in (reducer.residual_norm, lambda: reducer.reduce([np.ones(4, F32)]), reducer.state_dict):
        with pytest.raises(gtopk.StateError, match="closed"):
            call()
    comm.close()
    comm.close()
    assert "closed" in repr(comm)
    with pytest.raises(gtopk.StateError, match="closed"):
        gtopk.Reducer([4], comm=comm)


def test_a_reducer_outlives_its_communicator():
    comm = gtopk.Comm()
    reducer = gtopk.Reducer([4], density=1.0, comm=comm)
    reducer.accumulate(0, np.ones(4, F32))
    comm.close()
    assert reducer.residual(0).tolist() == [1] * 4
    reducer.close()


def test_two_threads_at_once(alone):
    """A second caller gets StateError or waits its turn; never a crash or a lost update."""
    with gtopk.Reducer([200_000] * 2, density=0.001) as reducer:
        refused, done = [], []

        def work(segment):
            for _ in range(40):
                try:
                    reducer.residual(segment)
                    done.append(segment)
                except gtopk.StateError:
                    refused.append(segment)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(done) + len(refused) == 80
        assert done


def test_child_process_after_fork(alone):
    reducer = gtopk.Reducer([4])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            reducer.residual_norm()
        except gtopk.StateError:
            code = 0
        finally:
            reducer.close()
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert reducer.residual_norm() == 0
    reducer.close()


def test_nothing_to_do_at_exit():
    """Objects that are still open when Python ends are closed in the right order, without a word."""
    program = "import gtopk; gtopk.init(); r = gtopk.Reducer([9]); c = gtopk.Comm(); s = gtopk.Reducer([9], comm=c)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- several reducers in one step ----


def floats(*values):
    return np.array(values, F32)


@pytest.fixture
def pair():
    gtopk.init(transport="self")
    return [gtopk.Reducer([3], algorithm="dense"), gtopk.Reducer([40, 60], density=0.02, value_type="fp32")]


def test_reduce_together_is_a_step_of_each(pair):
    gradients = [[floats(1, 2, 3)], [np.arange(40, dtype=F32), np.arange(60, dtype=F32)]]
    for reducer, tensors in zip(pair, gradients, strict=True):
        reducer.accumulate_many(None, tensors, zero_input=True)
    dense, sparse = gtopk.reduce_together(pair, gradients, outputs_are_zero=True)
    assert gradients[0][0].tolist() == [1, 2, 3]
    assert gradients[1][0].sum() == 0
    assert gradients[1][1].sum() == 58 + 59
    assert (dense["count"], sparse["count"]) == (3, 2)
    assert (pair[0].stats(), pair[1].stats()) == (dense, sparse)
    assert gtopk.stats()["count"] == 5
    assert gtopk.stats()["k"] == 3 + 2


def test_a_cancelled_step_keeps_what_was_accumulated(pair):
    for _ in range(2):
        pair[0].accumulate(0, floats(1, 2, 3))
        pair[0].cancel()
    pair[0].accumulate(0, floats(1, 1, 1))
    assert one_step(pair[1], np.zeros(40, F32), np.zeros(60, F32)).sum() == 0
    update = [np.empty(3, F32)]
    assert pair[0].reduce(update)["step"] == 0
    assert update[0].tolist() == [3, 5, 7]


def test_reduce_together_of_ranks_that_have_joined(pair):
    pair[0].accumulate(0, floats(1, 2, 3))
    assert [stats["all_joined"] for stats in gtopk.reduce_together(pair, None, joined=True)] == [1, 1]
    assert pair[0].residual(0).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("chosen", "outputs", "text"),
    [
        ((0, 1), None, "have joined"),
        ((0, 1), [[]], "1 lists of outputs for 2 reducers"),
        ((0, 1), [[], []], "0 outputs for 1 segments"),
        ((), [], "0 reducers"),
        ((0, 0), [[np.zeros(3, F32)]] * 2, "0 and 1 are the same"),
        ((0, None), [[np.zeros(3, F32)]] * 2, "not NoneType"),
    ],
)
def test_reduce_together_says_what_is_wrong(pair, chosen, outputs, text):
    pair[0].accumulate(0, floats(1, 2, 3))
    reducers = [None if i is None else pair[i] for i in chosen]
    with pytest.raises(gtopk.InvalidError, match=text):
        gtopk.reduce_together(reducers, outputs)
    assert pair[0].residual(0).tolist() == [1, 2, 3]


def test_tensors_described_once():
    torch = pytest.importorskip("torch")
    gtopk.init(transport="self")
    reducer, other = (gtopk.Reducer([3, 2], density=1.0, value_type="fp32") for _ in range(2))
    tensors = [torch.arange(3.0), torch.ones(2)]
    for _ in range(2):
        table = reducer.describe(tensors)
        reducer.accumulate_many(None, table, 2.0, zero_input=True)
        assert not any(tensor.any() for tensor in tensors)
        assert reducer.reduce(table, outputs_are_zero=True)["count"] == 4
        assert [tensor.tolist() for tensor in tensors] == [[0, 2, 4], [2, 2]]
        tensors = [tensor / 2 for tensor in tensors]
    for wrong in (
        tensors[:1],
        tensors[::-1],
        [tensors[0].double(), tensors[1]],
        [tensors[0].numpy(), tensors[1]],
        [tensors[0], tensors[1].expand(2, 2)[0].expand(2, 2)[:, 0]],
        [tensors[0].to("meta"), tensors[1]],
    ):
        assert reducer.describe(wrong) is None
    foreign = other.describe(tensors)
    with pytest.raises(gtopk.InvalidError, match="another reducer"):
        reducer.accumulate_many(None, foreign)
    reducer.accumulate_many(None, tensors)
    with pytest.raises(gtopk.InvalidError, match="another reducer"):
        reducer.reduce(foreign)
