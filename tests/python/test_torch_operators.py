"""The operators over libtorch's stable C ABI: results, errors, opcheck, torch.compile, threads, and the prototypes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import gtopk
import gtopk.torch.operators

ROOT = Path(__file__).resolve().parents[2]


def largest(x, k):
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))[:k]
    kept = sorted(i for i in order if float(x[i]) != 0.0)
    return torch.tensor(kept, dtype=torch.int64), x[kept]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("k", [0, 1, 7, 100, 1000])
def test_select_is_the_top_k(k):
    torch.manual_seed(k)
    x = torch.randn(300).round(decimals=1)
    assert_same(torch.ops.gtopk.select(x, k), largest(x, k))


def test_merge_is_the_top_k_of_the_sum():
    x, y = torch.randn(300), torch.randn(300)
    a, b = torch.ops.gtopk.select(x, 40), torch.ops.gtopk.select(y, 50)
    dense = torch.zeros(300).index_add_(0, *a).index_add_(0, *b)
    assert_same(torch.ops.gtopk.merge(*a, *b, 30), largest(dense, 30))


def test_it_agrees_with_the_block():
    x = torch.randn(5000)
    indices, values = gtopk.select(x, 77)
    assert_same(torch.ops.gtopk.select(x, 77), (indices.long(), values))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((torch.zeros(4, dtype=torch.float64), 1), "torch.float32"),
        ((torch.zeros(2, 2), 1), "one-dimensional"),
        ((torch.zeros(8)[::2], 1), "contiguous"),
        ((torch.zeros(4), -1), "at least 0"),
        ((torch.tensor([1.0, float("nan")]), 1), "NaN"),
    ],
)
def test_wrong_arguments_of_select(arguments, text):
    with pytest.raises(RuntimeError, match=text):
        torch.ops.gtopk.select(*arguments)


@pytest.mark.parametrize(
    ("indices", "text"),
    [([2, 1], "do not increase"), ([1, 1], "do not increase"), ([-1, 1], "not in"), ([1], "1 indices")],
)
def test_wrong_sets_of_merge(indices, text):
    good = torch.tensor([3, 4]), torch.ones(2)
    with pytest.raises(RuntimeError, match=text):
        torch.ops.gtopk.merge(torch.tensor(indices), torch.ones(2), *good, 2)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_arguments_are_released():
    def calls():
        for _ in range(40):
            x = torch.ones(1 << 20)  # 4 MiB
            torch.ops.gtopk.select(x, 1)
            with pytest.raises(RuntimeError):
                torch.ops.gtopk.select(x, -1)

    calls()
    before = resident_bytes()
    calls()
    assert resident_bytes() - before < 40 << 20


def test_opcheck():
    x = torch.randn(64)
    a, b = torch.ops.gtopk.select(x, 5), torch.ops.gtopk.select(-x.roll(3), 6)
    assert set(torch.library.opcheck(torch.ops.gtopk.select.default, (x, 5)).values()) == {"SUCCESS"}
    assert set(torch.library.opcheck(torch.ops.gtopk.merge.default, (*a, *b, 4)).values()) == {"SUCCESS"}


def test_compile_traces_it():
    def compress(x):
        indices, values = torch.ops.gtopk.select(x * 2, 6)
        return torch.zeros_like(x).index_add(0, indices, values)

    torch._dynamo.reset()
    compiled = torch.compile(compress, backend="aot_eager", fullgraph=True)
    x = torch.randn(100)
    assert torch.equal(compiled(x), compress(x))


def test_export_traces_it():
    class Compress(torch.nn.Module):
        def forward(self, x):
            indices, values = torch.ops.gtopk.select(x, 6)
            return indices, values

    x = torch.randn(100)
    program = torch.export.export(Compress(), (x,))
    assert_same(program.module()(x), torch.ops.gtopk.select(x, 6))


def test_threads_change_nothing():
    x = torch.randn(3_000_000)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(torch.ops.gtopk.select(x, 3000))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0])


def test_prototypes_agree_with_pytorchs_headers():
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("there is no C++ compiler")
    include = Path(torch.__file__).parent / "include"
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'csrc'}", f"-I{include}"]
    done = subprocess.run([*command, str(ROOT / "tests/torch_abi/agree.cpp")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
