"""A picture of the study: how good a training is over what rank 0 has sent, a line a setting, the mean and range over seeds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

__all__ = ["draw", "lines_of"]

Row = dict[str, Any]
Point = tuple[float, float, float, float]  # bytes, and of what is drawn mean, least and most


def draw(rows: list[Row], file: Path) -> None:
    """Rows of one task and number of ranks. Accuracy where all of them have it, else loss."""
    from pictures import pyplot
    from report import STYLE, size_text

    what = "accuracy" if all("accuracy" in point for row in rows for point in row["curve"]) else "loss"
    lines = lines_of(rows, what)
    colours = pyplot.get_cmap("tab20")
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
        for number, (setting, points) in enumerate(lines.items()):
            sent, mean, least, most = zip(*points, strict=True)
            colour = "black" if setting == "dense" else colours(number % 20)
            style = "--" if setting == "dense" else "-" if number < 20 else ":"
            seeds = sum(row["setting"] == setting for row in rows)
            label = f"{setting} ({seeds} seed{'s' if seeds > 1 else ''})"
            axes.plot(sent, mean, style, marker=".", color=colour, label=label)
            axes.fill_between(sent, least, most, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda size, _: size_text(size))
        axes.set_xlabel("sent by rank 0 so far")
        axes.set_ylabel(f"test {what}; the band is the range over seeds")
        axes.set_title(f"{rows[0]['task']}, {rows[0]['ranks']} ranks")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def lines_of(rows: list[Row], what: str) -> dict[str, list[Point]]:
    """By setting, a point for each step that the curves of all its seeds have, without those where one has diverged."""
    lines: dict[str, list[Point]] = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        curves = [{point["step"]: point for point in row["curve"]} for row in rows if row["setting"] == setting]
        for step in sorted(set.intersection(*map(set, curves)) - {0}):
            values = [curve[step][what] for curve in curves]
            if None not in values:
                sent = statistics.mean(curve[step]["bytes_sent"] for curve in curves)
                lines.setdefault(setting, []).append((sent, statistics.mean(values), min(values), max(values)))
    return lines
