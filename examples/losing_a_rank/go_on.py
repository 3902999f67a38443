"""A training script that goes on without a rank that was lost, in the same processes: no restart, no checkpoint.

go_on.sh starts four ranks. Two of them kill themselves, one after the other; the others find each other, those that are a step
behind take over the model from one that is ahead, and training goes on.
"""

from __future__ import annotations

import argparse
import os
import signal

import torch
from torch import nn
from train import batch, evaluate, network, say

import gtopk
from gtopk import elastic


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0, help="of the networks and of all data (%(default)s)")
    parser.add_argument("--lose", type=int, nargs=2, action="append", default=[], metavar=("RANK", "STEP"))
    options = parser.parse_args()

    torch.set_num_threads(1)
    gtopk.init(timeout=60.0)
    started_as = gtopk.rank()
    torch.manual_seed(options.seed)
    teacher, model = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), density=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=80, gamma=0.5)
    gtopk.broadcast_parameters(model.state_dict(), root_rank=0)

    meeting = elastic.Meeting(wait=60.0, min_ranks=min(2, gtopk.size()))  # while all ranks are there
    step, lost = 0, False
    while step < options.steps:
        try:
            if lost:
                meeting.regroup()  # from here on rank() and size() are those of the ranks that are left
                ahead = optimizer.attach()
                step, state = gtopk.broadcast_object((step, schedule.state_dict()), ahead)
                schedule.load_state_dict(state)
                lost = False
            if [started_as, step] in options.lose:
                os.kill(os.getpid(), signal.SIGKILL)
            x, y = batch(teacher, seed=1 + step * 1000 + gtopk.rank() + options.seed * 1_000_000)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            schedule.step()
            step += 1
        except elastic.LOST as error:
            print(f"rank {gtopk.rank()} of {gtopk.size()} at step {step}: {type(error).__name__}", flush=True)
            lost = True
        else:
            if step % 20 == 0:
                say(f"step {step:3d}  ranks {gtopk.size()}  loss {evaluate(model, teacher):.4f}")
    gtopk.shutdown()


if __name__ == "__main__":
    main()
