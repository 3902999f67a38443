"""Second half, in new processes: on as many nodes and shards as there were, or others."""

from __future__ import annotations

import torch
import torch.distributed.checkpoint as dcp
from cases_torch_fsdp_save import FOLDER, RUNS, exactly, new, totals
from fsdp_support import assert_replicas, mesh, nodes, plain, sharded, train, wrapped
from harness import raises
from torch import nn, optim
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import gtopk


def load(run, model, optimizer):
    weights, state = get_state_dict(model, optimizer)
    # get_state_dict makes a momentum for the parameter that is not used, too, which with local steps has none.
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=FOLDER / run, planner=planner)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    optimizer.load_sharded_state(FOLDER / run)


def assert_kept(values, saved):
    """The mean, to one rounding for each of the residuals that were added up in float32, and these may cancel out."""
    torch.testing.assert_close(values, saved, rtol=1e-6, atol=1e-6 * float(saved.abs().max()))


def case_nothing_is_lost():
    for run in RUNS:
        model, optimizer = new(run, plain(seed=7))
        load(run, model, optimizer)
        saved = torch.load(FOLDER / f"{run}.pt", weights_only=True)
        assert torch.equal(exactly(model), saved["at"]), run
        for what in ("residual", "velocity"):
            found = totals(model, optimizer, what)
            for name, values in found.items():
                assert_kept(values / nodes(), saved[what][name] / saved["nodes"])
            assert what == "velocity" or any(values.any() for values in found.values())
        train(model, optimizer, 4, 4)
        assert_replicas(model)
        assert optimizer.stats()["step"] == (3 if "local_steps" in RUNS[run] else 7)
        # With local steps each node has a momentum of its own, of which one is saved.
        if saved["nodes"] == nodes() and mesh()["shards"].size() == 2 and run != "local":
            assert torch.equal(exactly(model), saved["end"]), run


def case_a_model_that_is_not_sharded():
    model = plain(seed=7)
    optimizer = gtopk.DistributedOptimizer(optim.AdamW(model.parameters()), model.named_parameters(), density=0.05)
    load("plain", model, optimizer)
    saved = torch.load(FOLDER / "plain.pt", weights_only=True)
    found = optimizer.state_dict()["gtopk"]["residual"]
    for name, p in model.named_parameters():
        total = gtopk.allreduce(found.get(name, torch.zeros_like(p)).detach().double(), gtopk.Sum)
        assert_kept(total / gtopk.size(), saved[name] / saved["ranks"])
    train(model, optimizer, 2, 3)
    assert_replicas(model)
    # And the residual of whole parameters is that of sharded ones.
    model = sharded(plain(seed=7))
    optimizer = wrapped(model, optim.AdamW, density=0.05)
    load("plain", model, optimizer)
    for name, values in totals(model, optimizer).items():
        assert_kept(values / nodes(), saved[name].reshape(values.shape) / saved["ranks"])


def case_mistakes():
    model, optimizer = new("adamw")
    error = (gtopk.CorruptError, gtopk.MismatchError)
    raises(error, lambda: optimizer.load_sharded_state(FOLDER / "adamw", key="residual"), "no 'residual'", "gtopk")
    raises(error, lambda: optimizer.load_sharded_state(FOLDER / "correction"), "momentum_correction=True")
    raises(error, lambda: optimizer.load_sharded_state(FOLDER / "local"), "local_steps")
    other = plain()
    other.gate = nn.Linear(6, 2)
    raises(error, lambda: new("adamw", other)[1].load_sharded_state(FOLDER / "adamw"), "another model", "gate")
    where = FOLDER / ("adamw" if gtopk.rank() else "nothing")
    raises((FileNotFoundError, gtopk.MismatchError), lambda: optimizer.load_sharded_state(where), "nothing")
    train(model, optimizer, 2)
    assert_replicas(model)
