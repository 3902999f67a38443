"""Ranks of mpirun --with-ft ulfm: one after the other is killed at a random moment, and the others go on.

elastic_mpi_rank.py SEED KIND, on five ranks of which two are left; KIND mpi4py: on any number, of which the last one dies,
and the group of those who are left is made by mpi4py.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import threading
from typing import Any

import torch
from elastic_ranks import Case, Trained, loss_of, network

import gtopk
from gtopk import elastic

LEFT = 2
MORE = 40  # steps, after the last loss

CASES = {
    "gtopk": Case(),
    "dense": Case(options={"algorithm": "dense"}),
    "topk": Case(options={"algorithm": "topk"}),
    "gtopk-split": Case(options={"algorithm": "gtopk-split"}),
    "auto": Case(options={"algorithm": "auto"}),
    "corrected": Case(lr=0.02, options={"momentum_correction": True, "value_type": "fp32"}, momentum=0.9),
    "local": Case(options={"local_steps": 3, "outer_momentum": 0.5}),
    "narrow": Case(options={"local_steps": 3, "outer_momentum": 0.5, "start_dtype": "bf16"}),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def digest(model: torch.nn.Module) -> str:
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def check_same(trained: Trained, what: str) -> None:
    found = gtopk.broadcast_object(digest(trained.model), 0)
    assert found == digest(trained.model), f"rank {gtopk.rank()} of {gtopk.size()}: other parameters {what}"


def held(trained: Trained) -> torch.Tensor:
    """The residual, as one vector, and no more where there is none yet."""
    residual = trained.snapshot()["residual"]
    flat = torch.cat([value.double().flatten() for value in residual.values()])
    return gtopk.allreduce(flat, gtopk.Sum)


def check_mass(trained: Trained, teacher: torch.nn.Module) -> None:
    """A step of SGD: what residuals and gradients were is what residuals are, and so many times the update."""
    before = held(trained)
    trained.backward(teacher, gtopk.rank())
    given = torch.cat([p.grad.double().flatten() for p in trained.model.parameters()])
    total = before + gtopk.allreduce(given, gtopk.Sum)
    trained.optimizer.synchronize()
    update = torch.cat([p.grad.double().flatten() for p in trained.model.parameters()])
    torch.testing.assert_close(held(trained) + gtopk.size() * update, total, rtol=0, atol=1e-5)
    with trained.optimizer.skip_synchronize():
        trained.optimizer.step()


def train(seed: int, kind: str) -> None:
    gtopk.init(timeout=30.0)
    chance = random.Random(seed)  # the same on all ranks
    first = gtopk.rank()
    teacher, trained = network(1), Trained(CASES[kind])
    meeting = elastic.Meeting(wait=20.0)
    started_at = loss_of(trained.model, teacher, 0, 1000).item()
    alive = list(range(gtopk.size()))
    doomed: dict[int, tuple[int, float]] = {}
    for size in range(gtopk.size(), LEFT, -1):
        victim = alive.pop(chance.randrange(len(alive)))
        doomed[size] = (victim, chance.uniform(0.0, 0.06))
    step, more, lost, armed = 0, 0, False, False
    while gtopk.size() > LEFT or more < MORE:
        try:
            if lost:
                meeting.regroup()
                ahead = trained.attach()
                step, more = gtopk.broadcast_object((step, 0), ahead)
                lost = armed = False
                if "local_steps" not in CASES[kind].options:  # which has other weights within a period
                    check_same(trained, "after attach()")
                if kind in ("gtopk", "dense", "topk", "gtopk-split"):
                    check_mass(trained, teacher)
            trained.backward(teacher, 1 + step * 100 + gtopk.rank())
            trained.optimizer.step()
            step, more = step + 1, more + 1
            if step % 20 == 0 and "local_steps" not in CASES[kind].options:
                check_same(trained, f"at step {step}")
            if more == 3 and not armed and doomed.get(gtopk.size(), (-1, 0))[0] == first:
                threading.Timer(doomed[gtopk.size()][1], die).start()
                armed = True
        except elastic.LOST:
            lost = True
    trained.optimizer.synchronize()
    check_same(trained, "at the end")
    ended_at = loss_of(trained.model, teacher, 0, 1000).item()
    assert ended_at < 0.5 * started_at, (started_at, ended_at)
    meeting.close()
    gtopk.shutdown()
    print(f"rank {first}: done", flush=True)


def by_mpi4py() -> None:
    """The same by hand, with a communicator of the user's."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    gtopk.init(timeout=30.0)
    first, size = gtopk.rank(), gtopk.size()
    teacher, trained = network(1), Trained(CASES["gtopk"])
    try:
        for step in range(10):
            trained.backward(teacher, 1 + step * 100 + first)
            if step == 5 and first == size - 1:
                die()
            trained.optimizer.step()
        raise AssertionError("no error")
    except elastic.LOST:
        gtopk.shutdown()
    left: Any = MPI.COMM_WORLD.Shrink()
    comm = gtopk.Comm(transport="mpi", mpi_comm=MPI._addressof(left), timeout=30.0)
    assert (comm.rank, comm.size) == (left.rank, size - 1)
    ahead = trained.optimizer.attach(comm)
    assert 0 <= ahead < comm.size
    for step in range(20):
        trained.backward(teacher, 7 + step * 100 + comm.rank)
        trained.optimizer.step()
    found = comm.broadcast_object(digest(trained.model), 0)
    assert found == digest(trained.model)
    print(f"rank {first}: done", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "mpi4py":
        by_mpi4py()
        sys.stdout.flush()
        os._exit(0)  # MPI_Finalize, which mpi4py calls, may wait for the rank that is lost
    train(int(sys.argv[1]), sys.argv[2])
