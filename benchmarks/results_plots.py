"""Pictures of results that have none beside them, known by the form of their data: a list of captions and PNGs."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pictures import pyplot as plt

Rows = list[dict[str, Any]]


def draw(data: Any) -> list[tuple[str, bytes]]:
    if not isinstance(data, dict):
        return []
    if has(data.get("cases"), "rows", "rate"):
        return [(overlap if has(case["rows"], "backward_ms") else network)(case) for case in data["cases"]]
    if has(data.get("trainings"), "task", "method", "curve"):
        return [trainings(data["trainings"])]
    if has(data.get("runs"), "curve"):
        return [curves(data["runs"])]
    rows = data.get("rows")
    for names, picture in FORMS:
        if has(rows, *names):
            return picture(rows)
    return []


def has(rows: Any, *names: str) -> bool:
    """A list of rows that all have these."""
    return isinstance(rows, list) and bool(rows) and all(isinstance(r, dict) and set(names) <= set(r) for r in rows)


def network(case: dict[str, Any]) -> tuple[str, bytes]:
    """The exchange of each method, or the step where that alone was measured."""
    times = {}
    for row in case["rows"]:
        exchange = row.get("median_exchange_ms")
        value = exchange or row.get("median_ms")
        if value:
            times[row["method"] if exchange else f"{row['method']} (step)"] = value
    times = dict(sorted(times.items(), key=lambda item: -item[1]))
    title = f"{case['ranks']} ranks, {case['rate']}, {case['entries'] / 1e6:g}M entries"

    def fill(axes: Axes) -> None:
        bars = axes.barh(list(times), list(times.values()))
        axes.bar_label(bars, fmt=lambda value: f" {value:,.0f}" if value >= 1000 else f" {value:.3g}", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlabel("exchange, milliseconds")
        axes.margins(x=0.15)

    return picture(title, fill, height=1.2 + 0.25 * len(times))


def overlap(case: dict[str, Any]) -> tuple[str, bytes]:
    """A step over how long backward takes, each less the step without an exchange."""
    rows = case["rows"]

    def fill(axes: Axes) -> None:
        for method in rows[0]["ms"]:
            if method != "alone":
                rest = [row["ms"][method] - row["ms"]["alone"] for row in rows]
                axes.plot([row["backward_ms"] for row in rows], rest, marker="o", label=method)
        axes.set_xscale("symlog", linthresh=100)
        axes.set_yscale("log")
        axes.set_xlabel("backward, milliseconds")
        axes.set_ylabel("more than without an exchange, milliseconds")
        axes.legend()

    return picture(f"{case['ranks']} ranks, {case['rate']}, {case['entries'] / 1e6:g}M entries", fill)


# Okabe and Ito's colours and one more, which colour-blind readers can tell apart; gtopk's lines are solid.
COLOURS = ("#555555", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#000000", "#882255")


def trainings(rows: Rows) -> tuple[str, bytes]:
    """The loss over the seconds of the training, a panel a network and task."""
    networks = list(dict.fromkeys((row["ranks"], row["rate"]) for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = {method: COLOURS[place % len(COLOURS)] for place, method in enumerate(methods)}
    size = (6 * len(tasks), 4.4 * len(networks))
    figure, panels = plt.subplots(len(networks), len(tasks), figsize=size, squeeze=False, layout="constrained")
    for (ranks, rate), line in zip(networks, panels, strict=True):
        for task, axes in zip(tasks, line, strict=True):
            axes.set_title(f"{task}, {ranks} ranks, {rate}", fontsize=10)
            for row in rows:
                if (row["ranks"], row["rate"], row["task"]) == (ranks, rate, task):
                    points = [point for point in row["curve"] if point["seconds"] > 0]  # the axis is logarithmic
                    x, y = [point["seconds"] for point in points], [point["loss"] for point in points]
                    dashes = "-" if "gtopk" in row["method"] else "--"
                    axes.plot(x, y, dashes, color=colours[row["method"]], label=row["method"], linewidth=1.5)
            axes.set_xscale("log")
            axes.set_xlabel("seconds of training, evaluation not counted")
            axes.set_ylabel("loss on held-out data")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    return "loss over time", png(figure)


def curves(runs: Rows) -> tuple[str, bytes]:
    """Each run is called by what it differs in from the others."""
    plain = [name for name, value in runs[0].items() if isinstance(value, str | int | float)]
    differ = [
        name for name in plain if len({str(run.get(name)) for run in runs}) > 1 and name not in ("loss", "accuracy")
    ]

    def fill(axes: Axes) -> None:
        for run in runs:
            label = ", ".join(f"{name} {run[name]}" for name in differ)
            axes.plot([p["step"] for p in run["curve"]], [p["loss"] for p in run["curve"]], label=label)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(fontsize=8)

    return picture("training curves", fill)


def first_steps(rows: Rows) -> list[tuple[str, bytes]]:
    """A picture a task, and one of it for more ranks than four: the test loss of each setting, the mean over seeds."""
    titles = [row["task"] if row["ranks"] <= 4 else f"{row['task']}, {row['ranks']} ranks" for row in rows]
    return [
        of_task(title, [row for row, its in zip(rows, titles, strict=True) if its == title])
        for title in dict.fromkeys(titles)
    ]


def of_task(title: str, rows: Rows) -> tuple[str, bytes]:
    def fill(axes: Axes) -> None:
        for setting in dict.fromkeys(row["setting"] for row in rows):
            runs = [
                {0: row["start"], **{int(k): v for k, v in row["losses"].items()}}
                for row in rows
                if row["setting"] == setting
            ]
            steps = sorted(step for step in set.intersection(*map(set, runs)) if None not in [r[step] for r in runs])
            means = [sum(run[step] for run in runs) / len(runs) for step in steps]
            axes.plot(steps, means, "k--" if setting == "dense" else "-", marker=".", label=setting)
        axes.set_xlabel("step")
        axes.set_ylabel("test loss")
        axes.legend(fontsize=7, ncols=2)

    return picture(title, fill)


def seeds(rows: Rows) -> list[tuple[str, bytes]]:
    def fill(axes: Axes) -> None:
        axes.scatter([row["loss"] for row in rows], [row["algorithm"] for row in rows], alpha=0.7)
        axes.set_xlabel("loss at the end, a dot a seed")

    return [picture("loss by algorithm", fill, height=2.5)]


def exchanges(rows: Rows) -> list[tuple[str, bytes]]:
    def fill(axes: Axes) -> None:
        for algorithm in dict.fromkeys(row["algorithm"] for row in rows):
            mine = sorted((row["n"], row["median_ms"]) for row in rows if row["algorithm"] == algorithm)
            axes.plot(*zip(*mine, strict=True), marker="o", label=algorithm)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("entries")
        axes.set_ylabel("a step, milliseconds")
        axes.legend(fontsize=8)

    return [picture("steps by algorithm and size", fill)] if len({row["n"] for row in rows}) > 1 else []


FORMS: list[tuple[tuple[str, ...], Callable[[Rows], list[tuple[str, bytes]]]]] = [
    (("task", "setting", "ranks", "start", "losses"), first_steps),
    (("algorithm", "seed", "loss"), seeds),
    (("algorithm", "n", "median_ms"), exchanges),
]


def picture(title: str, fill: Callable[[Axes], None], height: float = 4.0) -> tuple[str, bytes]:
    figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    fill(axes)
    return title, png(figure)


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    plt.close(figure)
    return out.getvalue()
