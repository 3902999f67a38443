"""Runs the Python code blocks of Markdown pages, each page in a namespace of its own: run_blocks.py MODE SEEDS FILE...

A comment in the line above a block says how it is tested, and a block without one is run in every mode:

    <!-- test: set-up -->                  run before each page but README.md, which is complete by itself
    <!-- test: torchrun, because ... -->   run in the mode "torchrun" only
    <!-- test: no, because ... -->         not run

Scripts (FILE.py) are run as a page with one block. All is done SEEDS times, with other random numbers each time. Each block
that trains starts from new weights and has to learn: the loss at its end must be well below that of whoever predicts the
mean, and all ranks must have the same weights.

Rank 0 prints a line for each page. The first failure ends the process with a traceback that names page and line.
"""

from __future__ import annotations

import re
import sys
import textwrap
import traceback
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
ANY_FENCE = re.compile(r"^ *```(\w*)", re.MULTILINE)
MARK = re.compile(r"<!-- test: (set-up|(?:torchrun|no), because .+) -->\s*\Z")
MODES = ("alone", "mpirun", "torchrun")
LEARNED = 0.75  # the targets' variance, the loss of their mean, is 16 / 12


class Block(NamedTuple):
    file: Path
    line: int
    code: str
    how: str  # "", "set-up", "torchrun" or "no"


def blocks(file):
    """All Python blocks of a page."""
    text = file.read_text()
    if file.suffix == ".py":
        return [Block(file, 1, text, "")]
    found = []
    for match in FENCE.finditer(text):
        above = text[: match.start()]
        last = above.rstrip("\n").rpartition("\n")[2]
        mark = MARK.search(last)
        if "<!-- test" in last and not mark:
            raise SystemExit(f"{file}: not understood: {last.strip()}")
        how = mark[1].partition(",")[0] if mark else ""
        found.append(Block(file, above.count("\n") + 2, textwrap.dedent(match["code"]), how))
    return found


def loss_of(namespace):
    """At the end: on the whole data set, or in the last step where each is a new batch."""
    import torch

    if "dataset" not in namespace:
        return float(namespace["loss"])
    x, y = namespace["dataset"].tensors
    with torch.no_grad():
        return float(torch.nn.functional.mse_loss(namespace["model"](x), y))


def takes_steps(block):
    """Has a loop with training steps. One that ends with join() takes a few, after those of a block before it."""
    return bool(re.search(r"^ *(for|while) ", block.code, re.MULTILINE)) and ".step(" in block.code


def trains(block):
    return takes_steps(block) and ".join()" not in block.code


def check(block, namespace):
    """It has learned, and alike on all ranks."""
    import torch

    import gtopk

    loss = loss_of(namespace)
    place = f"{block.file}:{block.line}"
    assert loss < LEARNED, f"{place} does not train on {gtopk.size()} ranks: the loss is {loss:.3g}"
    mine = torch.cat([whole(p).flatten() for p in namespace["model"].parameters()])
    everywhere = gtopk.allgather(mine[None])
    assert (everywhere == everywhere[0]).all(), f"{place}: ranks have different weights"
    return loss


def whole(parameter):
    parameter = parameter.detach()
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def seed_differently(offset):
    """Examples set their seed."""
    import torch

    original = getattr(torch.manual_seed, "original", torch.manual_seed)

    def manual_seed(seed):
        return original(seed + 1000 * offset)

    manual_seed.original = original
    torch.manual_seed = manual_seed


def run(block, namespace):
    # Blank lines in front, so that a traceback has the page's line numbers.
    code = compile("\n" * (block.line - 1) + block.code, str(block.file), "exec")
    exec(code, namespace)


def main(mode, seeds, files):
    assert mode in MODES
    pages = {file: blocks(file) for file in files}
    for seed in range(seeds):
        seed_differently(seed)
        run_pages(mode, pages)


def run_pages(mode, pages):
    set_up = [block for found in pages.values() for block in found if block.how == "set-up"]
    for file, found in pages.items():
        chosen = [] if file.name == "README.md" or file.suffix == ".py" else list(set_up)
        chosen += [block for block in found if block.how == "" or block.how == mode]
        namespace = {"__name__": "__main__"}
        sys.argv = [str(file)]
        losses, start = [], None
        for block in chosen:
            if trains(block) and start:
                renew(namespace["model"], start)
            run(block, namespace)
            if block.how == "set-up":
                start = [p.detach().clone() for p in namespace["model"].parameters()]
            if trains(block):
                losses.append(check(block, namespace))
        import gtopk

        learned = ", loss " + ", ".join(f"{loss:.3g}" for loss in losses) if losses else ""
        gtopk.barrier()
        if gtopk.rank() == 0:
            print(f"passed {file} ({len(chosen)} blocks on {gtopk.size()} ranks){learned}", flush=True)


def renew(model, start):
    import torch

    with torch.no_grad():
        for p, values in zip(model.parameters(), start, strict=True):
            p.copy_(values)


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        # At once: the other ranks may wait for this one, and MPI_Finalize would wait for them.
        import os

        os._exit(1)
