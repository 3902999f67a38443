"""Every allocation of the library fails in turn, under the life of a communicator, a reducer and blocks in Python.

For a library with tests/support/oom.c in it (make build/libgtopk_oom.so), named by GTOPK_LIBRARY; started by
tests/python/test_memory.py. Prints one line of JSON: how many allocations failed.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np

import gtopk
from gtopk import _c_api

DIM = 400
library = _c_api.library()
oom = {name: getattr(library, f"gtopk_oom_{name}") for name in ("arm", "fired", "live")}


def gradient():
    return (np.arange(DIM) % 17 - 8).astype(np.float32)


class Life:
    """Calls one after the other; each may fail once, is then made again, and must work as if nothing had been."""

    def __init__(self):
        self.errors = []

    def call(self, function, *arguments, **options):
        try:
            return function(*arguments, **options)
        except gtopk.GtopkError as error:
            self.errors.append(error)
            return function(*arguments, **options)

    def blocks(self):
        x = gradient()
        a = self.call(gtopk.select, x, 20)
        b = self.call(gtopk.select, x[::-1].copy(), 20)
        merged = self.call(gtopk.merge, a, b, 30)
        message = self.call(gtopk.encode, *merged, DIM, value_type="fp32")
        *back, dim = self.call(gtopk.decode, message)
        assert dim == DIM
        return [*a, *b, *merged, *back]

    def reducer(self, momentum):
        with (
            self.call(gtopk.Comm, transport="self") as comm,
            self.call(gtopk.Reducer, [DIM], density=0.05, momentum_correction=momentum, comm=comm) as reducer,
        ):
            return self.steps(reducer)

    def steps(self, reducer):
        results = []
        for density in (0.05, 0.5):
            self.call(reducer.set_density, density)
            x = gradient()
            self.call(reducer.accumulate, 0, x)
            kept = reducer.residual(0)
            try:
                reducer.reduce([x])
            except gtopk.GtopkError as error:  # the communicator is broken: nothing changed, and no step follows
                self.errors.append(error)
                assert np.array_equal(kept, reducer.residual(0))
                assert np.array_equal(x, gradient())
                return results
            results += [x, reducer.residual(0)]
        state = self.call(reducer.state_dict)
        whole = self.call(reducer.consolidate)
        self.call(reducer.load_state_dict, whole)
        self.call(reducer.load_state_dict, state)
        results.append(reducer.residual(0))
        self.call(reducer.reduce_sparse)
        return results


def same(results, expected):
    return all(np.array_equal(one, other) for one, other in zip(results, expected, strict=False))


def fail_each(work, always_complete):
    """Number of allocations that failed."""
    expected = work(Life())
    gc.collect()
    live, number = oom["live"](), 0
    while True:
        life = Life()
        oom["arm"](number)
        try:
            results = work(life)
        except gtopk.GtopkError as error:  # a call that cannot be made again: the communicator broke
            life.errors.append(error)
            results = []
            assert not always_complete, error
        fired = oom["fired"]()
        oom["arm"](-1)
        assert all(isinstance(error, gtopk.GtopkError) for error in life.errors)
        assert bool(life.errors) == bool(fired), (number, life.errors)
        if life.errors:
            assert isinstance(life.errors[0], gtopk.OutOfMemoryError), life.errors
        if always_complete:
            assert len(results) == len(expected)
        assert same(results, expected), f"allocation {number}: other results"
        life.errors.clear()
        gc.collect()
        assert oom["live"]() == live, f"allocation {number} failed and {oom['live']() - live} blocks were leaked"
        if not fired:
            return number
        number += 1


def resident_kib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def cycle(times):
    for _ in range(times):
        gtopk.init(transport="self")
        reducer = gtopk.Reducer([DIM])
        x = gradient()
        reducer.accumulate(0, x)
        reducer.reduce([x])
        reducer.close()
        gtopk.shutdown()


def check_growth(cycles):
    cycle(50)
    gc.collect()
    live, before = oom["live"](), resident_kib()
    cycle(cycles)
    gc.collect()
    assert oom["live"]() == live, f"{oom['live']() - live} blocks more after {cycles} reducers"
    grown = resident_kib() - before
    assert grown < 1024, f"{grown} KiB more after {cycles} reducers and communicators"


def main(cycles):
    failed = fail_each(Life.blocks, True)
    assert failed > 5
    for momentum in (False, True):
        count = fail_each(lambda life, momentum=momentum: life.reducer(momentum), False)
        assert count > 10
        failed += count
    check_growth(cycles)
    print(json.dumps({"allocations_failed": failed, "cycles": cycles}))


main(int(sys.argv[1]))
