"""Ranks of which one is killed in a step, and the others go on: elastic_ranks.py FOLDER CASE...

Each case is a run of four processes, forked from this one, so that PyTorch is imported once. What a rank had and did is saved
in FOLDER, as CASE-RANK.pt; test_elastic.py looks at it. The first case of each kind loses nobody, and is what the others are
compared with.
"""

from __future__ import annotations

import copy
import gc
import os
import re
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jobs import by_hand, free_port
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gtopk
import gtopk.torch.attach
from gtopk import _roll_call, elastic
from gtopk._torch_distributed import TorchDistributed
from gtopk.torch import broadcast, exchange
from gtopk.torch.ddp_hook import gtopk_hook, register_hook
from gtopk.torch.sameness import SameGradients

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "losing_a_rank" / "go_on.py"
RANKS = 4
FATAL = 5  # the step in which a rank dies; with local steps the last one of a period
STEPS = 40
LIMIT = 120.0


class Case(NamedTuple):
    """How to train, who dies, and when: before message `message` of the exchange in step FATAL, or after it. In step 0 messages
    are counted from where ranks compare their gradients.

    `second`: who is lost while the others find each other, where, and by which signal.
    """

    kind: type[torch.optim.Optimizer] = torch.optim.SGD
    lr: float = 0.05
    options: dict[str, Any] = {}  # noqa: RUF012
    momentum: float = 0.0
    victim: int | None = None
    message: int = -1  # -1: before the step
    after: bool = False
    step: int = FATAL
    ddp: bool = False
    second: tuple[int, str, int] | None = None


CORRECTED = Case(torch.optim.SGD, 0.02, {"momentum_correction": True, "value_type": "fp32"}, momentum=0.9)
LOCAL = Case(torch.optim.SGD, 0.05, {"local_steps": 3, "outer_momentum": 0.5, "residual_decay": 0.9})
NARROW = LOCAL._replace(options={**LOCAL.options, "start_dtype": "bf16"})
ADAM = Case(torch.optim.AdamW, 0.01, {"dense_1d": True})
CASES = {
    "calls": Case(),
    "example": Case(victim=0, second=(2, "", signal.SIGKILL)),
    "plain": Case(),
    "plain before": Case(victim=1),
    "plain first": Case(victim=0, message=0),
    "plain apart": Case(victim=3, message=1),
    "plain last": Case(victim=2, message=1, after=True),
    "plain early": Case(victim=3, message=5, step=0),
    "plain join": Case(victim=3, message=1, second=(1, "join", signal.SIGKILL)),
    "plain offer": Case(victim=3, message=1, second=(0, "join", signal.SIGKILL)),
    "plain broadcast": Case(victim=3, message=1, second=(0, "broadcast", signal.SIGKILL)),
    "plain stopped": Case(victim=3, message=1, second=(0, "join", signal.SIGSTOP)),
    "ddp": Case(ddp=True),
    "ddp apart": Case(ddp=True, victim=3, message=1),
    "node": Case(options={"hierarchy": "node"}),
    "node before": Case(options={"hierarchy": "node"}, victim=3),
    "node apart": Case(options={"hierarchy": "node"}, victim=3, message=2),
    "corrected": CORRECTED,
    "corrected apart": CORRECTED._replace(victim=3, message=1),
    "local": LOCAL,
    "local before": LOCAL._replace(victim=0),
    "local apart": LOCAL._replace(victim=3, message=1),
    "narrow": NARROW,
    "narrow before": NARROW._replace(victim=0),
    "narrow apart": NARROW._replace(victim=3, message=1),
    "adam": ADAM,
    "adam apart": ADAM._replace(victim=3, message=3),
    "adam last": ADAM._replace(victim=0, message=3, after=True),
}
for _algorithm, _message in (("gtopk-split", 3), ("gtopk-tree", 1), ("topk", 2), ("dense", 1), ("auto", 1)):
    _case = Case(options={"algorithm": _algorithm})
    CASES[_algorithm] = _case
    for _number in range(_message + 1):
        CASES[f"{_algorithm} {_number}"] = _case._replace(victim=3, message=_number)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lose_second(case: Case, rank: int) -> None:
    """Has this rank lost in the middle of regroup() or attach()."""
    if case.second is None or case.second[0] != rank:
        return
    _, where, number = case.second

    def lost(*_arguments):
        os.kill(os.getpid(), number)

    if where == "join":
        elastic.Meeting._join = lost
    else:
        broadcast._broadcast = lost


class Killer:
    """Ends this process at a message."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.armed = False
        self.sent: int | None = None  # messages of the fatal exchange
        reduce, look, send = exchange.reduce_together, SameGradients.look, TorchDistributed._exchange

        def look_first(*arguments):  # in the first step
            self.sent = 0 if self.armed and case.step == 0 else None
            return look(*arguments)

        def reduce_together(*arguments, **options):
            self.sent = 0 if self.armed else None
            return reduce(*arguments, **options)

        def counted(transport, *arguments):
            if self.sent is None:
                return send(transport, *arguments)
            mine, self.sent = self.sent, self.sent + 1
            if mine == case.message and not case.after:
                die()
            status = send(transport, *arguments)
            if mine == case.message:
                die()
            return status

        exchange.reduce_together, TorchDistributed._exchange = reduce_together, counted
        SameGradients.look = look_first

    def arm(self) -> None:
        self.armed = True
        if self.case.message < 0:
            die()


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 3))


def loss_of(model: nn.Module, teacher: nn.Module, seed: int, size: int = 32) -> torch.Tensor:
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        y = 3 * teacher(x)
    return nn.functional.mse_loss(model(x), y)


class Trained:
    """A model and its optimizer, which exchanges by itself or inside DistributedDataParallel."""

    def __init__(self, case: Case) -> None:
        self.model = network(2)
        momentum = {"momentum": case.momentum} if case.momentum else {}
        self.optimizer: Any = case.kind(self.model.parameters(), lr=case.lr, **momentum)
        options = {"density": 0.1, **case.options}
        self.ddp = self.state = None
        if case.ddp:
            self.ddp = DistributedDataParallel(self.model)
            self.state = register_hook(self.ddp, **options)
        else:
            self.optimizer = gtopk.DistributedOptimizer(self.optimizer, self.model.named_parameters(), **options)

    def attach(self) -> int:
        if self.state is None:
            try:
                return self.optimizer.attach()
            except gtopk.UnsupportedError as error:
                assert 'attach(hierarchy="off")' in str(error), error
                return self.optimizer.attach(hierarchy="off")
        self.ddp = None
        gc.collect()
        ahead = int(self.state.attach(self.optimizer))
        self.ddp = DistributedDataParallel(self.model)
        self.ddp.register_comm_hook(self.state, gtopk_hook)
        return ahead

    def backward(self, teacher: nn.Module, seed: int) -> None:
        """With DDP this is where gradients are exchanged."""
        self.optimizer.zero_grad()
        loss_of(self.ddp or self.model, teacher, seed).backward()

    def snapshot(self) -> dict[str, Any]:
        """A copy of what this rank has."""
        state = self.optimizer.state_dict()
        residual = (self.state.state_dict() if self.state else state["gtopk"]) or {"residual": {}, "velocity": {}}
        named = dict(self.model.named_parameters())
        return copy.deepcopy(
            {
                "parameters": {name: p.detach() for name, p in named.items()},
                "gradients": {name: None if p.grad is None else p.grad for name, p in named.items()},
                "state": state["state"],
                "residual": residual["residual"],
                "velocity": residual["velocity"],
                "start": residual.get("start", {}),
                "steps": residual.get("step", 0),
                "size": residual.get("size", 0),
            }
        )


def train(case: Case, rank: int) -> dict[str, Any]:
    killer = Killer(case) if rank == case.victim else None
    lose_second(case, rank)
    gtopk.init(timeout=30.0)
    teacher, trained = network(1), Trained(case)
    # Where one more is lost others wait that long for it, and those who are left must come to each other within it.
    wait = 20.0 if case.second is None else 2.0 if case.second[2] == signal.SIGSTOP else 4.0
    meeting = elastic.Meeting(wait=wait, min_ranks=2)
    found: dict[str, Any] = {"first loss": loss_of(trained.model, teacher, 0, 1000).item(), "before": {}, "after": {}}
    step, lost = 0, False
    while step < STEPS:
        try:
            if lost:
                meeting.regroup()
                ahead = trained.attach()
                step = gtopk.broadcast_object(step, ahead)
                lost, found["ahead"], found["attached"] = False, ahead, trained.snapshot()
            looked = step in (FATAL, FATAL + 1)
            if step == case.step and killer is not None:
                killer.arm()
            if not case.ddp:
                trained.backward(teacher, 1 + step * 100 + rank)
            if looked:
                found["before"][step] = trained.snapshot()
            if case.ddp:
                trained.backward(teacher, 1 + step * 100 + rank)
            trained.optimizer.step()
            step += 1
            if looked:
                found["after"][step - 1] = trained.snapshot()
        except elastic.LOST as error:
            lost, found["error"], found["failed"] = True, repr(error), trained.snapshot()
    if "local_steps" in case.options:
        trained.optimizer.synchronize()
    found["end"] = trained.snapshot()
    found["last loss"] = loss_of(trained.model, teacher, 0, 1000).item()
    found["rank"], found["size"] = gtopk.rank(), gtopk.size()
    meeting.close()
    return found


def run_example() -> None:
    sys.path.insert(0, str(EXAMPLE.parent))
    sys.argv = [str(EXAMPLE), "--lose", "0", "30", "--lose", "2", "70"]
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def calls(rank: int) -> None:
    """What needs no loss: arguments, errors on all ranks, reducers; and a group that is made anew with everybody in it."""
    gtopk.init(timeout=30.0)
    everybody = list(range(RANKS))
    for options, text in (({"wait": 0}, "wait is 0"), ({"min_ranks": 5}, "min_ranks is 5")):
        raises(gtopk.InvalidError, text, lambda: elastic.Meeting(**options))  # noqa: B023
    reaches, _roll_call.reaches = _roll_call.reaches, lambda address: rank != 3 or address[0] != "elsewhere"
    raises(
        gtopk.MismatchError,
        "rank 3, .*does not reach rank 0 at elsewhere",
        lambda: elastic.Meeting(host="elsewhere"),
        but={3},
    )
    _roll_call.reaches = reaches
    raises(gtopk.MismatchError, "failed on rank 1", lambda: elastic.Meeting(wait=5.0 if rank != 1 else -1.0), but={1})
    meeting = elastic.Meeting(wait=20.0)
    meeting._check_enough([0, 1, 3], 20.0)
    raises(gtopk.StateError, r"only \[0, 2\] came within 20 s", lambda: meeting._check_enough([0, 2], 20.0))

    trained, teacher = Trained(Case()), network(1)

    def step(seed):
        trained.backward(teacher, seed + rank)
        trained.optimizer.step()

    step(10)
    attach, session = trained.optimizer.attach, trained.optimizer._gtopk.session
    raises(gtopk.InvalidError, "hierarchy is 'none'", lambda: attach(hierarchy="none"))
    raises(gtopk.MismatchError, "give the same on every rank", lambda: attach(hierarchy="off" if rank else "node"))
    trained.backward(teacher, 20 + rank)
    trained.optimizer.synchronize()
    raises(gtopk.StateError, r"finish the step first", attach)
    with trained.optimizer.skip_synchronize():
        trained.optimizer.step()
    session.steps += 2 if rank == 2 else 0
    raises(
        gtopk.DesyncError,
        "rank 0 has done 2 steps .* rank 2 4 steps|rank 0 has done 2 steps of run .*, rank 2 4",
        attach,
    )
    session.steps -= 2 if rank == 2 else 0

    had = trained.snapshot()
    meeting.regroup()
    assert (gtopk.rank(), gtopk.size(), meeting._ranks) == (rank, RANKS, everybody)
    with_old = raises(gtopk.StateError, "this communicator was closed", lambda: step(30))
    trained.optimizer._gtopk.session.sums = True  # as of hvd.Sum
    assert attach() == 0, with_old
    assert trained.optimizer._gtopk.multiplier == RANKS
    trained.optimizer._gtopk.session.sums = False
    for name, residual in trained.snapshot()["residual"].items():
        assert torch.equal(residual, had["residual"][name] + had_gradient(trained, name)), name
    step(40)
    assert session.steps == 3

    call_reducers(rank)
    meeting.close()
    meeting.close()


def had_gradient(trained: Trained, name: str) -> Any:
    """Nothing: a step that was refused has accumulated nothing."""
    return torch.zeros_like(dict(trained.model.named_parameters())[name])


def call_reducers(rank: int) -> None:
    options = {"density": 0.25, "value_type": "fp32", "momentum_correction": True}
    reducer = gtopk.Reducer([6, 2], **options)
    reducer.set_momentum(0.5)
    gradients = [torch.arange(1.0, 7.0) + rank, torch.tensor([0.5, 8.0])]
    for segment, gradient in enumerate(gradients):
        reducer.accumulate(segment, gradient)
    reducer.reduce([torch.empty(6), torch.empty(2)])
    reducer.set_density(0.5)
    had = [(reducer.residual(s), reducer.velocity(s)) for s in range(2)]
    reducer.accumulate(0, torch.ones(6))  # of a step that a loss would have ended
    reducer._done += rank == 2
    assert reducer.attach() == 2
    assert reducer.density == 0.5
    for segment, (residual, velocity) in enumerate(had):
        moved = 0.5 * velocity + 1 if segment == 0 else velocity
        assert torch.equal(reducer.velocity(segment), moved)
        assert torch.equal(reducer.residual(segment), residual + moved if segment == 0 else residual)
    before = gtopk.allreduce(torch.cat([reducer.residual(s) for s in range(2)]), gtopk.Sum)
    update = [torch.empty(6), torch.empty(2)]
    assert reducer.reduce(update)["k"] == 4
    after = gtopk.allreduce(torch.cat([reducer.residual(s) for s in range(2)]), gtopk.Sum)
    torch.testing.assert_close(after + RANKS * torch.cat(update), before)
    other = gtopk.Reducer([6], hierarchy="node")
    raises(gtopk.UnsupportedError, "of a reducer with a hierarchy", other.attach)
    raises(gtopk.MismatchError, "attach", (other if rank == 3 else reducer).attach, but={3})


def raises(kind: Any, text: str, call: Any, but: set[int] = frozenset()) -> str:  # type: ignore[assignment]
    """The text of the error; on ranks `but` it is another one."""
    try:
        call()
    except gtopk.GtopkError as error:
        assert gtopk.rank() in but or (isinstance(error, kind) and re.search(text, str(error))), error
        return str(error)
    raise AssertionError(f"no error: {text}")


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
                os.environ.update(by_hand(rank, RANKS, port), GTOPK_NODE=f"node-{rank // 2}")
                if name == "calls":
                    calls(rank)
                elif name == "example":
                    run_example()
                else:
                    torch.save(train(case, rank), folder / f"{name}-{rank}.pt")
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        processes[pid] = rank
    lost = {case.victim, case.second and case.second[0]}
    end = time.monotonic() + LIMIT
    while set(processes.values()) - lost:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            rank = processes.pop(pid)
            wanted = -signal.SIGKILL if rank in lost else 0
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
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(f"{name}: done", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in (torch.optim.SGD, torch.optim.AdamW):  # what PyTorch imports when it is first used
        kind(network(0).parameters()).step()
    gc.freeze()
    for one in sys.argv[2:]:
        run(one, Path(sys.argv[1]))
