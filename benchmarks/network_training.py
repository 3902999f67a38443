"""Seconds until a training reaches a loss, over emulated networks: DDP over gloo beside gtopk. Needs root, but for `local`.

    make bench-network-training ARGS="--case 4:100mbit --minutes 60"

A case is RANKS:RATE, a rank a host (cluster/cluster.sh); RATE `local` is this machine's loopback, unshaped. In each, two
tasks are trained: ResNet-20 on Fashion-MNIST with SGD, and the transformer of characters.py with AdamW. All methods of
a task begin with the same weights and see the same batches in the same order; all go over gloo. The clock stands still while
the loss on held-out data is measured. `bytes` are what the interface of a host has sent, in the mean over the hosts.
`alone_ms` is a step without any exchange, measured in the same processes: ranks share this machine's cores.

A training's entry in the file (--out) is written when it has ended, and what is there is skipped: start it again to go on.
A loss to be reached is what dense training (`DDP`) reaches after a part of its way from guessing to its last loss.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import characters
import torch
import torch.distributed as dist
from network_bench import call_cluster, run_to_end
from network_gloo import highest
from optimizer_curves import RESULTS, WARMUP_STEPS, learning_rate, make_optimizer
from optimizer_runs import EVERY_SECOND, LOCAL, STEPS, Run
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import gtopk
from gtopk.torch.ddp_hook import register_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import data
from report import machine
from resnet20 import ResNet20
from workload import step_seed

CASES = ("4:100mbit", "2:1gbit")
RATES = ("100mbit", "1gbit", "10gbit", "local")
PARTS = (0.6, 0.8, 0.95)  # of the way from guessing to the last loss of dense training
BASELINE = "DDP"
TESTED = 2000  # images
PATIENCE = timedelta(minutes=10)  # of a collective
ALONE_STEPS, ALONE_WARMUP = 12, 3
SETTINGS = ("steps", "every", "seed", "batch")  # that trainings must have in common to be compared

Curve = list[dict[str, float]]
Row = dict[str, Any]


# ---- methods --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """How gradients are exchanged: by `hook` of DDP, or where that is None by gtopk.DistributedOptimizer.

    `options` are those of DDP without a gtopk hook, else gtopk's. `stages` is a density warm-up over the first fifth.
    `rate` is the learning rate in units of the task's.
    """

    hook: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    stages: tuple[float, ...] = ()
    rate: float = 1.0

    def all_options(self, steps: int) -> dict[str, Any]:
        if not self.stages:
            return self.options
        each = max(1, steps // 5 // len(self.stages))
        return {**self.options, "warmup": [(each, density) for density in self.stages]}


COMMON = {
    BASELINE: Method("dense"),
    "DDP, small buckets": Method("dense", {"bucket_cap_mb": 0.25}),
    "DDP, fp16": Method("fp16"),
    "DDP, PowerSGD": Method("power"),
    "DDP, gtopk's hook": Method("gtopk"),
    "gtopk": Method(),
}


def local_steps(found: dict[str, Any]) -> Method:
    """Twice the learning rate of dense training, as where they were found."""
    return Method(options={name: value for name, value in found.items() if name != "lr"}, rate=2.0)


METHODS: dict[str, dict[str, Method]] = {
    "resnet20": {
        **COMMON,
        "gtopk .001, warm-up": Method(
            options={"density": 0.001, "momentum_correction": True}, stages=(0.25, 0.0725, 0.015, 0.004)
        ),
    },
    "transformer": {
        **COMMON,
        "gtopk .05, warm-up": Method(options={"density": 0.05}, stages=(0.25, 0.17, 0.11, 0.075)),
        "gtopk, 4 local steps": local_steps(LOCAL),
        "gtopk, 2 local steps": local_steps(EVERY_SECOND),
    },
}


def wrap(method: Method, task: Images | Characters, model: nn.Module, steps: int) -> tuple[nn.Module, Any]:
    """What is called for the forward pass, and the optimizer."""
    optimizer = task.optimizer(model, method.rate)
    options = method.all_options(steps)
    if method.hook is None:
        wrapped = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), **options)
        gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
        return model, wrapped
    if method.hook == "power":  # with several buckets it would not end over gloo: see network_gloo.py
        options = {"bucket_cap_mb": sum(4 * p.numel() for p in model.parameters()) / 2**20 + 1}
    ddp = DistributedDataParallel(model, **({} if method.hook == "gtopk" else options))
    if method.hook == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif method.hook == "power":
        state = power.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=40)
        ddp.register_comm_hook(state, power.powerSGD_hook)
    elif method.hook == "gtopk":
        register_hook(ddp, **options)
    return ddp, optimizer


# ---- tasks ----------------------------------------------------------------------------------------------------------


class Images:
    """ResNet-20, batch 32 a rank and momentum .9 as published; the learning rate rises and falls as the other task's.

    The loss is above guessing before the first step, when the statistics that are used in evaluation are not yet there.
    """

    text = "ResNet-20, SGD"
    guessing = math.log(10)  # the loss of a model that takes all classes for equally likely
    clip: float | None = None
    batch, steps = 32, 600

    def __init__(self, folder: Path, rank: int, size: int) -> None:
        images = data.load(folder)
        self.train, self.mean, self.std = images.train, images.mean, images.std
        self.test = images.test.take(torch.arange(min(TESTED, len(images.test)))[rank::size])
        self.rank, self.size = rank, size

    def build(self) -> nn.Module:
        return ResNet20().to(memory_format=torch.channels_last)

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1 * rate, momentum=0.9, weight_decay=1e-4)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        step = 0
        while True:
            generator = torch.Generator().manual_seed(step_seed(step, rank=self.rank, size=self.size, seed=seed))
            part = self.train.take(torch.randint(len(self.train), (self.batch,), generator=generator))
            yield data.augment(data.normalise(part.images, self.mean, self.std), generator), part.labels
            step += 1

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        """With the mean of all ranks' running statistics."""
        gtopk.allreduce_buffers(model)
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        for images, labels in zip(self.test.images.split(125), self.test.labels.split(125), strict=True):
            x = data.normalise(images, self.mean, self.std).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(x), labels, reduction="sum")
            total += torch.tensor([loss.item(), len(labels)], dtype=torch.float64)
        model.train()
        dist.all_reduce(total)
        return float(total[0] / total[1])


class Characters:
    """The transformer with the learning rate and beta1 that were best for dense AdamW in optimizer_curves.py."""

    text = "transformer, AdamW"
    guessing = math.log(97)
    clip: float | None = 1.0
    batch, steps = characters.BATCH, STEPS

    def __init__(self, folder: Path | None, rank: int, size: int) -> None:
        self.train, self.test, _ = characters.load_text()

    def build(self) -> nn.Module:
        return characters.Transformer()

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        assert isinstance(model, characters.Transformer)
        return make_optimizer(Run("", lr=4e-3 * rate, beta1=0.8), model, "adamw")

    def batches(self, seed: int) -> Iterator[Tensor]:
        return characters.batches(self.train, seed)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(batch[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def evaluate(self, model: nn.Module) -> float:
        assert isinstance(model, characters.Transformer)
        return characters.evaluate(model, self.test)


TASKS: dict[str, type[Images] | type[Characters]] = {"resnet20": Images, "transformer": Characters}


# ---- a training, on each rank ---------------------------------------------------------------------------------------


class Clock:
    """Seconds, and bytes that this rank's interface has sent, between `start` and `stop`. Both are collective."""

    def __init__(self, interface: str | None) -> None:
        self.seconds, self._sent = 0.0, 0
        self._counter = Path(f"/sys/class/net/{interface}/statistics/tx_bytes") if interface else None

    def _count(self) -> int:
        return int(self._counter.read_text()) if self._counter else 0

    def start(self) -> None:
        dist.barrier()
        self._from, self._began = self._count(), time.perf_counter()

    def stop(self) -> None:
        dist.barrier()
        self.seconds += time.perf_counter() - self._began
        self._sent += self._count() - self._from

    def point(self) -> dict[str, float]:
        """Of the slowest rank, and of the mean host. Collective, while the clock stands."""
        sent = torch.tensor([self._sent], dtype=torch.float64)
        dist.all_reduce(sent)
        found = {"seconds": round(highest([self.seconds])[0], 3)}
        return {**found, "bytes": round(sent.item() / dist.get_world_size())} if self._counter else found


def alone_ms(task: Images | Characters, seed: int) -> float:
    """A step without any exchange, while all ranks compute: the slowest rank's, the median of some."""
    model, batches = task.build(), task.batches(seed)
    optimizer = task.optimizer(model, 1.0)
    seconds = []
    for _ in range(ALONE_WARMUP + ALONE_STEPS):
        dist.barrier()
        began = time.perf_counter()
        compute(task, model, optimizer, next(batches))
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(highest(seconds[ALONE_WARMUP:]))


def compute(task: Images | Characters, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """A step but for `optimizer.step()`. DDP has exchanged by the time of the clipping; DistributedOptimizer has not."""
    optimizer.zero_grad()
    torch.autograd.backward(task.loss(model, batch))
    if task.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), task.clip)


def train(task: Images | Characters, method: Method, options: argparse.Namespace) -> Row:
    alone = alone_ms(task, options.seed)
    torch.manual_seed(options.seed)
    model = task.build()
    called, optimizer = wrap(method, task, model, options.steps)
    highest = [group["lr"] for group in optimizer.param_groups]
    curve: Curve = [{"step": 0, "seconds": 0.0, "loss": task.evaluate(model)}]
    clock = Clock(options.interface)
    clock.start()
    for step, batch in zip(range(options.steps), task.batches(options.seed), strict=False):
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * learning_rate(step, max(options.steps, WARMUP_STEPS + 1))
        compute(task, called, optimizer, batch)
        optimizer.step()
        last = step + 1 == options.steps
        if last and method.options.get("local_steps") and optimizer.stats()["local_steps"]:
            optimizer.synchronize()  # ends a period that has begun
        if last or (step + 1) % options.every == 0:
            clock.stop()
            curve.append({"step": step + 1, **clock.point(), "loss": task.evaluate(model)})
            clock.start()
    end = curve[-1]
    return {
        "alone_ms": round(alone, 2),
        "step_ms": round(1e3 * end["seconds"] / options.steps, 2),
        **{name: end[name] for name in ("seconds", "bytes", "loss") if name in end},
        "curve": curve,
    }


def work(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    gtopk.init(transport="torch")
    task = TASKS[options.task[0]](options.data, dist.get_rank(), dist.get_world_size())
    row = train(task, METHODS[options.task[0]][options.method[0]], options)
    if dist.get_rank() == 0:
        options.out.write_text(json.dumps(row))
    dist.barrier()
    gtopk.shutdown()
    dist.destroy_process_group()


# ---- what curves say ------------------------------------------------------------------------------------------------


def reached(curve: Curve, loss: float, over: str = "seconds") -> float | None:
    """When the curve is first at `loss` or below it, on straight lines between its points; None if it never is."""
    before: dict[str, float] | None = None
    for point in curve:
        if point["loss"] <= loss:
            if before is None:
                return point[over]
            part = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return before[over] + part * (point[over] - before[over])
        before = point
    return None


def losses_to_reach(dense: Curve, guessing: float) -> dict[float, float]:
    """By the part of dense training's drop from guessing to its last loss."""
    return {part: guessing - part * (guessing - dense[-1]["loss"]) for part in PARTS}


def key_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("ranks", "rate", "task", "method"))


def summary(rows: list[Row]) -> list[Row]:
    """A line a training whose dense one is there: seconds until each loss, and dense's over them."""
    dense = {key_of(row)[:3]: row for row in rows if row["method"] == BASELINE}
    lines = []
    for row in rows:
        base = dense.get(key_of(row)[:3])
        if base is None or any(base[name] != row[name] for name in SETTINGS):
            continue
        line = {name: row[name] for name in ("task", "ranks", "rate", "method", "alone_ms", "step_ms", "loss")}
        line["megabytes"] = round(row["bytes"] / 1e6, 2) if "bytes" in row else None
        line["alone_share"] = round(row["alone_ms"] / row["step_ms"], 3)
        for part, loss in losses_to_reach(base["curve"], TASKS[row["task"]].guessing).items():
            mine, theirs = reached(row["curve"], loss), reached(base["curve"], loss)
            line[f"loss at {part:.0%}"] = round(loss, 4)
            line[f"seconds to {part:.0%}"] = None if mine is None else round(mine, 2)
            line[f"DDP / this at {part:.0%}"] = round(theirs / mine, 2) if mine and theirs else None
        lines.append(line)
    return lines


def print_summary(lines: list[Row]) -> None:
    print(f"{'':34} {'alone':>8} {'step':>8} {'MB':>9} {'loss':>7}   seconds to {PARTS}")
    for line in lines:
        name = f"{line['task']} {line['ranks']}:{line['rate']} {line['method']}"
        times = [line[f"seconds to {part:.0%}"] for part in PARTS]
        sent = "" if line["megabytes"] is None else f"{line['megabytes']:.1f}"
        print(
            f"{name:34} {line['alone_ms']:8.1f} {line['step_ms']:8.1f} {sent:>9} {line['loss']:7.4f}  ",
            *("      -" if seconds is None else f"{seconds:7.1f}" for seconds in times),
        )
    sys.stdout.flush()


# ---- all of them ----------------------------------------------------------------------------------------------------


class Study:
    """The file of results, and what is still to be measured for it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.until = time.monotonic() + 60 * options.minutes
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = json.loads(options.out.read_text()) if options.out.exists() else {}
        self.links: list[Row] = found.get("links", [])
        self.rows: list[Row] = found.get("trainings", [])
        self.failed: list[str] = []

    def settings(self, task: str) -> Row:
        kind, given = TASKS[task], self.options
        return {"steps": given.steps or kind.steps, "every": given.every, "seed": given.seed, "batch": kind.batch}

    def todo(self, ranks: int, rate: str) -> list[tuple[str, str]]:
        """Tasks and methods. A row that was measured with other settings is measured again."""
        done = {key_of(row) for row in self.rows if self.settings(row["task"]).items() <= row.items()}
        chosen = [(task, method) for task in self.options.task for method in METHODS[task]]
        if self.options.method:
            chosen = [(task, method) for task, method in chosen if method in self.options.method]
        return [(task, method) for task, method in chosen if (ranks, rate, task, method) not in done]

    def case(self, ranks: int, rate: str) -> None:
        todo = self.todo(ranks, rate)
        if not todo or time.monotonic() > self.until:
            return
        try:
            if rate != "local":
                up = call_cluster(self.options.cluster, "up", str(ranks), rate)
                self.links.append({"ranks": ranks, **json.loads(up.splitlines()[0])})
            for task, method in todo:
                if time.monotonic() > self.until:
                    print("no more time (--minutes): start it again to go on")
                    return
                self.measure(ranks, rate, task, method)
        finally:
            if rate != "local":
                call_cluster(self.options.cluster, "down")

    def measure(self, ranks: int, rate: str, task: str, method: str) -> None:
        name = f"{task} {ranks}:{rate} {method}"
        print(name, end=": ", flush=True)
        load = round(os.getloadavg()[0], 1)
        try:
            measured = self.run(ranks, rate, task, method)
        except (RuntimeError, TimeoutError) as error:
            self.failed.append(name)
            print(f"failed\n{error}", flush=True)
            return
        row = {"task": task, "ranks": ranks, "rate": rate, "method": method, **self.settings(task)}
        row |= {"date": time.strftime("%Y-%m-%d"), "load": load, **measured}
        self.rows = [other for other in self.rows if key_of(other) != key_of(row)] + [row]
        print(f"{row['seconds']:.1f} s, loss {row['loss']:.4f}", flush=True)
        self.keep()

    def run(self, ranks: int, rate: str, task: str, method: str) -> Row:
        script = str(Path(__file__).resolve())
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            given = [script, "--worker", "--task", task, "--method", method, "--out", file.name]
            settings = self.settings(task)
            given += [word for name in SETTINGS[:3] for word in (f"--{name}", str(settings[name]))]
            if task == "resnet20":
                given += ["--data", str(self.options.data)]
            if rate == "local":
                torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                threads = {"OMP_NUM_THREADS": "1"}
                run_to_end([*torchrun, "--nproc-per-node", str(ranks), *given], threads, self.options.limit)
            else:
                given += ["--interface", "e0"]
                call_cluster(self.options.cluster, "torchrun", str(ranks), *given, limit=self.options.limit)
            row: Row = json.loads(Path(file.name).read_text())
        return row

    def keep(self) -> None:
        """The file that is there is replaced by a whole one, or not at all; so is the picture."""
        import results_plots

        result = {
            "machine": {**machine(), "torch": torch.__version__},
            "date": time.strftime("%Y-%m-%d"),
            "command": shlex.join(["python", "benchmarks/network_training.py", *sys.argv[1:]]),
            "links": self.links,
            "summary": summary(self.rows),
            "trainings": self.rows,
        }
        unfinished = self.options.out.with_suffix(".part")
        unfinished.write_text(json.dumps(result, indent=1) + "\n")
        unfinished.replace(self.options.out)
        for _, picture in results_plots.draw(result):
            self.options.out.with_suffix(".png").write_bytes(picture)


def parse_case(text: str) -> tuple[int, str]:
    ranks, _, rate = text.partition(":")
    if not ranks.isdecimal() or int(ranks) < 2 or rate not in RATES:
        raise argparse.ArgumentTypeError(f"{text!r} is no RANKS:RATE of at least 2 ranks and one of {', '.join(RATES)}")
    return int(ranks), rate


def parse() -> argparse.Namespace:
    names = list(dict.fromkeys(name for methods in METHODS.values() for name in methods))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", type=parse_case, help=f"RANKS:RATE, several times ({CASES})")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--method", nargs="+", choices=names, help=f"some of: {'; '.join(names)} (all)")
    parser.add_argument("--steps", type=int, help="of every training (as many as the task's own)")
    parser.add_argument(
        "--every", type=int, default=20, help="steps between evaluations, a multiple of 4 (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=240, help="after which no training is begun (%(default)s)")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a training may take (%(default)s)")
    parser.add_argument("--data", type=Path, help="a folder with CIFAR-10 or Fashion-MNIST (Debian's Fashion-MNIST)")
    parser.add_argument("--cluster", default="training", help="name of the emulated cluster (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "network_training.json", help="(%(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--interface", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps is {options.steps}: give 1 or more")
    if options.every < 4 or options.every % 4:  # between exchanges of local steps the ranks' weights differ
        parser.error(f"--every is {options.every}: give a multiple of 4")
    return options


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is taken down
    study = Study(options)
    try:
        if "resnet20" in options.task:
            options.data = data.locate(str(options.data or "fashion-mnist")).resolve()
        for ranks, rate in options.case or map(parse_case, CASES):
            study.case(ranks, rate)
    except (data.DataError, RuntimeError) as error:
        sys.exit(str(error))
    print_summary(summary(study.rows))
    if study.failed:
        sys.exit(f"failed: {', '.join(study.failed)}")


if __name__ == "__main__":
    main()
