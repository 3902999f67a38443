"""A rank of a small training under Slurm: slurm_rank.py [optimizer | ddp | own | wait RANK].

"optimizer" wraps the optimizer, "ddp" registers the hook; with "own" the script makes the process group itself, as
docs/guide/several-machines.md says. Each prints one line with a digest of the parameters. "wait": that rank sleeps while
the others wait for it in an exchange. In the environment: DEADLINE, that of an exchange, in seconds; TRANSPORT, the one
to ask for; MEET, a number of steps of this job that are to be there at the same time.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import gtopk
from gtopk import comm
from gtopk.torch.ddp_hook import GTopKState, gtopk_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from torch_support import batch, loss_of, make

STEPS = 5


def say(text):
    """One line, in one piece."""
    os.write(1, f"{text}\n".encode())


def own_group():
    dist.init_process_group(
        "gloo",
        init_method="tcp://127.0.0.1:" + os.environ["MASTER_PORT"],
        rank=int(os.environ["SLURM_PROCID"]),
        world_size=int(os.environ["SLURM_STEP_NUM_TASKS"]),
    )


def train(hook):
    model = make(seed=gtopk.rank())
    del model.unused
    gtopk.broadcast_parameters(model.state_dict(), root_rank=0)
    net, optimizer = model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if hook:
        net = torch.nn.parallel.DistributedDataParallel(model)
        net.register_comm_hook(GTopKState(named_parameters=model.named_parameters(), density=0.05), gtopk_hook)
    else:
        optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), density=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, batch(step, gtopk.rank())).backward()
        optimizer.step()
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16]


def wait_for(sleeper):
    say(f"rank {gtopk.rank()} pid {os.getpid()}")
    if gtopk.rank() == sleeper:
        time.sleep(600)
    gtopk.barrier()


def meet(steps):
    """Returns when that many steps have a group, and none has left."""
    Path(f"step-{os.environ['SLURM_STEP_ID']}").touch()
    end = time.monotonic() + 60
    while len(list(Path().glob("step-*"))) < steps:
        if time.monotonic() > end:
            sys.exit(f"fewer than {steps} steps at the same time")
        time.sleep(0.1)


def main(mode):
    torch.set_num_threads(1)
    try:
        if mode == "own":
            own_group()
        gtopk.init(transport=os.environ.get("TRANSPORT"), timeout=float(os.environ.get("DEADLINE", "60")))
        if os.environ.get("MEET"):
            meet(int(os.environ["MEET"]))
        if mode == "wait":
            wait_for(int(sys.argv[2]))
        digest = train(hook=mode == "ddp")
    except gtopk.GtopkError as error:
        say(f"failed {type(error).__name__}: {error}")
        os._exit(3)
    rank, size, local = gtopk.rank(), gtopk.size(), gtopk.local_rank()
    say(f"rank {rank} of {size} local {local} through {comm.current().transport} digest {digest}")


main(sys.argv[1] if len(sys.argv) > 1 else "optimizer")
