"""One of the ranks of two nodes with as many shards each, started by hand, that takes steps until one fails. It stays then, so
that nobody learns of it by its end."""

from __future__ import annotations

import os
import sys
import time

import torch
from fsdp_support import give, mesh, node, parts, residuals, sharded, wrapped

import gtopk


def say(text):
    """One line, in one piece: several ranks write to one file."""
    os.write(1, f"{text}\n".encode())


def main(timeout):
    gtopk.init(transport="torch", timeout=timeout, setup_timeout=120.0)
    mesh()
    model = sharded()
    optimizer = wrapped(model, lr=0.0, density=0.1, value_type="fp32")
    rank = gtopk.rank()
    say(f"rank {rank} pid {os.getpid()}")
    for step in range(10**9):
        give(model, lambda _, shape, step=step: torch.full(shape, 48.0 * (1 + (node() + step) % 3)))
        given = parts(model)
        before = residuals(optimizer) if step else torch.zeros_like(given)
        try:
            optimizer.step()
        except gtopk.GtopkError as error:
            first, when = error, time.time()
            break
        if step % 10 == 0:
            say(f"rank {rank} step {step}")
    after = residuals(optimizer)
    # The mean over the node of what is not sharded comes first: where that failed nothing was accumulated.
    kept = int(torch.equal(after, before + given) or (torch.equal(after, before) and torch.equal(parts(model), given)))
    later = 0
    try:
        optimizer.step()
    except gtopk.GtopkError as error:
        later = int(bool(str(error)))
    say(f"rank {rank} failed {type(first).__name__} at {when:.6f} kept {kept} later {later}: {first}")
    time.sleep(120)


main(float(sys.argv[1]))
