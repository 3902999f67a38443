"""gtopk.horovod: Horovod's names do what Horovod's documentation says."""

from __future__ import annotations

import warnings

import torch
from cases_torch_optimizer import assert_replicas, flat, mean_gradients
from harness import raises
from torch import optim
from torch_support import batch, loss_of, make, train

import gtopk
import gtopk.horovod as hvd


def case_horovod_functions():
    hvd.init()
    rank, size = hvd.rank(), hvd.size()
    assert (rank, size, hvd.local_rank()) == (gtopk.rank(), gtopk.size(), gtopk.local_rank())
    assert hvd.local_size() == size
    assert hvd.is_initialized()
    assert hvd.mpi_enabled() != hvd.gloo_enabled()
    assert not hvd.nccl_built()
    x = torch.tensor([float(rank)])
    total = size * (size - 1) / 2
    assert hvd.allreduce(x, name="x").item() == total / size
    assert hvd.allreduce(x, op=hvd.Sum).item() == total
    assert hvd.allreduce(x, average=False).item() == total
    assert hvd.allreduce(x, op=hvd.Sum, prescale_factor=2.0, postscale_factor=3.0).item() == 6 * total
    assert hvd.allreduce(torch.tensor(1.5), name="loss").shape == ()
    assert hvd.allreduce_(x, op=hvd.Sum) is x and x.item() == total
    assert hvd.allgather(torch.tensor([rank]), name="ranks").tolist() == list(range(size))
    assert hvd.allgather_object({"rank": rank}) == [{"rank": r} for r in range(size)]
    assert hvd.broadcast(torch.tensor(rank), root_rank=1, name="epoch").item() == 1
    assert hvd.broadcast_(torch.tensor([rank]), 1).item() == 1
    assert hvd.broadcast_object([rank], root_rank=1, name="list") == [1]
    hvd.barrier()
    assert hvd.allreduce(torch.tensor([rank, -1])).tolist() == [int(total) // size, -1]
    assert hvd.allreduce(torch.tensor([rank]), average=False).item() == total
    loss = torch.ones(1, requires_grad=True) * (rank + 1)
    for call in (gtopk.allreduce, gtopk.allgather, gtopk.broadcast, hvd.allreduce):
        result = call(loss)
        assert result.max().item() >= 1
        raises(gtopk.UnsupportedError, result.sum().backward, "which has no gradient", "detach()")
    weight = torch.full((1,), float(rank), requires_grad=True)
    assert hvd.allreduce_(weight) is weight and weight.item() == total / size
    for name in ("Adasum", "alltoall", "ProcessSet", "elastic", "allreduce_async"):
        raises(gtopk.UnsupportedError, lambda name=name: getattr(hvd, name), f"has no {name}")
    raises(AttributeError, lambda: hvd.nothing_of_that_name)


def case_horovod_optimizer():
    for op, compression in ((hvd.Average, hvd.Compression.none), (hvd.Sum, hvd.Compression.fp16)):
        model, plain = make(), make()
        optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        optimizer = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=model.named_parameters(),
            compression=compression,
            backward_passes_per_step=1,
            op=op,
            gradient_predivide_factor=1.0,
            density=1.0,
        )
        reference = optim.SGD(plain.parameters(), lr=0.01, momentum=0.5)
        for step in range(3):
            train(model, optimizer, 1, step, hvd.rank())
            mean_gradients(plain, step)
            if op is hvd.Sum:
                for p in plain.parameters():
                    p.grad *= hvd.size()
            reference.step()
        assert_replicas(model)
        # Values travel as bf16 or fp16; what is rounded off comes later.
        torch.testing.assert_close(flat(model.parameters()), flat(plain.parameters()), rtol=0.05, atol=2e-3)


def case_horovod_step_after_synchronize():
    """Exchanges once, and warns."""
    model, other = make(), make()
    optimizers = [
        hvd.DistributedOptimizer(optim.SGD(m.parameters(), lr=0.01), named_parameters=m.named_parameters(), density=0.5)
        for m in (model, other)
    ]
    for step in range(3):
        for m, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(m, batch(step, hvd.rank())).backward()
            optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_(m.parameters(), 0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizers[0].step()
        assert ["skip_synchronize" in str(warning.message) for warning in caught] == [True], caught
        with optimizers[1].skip_synchronize():
            optimizers[1].step()
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))
    assert optimizers[0].stats()["step"] == 2
    assert_replicas(model)


def case_horovod_join():
    model = make()
    optimizer = hvd.DistributedOptimizer(
        optim.SGD(model.parameters(), lr=0.01), named_parameters=model.named_parameters()
    )
    hvd._Job.optimizers.clear()
    hvd._Job.optimizers.add(optimizer)
    for step in range(2 if hvd.rank() == 0 else 1):
        optimizer.zero_grad()
        loss_of(model, batch(step, hvd.rank())).backward()
        optimizer.step()
    assert hvd.join() == 0


def case_horovod_arguments_that_are_not_supported():
    optimizer = optim.SGD(make().parameters(), lr=0.01)
    for options, word in (
        ({"op": "adasum"}, "hvd.Average"),
        ({"sparse_as_dense": True}, "sparse=False"),
        ({"process_set": object()}, "process sets"),
        ({"op": hvd.Sum, "gradient_predivide_factor": 2.0}, "Average"),
    ):
        raises(gtopk.GtopkError, lambda options=options: hvd.DistributedOptimizer(optimizer, **options), word)
