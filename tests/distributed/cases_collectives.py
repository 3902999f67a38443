"""Set-up and collectives of the Python API on every rank."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from harness import as_numpy, assert_same_on_all_ranks, given, raises

import gtopk
from gtopk import comm


def mine(*shape, dtype=np.float32):
    return (np.arange(np.prod(shape, dtype=int)).reshape(shape) + 100 * gtopk.rank()).astype(dtype)


def case_ranks_are_numbered():
    assert 0 <= gtopk.rank() < gtopk.size()
    assert (gtopk.allgather(np.array([gtopk.rank()])) == np.arange(gtopk.size())).all()
    assert gtopk.local_rank() == gtopk.rank()  # the tests run on one host
    before = comm.current()
    gtopk.init()
    assert comm.current() is before
    raises(gtopk.StateError, lambda: gtopk.init(transport="self"), "shutdown")


def case_allreduce_of_floats():
    for dtype in (np.float32, np.float64, np.float16):
        x = mine(3, 4, dtype=dtype)
        kept = x.copy()
        for op, divisor in ((gtopk.Sum, 1), (gtopk.Average, gtopk.size())):
            expected = sum(np.arange(12).reshape(3, 4) + 100.0 * r for r in range(gtopk.size())) / divisor
            out = as_numpy(gtopk.allreduce(given(x), op=op))
            assert out.dtype == dtype
            assert out.shape == (3, 4)
            assert np.allclose(out, expected, rtol=1e-3 if dtype == np.float16 else 1e-6)
            assert_same_on_all_ranks(out)
        assert (x == kept).all()
    assert as_numpy(gtopk.allreduce(given(np.array(2.0)))).shape == ()
    assert (
        as_numpy(gtopk.allreduce(given(mine(4, 6)[:, ::2]))) == as_numpy(gtopk.allreduce(given(mine(4, 6))))[:, ::2]
    ).all()


def case_allreduce_of_integers_is_exact():
    big = 2**53 + 1
    out = as_numpy(gtopk.allreduce(given(np.array([big, gtopk.rank()], np.int64)), op=gtopk.Sum))
    assert out.dtype == np.int64
    assert out[0] == big * gtopk.size()
    assert out[1] == sum(range(gtopk.size()))
    raises(gtopk.InvalidError, lambda: gtopk.allreduce(given(np.array([1]))), "gtopk.Sum")
    raises(gtopk.InvalidError, lambda: gtopk.allreduce(given(np.array([True]))))
    raises(gtopk.InvalidError, lambda: gtopk.allreduce(given(np.array([1.0])), op="sum"))


def case_allgather_joins_along_the_first_dimension():
    out = as_numpy(gtopk.allgather(given(mine(2, 3))))
    assert out.shape == (2 * gtopk.size(), 3)
    assert (out[2 * gtopk.rank() : 2 * gtopk.rank() + 2] == mine(2, 3)).all()
    rows = gtopk.rank()  # rank 0 has none
    ragged = as_numpy(gtopk.allgather(given(np.full((rows, 2), rows, np.int32))))
    expected = np.concatenate([np.full((r, 2), r, np.int32) for r in range(gtopk.size())])
    assert ragged.dtype == np.int32
    assert (ragged == expected).all()
    assert (as_numpy(gtopk.allgather(given(np.array(gtopk.rank() + 0.5)))) == np.arange(gtopk.size()) + 0.5).all()


def case_allgather_of_different_layouts_is_an_error_on_every_rank():
    odd = gtopk.rank() == gtopk.size() - 1
    raises(gtopk.MismatchError, lambda: gtopk.allgather(given(mine(2, 4 if odd else 3))), "rank")
    raises(
        gtopk.MismatchError, lambda: gtopk.allgather(given(mine(2, dtype=np.int32 if odd else np.float32))), "float32"
    )


class Unreadable:
    def __reduce__(self):
        raise OSError("no such disk")


class Unloadable:
    def __reduce__(self):
        return (int, ("not a number",))


def case_wrong_arguments_of_one_rank_are_an_error_on_all():
    """At once, with its number; and everything goes on after it."""
    last = gtopk.size() - 1
    odd = gtopk.rank() == last
    here = (gtopk.InvalidError, TypeError, OSError, ValueError, AttributeError)
    calls = (
        lambda: gtopk.allreduce(given(np.array([True if odd else 1.0]))),
        lambda: gtopk.allreduce(given(mine(2)), op="sum" if odd else gtopk.Sum),
        lambda: gtopk.allreduce("a text" if odd else given(mine(2))),
        lambda: gtopk.allgather([1, 2] if odd else given(mine(2))),
        lambda: gtopk.broadcast(None if odd else given(mine(2))),
        lambda: gtopk.broadcast_([1] if odd else given(mine(2))),
        lambda: gtopk.broadcast(given(mine(2)), 99 if odd else 0),
        lambda: gtopk.broadcast_object(Unreadable() if odd else None, last),
    )
    for call in calls:
        error = raises(here if odd else gtopk.MismatchError, call)
        assert odd or f"failed on rank {last}, so it was not done on any" in str(error), error
    # What cannot be loaded is one rank's affair, too.
    error = raises((*here, gtopk.MismatchError), lambda: gtopk.broadcast_object(Unloadable(), 0))
    assert isinstance(error, gtopk.MismatchError) == (gtopk.rank() == 0), error


def case_different_types_and_shapes_are_an_error_on_every_rank():
    odd = gtopk.rank() == gtopk.size() - 1
    ints, floats = mine(2, 3, dtype=np.int32), mine(2, 3)
    for call in (gtopk.broadcast, gtopk.broadcast_, gtopk.allreduce):
        raises(
            gtopk.MismatchError, lambda call=call: call(given(mine(3, 2) if odd else mine(2, 3))), "[2, 3]", "[3, 2]"
        )
    for call in (gtopk.broadcast, gtopk.broadcast_, lambda x: gtopk.allreduce(x, op=gtopk.Sum)):
        raises(gtopk.MismatchError, lambda call=call: call(given(ints if odd else floats)), "int32", "float32")
    raises(gtopk.MismatchError, lambda: gtopk.allreduce(given(floats), gtopk.Sum if odd else gtopk.Average), "sum")
    raises(gtopk.MismatchError, lambda: gtopk.broadcast(given(floats), int(odd)), "give the same on every rank")
    both = raises(
        gtopk.MismatchError, lambda: gtopk.broadcast(given(floats)) if odd else gtopk.allreduce(given(floats))
    )
    assert "rank 0 calls allreduce" in str(both), both
    assert (ints == mine(2, 3, dtype=np.int32)).all()


def case_broadcast():
    for root in range(gtopk.size()):
        x = mine(2, 3)
        out = as_numpy(gtopk.broadcast(given(x), root))
        assert (out == mine(2, 3) + 100 * (root - gtopk.rank())).all()
        assert (x == mine(2, 3)).all()
    x = mine(3, 4)
    assert gtopk.broadcast_(given(x[:, ::2]), 1) is not None
    assert (x[:, ::2] == (mine(3, 4) + 100 * (1 - gtopk.rank()))[:, ::2]).all()
    assert (x[:, 1::2] == mine(3, 4)[:, 1::2]).all()
    raises(gtopk.InvalidError, lambda: gtopk.broadcast(given(x), gtopk.size()), "root rank")
    raises(gtopk.InvalidError, lambda: gtopk.broadcast(given(x), -1))


def case_broadcast_object():
    root = gtopk.size() - 1
    obj = {"epoch": 3, "names": ["a", "b"], "rank": gtopk.rank()}
    assert gtopk.broadcast_object(obj, root)["rank"] == root
    assert gtopk.broadcast_object(None, 0) is None
    large = gtopk.broadcast_object(b"x" * 1_000_000 if gtopk.rank() == 0 else None)
    assert large == b"x" * 1_000_000


def case_values_for_comparing():
    texts = comm.current().allgather_json({"name": "x" * gtopk.rank()})
    assert texts == [{"name": "x" * r} for r in range(gtopk.size())]


def case_a_subprocess_is_no_rank():
    """It inherits the launcher's variables, and would be this rank a second time."""
    if gtopk.rank() > 0:
        return
    for call, status in (("gtopk.init()", 1), ('gtopk.init(transport="self")', 0)):
        command = [sys.executable, "-c", f"import gtopk; {call}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == status, done.stderr
        assert ("StateError: this process was started by rank 0" in done.stderr) == (status == 1), done.stderr


def case_many_communicators():
    for _ in range(3):
        other = gtopk.Comm(transport=comm.current().transport)
        assert (other.rank, other.size) == (gtopk.rank(), gtopk.size())
        assert (other.allgather(np.array([other.rank])) == np.arange(other.size)).all()
        other.barrier()
        other.close()
        raises(gtopk.StateError, other.barrier, "closed")
