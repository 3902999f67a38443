"""The file of the study: rows, each with the machine, the day and the commit that made it."""

from __future__ import annotations

import functools
import json
import math
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

__all__ = ["commit", "key", "load", "same_data", "save", "stamped", "without_nan"]

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]


def load(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": []}
    return found


def save(file: Path, study: dict[str, Any]) -> None:
    """The file is whole at every moment."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(study, indent=1, allow_nan=False) + "\n")
    fresh.replace(file)


def stamped(row: Row, machine: dict[str, Any]) -> Row:
    """With what says later how it came about. Rows made before there was that have no date and no commit."""
    return {**row, "machine": machine, "date": datetime.now(timezone.utc).date().isoformat(), "commit": commit()}


@functools.cache
def commit() -> str:
    """Of the sources, when this was first asked; "+" after it where something else than results differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", ":/", ":!/benchmarks/results") else ""
        )
    except (OSError, subprocess.CalledProcessError):  # a copy without git
        return "?"


def without_nan(value: Any) -> Any:
    """JSON has neither Inf nor NaN: what diverged is null."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def key(row: Row) -> tuple[str, str, int, int]:
    return row["task"], row["setting"], row["ranks"], row["seed"]


def same_data(row: Row, rows: list[Row]) -> None:
    """A row of other data than those that are there (speech with another --an4) is not to be compared with them."""
    for start in (other["start"] for other in rows if (other["task"], other["seed"]) == (row["task"], row["seed"])):
        if not math.isclose(start, row["start"], rel_tol=0.01):
            raise SystemExit(
                f"{row['task']} starts at {row['start']:.3f}, and in the file at {start:.3f}: these are other data; give the "
                "same --an4, or another --out"
            )
