"""What ``python -m gtopk advise`` says: costs, predicted steps, and the line to write. Makes text, prints nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

from . import _c_api, _launcher, comm
from ._communicator import default_timeout
from .costs import Costs
from .errors import InvalidError

# Trainable entries, as torchvision's pages list them ("resnet20" is that of CIFAR-10; the last two are transformers').
MODELS = {
    "alexnet": 61_100_840,
    "densenet121": 7_978_856,
    "efficientnet_b0": 5_288_548,
    "inception_v3": 27_161_264,
    "mobilenet_v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet20": 269_722,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vit_b_16": 86_567_656,
    "bert-base": 109_482_240,
    "gpt2": 124_439_808,
}
LOW = 0.05  # below it a density costs accuracy in the first steps, and SGD's momentum wants its correction
DENSITIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
SMALL_PART = 0.1  # of the computing: an exchange that takes less is not worth a lower density
WORTH_A_CHANGE = 0.95  # as in csrc/core/choice.c
_TRY_SECONDS = 120.0


@dataclass(frozen=True)
class Question:
    """What is asked. `latency` (seconds) and `bandwidth` (bytes a second) None: measured between the ranks that run."""

    entries: int
    model: str | None = None
    density: float | None = None
    compute_s: float | None = None
    value_type: str = "bf16"
    latency: float | None = None
    bandwidth: float | None = None
    ranks: int | None = None


def entries_of(model: str) -> int:
    """Entries of all gradients of a model that is known by name."""
    if model not in MODELS:
        raise InvalidError(f"no model {model!r} is known: give --params N, or one of {', '.join(MODELS)}")
    return MODELS[model]


def answer(question: Question) -> list[str]:
    """Lines to print, none on ranks other than 0. Collective, unless it is about a network that is described."""
    if question.latency is None:
        comm.init(transport=_launcher.detect(), timeout=min(_TRY_SECONDS, default_timeout()))
        costs, ranks = Costs.measure(), comm.size()
        hosts = sorted(set(comm.current().allgather_json(socket.gethostname())))
        place = f"{_count(ranks, 'rank')} on {', '.join(hosts)}, {comm.current().description}: measured"
        if comm.rank() != 0:
            return []
    else:
        comm.init(transport="self")
        assert question.bandwidth is not None
        assert question.ranks is not None
        costs = Costs.measure().with_network(latency=question.latency, bandwidth=question.bandwidth)
        ranks, place = question.ranks, f"{_count(question.ranks, 'rank')} on a network as given; this machine measured"
    return [*_measured(costs, ranks, place), *_steps(costs, ranks, question), *_advice(costs, ranks, question)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _measured(costs: Costs, ranks: int, place: str) -> Iterator[str]:
    def line(what: str, message_s: float, byte_s: float) -> str:
        rate = f", {8e-6 / byte_s:.0f} Mb/s" if byte_s > 0 else ""
        return f"  {what:<36} {1e6 * message_s:8.1f} us + {1e9 * byte_s:.3f} ns a byte{rate}"

    yield place
    if ranks > 1:
        if costs.each_node < ranks:
            yield line("a message", costs.message_s, costs.byte_s)
        if costs.each_node > 1:
            yield line("a message inside of a machine", costs.near_message_s, costs.near_byte_s)
        yield line(f"each of {2 * (ranks - 1)} messages of an all-reduce", costs.sum_message_s, costs.sum_byte_s)
    own = (costs.accumulate_s, costs.dense_s, costs.select_s, costs.merge_s)
    yield "  nanoseconds an entry: accumulated {:.2f}, dense {:.2f}; selected {:.1f}, merged {:.1f}".format(
        *(1e9 * seconds for seconds in own)
    )


def _choices(costs: Costs, ranks: int, question: Question, density: float) -> dict[str, float]:
    """Predicted seconds of a step by what would be written."""
    hierarchies = ["off", "node"] if 1 < costs.each_node < ranks and ranks % costs.each_node == 0 else ["off"]
    return {
        name if hierarchy == "off" else f"{name}, node": costs.predict(
            question.entries,
            ranks=ranks,
            algorithm=name,
            density=density,
            value_type=question.value_type,
            hierarchy=hierarchy,
        )
        for hierarchy in hierarchies
        for name in _c_api.ALGORITHMS
        if hierarchy == "off" or name != "dense"
    }


def _best_sparse(costs: Costs, ranks: int, question: Question, density: float) -> tuple[str, float]:
    """gtopk, unless another one takes 5 % less."""
    times = _choices(costs, ranks, question, density)
    name = min((one for one in times if one != "dense"), key=lambda one: times[one])
    name = name if times[name] < WORTH_A_CHANGE * times["gtopk"] else "gtopk"
    return name, times[name]


def _steps(costs: Costs, ranks: int, question: Question) -> Iterator[str]:
    density = 0.001 if question.density is None else question.density
    times = _choices(costs, ranks, question, density)
    of = f" ({question.model})" if question.model else ""
    yield ""
    yield f"Predicted: a step of {question.entries:,} entries{of}, {question.value_type}, without computing gradients"
    yield f"  {f'at density {density:g}':<22} {'ms':>10}   dense / this"
    for name, seconds in sorted(times.items(), key=lambda one: one[1]):
        yield f"  {name:<22} {1e3 * seconds:>10.3f}   {times['dense'] / seconds:.3g}"
    yield f"  {'by density, the best':<22} {'ms':>10}   dense / this"
    for one in DENSITIES:
        name, seconds = _best_sparse(costs, ranks, question, one)
        yield f"  {f'{one:<7g} {name}':<22} {1e3 * seconds:>10.3f}   {times['dense'] / seconds:.3g}"


def pays_up_to(costs: Costs, ranks: int, question: Question) -> float:
    """The density up to which something sparse takes less time than dense; 0: none."""
    dense = costs.predict(question.entries, ranks=ranks, algorithm="dense")
    if _best_sparse(costs, ranks, question, 1.0)[1] < dense:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if _best_sparse(costs, ranks, question, middle)[1] < dense:
            low = middle
        else:
            high = middle
    return low


def recommended(costs: Costs, ranks: int, question: Question) -> tuple[str, float]:
    """Algorithm and density. The density is what was asked for; else, with a time of computing, the largest at which a step
    takes little beside it; else 0.001."""
    dense = costs.predict(question.entries, ranks=ranks, algorithm="dense")
    little = None if question.compute_s is None else SMALL_PART * question.compute_s
    density = question.density
    if density is None and little is not None:
        if dense <= little:
            return "dense", 1.0
        fit = [one for one in DENSITIES if _best_sparse(costs, ranks, question, one)[1] <= little]
        density = max(fit, default=DENSITIES[0])
    if density is None:
        density = 0.001
    name, seconds = _best_sparse(costs, ranks, question, density)
    return ("dense", 1.0) if dense <= seconds else (name, density)


def _advice(costs: Costs, ranks: int, question: Question) -> Iterator[str]:
    name, density = recommended(costs, ranks, question)
    times = _choices(costs, ranks, question, density)
    pays = pays_up_to(costs, ranks, question)
    yield ""
    if ranks == 1:
        yield "One rank exchanges nothing: run this under mpirun or torchrun, or describe a network (--help)."
        return
    if pays > 0:
        yield f"Sparse exchange takes less time than dense up to a density of {pays:.2g}."
    else:
        yield "Sparse exchange takes more time than dense at every density here."
    if question.compute_s is not None:
        whole = {one: question.compute_s + times[one] for one in ("dense", name)}
        yield (
            f"With {1e3 * question.compute_s:g} ms of computing: {1 / whole['dense']:.3g} steps a second with dense, "
            f"{1 / whole[name]:.3g} with {name} at density {density:g}"
        )
    yield "Recommended:"
    algorithm, _, node = name.partition(", ")
    chosen = question.density is not None or question.compute_s is not None
    options = f'algorithm="{algorithm}"' + (f", density={density:g}" if chosen and algorithm != "dense" else "")
    options += ', hierarchy="node"' if node else ""
    options += f', value_type="{question.value_type}"' if question.value_type != "bf16" else ""
    yield f"  optimizer = gtopk.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), {options})"
    if algorithm != "dense":
        yield 'or algorithm="auto", which chooses so by itself and goes by the steps\' own times.'
    if algorithm != "dense" and not chosen:
        by_hand = "" if name == "gtopk" else "; with SGD's momentum give momentum_correction=True"
        yield f"Without density= it falls as training goes on, in the end to half the bytes of 0.001{by_hand}."
    elif algorithm != "dense" and density < LOW:
        yield (
            f"From the first step on, {density:g} costs accuracy: leave density= out, and it falls by itself; or give warmup=, "
            "and with SGD's momentum momentum_correction=True."
        )
    if question.latency is None and costs.each_node == ranks:
        yield (
            "All ranks are on one machine, so this says nothing of a network: start it as the training is started, or "
            "describe the network (--help)."
        )
