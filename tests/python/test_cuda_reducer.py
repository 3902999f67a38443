"""One process with tensors on GPUs, or on what stands in for them: reducers, blocks, operators, memory, arrays of other
packages, and what the doctor says."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch_cuda

pytestmark = pytest.mark.skipif(not torch_cuda.available(), reason="there is no GPU, and nothing stands in for one")
needs_standin = pytest.mark.skipif(torch_cuda.REAL, reason="of the stand-in alone")


@pytest.fixture(scope="module", autouse=True)
def standin():
    yield torch_cuda.install()
    torch_cuda.uninstall()


@pytest.fixture
def gtopk(alone):
    return alone


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


def test_the_device_is_named_in_full(gtopk):
    torch.cuda.set_device(0)
    for device, name in (("cuda", "cuda:0"), (torch.device("cuda", 0), "cuda:0"), ("cpu", "cpu")):
        with gtopk.Reducer([4], device=device) as reducer:
            assert reducer.device == name


def test_gtopk_device_names_one_too(gtopk, monkeypatch):
    monkeypatch.setenv("GTOPK_DEVICE", "cuda")
    with gtopk.Reducer([4]) as reducer:
        assert reducer.device == "cuda:0"
        with pytest.raises(
            gtopk.InvalidError, match="gradient of segment 0 is on cpu, but this reducer works on cuda:0"
        ):
            reducer.accumulate(0, torch.zeros(4))


def test_a_numpy_array_is_refused(gtopk):
    with gtopk.Reducer([4], device="cuda") as reducer, pytest.raises(gtopk.InvalidError, match="is a numpy array"):
        reducer.accumulate(0, np.zeros(4, np.float32))


def test_set_residual_takes_any_device(gtopk):
    with gtopk.Reducer([5], device="cuda", momentum_correction=True) as reducer:
        for values in (randn(5), randn(5, 1).cuda()):
            reducer.set_residual(0, values)
            reducer.set_velocity(0, values)
            assert torch.equal(reducer.residual(0), values.cpu())
            assert torch.equal(reducer.velocity(0), values.cpu())
        assert reducer.residual_norm() == pytest.approx(float(values.double().norm()))


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="there is one GPU")
def test_two_gpus_in_one_process(gtopk):
    updates = []
    with gtopk.Reducer([3000], device="cuda:0") as zero, gtopk.Reducer([3000], device="cuda:1") as one:
        for step in range(3):
            for reducer in (zero, one):
                x = randn(3000, step).to(reducer.device)
                reducer.accumulate(0, x, zero_input=True)
                reducer.reduce([x], outputs_are_zero=True)
                updates.append(x.cpu())
        with pytest.raises(
            gtopk.InvalidError, match="gradient of segment 0 is on cuda:0, but this reducer works on cuda:1"
        ):
            one.accumulate(0, torch.zeros(3000, device="cuda:0"))
        x = torch.zeros(3000, device="cuda:0")
        with pytest.raises(gtopk.InvalidError, match="another device than reducer 0"):
            gtopk.reduce_together([zero, one], [[x], [x.to("cuda:1")]])
    assert all(torch.equal(a, b) for a, b in zip(updates[::2], updates[1::2], strict=True))


def test_memory_is_of_pytorchs_pool(gtopk):
    """4 bytes an entry and what is proportional to k; all of it is given back."""
    before = torch.cuda.memory_allocated()
    dim = 1_000_000
    with gtopk.Reducer([dim], density=0.001, device="cuda"):
        taken = torch.cuda.memory_allocated() - before
        assert 4 * dim <= taken <= 4 * dim + 1000 * 400
    assert torch.cuda.memory_allocated() == before


def test_resizing_gives_back_memory(gtopk):
    with gtopk.Reducer([100_000], density=0.001, device="cuda") as reducer:
        small = torch.cuda.memory_allocated()
        reducer.set_density(0.5)
        assert torch.cuda.memory_allocated() > small
        reducer.set_density(0.001)
        assert torch.cuda.memory_allocated() == small


# ---- arrays of other packages ----


@pytest.mark.parametrize("wrap", [Foreign, Exporter])
def test_other_packages_arrays(gtopk, wrap):
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


def test_their_stream_is_used(gtopk):
    stream = torch.cuda.Stream()
    x = torch.zeros(100, device="cuda")
    with gtopk.Reducer([100], density=1.0, device="cuda") as reducer:
        with torch.cuda.stream(stream):
            x.fill_(3.0)
        reducer.accumulate(0, Foreign(x, stream.cuda_stream), zero_input=True)
        reducer.reduce([Foreign(x, stream.cuda_stream)], outputs_are_zero=True)
        with torch.cuda.stream(stream):
            assert (x == 3.0).all()


def test_what_of_them_is_refused(gtopk):
    x = torch.zeros(4, device="cuda")
    with gtopk.Reducer([4], device="cuda") as reducer, gtopk.Reducer([2, 2], device="cuda") as other:
        for array, text in (
            (Foreign(x, read_only=True), "is read-only"),
            (Foreign(x, strides=(8,)), "is not contiguous"),
            (Foreign(x, typestr="<f8"), "has type <f8"),
            (Foreign(x[:3]), "has 3 entries"),
        ):
            with pytest.raises(gtopk.InvalidError, match=text):
                reducer.accumulate(0, array, zero_input=True)
        with pytest.raises(gtopk.InvalidError, match="different streams"):
            other.accumulate_many(None, [Foreign(x[:2], 1), Foreign(x[2:], 2)])
    with gtopk.Reducer([4]) as reducer, pytest.raises(gtopk.InvalidError, match="is on a GPU"):
        reducer.accumulate(0, Foreign(x))


# ---- blocks and operators ----


def test_blocks_are_those_of_the_cpu(gtopk):
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


def test_errors_of_blocks(gtopk):
    x = torch.tensor([1.0, 2.0, float("inf")], device="cuda")
    with pytest.raises(gtopk.InvalidError, match="NaN or Inf"):
        gtopk.select(x, 2)
    good = torch.tensor([0, 1], device="cuda"), torch.ones(2, device="cuda")
    for bad, text in (
        ((torch.tensor([1, 0], device="cuda"), good[1]), "do not increase"),
        ((good[0], torch.zeros(2, device="cuda")), "finite non-zero"),
        ((good[0], torch.ones(2)), "is on cpu|are on cpu"),
    ):
        with pytest.raises(gtopk.InvalidError, match=text):
            gtopk.merge(good, bad, 2)
    largest = good[0], torch.full((2,), 3e38, device="cuda")
    with pytest.raises(gtopk.InvalidError, match="too large"):
        gtopk.merge(largest, largest, 2)
    assert torch.equal(gtopk.merge(good, good, 1)[0].cpu().long(), torch.tensor([0]))  # and it goes on working


def test_operators(gtopk):
    importlib.import_module("gtopk.torch.operators")
    x, y = randn(500), randn(500, 1)
    expected = [torch.ops.gtopk.select(one, 40) for one in (x, y)]
    found = [torch.ops.gtopk.select(one.cuda(), 40) for one in (x, y)]
    assert_same(expected[0] + expected[1], found[0] + found[1])
    assert_same(torch.ops.gtopk.merge(*expected[0], *expected[1], 30), torch.ops.gtopk.merge(*found[0], *found[1], 30))
    for wrong in (x.cuda().double(), x.cuda().reshape(5, 100), x.cuda()[::2]):
        with pytest.raises(RuntimeError, match="contiguous one-dimensional"):
            torch.ops.gtopk.select(wrong, 2)


# ---- what the doctor says ----


def doctor(**environment):
    """Its line on the GPU."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout


PROGRAM = """
import os, sys
kind, folder = os.environ.get("STANDIN"), os.environ.get("TESTS")
if kind:
    sys.path.insert(0, folder)
    import cuda_standin
    control = cuda_standin.controls()
    os.environ["GTOPK_CUDA_DRIVER"] = str(cuda_standin.STANDIN)
    if kind == "old GPU":
        control.gpu(70, 2, 2)
    elif kind == "lost":
        control.lose(700)
    elif kind != "good":
        control.driver(*eval(kind))
from gtopk import cli
for finding in cli._gpu():
    print(finding.ok, finding.text, finding.advice)
assert "torch" not in sys.modules
"""


@needs_standin
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("good", "True Stand-in 0, compute capability 9.0, driver for CUDA 12.8 gtopk's kernels were emulated only"),
        ("(1, 11080, b'')", "False the NVIDIA driver supports CUDA 11.8; gtopk needs CUDA 12.0"),
        ("(1, 12080, b'cuMemAlloc')", "has no cuMemAlloc"),
        ("(0, 12080, b'')", "False the CUDA driver finds no GPU"),
        ("old GPU", "has compute capability 7.0; gtopk needs 7.5"),
        ("lost", "start the process again"),
    ],
)
def test_the_doctor_says_why_a_gpu_cannot_be_used(kind, text):
    assert text in doctor(STANDIN=kind, TESTS=str(Path(__file__).parent))


@needs_standin
def test_the_doctor_finds_no_driver():
    said = doctor(GTOPK_CUDA_DRIVER="/nowhere/libcuda.so.1")
    assert "False no CUDA driver: /nowhere/libcuda.so.1 does not load" in said
    assert "needed on machines with an NVIDIA GPU only" in said
