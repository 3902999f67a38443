"""First half of the checkpoint test: trains, and writes what `cases_torch_checkpoint_load` goes on from in new processes.

The folder is GTOPK_TEST_FOLDER.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from cases_torch_optimizer import assert_replicas, flat, residuals, wrapped
from harness import raises
from torch import optim
from torch_support import make, train

import gtopk

FOLDER = Path(os.environ["GTOPK_TEST_FOLDER"])
RUNS = {
    "sgd": {"more": {"momentum": 0.9}},
    "correction": {
        "more": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        "momentum_correction": True,
        "dense_below": 100,
        "warmup": [(5, 0.2), (10, 0.05)],
    },
    "adamw": {"kind": optim.AdamW, "value_type": "int8"},
}

# Saved in the middle of a period: 10 steps are two exchanges and two steps.
LOCAL = {"kind": optim.AdamW, "local_steps": 4, "outer_momentum": 0.5, "residual_decay": 0.9}


def new(run):
    model = make()
    options = LOCAL if run == "local" else RUNS[run]
    return model, wrapped(model, **{"lr": 0.01, "density": 0.02, **options})


def file(run, what):
    return FOLDER / f"{run}-{what}.pt"


def total(optimizer, model, what="residual"):
    """The sum over the ranks, of all parameters that have one."""
    entries = optimizer.state_dict()["gtopk"][what]
    return gtopk.allreduce(flat(entries[name] for name, _ in model.named_parameters() if name in entries), op=gtopk.Sum)


def case_save():
    for run in RUNS:
        model, optimizer = new(run)
        train(model, optimizer, 10, 0, gtopk.rank())
        state = optimizer.state_dict()
        torch.save({"model": model.state_dict(), "optimizer": state}, file(run, gtopk.rank()))
        consolidated = optimizer.consolidate_state_dict(to=1)
        assert (consolidated is not None) == (gtopk.rank() == 1)
        sums = {what: total(optimizer, model, what) for what in ("residual", "velocity") if state["gtopk"][what]}
        if consolidated is not None:
            saved = {"model": model.state_dict(), "optimizer": consolidated, "sums": sums}
            torch.save(saved, file(run, "consolidated"))
        # Saving and consolidating change nothing: these ranks go on to the end.
        train(model, optimizer, 10, 10, gtopk.rank())
        assert_replicas(model)
        torch.save({"model": model.state_dict(), "residual": residuals(optimizer)}, file(run, f"end-{gtopk.rank()}"))


def case_save_local_steps():
    model, optimizer = new("local")
    train(model, optimizer, 10, 0, gtopk.rank())
    state, weights = optimizer.state_dict(), model.state_dict()
    torch.save({"model": weights, "optimizer": state}, file("local", gtopk.rank()))
    consolidated = optimizer.consolidate_state_dict(to=1)
    start = state["gtopk"]["start"]
    done = flat(start[name] - p.detach().cpu() for name, p in model.named_parameters())
    waiting = gtopk.allreduce(done, op=gtopk.Sum) + total(optimizer, model).cpu()
    if consolidated is not None:
        saved = {"model": weights, "optimizer": consolidated, "waiting": waiting}
        torch.save(saved, file("local", "consolidated"))
    train(model, optimizer, 10, 10, gtopk.rank())
    assert_replicas(model)
    torch.save({"model": model.state_dict(), "residual": residuals(optimizer)}, file("local", f"end-{gtopk.rank()}"))


def case_consolidate_to_a_rank_that_does_not_exist():
    _, optimizer = new("sgd")
    raises(gtopk.InvalidError, lambda: optimizer.consolidate_state_dict(to=gtopk.size()), "to is")
