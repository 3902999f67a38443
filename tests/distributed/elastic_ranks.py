"""Ranks of which one is killed in a step, and the others go on: elastic_ranks.py FOLDER CASE...

Each case is a run of four processes, forked from this one, so that PyTorch is imported once. What a rank had and did is saved
in FOLDER, as CASE-RANK.pt; test_elastic.py looks at it. A case without a death is what the others are compared with.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jobs import by_hand, free_port
from torch import nn

import gtopk
from gtopk import elastic
from gtopk._torch_distributed import TorchDistributed

RANKS = 4
FATAL = 6  # the step in which a rank dies
STEPS = 40
LIMIT = 120.0


class Case(NamedTuple):
    """How to train, who dies, and when: before its message number `message` in step FATAL, or after it."""

    kind: type[torch.optim.Optimizer] = torch.optim.SGD
    lr: float = 0.05
    options: dict[str, Any] = {}  # noqa: RUF012
    victim: int | None = None
    message: int = -1  # -1: before the step
    after: bool = False


LOCAL = {"local_steps": 3, "outer_momentum": 0.5}
CASES = {
    "plain": Case(),
    "plain before": Case(victim=1),
    "plain first": Case(victim=0, message=0),
    "plain apart": Case(victim=3, message=1),
    "plain last": Case(victim=2, message=1, after=True),
    "adam": Case(torch.optim.AdamW, 0.005, {"value_type": "fp32", "dense_1d": True}),
    "adam apart": Case(torch.optim.AdamW, 0.005, {"value_type": "fp32", "dense_1d": True}, victim=3, message=3),
}


class Killer:
    """Ends this process at a message."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.sent = -1  # in the fatal step; -1: not in it
        original = TorchDistributed._exchange

        def exchange(transport, *arguments):
            mine = self.sent
            if mine >= 0:
                self.sent += 1
            if mine == case.message and mine >= 0 and not case.after:
                os.kill(os.getpid(), signal.SIGKILL)
            status = original(transport, *arguments)
            if mine == case.message and mine >= 0 and case.after:
                os.kill(os.getpid(), signal.SIGKILL)
            return status

        TorchDistributed._exchange = exchange

    def arm(self) -> None:
        self.sent = 0
        if self.case.message < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 3))


def loss_of(model: nn.Module, teacher: nn.Module, seed: int, size: int = 32) -> torch.Tensor:
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        y = 3 * teacher(x)
    return nn.functional.mse_loss(model(x), y)


def snapshot(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """A copy of what this rank has."""
    state = optimizer.state_dict()
    own = {k: {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in e.items()} for k, e in state["state"].items()}
    return {
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "state": own,
        "residual": {name: r.clone() for name, r in state["gtopk"]["residual"].items()},
        "velocity": {name: v.clone() for name, v in state["gtopk"]["velocity"].items()},
        "steps": state["gtopk"]["step"],
        "size": state["gtopk"]["size"],
    }


def train(case: Case, rank: int) -> dict[str, Any]:
    killer = Killer(case) if rank == case.victim else None
    gtopk.init(timeout=30.0)
    teacher, model = network(1), network(2)
    optimizer = case.kind(model.parameters(), lr=case.lr)
    optimizer = gtopk.DistributedOptimizer(optimizer, model.named_parameters(), **{"density": 0.1, **case.options})
    meeting = elastic.Meeting(wait=20.0, min_ranks=1)
    found: dict[str, Any] = {"first loss": loss_of(model, teacher, 0, 1000).item()}
    step, lost = 0, False
    while step < STEPS:
        try:
            if lost:
                start = time.monotonic()
                meeting.regroup()
                found["regroup seconds"] = time.monotonic() - start
                ahead = optimizer.attach()
                step = gtopk.broadcast_object(step, ahead)
                lost, found["ahead"], found["attached"] = False, ahead, snapshot(model, optimizer)
            optimizer.zero_grad()
            loss_of(model, teacher, 1 + step * 100 + rank).backward()
            if step == FATAL and case.victim is None:
                found["before"] = snapshot(model, optimizer)
            if step == FATAL and killer is not None:
                killer.arm()
            optimizer.step()
            step += 1
            if step == FATAL + 1 and case.victim is None:
                found["after"] = snapshot(model, optimizer)
        except elastic.LOST as error:
            lost, found["error"], found["failed"] = True, repr(error), snapshot(model, optimizer)
    found["end"] = snapshot(model, optimizer)
    found["last loss"] = loss_of(model, teacher, 0, 1000).item()
    found["rank"], found["size"] = gtopk.rank(), gtopk.size()
    meeting.close()
    return found


def run(name: str, folder: Path) -> None:
    """All ranks of a case, each in a process of its own."""
    case, port = CASES[name], free_port()
    sys.stdout.flush()
    processes = {}
    for rank in range(RANKS):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.environ.update(by_hand(rank, RANKS, port))
                torch.save(train(case, rank), folder / f"{name}-{rank}.pt")
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        processes[pid] = rank
    end = time.monotonic() + LIMIT
    while processes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            rank = processes.pop(pid)
            wanted = -signal.SIGKILL if rank == case.victim else 0
            if os.waitstatus_to_exitcode(status) != wanted:
                print(f"{name}: rank {rank} ended with {os.waitstatus_to_exitcode(status)}, not {wanted}", flush=True)
            continue
        if time.monotonic() > end:
            for pid in processes:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            print(f"{name}: ranks {sorted(processes.values())} did not end within {LIMIT} s", flush=True)
            return
        time.sleep(0.01)
    print(f"{name}: done", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in sys.argv[2:]:
        run(one, Path(sys.argv[1]))
