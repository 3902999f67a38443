"""The table of the guide on memory, measured again: bytes a parameter that each option takes. Two ranks are a node.

GTOPK_TEST_ALL_ROWS: every row, with as many parameters as there.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import memory

ALL_ROWS = "GTOPK_TEST_ALL_ROWS" in os.environ
PARAMETERS = 4_000_000 if ALL_ROWS else 2_000_000
NEAR = 0.7  # bytes: of what does not grow with the parameters, too. An array more or less is 2, 4 or 8


# The rest is much the same, or takes long.
LEFT_OUT = (
    "auto",
    "static_graph",
    "rollback",
    "hierarchy",
    "outer_momentum",
    "scaler",
    "unused",
    "state_dict",
    "local_steps=2, residual",
)


def case_the_table_of_the_guide():
    page = (ROOT / "docs/guide/memory.md").read_text()
    table = {
        name: (float(held), float(most))
        for name, held, most in re.findall(r"^\| (.+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    }
    memory.prepare()
    rows = memory.rows()
    options = {name for name in table if not name[0].isdigit()}  # the page has a table of densities, too
    assert set(rows) == options, set(rows) ^ options
    for name, measure in rows.items():
        if not ALL_ROWS and any(words in name for words in LEFT_OUT):
            continue
        taken = measure(PARAMETERS)
        for found, said in zip(taken, table[name], strict=True):
            assert abs(found - said) < NEAR, f"{name} takes {taken}, the guide says {table[name]}"
