"""Trains ResNet-20 on CIFAR-10 (or Fashion-MNIST) with one process per worker and gTop-k between them.

    mpirun -n 4 python examples/cifar_resnet20.py
    torchrun --nproc-per-node 4 examples/cifar_resnet20.py --algorithm dense
    python examples/cifar_resnet20.py                          # one process: plain SGD

The recipe is that of the gTop-k paper (Shi et al., ICDCS 2019): batch 32 a worker, momentum 0.9, weight decay 1e-4,
learning rate 0.1 with warm-up, divided by 10 at epochs 81, 122 and 155; in the first four epochs the density falls from
0.25 in four steps.

What is gtopk's in this file: `gtopk.init`, `gtopk.DistributedOptimizer`, `gtopk.broadcast_parameters`; and, because
numbers are reported over all ranks, `gtopk.allreduce`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import socket
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import data
import numpy as np
import report
import torch
from recipe import Plan, parse_arguments
from resnet20 import ResNet20
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import gtopk


def main() -> None:
    options = parse_arguments((__doc__ or "").partition("\n")[0])
    gtopk.init()
    torch.set_num_threads(options.threads or threads_a_process())
    torch.manual_seed(options.seed)
    device = choose_device(options.device)
    images = load_data(options)
    say(f"data: {images.describe()}")

    model = ResNet20().to(device)
    plan = Plan.make(options, len(images.train), gtopk.size())
    optimizer = torch.optim.SGD(
        model.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    )
    optimizer = gtopk.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        algorithm=options.algorithm,
        density=options.density,
        value_type=options.value_type,
        warmup=plan.density_warmup,
        momentum_correction=options.momentum_correction,
        hierarchy=options.hierarchy,
    )
    gtopk.broadcast_parameters(model.state_dict(), root_rank=0)

    run = train(model, optimizer, images, plan, device, options)
    run["replicas_identical"] = replicas_identical(model)
    if gtopk.rank() == 0:
        print()
        print(report.table([run]))
        print(f"replicas identical: {'yes, bit for bit' if run['replicas_identical'] else 'NO'}")
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(run, indent=1) + "\n")
        if options.plot:
            report.plot([run], options.plot)
            print(f"picture: {options.plot}")
    gtopk.barrier()
    gtopk.shutdown()


# ---- set-up ---------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Prints on rank 0, above the progress bar if there is one."""
    if gtopk.rank() == 0:
        tqdm.write(text)
        sys.stdout.flush()


def threads_a_process() -> int:
    """Cores of this host, shared evenly by the processes on it. More threads than cores would wait for one another."""
    host = np.array([zlib.crc32(socket.gethostname().encode())], np.int64)
    processes = int((gtopk.allgather(host) == host[0]).sum())
    return max(1, report.cores() // processes)


def choose_device(name: str) -> torch.device:
    """Gives each process of a host a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        device = torch.device("cuda", gtopk.local_rank() % max(1, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


def load_data(options: argparse.Namespace) -> data.DataSet:
    """One process on each host fetches the data, the others wait; all must end up with the same."""
    try:
        if gtopk.local_rank() == 0:
            data.locate(options.data, progress=gtopk.rank() == 0, say=say)
        gtopk.barrier()
        images = data.load(data.locate(options.data, download=False, say=lambda text: None))
    except data.DataError as error:
        raise SystemExit(f"rank {gtopk.rank()}: {error}") from error
    first = gtopk.broadcast_object((images.name, len(images.train)), root_rank=0)
    if first != (images.name, len(images.train)):
        raise SystemExit(
            f"rank 0 reads {first[0]}, rank {gtopk.rank()} on {socket.gethostname()} reads {images.name}: "
            "give all hosts the same with --data"
        )
    return images


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


def train(
    model: nn.Module,
    optimizer: Any,
    images: data.DataSet,
    plan: Plan,
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Trains, writes a line every `plan.report_every` steps, and gives back what rank 0 puts into table and picture."""
    batches = Batches(images, device, options)
    tests = images.test.take(torch.arange(min(options.test_images or len(images.test), len(images.test))))
    tests = tests.take(torch.arange(gtopk.rank(), len(tests), gtopk.size())).to(device)
    history: list[dict[str, Any]] = []
    window = Window()
    stats: dict[str, Any] = {}
    bar = tqdm(
        total=plan.steps,
        desc=options.algorithm,
        unit="step",
        disable=gtopk.rank() != 0,
        mininterval=0.5 if sys.stderr.isatty() else 5.0,
    )
    started = time.perf_counter()
    for step in range(plan.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate(step)
        x, y = batches(step)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        stats = optimizer.stats()
        window.add(loss, time.perf_counter() - began, stats)
        bar.update()

        if (step + 1) % plan.report_every == 0 or step + 1 == plan.steps:
            accuracy = evaluate(model, tests, batches.prepare)
            line = summarise(window, step + 1, plan, accuracy, options, history)
            history.append(line)
            say(line_text(line))
            window = Window()
            late = options.time_limit is not None and time.perf_counter() - started > options.time_limit
            if gtopk.broadcast_object(late, root_rank=0):
                say(f"stopped after {step + 1} steps: --time-limit {options.time_limit:.0f}")
                break
    bar.close()
    return describe_run(model, images, history, stats, device, options)


class Batches:
    """This rank's batches: a step's images and labels, augmented, normalised, on the device."""

    def __init__(self, images: data.DataSet, device: torch.device, options: argparse.Namespace) -> None:
        train = images.train
        if options.subset:
            shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
            train = train.take(shuffled[: options.subset])
        self._train = train.to(device)
        self._mean, self._std = images.mean.to(device), images.std.to(device)
        self._order = partial(
            data.epoch_order,
            len(train),
            batch=options.batch_size,
            rank=gtopk.rank(),
            size=gtopk.size(),
            seed=options.seed,
        )
        self._epoch = 0
        self._indices = self._order(0)
        self._generator = torch.Generator().manual_seed(options.seed * 1_000_003 + gtopk.rank())

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, len(self._indices))
        if epoch != self._epoch:
            self._epoch, self._indices = epoch, self._order(epoch)
        batch = self._train.take(self._indices[place].to(self._train.labels.device))
        return data.augment(self.prepare(batch.images), self._generator), batch.labels

    def prepare(self, images: Tensor) -> Tensor:
        return data.normalise(images, self._mean, self._std)


def evaluate(model: nn.Module, tests: data.Split, prepare: Callable[[Tensor], Tensor]) -> float:
    """Accuracy over the test images of all ranks.

    Each rank's batch normalisation has seen other images; their running statistics are averaged first, so that all
    ranks test the same model.
    """
    running = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    sizes = [buffer.numel() for buffer in running]
    mean = gtopk.allreduce(torch.cat([buffer.flatten() for buffer in running]))
    for buffer, values in zip(running, torch.split(mean, sizes), strict=True):
        buffer.copy_(values.view_as(buffer))
    model.eval()
    correct = torch.zeros((), dtype=torch.float64, device=tests.labels.device)
    with torch.inference_mode():
        for images, labels in zip(tests.images.split(125), tests.labels.split(125), strict=True):
            x = prepare(images).contiguous(memory_format=torch.channels_last)
            correct += (model(x).argmax(1) == labels).sum()
    model.train()
    total = gtopk.allreduce(torch.tensor([float(correct), len(tests)], dtype=torch.float64), op=gtopk.Sum)
    return float(total[0] / total[1])


def replicas_identical(model: nn.Module) -> bool:
    """True when every rank's parameters have the same bits as rank 0's."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    same = digest.hexdigest() == gtopk.broadcast_object(digest.hexdigest(), root_rank=0)
    return bool(gtopk.allreduce(torch.tensor([float(same)]))[0] == 1.0)


# ---- reporting ------------------------------------------------------------------------------------------------------


def summarise(
    window: Window,
    step: int,
    plan: Plan,
    accuracy: float,
    options: argparse.Namespace,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """A line of the history: means over the ranks; images/s are those of all ranks together."""
    mine = [float(window.loss), window.seconds, window.exchange_seconds, float(window.bytes_sent)]
    mine += [float(np.median(window.step_ms)), float(np.median(window.local_ms))]
    loss, seconds, exchange, sent, step_ms, local_ms = gtopk.allreduce(torch.tensor(mine, dtype=torch.float64)).tolist()
    return {
        "step": step,
        "epoch": step / plan.steps_an_epoch,
        "learning_rate": plan.learning_rate(step - 1),
        "loss": loss / window.steps,
        "accuracy": accuracy,
        "images_per_s": window.steps * options.batch_size * gtopk.size() / seconds,
        "seconds": seconds,
        "exchange_seconds": exchange,
        "communication_share": exchange / seconds,
        "step_ms": step_ms,
        "local_ms": local_ms,
        "bytes_sent_per_step": sent / window.steps,
        "bytes_sent": sent + (history[-1]["bytes_sent"] if history else 0.0),
    }


def line_text(line: dict[str, Any]) -> str:
    return (
        f"step {line['step']:6d}  epoch {line['epoch']:6.2f}  loss {line['loss']:.4f}  "
        f"accuracy {line['accuracy']:.4f}  {line['images_per_s']:7.0f} images/s  "
        f"communication {line['communication_share']:6.1%}  "
        f"sent {report.size_text(line['bytes_sent_per_step'])} a step, {report.size_text(line['bytes_sent'])} in all"
    )


def describe_run(
    model: nn.Module,
    images: data.DataSet,
    history: list[dict[str, Any]],
    stats: dict[str, Any],
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, Any]:
    seconds = sum(line["seconds"] for line in history)
    steps = history[-1]["step"]
    return {
        "algorithm": options.algorithm,
        "density": None if options.algorithm == "dense" else options.density,
        "value_type": "fp32" if options.algorithm == "dense" else options.value_type,
        "ranks": gtopk.size(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": images.name,
        "train_images": min(len(images.train), options.subset or len(images.train)),
        "test_images": min(len(images.test), options.test_images or len(images.test)),
        "batch_size": options.batch_size,
        "seed": options.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "steps": steps,
        "loss": history[-1]["loss"],
        "accuracy": history[-1]["accuracy"],
        "images_per_s": steps * options.batch_size * gtopk.size() / seconds,
        "steps_per_s": steps / seconds,
        "communication_share": sum(line["exchange_seconds"] for line in history) / seconds,
        "bytes_sent": history[-1]["bytes_sent"],
        "step_ms": history[-1]["step_ms"],
        "local_ms": history[-1]["local_ms"],
        "hierarchy": stats.get("hierarchy", "off"),
        "last_step": {
            name: stats[name] for name in ("k", "rounds", "bytes_sent", "network_bytes_sent") if name in stats
        },
        "history": history,
    }


if __name__ == "__main__":
    main()
