"""Runs the Python code blocks of Markdown pages, each page in a namespace of its own: run_blocks.py MODE FILE...

A comment in the line above a block says how it is tested, and a block without one is run in every mode:

    <!-- test: set-up -->                  run before each page but README.md, which is complete by itself
    <!-- test: torchrun, because ... -->   run in the mode "torchrun" only
    <!-- test: no, because ... -->         not run

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


class Block(NamedTuple):
    file: Path
    line: int
    code: str
    how: str  # "", "set-up", "torchrun" or "no"


def blocks(file):
    """All Python blocks of a page."""
    text = file.read_text()
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


def run(block, namespace):
    # Blank lines in front, so that a traceback has the page's line numbers.
    code = compile("\n" * (block.line - 1) + block.code, str(block.file), "exec")
    exec(code, namespace)


def main(mode, files):
    assert mode in MODES
    pages = {file: blocks(file) for file in files}
    set_up = [block for found in pages.values() for block in found if block.how == "set-up"]
    for file, found in pages.items():
        chosen = [] if file.name == "README.md" else list(set_up)
        chosen += [block for block in found if block.how == "" or block.how == mode]
        namespace = {"__name__": "__main__"}
        for block in chosen:
            run(block, namespace)
        import gtopk

        gtopk.barrier()
        if gtopk.rank() == 0:
            print(f"passed {file} ({len(chosen)} blocks on {gtopk.size()} ranks)", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1], [Path(name) for name in sys.argv[2:]])
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        # At once: the other ranks may wait for this one, and MPI_Finalize would wait for them.
        import os

        os._exit(1)
