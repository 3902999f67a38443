"""The settings of the factor study: one base, and settings that differ from it in one thing each.

The base is gtopk at density .001 after a warm-up, with momentum correction where SGD has momentum. Knows options of
`DistributedOptimizer`; neither tasks nor how a training is done.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["BASE", "FACTORS", "REFERENCES", "fits", "options_of", "ranks_a_node"]

Options = dict[str, Any]

BASE = "base"
DENSITY = 0.001
NODE = 4  # ranks
# What the published experiments have for their first four epochs, here for 20 steps each (Lin et al., 2018).
WARMUP = ((20, 0.25), (20, 0.0725), (20, 0.015), (20, 0.004))
VALUE_BITS = 16  # of bf16, the default

# Names of settings of the study that these are compared with.
REFERENCES = ("dense", "default")

# What differs from the base. "warmup" and "correction" are whether there is any; "bytes_of" is an algorithm: the density is
# then the one at which as many bytes are sent as that algorithm sends at the base's density.
FACTORS: dict[str, Options] = {
    BASE: {},
    "base: topk": {"algorithm": "topk"},
    "base: gtopk-tree": {"algorithm": "gtopk-tree"},
    "base: gtopk-split": {"algorithm": "gtopk-split"},
    "base: paper's residual": {"residual_policy": "paper"},
    "base: merge_growth 1.19": {"merge_growth": 1.19},
    "base: merge_growth 1.41": {"merge_growth": 1.41},
    "base: merge_growth 2": {"merge_growth": 2.0},
    "base: .002": {"density": 0.002},
    "base: .005": {"density": 0.005},
    "base: .01": {"density": 0.01},
    "base: no warm-up": {"warmup": False},
    "base: no correction": {"correction": False},
    "base: fp32": {"value_type": "fp32"},
    "base: fp16": {"value_type": "fp16"},
    "base: int8": {"value_type": "int8"},
    "base: dense_1d": {"dense_1d": True},
    "base: nodes of four": {"hierarchy": "node"},
    "base: topk, bytes of gtopk": {"algorithm": "topk", "bytes_of": "gtopk"},
    "base: gtopk, bytes of topk": {"bytes_of": "topk"},
}


def options_of(setting: str, ranks: int, momentum: bool) -> Options:
    """What `DistributedOptimizer` is given; `momentum`: whether the optimizer is SGD with momentum."""
    options: Options = {
        "algorithm": "gtopk",
        "density": DENSITY,
        "merge_growth": 1.0,
        "warmup": True,
        "correction": True,
        **FACTORS[setting],
    }
    share = 1.0
    other = options.pop("bytes_of", None)
    if other is not None:
        density = same_bytes(DENSITY, messages(other, ranks) / messages(options["algorithm"], ranks))
        share, options["density"] = density / DENSITY, density
    if options.pop("warmup"):
        stages = [(steps, min(1.0, share * density)) for steps, density in WARMUP]
        options["warmup"] = [(steps, density) for steps, density in stages if density > options["density"]]
    options["momentum_correction"] = options.pop("correction") and momentum
    return options


def ranks_a_node(setting: str) -> int | None:
    """How many ranks are to be on a node; None: it does not matter."""
    return NODE if FACTORS.get(setting, {}).get("hierarchy") == "node" else None


def fits(setting: str, ranks: int) -> bool:
    """Whether so many ranks can be several whole nodes, where the setting has nodes."""
    node = ranks_a_node(setting)
    return node is None or (ranks % node == 0 and ranks > node)


def messages(algorithm: str, ranks: int) -> int:
    """Of k entries that a rank sends in a step."""
    if algorithm == "topk":
        return max(1, ranks - 1)
    rounds = ranks.bit_length() - 1
    return max(1, rounds + (ranks > 1 << rounds))  # the last goes back to a rank beyond a power of two


def same_bytes(density: float, share: float) -> float:
    """The density at which a message has `share` times the bytes that it has at `density`, at most 1.

    An entry takes the bits of its value and 2 + log2(1 / density) for its place, so fewer entries take more bits each.
    """

    def bits(d: float) -> float:
        return d * (VALUE_BITS + 2 + math.log2(1 / d))

    wanted, low, high = share * bits(density), 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if bits(middle) < wanted else (low, middle)
    return high
