"""Tables and pictures of what the examples measured, and the prediction for slower networks.

Takes the dictionaries that the examples' `--json` writes. Knows neither gtopk nor PyTorch.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Network", "Prediction", "cores", "exchange_seconds", "machine", "plot", "predict", "prediction_table",
           "same_steps", "size_text", "table", "totals"]  # fmt: skip

Run = dict[str, Any]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = {
    "dense": "#555555",
    "topk": "#E69F00",
    "gtopk": "#0072B2",
    "gtopk-tree": "#009E73",
    "gtopk-split": "#CC79A7",
    "auto": "#D55E00",
}
_NAMES = {
    "dense": "dense",
    "topk": "Top-k",
    "gtopk": "gTop-k",
    "gtopk-tree": "gTop-k (tree)",
    "gtopk-split": "gTop-k (split)",
    "auto": "chosen",
}


def cores() -> int:
    """Cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the numbers were measured on; no name of the host."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = next(iter(names), model)
    return {"cpu": model, "cores": cores(), "system": platform.system(), "python": platform.python_version()}


# ---- runs ----------------------------------------------------------------------------------------------------------


def totals(history: list[dict[str, Any]], samples_a_step: int) -> Run:
    """What the lines of a run come to."""
    seconds, last = sum(line["seconds"] for line in history), history[-1]
    return {
        "steps": last["step"],
        "loss": last["loss"],
        "score": last["score"],
        "samples_per_s": last["step"] * samples_a_step / seconds,
        "steps_per_s": last["step"] / seconds,
        "communication_share": sum(line["exchange_seconds"] for line in history) / seconds,
        "bytes_sent": last["bytes_sent"],
        "step_ms": last["step_ms"],
        "local_ms": last["local_ms"],
        "history": history,
    }


def same_steps(runs: list[Run]) -> list[Run]:
    """The runs up to the last step after which each has a line; none of them where there is no such step."""
    common = set.intersection(*({line["step"] for line in run["history"]} for run in runs))
    if not common:
        return []
    parts = [[line for line in run["history"] if line["step"] <= max(common)] for run in runs]
    return [run | totals(part, run["batch_size"] * run["ranks"]) for run, part in zip(runs, parts, strict=True)]


# ---- tables ---------------------------------------------------------------------------------------------------------


def size_text(size: float) -> str:
    """Three digits, in decimal units, as networks have them."""
    unit, units = "B", ["kB", "MB", "GB", "TB"]
    while size >= 999.5 and units:
        size /= 1000
        unit = units.pop(0)
    return f"{size:.3g} {unit}"


def table(runs: list[Run]) -> str:
    """A line a run, and what the columns mean. Bytes are those that one rank sent, in the mean over the ranks."""
    head = ["", "density", "ranks", "steps", "loss", runs[0]["metric"], f"{runs[0]['unit']}/s", "steps/s",
            "communication", "sent a step*", "sent in all"]  # fmt: skip
    rows = [
        [
            _NAMES[run["algorithm"]],
            "1" if run["density"] is None else f"{run['density']:g}",
            str(run["ranks"]),
            str(run["steps"]),
            f"{run['loss']:.4f}",
            f"{run['score']:.4f}",
            f"{run['samples_per_s']:.0f}",
            f"{run['steps_per_s']:.2f}",
            f"{run['communication_share']:.1%}",
            size_text(run["history"][-1]["bytes_sent_per_step"]),
            size_text(run["bytes_sent"]),
        ]
        for run in runs
    ]
    return (
        _aligned(head, rows) + "\n* by each process, in the steps of the last line; the loss is that of these steps too"
    )


def _aligned(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    lines = []
    for row in [head, rule, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


# ---- prediction -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    name: str
    bits_per_second: float
    latency: float  # seconds a message


@dataclass(frozen=True)
class Prediction:
    """A step of one model over one network, in seconds. `other` is what is not exchange: computing, selecting."""

    model: str
    network: str
    algorithm: str
    other: float
    exchange: float

    @property
    def step(self) -> float:
        return self.other + self.exchange


def exchange_seconds(
    algorithm: str, *, ranks: int, entries: int, k: int, bytes_an_entry: float, network: Network
) -> float:
    """The cost model: latency a and b seconds a byte, P ranks, n entries, k of them sent with w bytes each.

    dense 2 a (P-1) + 2 (P-1)/P n 4 b;  Top-k a log2 P + (P-1) k w b;  gTop-k (a + k w b) log2 P, as a tree twice that;
    split 2 a log2 P + 2 (P-1)/P k w b.
    """
    a, b = network.latency, 8 / network.bits_per_second
    rounds = math.ceil(math.log2(ranks))
    message = k * bytes_an_entry * b
    if algorithm == "dense":
        return 2 * a * (ranks - 1) + 2 * (ranks - 1) / ranks * entries * 4 * b
    if algorithm == "topk":
        return a * rounds + (ranks - 1) * message
    if algorithm == "gtopk-split":
        return 2 * a * rounds + 2 * (ranks - 1) / ranks * message
    return (a + message) * rounds * (2 if algorithm == "gtopk-tree" else 1)


def predict(
    runs: list[Run], networks: list[Network], *, other_entries: int = 25_000_000, other_computing: float = 0.1
) -> list[Prediction]:
    """Step times of the measured model and of one with `other_entries` parameters.

    The measured model: its own time outside the exchange, as measured here. The other one: `other_computing` seconds
    are assumed for forward and backward pass, and what a rank does to compress is scaled up with the parameters.
    Computing is the same whatever the algorithm, so the smallest that was seen counts for all. A dense all-reduce needs
    no other work: gtopk's own, which goes through the same reducer, is taken off.
    """
    own = {run["algorithm"]: run["local_ms"] / 1e3 for run in runs}
    outside = {
        run["algorithm"]: (1 - run["communication_share"]) / run["steps_per_s"] - own[run["algorithm"]] for run in runs
    }
    computing = min(outside.values())
    local = {algorithm: 0.0 if algorithm == "dense" else seconds for algorithm, seconds in own.items()}
    predictions = []
    models = (
        (f"{runs[0]['model']}, {_millions(runs[0]['parameters'])}", runs[0]["parameters"], computing),
        (f"a model of {_millions(other_entries)}", other_entries, other_computing),
    )
    for name, entries, compute in models:
        for network in networks:
            for run in runs:
                algorithm = run["algorithm"]
                k = entries if run["density"] is None else max(1, round(run["density"] * entries))
                exchange = exchange_seconds(
                    algorithm,
                    ranks=run["ranks"],
                    entries=entries,
                    k=k,
                    bytes_an_entry=_bytes_an_entry(run),
                    network=network,
                )
                other = compute + local[algorithm] * entries / run["parameters"]
                predictions.append(Prediction(name, network.name, algorithm, other, exchange))
    return predictions


def _bytes_an_entry(run: Run) -> float:
    """As measured in the last step, headers included."""
    last = run["last_step"]
    return float(last["bytes_sent"] / max(1, last["rounds"] * last["k"]))


def _millions(entries: int) -> str:
    millions = entries / 1e6
    return f"{millions:.0f}M" if millions >= 10 else f"{millions:.2f}M"


def prediction_table(predictions: list[Prediction]) -> str:
    head = ["model", "network", "", "exchange", "rest of the step", "step", "speed-up"]
    dense = {(p.model, p.network): p.step for p in predictions if p.algorithm == "dense"}
    rows = []
    for p in predictions:
        base = dense.get((p.model, p.network))
        speedup = "" if base is None else f"{base / p.step:.2f} x"
        name = _NAMES[p.algorithm]
        rows.append([p.model, p.network, name, _ms(p.exchange), _ms(p.other), _ms(p.step), speedup])
    return _aligned(head, rows)


def _ms(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"


# ---- pictures -------------------------------------------------------------------------------------------------------

# Of matplotlib.
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
}


def plot(runs: list[Run], file: Path, predictions: list[Prediction] | None = None) -> None:
    """Loss, score and bytes by step; and the predicted step times, or the share of time in communication."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(2, 2, figsize=(10, 7.2), layout="constrained")
        (loss, score), (sent, last) = axes
        run = runs[0]
        _curves(loss, runs, "loss", "Training loss")
        _curves(score, runs, "score", f"{run['metric'].capitalize()} on the test {run['unit']}")
        _sent(sent, runs)
        if predictions:
            _bars(last, predictions)
        else:
            _curves(last, runs, "communication_share", "Share of time in communication")
            last.set_ylim(bottom=0)
        for curves in (loss, score, sent):
            curves.set_xlabel("step")
            curves.set_xlim(left=0)
        loss.legend()
        title = f"{run['model']} on {run['data']}, {run['ranks']} processes, batch {run['batch_size']} each"
        figure.suptitle(
            f"{title}, on one machine" if predictions else title,
            x=0.01,
            ha="left",
            fontsize=12,
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def _curves(axes: Axes, runs: list[Run], name: str, title: str) -> None:
    for run in runs:
        history = run["history"]
        axes.plot(
            [line["step"] for line in history],
            [line[name] for line in history],
            color=_COLOURS[run["algorithm"]],
            label=_label(run),
            marker="o",
            markersize=3,
            linewidth=1.5,
        )
    axes.set_title(title)


def _label(run: Run) -> str:
    name = _NAMES[run["algorithm"]]
    return name if run["density"] is None else f"{name}, density {run['density']:g}"


def _sent(axes: Axes, runs: list[Run]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for run in runs:
        history = run["history"]
        steps = [0, *(line["step"] for line in history)]
        sent = [line["bytes_sent_per_step"] for line in history]
        axes.stairs(sent, steps, color=_COLOURS[run["algorithm"]], linewidth=1.5, baseline=None)
        axes.annotate(
            f"{size_text(run['bytes_sent'])} in all",
            (steps[-1], sent[-1]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=_COLOURS[run["algorithm"]],
        )
    if all(run["bytes_sent"] > 0 for run in runs):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda size, _: size_text(size))
    axes.margins(y=0.15)
    axes.set_title("Sent by each process in a step (measured)")


def _light(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - 0.35 * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _bars(axes: Axes, predictions: list[Prediction]) -> None:
    """Stacked horizontal bars, a group for each model and network, with the step's time at the end."""
    groups = list(dict.fromkeys((p.model, p.network) for p in predictions))
    members = len(predictions) // len(groups)
    ticks = []
    for i, group in enumerate(groups):
        place = i * (members + 1.0)
        ticks.append(place + (members - 1) / 2)
        for j, p in enumerate(p for p in predictions if (p.model, p.network) == group):
            other, exchange = p.other * 1e3, p.exchange * 1e3
            colour = _COLOURS[p.algorithm]
            axes.barh(place + j, other, color=_light(colour), height=0.9)
            axes.barh(place + j, exchange, left=other, color=colour, height=0.9)
            axes.annotate(
                _ms(p.step),
                (other + exchange, place + j),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=colour,
            )
    axes.set_yticks(ticks, [f"{model}\n{network}" for model, network in groups])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.14)
    axes.set_xlabel("ms (light: the rest of the step, full: exchange)")
    axes.set_title("PREDICTED step time over a network")
