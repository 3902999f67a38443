"""select, merge, encode and decode against ten obvious lines of numpy."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gtopk
from gtopk import _threads

# Few different magnitudes, so that ties and cancellation are common; wide ones too.
VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-(2.0**99), 2.0**99, width=32))
VECTORS = arrays(np.float32, st.integers(0, 80), elements=VALUES)


def largest(x, k):
    """Indices of the k largest magnitudes, zeros left out, the lower index first on ties."""
    order = sorted(np.flatnonzero(x), key=lambda i: (-abs(x[i]), i))
    return np.array(sorted(order[:k]), np.uint32)


@settings(deadline=None, max_examples=150)
@given(VECTORS, st.integers(0, 90))
def test_select(x, k):
    kept = x.copy()
    indices, values = gtopk.select(x, k)
    assert indices.dtype == np.uint32
    assert values.dtype == np.float32
    assert (indices == largest(x, k)).all()
    assert (values == x[indices]).all()
    assert (x == kept).all()


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(1, 80), st.integers(0, 90))
def test_merge(data, n, k):
    a, b = (data.draw(arrays(np.float32, n, elements=VALUES)) for _ in range(2))
    indices, values = gtopk.merge(gtopk.select(a, n), gtopk.select(b, n), k)
    total = a + b
    assert (indices == largest(total, k)).all()
    assert (values == total[indices]).all()


@settings(deadline=None, max_examples=150)
@given(VECTORS, st.integers(0, 90), st.sampled_from(["fp32", "bf16", "fp16", "int8"]), st.integers(0, 10**6))
def test_encode_and_decode(x, k, value_type, beyond):
    indices, values = gtopk.select(x, k)
    dim = len(x) + beyond
    if dim == 0:
        return
    message = gtopk.encode(indices, values, dim, value_type)
    indices2, values2, dim2 = gtopk.decode(message)
    assert dim2 == dim
    assert set(indices2) <= set(indices)
    assert (values2 != 0).all()
    if value_type in ("fp32", "bf16"):
        relative = {"fp32": 0, "bf16": 2**-8}[value_type]
        original = x[indices2]
        normal = np.abs(original) > 1e-37
        assert (np.abs(values2 - original)[normal] <= relative * np.abs(original[normal])).all()
    else:
        step = np.abs(values).max(initial=0) / (63 if value_type == "int8" else 1000)
        dense, dense2 = np.zeros(len(x)), np.zeros(len(x))
        dense[indices], dense2[indices2] = values, values2
        assert (np.abs(dense - dense2) <= step).all()
    again = gtopk.encode(indices2, values2, dim, value_type)
    assert gtopk.decode(again)[1].tobytes() == values2.tobytes()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_bytes_are_refused_or_decoded(data):
    message = bytearray(gtopk.encode(np.array([1, 5, 9], np.uint32), np.array([1, -2, 3], np.float32), 16))
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(message) - 1), st.integers(0, 255)), max_size=3)
    ):
        message[position] = value
    length = data.draw(st.integers(0, len(message)))
    try:
        indices, values, dim = gtopk.decode(bytes(message[:length]))
    except gtopk.CorruptError:
        return
    assert (np.diff(indices.astype(np.int64)) > 0).all()
    assert (indices < dim).all()
    assert (values != 0).all()


def test_a_flipped_bit_is_noticed():
    message = bytearray(gtopk.encode(np.array([1, 5], np.uint32), np.array([1, -2], np.float32), 16))
    for position in range(len(message)):
        message[position] ^= 4
        with pytest.raises(gtopk.CorruptError):
            gtopk.decode(message)
        message[position] ^= 4
    assert gtopk.decode(message)[2] == 16


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    x = torch.tensor([[1.0, -5.0], [0.0, 3.0]])
    indices, values = gtopk.select(x, 2)
    assert indices.dtype == torch.uint32
    assert indices.tolist() == [1, 3]
    assert values.tolist() == [-5.0, 3.0]
    merged = gtopk.merge((indices.long(), values), (torch.tensor([0, 1]), torch.tensor([2.0, 5.0])), 4)
    assert merged[0].tolist() == [0, 3]
    decoded = gtopk.decode(gtopk.encode(*merged, 4), kind="torch")
    assert decoded[0].tolist() == [0, 3]
    assert decoded[1].tolist() == [2.0, 3.0]


@pytest.mark.skipif(os.environ.get("GTOPK_DEVICE") == "reference", reason="the reference device splits no work")
def test_select_runs_on_the_threads_of_torch(monkeypatch):
    torch = pytest.importorskip("torch")
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    ranges = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 3, body_type, ctypes.c_void_p)
    def parallel_for(_context, begin, end, grain, body, argument):
        ranges.append((begin, end))
        body(begin, end, argument)

    x = torch.randn(1 << 20)
    alone = gtopk.select(x, 1000)
    found = ctypes.cast(parallel_for, ctypes.c_void_p).value
    monkeypatch.setattr(_threads, "parallel_for", lambda: found)
    together = gtopk.select(x, 1000)
    assert ranges
    assert all(torch.equal(a.long(), b.long()) for a, b in zip(alone, together, strict=True))
    monkeypatch.undo()
    has_threads = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
    assert (_threads.parallel_for() is not None) == has_threads


ONE = (np.array([1], np.uint32), np.array([1], np.float32))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gtopk.select([1.0, 2.0], 1), "numpy.asarray"),
        (lambda: gtopk.select(np.ones(4), 1), "float64"),
        (lambda: gtopk.select(np.ones(4, np.float16), 1), "float32"),
        (lambda: gtopk.select(np.ones(8, np.float32)[::2], 1), "contiguous"),
        (lambda: gtopk.select(np.ones(4, ">f4"), 1), "byte order"),
        (lambda: gtopk.select(np.array([1, np.nan], np.float32), 1), "NaN or Inf"),
        (lambda: gtopk.select(np.ones(4, np.float32), -1), "negative"),
        (lambda: gtopk.select(np.ones(4, np.float32), 1.5), "integer"),
        (lambda: gtopk.merge(ONE, ONE[0], 1), "pair"),
        (lambda: gtopk.merge(ONE, (ONE[0], np.ones(2, np.float32)), 1), "1 indices, but 2 values"),
        (lambda: gtopk.merge(ONE, (np.array([-1]), ONE[1]), 1), "0 to"),
        (lambda: gtopk.merge(ONE, (np.array([1.0]), ONE[1]), 1), "integers"),
        (lambda: gtopk.merge(ONE, (np.array([2, 1]), np.ones(2, np.float32)), 1), "increase"),
        (lambda: gtopk.merge(ONE, (ONE[0], np.array([np.inf], np.float32)), 1), "finite"),
        (lambda: gtopk.encode(*ONE, 1), "below dim 1"),
        (lambda: gtopk.encode(*ONE, 2**32), "4294967296"),
        (lambda: gtopk.encode(*ONE, 0), "dim 0"),
        (lambda: gtopk.encode(*ONE, 4, "fp8"), "bf16"),
        (lambda: gtopk.decode("text"), "bytes"),
        (lambda: gtopk.decode(b"", kind="list"), "numpy"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(gtopk.InvalidError) as raised:
        call()
    assert words in str(raised.value)
    assert isinstance(raised.value, ValueError)
