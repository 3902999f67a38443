"""torch.distributed as the transport: groups, deadlines, tensor types that numpy does not have."""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.distributed as dist
from harness import assert_same_on_all_ranks, raises

import gtopk
from gtopk import comm


def case_it_is_torch_distributed():
    assert comm.current().transport == "torch"
    assert "gloo" in comm.current().description
    assert dist.is_initialized()
    assert (gtopk.rank(), gtopk.size()) == (dist.get_rank(), dist.get_world_size())


def case_bfloat16():
    x = torch.full((4,), float(gtopk.rank() + 1), dtype=torch.bfloat16)
    out = gtopk.allreduce(x, op=gtopk.Sum)
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [sum(range(1, gtopk.size() + 1))] * 4
    assert gtopk.allgather(x).dtype == torch.bfloat16
    assert (gtopk.broadcast(x, 1) == 2).all()
    with gtopk.Reducer([64], density=1.0, value_type="fp32") as reducer:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            grad = torch.full((8, 8), float(gtopk.rank()), dtype=dtype)
            reducer.accumulate(0, grad, zero_input=True)
            assert not grad.any()
            reducer.reduce([grad], outputs_are_zero=True)
            assert_same_on_all_ranks(grad.float().cpu().numpy())
            assert (grad == torch.tensor((gtopk.size() - 1) / 2, dtype=dtype)).all()


def case_parameters_that_need_gradients():
    x = torch.full((3,), float(gtopk.rank()), requires_grad=True)
    gtopk.broadcast_(x, 1)
    assert x.tolist() == [1.0] * 3
    assert x.requires_grad
    channels_last = torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) + gtopk.rank()
    gtopk.broadcast_(channels_last, 1)
    assert (channels_last == torch.arange(24.0).reshape(1, 2, 3, 4) + 1).all()
    raises(gtopk.UnsupportedError, gtopk.allreduce(x).sum().backward, "which has no gradient")
    with torch.no_grad():
        assert not gtopk.allreduce(x).requires_grad


def case_a_group_of_some_ranks():
    members = [r for r in range(dist.get_world_size()) if r != 1]
    group = dist.new_group(members, backend="gloo")
    if dist.get_rank() in members:
        with gtopk.Comm(transport="torch", group=group) as some:
            assert some.size == len(members)
            assert some.rank == members.index(dist.get_rank())
            assert some.local_rank == some.rank
            assert some.allgather(torch.tensor([dist.get_rank()])).tolist() == members
            with gtopk.Reducer([100], density=0.1, comm=some) as reducer:
                reducer.accumulate(0, torch.randn(100))
                indices, values = reducer.reduce_sparse()
                assert indices.dtype == torch.uint32
                assert len(values) == 10
    else:
        raises(gtopk.InvalidError, lambda: gtopk.Comm(transport="torch", group=group))


def case_a_silent_peer_is_an_error_by_the_deadline():
    """Rank 0 stays away; the group is ended, so that whoever comes late is told at once. The default communicator is
    another group and goes on."""
    silent = gtopk.Comm(transport="torch", timeout=1.0, setup_timeout=120.0)
    if gtopk.rank() == 0:
        gtopk.barrier()  # until the others have given up
    begin = time.monotonic()
    error = raises((gtopk.DeadlineError, gtopk.AbortedError, gtopk.TransportError), silent.barrier)
    assert time.monotonic() - begin < 60
    if gtopk.rank() > 0:
        gtopk.barrier()
    # Of those who waited one came to the deadline first, and the others may have heard of that.
    assert isinstance(error, TimeoutError) == isinstance(error, gtopk.DeadlineError), repr(error)
    assert gtopk.allgather(np.array([gtopk.rank() > 0 and isinstance(error, gtopk.DeadlineError)])).any(), repr(error)
    again = raises(gtopk.GtopkError, silent.barrier)
    assert str(error) in str(again)
    silent.close()
    gtopk.barrier()


def case_end_and_begin_again():
    assert np.array_equal(gtopk.allgather(np.array([1])), np.ones(gtopk.size()))
    dist.barrier()
    weight = torch.ones(100, requires_grad=True)
    optimizer = gtopk.DistributedOptimizer(torch.optim.SGD([weight], lr=1.0))
    weight.grad = torch.ones(100)
    optimizer.step()
    gtopk.shutdown()
    raises(gtopk.StateError, gtopk.rank, "gtopk.init()")
    weight.grad = torch.ones(100)
    raises(gtopk.StateError, optimizer.step, "distributed optimizers")
    assert (weight.grad == 1).all()
    gtopk.init()
    raises(gtopk.StateError, optimizer.step, "distributed optimizers")
    assert gtopk.size() > 1
