"""What one process does with tensors on GPUs, or on what stands in for them: reducers, blocks, operators, memory, arrays of
other packages. Run by test_cuda_reducer.py, and by run_cuda.py where there is no pytest."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re

import numpy as np
import torch

import gtopk


@contextlib.contextmanager
def raises(error, text):
    try:
        yield
    except error as raised:
        assert re.search(text, str(raised)), f"{text!r} is not in: {raised}"
    else:
        raise AssertionError(f"{error.__name__} was not raised")


@contextlib.contextmanager
def environment(**variables):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def randn(length, seed=0):
    return torch.randn(length, generator=torch.Generator().manual_seed(seed), device="cpu")


class Foreign:
    """An array of a package that is not PyTorch, such as cupy's."""

    def __init__(self, tensor, stream=None, read_only=False, strides=None, typestr="<f4"):
        self.shape, self.tensor = tuple(tensor.shape), tensor
        self.__cuda_array_interface__ = {
            "data": (tensor.data_ptr(), read_only),
            "shape": self.shape,
            "strides": strides,
            "typestr": typestr,
            "stream": stream,
            "version": 3,
        }


class Exporter:
    """An array that has DLPack alone."""

    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def __dlpack__(self, **options):
        return torch.utils.dlpack.to_dlpack(self.tensor)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


# ---- reducers ----


def case_the_device_is_named_in_full():
    torch.cuda.set_device(0)
    for device, name in (("cuda", "cuda:0"), (torch.device("cuda", 0), "cuda:0"), ("cpu", "cpu")):
        with gtopk.Reducer([4], device=device) as reducer:
            assert reducer.device == name


def case_a_residual_in_bf16_is_that_of_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(3)
        with gtopk.Reducer([3000], device=device, density=0.01, residual_dtype="bf16") as reducer:
            for _ in range(3):
                reducer.accumulate(0, torch.randn(3000).to(device))
                reducer.reduce([torch.zeros(3000, device=device)])
            reducer.set_residual(0, 1.001 * reducer.residual(0))
            found.append(reducer.residual(0).cpu())
    assert torch.equal(found[0], found[0].bfloat16().float())
    assert torch.equal(*found)


def case_gtopk_device_names_one_too():
    with environment(GTOPK_DEVICE="cuda"), gtopk.Reducer([4]) as reducer:
        assert reducer.device == "cuda:0"
        with raises(gtopk.InvalidError, "gradient of segment 0 is on cpu, but this reducer works on cuda:0"):
            reducer.accumulate(0, torch.zeros(4))


def case_a_numpy_array_is_refused():
    with gtopk.Reducer([4], device="cuda") as reducer, raises(gtopk.InvalidError, "is a numpy array"):
        reducer.accumulate(0, np.zeros(4, np.float32))


def case_set_residual_takes_any_device():
    with gtopk.Reducer([5], device="cuda", momentum_correction=True) as reducer:
        for values in (randn(5), randn(5, 1).cuda()):
            reducer.set_residual(0, values)
            reducer.set_velocity(0, values)
            assert torch.equal(reducer.residual(0), values.cpu())
            assert torch.equal(reducer.velocity(0), values.cpu())
        assert math.isclose(reducer.residual_norm(), float(values.double().norm()), rel_tol=1e-12)


def case_two_gpus_in_one_process():
    if torch.cuda.device_count() < 2:
        return
    updates = []
    with gtopk.Reducer([3000], device="cuda:0") as zero, gtopk.Reducer([3000], device="cuda:1") as one:
        for step in range(3):
            for reducer in (zero, one):
                x = randn(3000, step).to(reducer.device)
                reducer.accumulate(0, x, zero_input=True)
                reducer.reduce([x], outputs_are_zero=True)
                updates.append(x.cpu())
        with raises(gtopk.InvalidError, "gradient of segment 0 is on cuda:0, but this reducer works on cuda:1"):
            one.accumulate(0, torch.zeros(3000, device="cuda:0"))
        x = torch.zeros(3000, device="cuda:0")
        with raises(gtopk.InvalidError, "another device than reducer 0"):
            gtopk.reduce_together([zero, one], [[x], [x.to("cuda:1")]])
    assert all(torch.equal(a, b) for a, b in zip(updates[::2], updates[1::2], strict=True))


def case_memory_is_of_pytorchs_pool():
    """4 bytes an entry and what is proportional to k; all of it is given back."""
    before = torch.cuda.memory_allocated()
    dim = 1_000_000
    with gtopk.Reducer([dim], density=0.001, device="cuda"):
        taken = torch.cuda.memory_allocated() - before
        assert 4 * dim <= taken <= 4 * dim + 1000 * 400
    assert torch.cuda.memory_allocated() == before


def case_resizing_gives_back_memory():
    with gtopk.Reducer([100_000], density=0.001, device="cuda") as reducer:
        small = torch.cuda.memory_allocated()
        reducer.set_density(0.5)
        assert torch.cuda.memory_allocated() > small
        reducer.set_density(0.001)
        assert torch.cuda.memory_allocated() == small


def case_a_graph_cannot_be_captured():
    capturing = torch.cuda.is_current_stream_capturing
    with gtopk.Reducer([4], device="cuda") as reducer:
        x = torch.ones(4, device="cuda")
        torch.cuda.is_current_stream_capturing = lambda: True
        try:
            with raises(gtopk.StateError, "a CUDA graph is being captured"):
                reducer.accumulate(0, x)
        finally:
            torch.cuda.is_current_stream_capturing = capturing
        reducer.accumulate(0, x)


# ---- arrays of other packages ----


def case_other_packages_arrays():
    for wrap in (Foreign, Exporter):
        other_packages_arrays(wrap)


def other_packages_arrays(wrap):
    x = randn(2000)
    with (
        gtopk.Reducer([1000, 1000], density=0.05) as host,
        gtopk.Reducer([1000, 1000], density=0.05, device="cuda") as gpu,
    ):
        expected, found = [x[:1000].clone(), x[1000:].clone()], [x[:1000].cuda(), x[1000:].cuda()]
        for reducer, mine in ((host, expected), (gpu, [wrap(one) for one in found])):
            reducer.accumulate_many(None, mine, zero_input=True)
            reducer.reduce(mine, outputs_are_zero=True)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, found, strict=True))


def case_their_stream_is_used():
    stream = torch.cuda.Stream()
    x = torch.zeros(100, device="cuda")
    with gtopk.Reducer([100], density=1.0, device="cuda") as reducer:
        with torch.cuda.stream(stream):
            x.fill_(3.0)
        reducer.accumulate(0, Foreign(x, stream.cuda_stream), zero_input=True)
        reducer.reduce([Foreign(x, stream.cuda_stream)], outputs_are_zero=True)
        with torch.cuda.stream(stream):
            assert (x == 3.0).all()


def case_what_of_them_is_refused():
    x = torch.zeros(4, device="cuda")
    with gtopk.Reducer([4], device="cuda") as reducer, gtopk.Reducer([2, 2], device="cuda") as other:
        for array, text in (
            (Foreign(x, read_only=True), "is read-only"),
            (Foreign(x, strides=(8,)), "is not contiguous"),
            (Foreign(x, typestr="<f8"), "has type <f8"),
            (Foreign(x[:3]), "has 3 entries"),
        ):
            with raises(gtopk.InvalidError, text):
                reducer.accumulate(0, array, zero_input=True)
        with raises(gtopk.InvalidError, "different streams"):
            other.accumulate_many(None, [Foreign(x[:2], 1), Foreign(x[2:], 2)])
    with gtopk.Reducer([4]) as reducer, raises(gtopk.InvalidError, "is on a GPU"):
        reducer.accumulate(0, Foreign(x))


# ---- blocks and operators ----


def case_blocks_are_those_of_the_cpu():
    a, b = randn(3000), randn(3000, 1)
    sets = [gtopk.select(x, 70) for x in (a, b)]
    for wrap in (lambda x: x, Exporter):
        mine = [gtopk.select(wrap(x.cuda()), 70) for x in (a, b)]
        assert_same(sets[0] + sets[1], mine[0] + mine[1])
        assert all(x.is_cuda for x in mine[0])
        for k in (0, 1, 60, 1000):
            assert_same(gtopk.merge(*sets, k), gtopk.merge(*mine, k))
        assert gtopk.encode(*sets[0], 3000) == gtopk.encode(*mine[0], 3000)


def assert_same(expected, found):
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.to(torch.float64), other.cpu().to(torch.float64))


def case_errors_of_blocks():
    x = torch.tensor([1.0, 2.0, float("inf")], device="cuda")
    with raises(gtopk.InvalidError, "NaN or Inf"):
        gtopk.select(x, 2)
    good = torch.tensor([0, 1], device="cuda"), torch.ones(2, device="cuda")
    for bad, text in (
        ((torch.tensor([1, 0], device="cuda"), good[1]), "do not increase"),
        ((good[0], torch.zeros(2, device="cuda")), "finite non-zero"),
        ((good[0], torch.ones(2)), "is on cpu|are on cpu"),
    ):
        with raises(gtopk.InvalidError, text):
            gtopk.merge(good, bad, 2)
    largest = good[0], torch.full((2,), 3e38, device="cuda")
    with raises(gtopk.InvalidError, "too large"):
        gtopk.merge(largest, largest, 2)
    assert torch.equal(gtopk.merge(good, good, 1)[0].cpu().long(), torch.tensor([0]))  # and it goes on working


def case_operators():
    importlib.import_module("gtopk.torch.operators")
    x, y = randn(500), randn(500, 1)
    expected = [torch.ops.gtopk.select(one, 40) for one in (x, y)]
    found = [torch.ops.gtopk.select(one.cuda(), 40) for one in (x, y)]
    assert_same(expected[0] + expected[1], found[0] + found[1])
    assert_same(torch.ops.gtopk.merge(*expected[0], *expected[1], 30), torch.ops.gtopk.merge(*found[0], *found[1], 30))
    for wrong in (x.cuda().double(), x.cuda().reshape(5, 100), x.cuda()[::2]):
        with raises(RuntimeError, "contiguous one-dimensional"):
            torch.ops.gtopk.select(wrong, 2)
