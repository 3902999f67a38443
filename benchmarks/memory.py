"""Bytes of host memory a parameter that each option takes, as the process grows: the table of docs/guide/memory.md.

    torchrun --nproc-per-node 4 benchmarks/memory.py [--parameters 4000000]

Held: after three steps. Most: at any time from the making of the optimizer on. Both beside a model with its gradients (and, for
the hook, DistributedDataParallel with its buckets), which are there before; plain SGD, density .001. Rows with shards take four
ranks, the others two or more.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gtopk
from gtopk.torch.ddp_hook import GTopKState, gtopk_hook

TENSORS = 4
DENSITY = 0.001
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h


class Taken(NamedTuple):
    """Bytes a parameter."""

    held: float
    most: float


# What the guide's table has in its first column, and what is given to DistributedOptimizer.
OPTIMIZER: dict[str, dict[str, Any]] = {
    "`DistributedOptimizer(...)`": {},
    "`momentum_correction=True`": {"momentum_correction": True},
    "`rollback=True`": {"rollback": True},
    "`rollback=True, momentum_correction=True`": {"rollback": True, "momentum_correction": True},
    '`residual_dtype="bf16"`': {"residual_dtype": "bf16"},
    '`residual_dtype="bf16", rollback=True`': {"residual_dtype": "bf16", "rollback": True},
    "`local_steps=2`": {"local_steps": 2},
    "`local_steps=2, outer_momentum=0.9`": {"local_steps": 2, "outer_momentum": 0.9},
    '`local_steps=2, residual_dtype="bf16"`': {"local_steps": 2, "residual_dtype": "bf16"},
    '`local_steps=2, start_dtype="bf16"`': {"local_steps": 2, "start_dtype": "bf16"},
    '`algorithm="auto"`': {"algorithm": "auto"},
    '`algorithm="dense"`, or parameters below `dense_below`': {"algorithm": "dense"},
    '`hierarchy="node"`, L = 2 ranks a node': {"hierarchy": "node"},
}
DDP: dict[str, dict[str, Any]] = {
    "DDP hook": {},
    "DDP hook, `find_unused_parameters=True`": {"find_unused_parameters": True},
    "DDP hook, `static_graph=True`": {"static_graph": True},
    "DDP hook, `grad_scaler=`": {"scaler": True},
}
STATE = "`optimizer.state_dict()`, beside that"
SHARDS = "`fully_shard`, `group=`, L = 2 ranks a node"


# ---- what the process has ----


def prepare() -> None:
    """What is freed is given back at once, and what is loaded when it is first used is there, so that neither is counted."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    libc.mallopt(_M_TRIM_THRESHOLD, 1 << 16)
    for options in ({}, {"local_steps": 2}):
        optimizer_of(options, 1000)
    if gtopk.size() >= 4:
        shards_of(1000)


def resident(field: str) -> int:
    """VmRSS or VmHWM, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


class Watch:
    """How much more there is than when it was made."""

    def __init__(self, parameters: int) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.parameters = parameters
        self.before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again

    def taken(self) -> Taken:
        gc.collect()
        now, most = resident("VmRSS"), resident("VmHWM")
        return Taken((now - self.before) / self.parameters, (most - self.before) / self.parameters)


# ---- what is measured ----


class Net(nn.Module):
    """A gradient for each parameter that costs no memory of its own: they are set, or come from a sum."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.zeros(parameters // TENSORS) for _ in range(TENSORS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum((layer.sum() for layer in self.layers), start=x)


def with_gradients(model: nn.Module) -> nn.Module:
    torch.manual_seed(gtopk.rank())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def optimizer_of(options: dict[str, Any], parameters: int) -> Taken:
    model = with_gradients(Net(parameters))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9 if "momentum_correction" in options else 0.0)
    watch = Watch(parameters)
    optimizer = gtopk.DistributedOptimizer(optimizer, model.named_parameters(), density=DENSITY, **options)
    for _ in range(3 * options.get("local_steps", 1)):
        for p in model.parameters():
            p.grad.uniform_()
        optimizer.step()
    return watch.taken()


def state(parameters: int) -> Taken:
    model = with_gradients(Net(parameters))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = gtopk.DistributedOptimizer(optimizer, model.named_parameters(), density=DENSITY)
    optimizer.step()
    watch = Watch(parameters)
    saved = optimizer.state_dict()
    taken = watch.taken()
    del saved
    return taken


def leave_alone(state, bucket):  # PyTorch looks at annotations, and takes no text for one
    """A hook that costs nothing."""
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def ddp_of(options: dict[str, Any], parameters: int, *, hooked: bool) -> Taken:
    options = dict(options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0) if options.pop("scaler", False) else None
    model = DistributedDataParallel(Net(parameters), gradient_as_bucket_view=True, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(parameters)
    if hooked:
        state = GTopKState(named_parameters=model.module.named_parameters(), density=DENSITY, grad_scaler=scaler)
        model.register_comm_hook(state, gtopk_hook)
    else:
        model.register_comm_hook(None, leave_alone)
    for _ in range(4):
        loss = model(torch.zeros(()))
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=False)
    return watch.taken()


def hook_of(options: dict[str, Any], parameters: int) -> Taken:
    """Beside DDP with a hook that does nothing."""
    without, with_it = (ddp_of(options, parameters, hooked=hooked) for hooked in (False, True))
    return Taken(with_it.held - without.held, with_it.most - without.most)


def shards_of(parameters: int) -> Taken:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (gtopk.size() // 2, 2), mesh_dim_names=("replicas", "shards"))
    model = with_gradients(fully_shard(Net(parameters), mesh=mesh["shards"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(parameters)
    optimizer = gtopk.DistributedOptimizer(optimizer, model.named_parameters(), group=mesh["replicas"], density=DENSITY)
    for _ in range(3):
        optimizer.step()
    return watch.taken()


@cache
def rows() -> dict[str, Callable[[int], Taken]]:
    """By the text of the guide."""
    found: dict[str, Callable[[int], Taken]] = {}
    for name, options in OPTIMIZER.items():
        found[name] = lambda n, options=options: optimizer_of(options, n)
    for name, options in DDP.items():
        found[name] = lambda n, options=options: hook_of(options, n)
    found[STATE] = state
    if gtopk.size() >= 4:
        found[SHARDS] = shards_of
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=4_000_000)
    options = parser.parse_args()
    os.environ["GTOPK_NODE"] = f"node-{int(os.environ['RANK']) // 2}"
    gtopk.init()
    prepare()
    if gtopk.rank() == 0:
        print("| option | held | most |\n| --- | --- | --- |")
    for name, measure in rows().items():
        taken = measure(options.parameters)
        gtopk.barrier()
        if gtopk.rank() == 0:
            print(f"| {name} | {taken.held:.2f} | {taken.most:.2f} |", flush=True)
    dist.barrier()


if __name__ == "__main__":
    main()
