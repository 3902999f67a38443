"""First half of the test of sharded checkpoints: trains, and writes what `cases_torch_fsdp_load` goes on from.

The folder is GTOPK_TEST_FOLDER.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from fsdp_support import assert_replicas, local, nodes, plain, sharded, train, whole, wrapped
from harness import raises
from torch import optim
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict

import gtopk
from gtopk.torch.shards import spread_like

FOLDER = Path(os.environ["GTOPK_TEST_FOLDER"])
RUNS = {
    "adamw": {"kind": optim.AdamW, "lr": 0.01},
    "correction": {"more": {"momentum": 0.9, "weight_decay": 0.01}, "momentum_correction": True, "dense_below": 8},
    "local": {"local_steps": 2, "outer_momentum": 0.5, "more": {"momentum": 0.9}},
    "local bf16": {"local_steps": 2, "start_dtype": "bf16"},
    "local double": {"local_steps": 2, "dtype": torch.float64},
}


def new(run, model=None):
    options = {"density": 0.05, **RUNS[run]}
    model = sharded((plain() if model is None else model).to(options.pop("dtype", torch.float32)))
    return model, wrapped(model, **options)


def exactly(model):
    """All weights, as one vector, without rounding."""
    return torch.cat([whole(p).double().flatten() for p in model.parameters()])


def totals(model, optimizer, what="residual"):
    """The sums over the nodes, of all shards; on every rank."""
    found = optimizer.state_dict()["gtopk"][what]
    sums = {}
    for name, p in model.named_parameters():
        part = found.get(name, torch.zeros(local(p).shape))  # nodes that were not there when it was saved may have none
        everywhere = gtopk.allgather(whole(spread_like(part, p)).double()[None])
        sums[name] = everywhere[:: gtopk.size() // nodes()].sum(0)
    return sums


def save(run, model, optimizer):
    residual = optimizer.sharded_state_dict()
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state, "gtopk": residual}, checkpoint_id=FOLDER / run)


def case_save():
    for run in RUNS:
        model, optimizer = new(run)
        train(model, optimizer, 4)
        raises(gtopk.StateError, lambda m=model, o=optimizer: get_optimizer_state_dict(m, o), "sharded_state_dict()")
        save(run, model, optimizer)
        sums = {what: totals(model, optimizer, what) for what in ("residual", "velocity")} | {"at": exactly(model)}
        # Saving changes nothing: these ranks go on to the end.
        train(model, optimizer, 4, 4)
        assert_replicas(model)
        sums |= {"end": exactly(model), "nodes": nodes()}
        if gtopk.rank() == 0:
            torch.save(sums, FOLDER / f"{run}.pt")


def case_between_exchanges_is_an_error():
    model, optimizer = new("local")
    train(model, optimizer, 1)
    raises(gtopk.StateError, optimizer.sharded_state_dict, "1 local steps", "synchronize()")


def case_a_model_that_is_not_sharded():
    """Each rank is a replica then."""
    model = plain()
    optimizer = gtopk.DistributedOptimizer(optim.AdamW(model.parameters()), model.named_parameters(), density=0.05)
    train(model, optimizer, 3)
    save("plain", model, optimizer)
    found = optimizer.state_dict()["gtopk"]["residual"]
    sums = {name: gtopk.allreduce(values.double(), gtopk.Sum) for name, values in found.items()}
    if gtopk.rank() == 0:
        torch.save({**sums, "ranks": gtopk.size()}, FOLDER / "plain.pt")
