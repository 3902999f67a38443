"""Trains a workload with one process per worker, and says how it goes. All examples go through here.

What is gtopk's in this file: `gtopk.init`, `gtopk.DistributedOptimizer`, `gtopk.broadcast_parameters`; and, because
numbers are reported over all ranks, `gtopk.allreduce`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import socket
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import checkpoint
import numpy as np
import report
import torch
from agree import TimeLimit, on_every_rank, say
from curves import Curves
from data import DataError
from recipe import Plan, make_parser, parse
from torch import Tensor, nn
from tqdm import tqdm
from workload import Workload, step_seed

import gtopk


def main(workload: Workload, description: str) -> None:
    parser = make_parser(description.partition("\n")[0], workload.recipe, workload.unit)
    workload.add_options(parser)
    options = parse(parser)
    gtopk.init()
    torch.set_num_threads(options.threads or threads_a_process())
    torch.manual_seed(options.seed)
    device = on_every_rank(lambda: choose_device(options.device))
    load_data(workload, options)

    model = workload.build().to(device)
    workload.place(device)
    plan = Plan.make(options, agreed_steps(workload, options), gtopk.size())
    optimizer = torch.optim.SGD(
        model.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    )
    optimizer = distributed(optimizer, model, plan, options)
    gtopk.broadcast_parameters(model.state_dict(), root_rank=0)

    run = Training(workload, model, optimizer, plan, device, options).run()
    run["replicas_identical"] = replicas_identical(model)
    if gtopk.rank() == 0:
        conclude(run, options)
    gtopk.barrier()
    gtopk.shutdown()


def distributed(optimizer: torch.optim.SGD, model: nn.Module, plan: Plan, options: argparse.Namespace) -> Any:
    """The optimizer, exchanging as the options say."""
    return gtopk.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        algorithm=options.algorithm,
        density=options.density,
        value_type=options.value_type,
        merge_growth=options.merge_growth,
        warmup=plan.density_warmup,
        momentum_correction=options.momentum_correction,
        dense_1d=options.dense_1d,
        hierarchy=options.hierarchy,
    )


def conclude(run: dict[str, Any], options: argparse.Namespace) -> None:
    """What rank 0 prints and writes at the end."""
    print()
    print(report.table([run]))
    print(f"replicas identical: {'yes, bit for bit' if run['replicas_identical'] else 'NO'}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    if options.plot:
        report.plot([run], options.plot)
        print(f"picture: {options.plot}")


# ---- set-up ---------------------------------------------------------------------------------------------------------


def threads_a_process() -> int:
    """Cores of this host, shared evenly by the processes on it. More threads than cores would wait for one another."""
    host = np.array([zlib.crc32(socket.gethostname().encode())], np.int64)
    processes = int((gtopk.allgather(host) == host[0]).sum())
    return max(1, report.cores() // processes)


def choose_device(name: str) -> torch.device:
    """Gives each process of a host a GPU of its own, where none is named."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (":" in name and not number.isdecimal()):
        raise ValueError(f"--device {name} is none of auto, cpu, cuda and cuda:N")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: PyTorch sees no GPU")
    count = torch.cuda.device_count()
    index = int(number) if number else gtopk.local_rank() % count
    if index >= count:
        raise ValueError(f"--device {name}: PyTorch sees {count}, the last one is cuda:{count - 1}")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def load_data(workload: Workload, options: argparse.Namespace) -> None:
    """One process on each host fetches the data, the others wait; all must end up with the same."""

    def fetch() -> None:
        with naming_the_option(options):
            if gtopk.local_rank() == 0:
                workload.fetch(options, progress=gtopk.rank() == 0)

    def load() -> str:
        with naming_the_option(options):
            return workload.load(options, gtopk.rank(), gtopk.size())

    on_every_rank(fetch)
    description = on_every_rank(load)
    mine = (workload.data, workload.samples)
    first = gtopk.broadcast_object(mine, root_rank=0)

    def compare() -> None:
        if first != mine:
            raise DataError(f"{socket.gethostname()} reads {mine}, rank 0 {first}: give all hosts the same with --data")

    on_every_rank(compare)
    say(f"data: {description}")


@contextmanager
def naming_the_option(options: argparse.Namespace) -> Iterator[None]:
    """What is wrong with data that was asked for is said with the option that asked for it."""
    try:
        yield
    except DataError as error:
        if options.data is None or "--data" in str(error):
            raise
        raise DataError(f"--data {options.data}: {error}") from error


def agreed_steps(workload: Workload, options: argparse.Namespace) -> int:
    """Steps in an epoch: those of the rank that has the fewest full batches, so that no rank waits for one that is done."""
    steps = gtopk.allgather(np.array([workload.steps_an_epoch()], np.int64)).tolist()
    fewest = min(steps)

    def check() -> None:
        if workload.steps_an_epoch() == 0:
            raise DataError(f"the data is too little for {gtopk.size()} ranks with batches of {options.batch_size}")

    on_every_rank(check)
    if fewest < max(steps):
        say(f"rank {steps.index(fewest)} has {fewest} batches an epoch, others up to {max(steps)}: {fewest} are used")
    return int(fewest)


# ---- training -------------------------------------------------------------------------------------------------------


@dataclass
class Window:
    """What happened on this rank since the last line."""

    steps: int = 0
    seconds: float = 0.0
    exchange_seconds: float = 0.0
    bytes_sent: int = 0
    loss: Tensor | float = 0.0
    local_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)

    def add(self, loss: Tensor, seconds: float, stats: dict[str, Any]) -> None:
        self.steps += 1
        self.seconds += seconds
        self.loss += loss.detach()
        self.exchange_seconds += stats.get("exchange_s", 0.0)
        self.bytes_sent += stats.get("bytes_sent", 0)
        self.step_ms.append(seconds * 1e3)
        self.local_ms.append(1e3 * sum(stats.get(part, 0.0) for part in ("accumulate_s", "select_s", "commit_s")))


class Training:
    """The loop: a step, a line every `plan.report_every` steps, a checkpoint every `plan.save_every`."""

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        optimizer: Any,
        plan: Plan,
        device: torch.device,
        options: argparse.Namespace,
    ) -> None:
        self.workload, self.model, self.optimizer, self.plan = workload, model, optimizer, plan
        self.device, self.options = device, options
        self.history: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Trains, and gives back what rank 0 puts into table and picture."""
        plan, options = self.plan, self.options
        first = self._start()
        window, limit = Window(), TimeLimit(options.time_limit)
        with ExitStack() as stack:
            bar = stack.enter_context(
                tqdm(
                    total=plan.steps,
                    initial=first,
                    desc=options.algorithm,
                    unit="step",
                    disable=gtopk.rank() != 0,
                    mininterval=0.5 if sys.stderr.isatty() else 5.0,
                )
            )
            curves = stack.enter_context(Curves(options.tensorboard))
            for step in range(first, plan.steps):
                began = time.perf_counter()
                loss = self._step(step)
                stats = self.optimizer.stats()
                window.add(loss, time.perf_counter() - began, stats)
                bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
                bar.update()
                done = step + 1
                late = limit.passed()
                if done % plan.report_every == 0 or done == plan.steps or late:
                    line = self._summarise(window, done, self._evaluate())
                    self.history.append(line)
                    say(self._text(line))
                    if not math.isfinite(line["loss"]):
                        end_with_a_loss_that_is_not_finite(done)
                    curves.add(line, stats, self.workload.metric)
                    window = Window()
                if options.checkpoint and (done % plan.save_every == 0 or done == plan.steps or late):
                    self._save(done)
                if late:
                    say(f"stopped after {done} steps: --time-limit {options.time_limit:.0f}")
                    break
        return self._describe()

    def _step(self, step: int) -> Tensor:
        options, optimizer = self.options, self.optimizer
        # What is drawn in a step (dropout) does not depend on where the run was interrupted.
        torch.manual_seed(step_seed(step, rank=gtopk.rank(), size=gtopk.size(), seed=options.seed))
        for group in optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(step)
        optimizer.zero_grad()
        loss = self.workload.loss(self.model, self.workload.batch(step))
        loss.backward()
        if options.clip is None:
            optimizer.step()
        elif options.clip_of == "gradient":
            nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
            optimizer.step()
        else:
            optimizer.synchronize()
            nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
            with optimizer.skip_synchronize():
                optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return loss

    def _evaluate(self) -> float:
        average_buffers(self.model)
        self.model.eval()
        with torch.inference_mode():
            sums = self.workload.evaluate(self.model)
        self.model.train()
        total, count = gtopk.allreduce(torch.tensor(sums, dtype=torch.float64), op=gtopk.Sum).tolist()
        return self.workload.score(total, count)

    # ---- checkpoints ----

    def _start(self) -> int:
        """The first step: that after the checkpoint, where there is one to go on from."""
        file, resume = self.options.checkpoint, self.options.resume
        if file is None:
            return 0
        saved = on_every_rank(lambda: checkpoint.read(file, resume) if gtopk.rank() == 0 else None)
        saved = gtopk.broadcast_object(saved, root_rank=0)
        if saved is None:
            return 0
        on_every_rank(lambda: checkpoint.restore(saved, self.workload.name, self.model, self.optimizer))
        self.history = saved["history"]
        first = round(
            saved["epoch"] * self.plan.steps_an_epoch
        )  # with another number of ranks epochs have other lengths
        say(f"going on from {file}: epoch {saved['epoch']:.2f}, saved by {saved['ranks']} ranks")
        if first >= self.plan.steps:
            raise SystemExit(f"{file} is of step {first} and the run ends at {self.plan.steps}: nothing is left to do")
        return first

    def _save(self, steps: int) -> None:
        average_buffers(self.model)
        state = self.optimizer.consolidate_state_dict(to=0)

        def write() -> None:
            if state is not None:
                checkpoint.write(
                    self.options.checkpoint,
                    {
                        "model": self.workload.name,
                        "weights": self.model.state_dict(),
                        "optimizer": state,
                        "epoch": steps / self.plan.steps_an_epoch,
                        "ranks": gtopk.size(),
                        "history": self.history,
                    },
                )

        on_every_rank(write)

    # ---- reporting ----

    def _summarise(self, window: Window, step: int, score: float) -> dict[str, Any]:
        """A line of the history: means over the ranks; samples/s are those of all ranks together."""
        mine = [float(window.loss), window.seconds, window.exchange_seconds, float(window.bytes_sent)]
        mine += [float(np.median(window.step_ms)), float(np.median(window.local_ms))]
        mean = gtopk.allreduce(torch.tensor(mine, dtype=torch.float64)).tolist()
        loss, seconds, exchange, sent, step_ms, local_ms = mean
        return {
            "step": step,
            "epoch": step / self.plan.steps_an_epoch,
            "learning_rate": self.plan.learning_rate(step - 1),
            "loss": loss / window.steps,
            "score": score,
            "samples_per_s": window.steps * self.options.batch_size * gtopk.size() / seconds,
            "seconds": seconds,
            "exchange_seconds": exchange,
            "communication_share": exchange / seconds,
            "step_ms": step_ms,
            "local_ms": local_ms,
            "bytes_sent_per_step": sent / window.steps,
            "bytes_sent": sent + (self.history[-1]["bytes_sent"] if self.history else 0.0),
            "k": self.optimizer.stats().get("k", 0),
        }

    def _text(self, line: dict[str, Any]) -> str:
        return (
            f"step {line['step']:6d}  epoch {line['epoch']:6.2f}  loss {line['loss']:.4f}  "
            f"{self.workload.metric} {line['score']:.4f}  {line['samples_per_s']:7.0f} {self.workload.unit}/s  "
            f"communication {line['communication_share']:6.1%}  "
            f"sent {report.size_text(line['bytes_sent_per_step'])} a step, {report.size_text(line['bytes_sent'])} in all"
        )

    def _density(self, stats: dict[str, Any]) -> float | None:
        """None where all is sent. That of the last step, where gtopk was left to choose."""
        if self.options.algorithm == "dense" or self.options.density is not None:
            return None if self.options.algorithm == "dense" else float(self.options.density)
        if stats.get("algorithm") == "dense" or not stats.get("k"):  # in the first steps; with one rank
            return None
        return float(stats["k"] / sum(parameter.numel() for parameter in self.model.parameters()))

    def _describe(self) -> dict[str, Any]:
        options, stats = self.options, self.optimizer.stats()
        return {
            "model": self.workload.name,
            "unit": self.workload.unit,
            "metric": self.workload.metric,
            "algorithm": options.algorithm,
            "density": self._density(stats),
            "default_density": options.density is None,
            "value_type": "fp32" if options.algorithm == "dense" else options.value_type,
            "ranks": gtopk.size(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "data": self.workload.data,
            "samples": self.workload.samples,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            **report.totals(self.history, options.batch_size * gtopk.size()),
            "hierarchy": stats.get("hierarchy", "off"),
            "last_step": {
                name: stats[name]
                for name in ("algorithm", "k", "rounds", "bytes_sent", "network_bytes_sent")
                if name in stats
            },
        }


def end_with_a_loss_that_is_not_finite(step: int) -> NoReturn:
    """All ranks come here after the same step: the loss is the mean over all."""
    if gtopk.rank() == 0:
        text = f"the loss of the steps up to {step} is not finite: try a smaller --lr, a longer --warmup-epochs, "
        print(f"{text}--momentum-correction", file=sys.stderr, flush=True)
    gtopk.barrier()  # a launcher ends all ranks when the first one fails: the error is printed by then
    raise SystemExit(1)


def average_buffers(model: nn.Module) -> None:
    """Each rank's batch normalisation has seen other samples; with averaged statistics all ranks have the same model."""
    running = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not running:
        return
    mean = gtopk.allreduce(torch.cat([buffer.flatten() for buffer in running]))
    for buffer, values in zip(running, torch.split(mean, [buffer.numel() for buffer in running]), strict=True):
        buffer.copy_(values.view_as(buffer))


def replicas_identical(model: nn.Module) -> bool:
    """True when every rank's parameters have the same bits as rank 0's."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    same = digest.hexdigest() == gtopk.broadcast_object(digest.hexdigest(), root_rank=0)
    return bool(gtopk.allreduce(torch.tensor([float(same)]))[0] == 1.0)
