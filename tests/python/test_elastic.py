"""A rank of four is killed in a step, and the others go on in the same processes: tests/distributed/elastic_ranks.py.

Step FATAL of a run in which nobody dies says what each rank had before it and after it. A survivor must have the one or the
other, bit for bit, and after attach() all have parameters and optimizer state of those that are ahead.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import launcher
import pytest

torch = pytest.importorskip("torch")

from elastic_ranks import CASES, FATAL, RANKS

OFTEN = [
    ("calls", []),
    ("example", []),
    ("plain", ["early", "before", "apart", "last", "join", "broadcast"]),
    ("corrected", ["apart"]),
    ("local", ["apart"]),
    ("narrow", ["apart"]),
    ("ddp", ["apart"]),
    ("adam", ["apart"]),
]
KINDS = list(dict.fromkeys(name.split()[0] for name in CASES))


def deaths(kind):
    return [name.split()[1] for name in CASES if name.split()[0] == kind and " " in name]


RARELY = [
    (kind, [end for end in deaths(kind) if end != "stopped"]) for kind in KINDS if kind not in ("calls", "example")
]


def run(folder, chosen):
    names = [name for kind, ends in chosen for name in (kind, *(f"{kind} {end}" for end in ends))]
    status, output = start(folder, names)
    assert status == 0, output
    assert "ended with" not in output, output
    for name in names:
        assert f"{name}: done\n" in output, output
    return {name: [load(folder, name, rank) for rank in range(RANKS)] for name in names}, output


def start(folder, names):
    command = [sys.executable, str(Path(launcher.DISTRIBUTED) / "elastic_ranks.py"), str(folder), *names]
    return launcher.run(command, {"OMP_NUM_THREADS": "1"}, 100 + 20 * len(names))


def load(folder, name, rank):
    file = folder / f"{name}-{rank}.pt"
    return torch.load(file, weights_only=True) if file.exists() else None


def assert_equal(one, other, what):
    assert one.keys() == other.keys(), what
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, f"{what}: {name}"


def assert_equal_states(one, other, what):
    assert one.keys() == other.keys(), what
    for key, entries in one.items():
        assert_equal(entries, other[key], f"{what} {key}")


def added(one, other):
    return {name: value + other[name] for name, value in one.items()}


def total(snapshots):
    """Of the residuals, entries in float64."""
    names = snapshots[0]["residual"]
    return {name: sum(one["residual"][name].double() for one in snapshots) for name in names}


def check_end(name, left, size):
    """Training has gone on, and has learned."""
    first = next(iter(left.values()))
    for place, (rank, one) in enumerate(left.items()):
        assert (one["rank"], one["size"]) == (place, size), name
        assert one["last loss"] < 0.5 * one["first loss"], f"{name}: rank {rank}"
        assert_equal(one["end"]["parameters"], first["end"]["parameters"], f"{name}: rank {rank} at the end")
        assert one["end"]["size"] == size


def check_step(name, left, base):
    """What survivors had when the error came, and what they went on with."""
    ahead = {rank for rank, one in left.items() if one["failed"]["steps"] == FATAL + 1}
    assert all(one["failed"]["steps"] == FATAL for rank, one in left.items() if rank not in ahead), name
    case = CASES[name]
    for rank, one in left.items():
        what = f"{name}: rank {rank} of those ahead {sorted(ahead)}"
        failed, attached = one["failed"], one["attached"]
        then, now = base[rank]["after" if ahead else "before"][FATAL], FATAL + bool(ahead)
        assert attached["steps"] == now, what
        assert list(left)[one["ahead"]] == min(ahead or left), what
        assert_equal(attached["parameters"], then["parameters"], what)
        assert_equal_states(attached["state"], then["state"], what)
        assert_equal(attached["velocity"], failed["velocity"], what)
        had = base[rank]["after"][FATAL] if rank in ahead else base[rank]["before"][FATAL]
        gave = base[rank]["before"][FATAL + 1 if rank in ahead else FATAL]["gradients"]
        if not failed["velocity"] and not case.ddp:
            assert_equal(failed["residual"], added(had["residual"], gave), what)
        missed = bool(ahead) and rank not in ahead
        is_dense = case.options.get("algorithm") == "dense"
        for entry, residual in attached["residual"].items():
            gone = missed and (is_dense or (case.options.get("dense_1d") and residual.dim() == 1))
            assert torch.equal(residual, torch.zeros_like(residual) if gone else failed["residual"][entry]), what
    return ahead


def check_local(name, left, base):
    """With local steps: those ahead learn of it a period later, and go on with their own weights.

    The others begin where that period began, in the type that it is kept in.
    """
    ahead = {
        rank for rank, one in left.items() if one["failed"]["steps"] > min(o["failed"]["steps"] for o in left.values())
    }
    for rank, one in left.items():
        failed, attached = one["failed"], one["attached"]
        narrow = [torch.equal(start, start.bfloat16().float()) for start in failed["start"].values()]
        assert narrow
        assert all(narrow) == ("start_dtype" in CASES[name].options), name
        if rank in ahead or not ahead:
            assert_equal(attached["parameters"], failed["parameters"], name)
            assert_equal(attached["residual"], failed["residual"], name)
            continue
        assert_equal(attached["parameters"], base[rank]["after"][FATAL]["start"], name)
        decay = CASES[name].options["residual_decay"]
        for entry, residual in attached["residual"].items():
            done = failed["start"][entry] - failed["parameters"][entry]
            assert torch.equal(residual, failed["residual"][entry] * decay + done), name
    return ahead


def check_mass(name, left):
    """In the first step of those who are left: what they had, and gave, is what they have, and so many times the update."""
    snapshots = list(left.values())
    step = max(snapshots[0]["after"])
    before, after = ([one[when][step] for one in snapshots] for when in ("before", "after"))
    for entry, had in total(before).items():
        gave = sum(one["gradients"][entry].double() for one in before)
        found = total(after)[entry] + len(left) * after[0]["gradients"][entry].double()
        torch.testing.assert_close(found, had + gave, rtol=0, atol=1e-5, msg=lambda text: f"{name}: {entry}: {text}")  # noqa: B023


def check(found, chosen):
    for kind, ends in chosen:
        base = found[kind]
        for end in ends:
            name = f"{kind} {end}"
            case = CASES[name]
            left = {rank: one for rank, one in enumerate(found[name]) if one is not None}
            lost = {case.victim, case.second and case.second[0]}
            assert list(left) == [rank for rank in range(RANKS) if rank not in lost]
            check_end(name, left, len(left))
            local = "local_steps" in case.options
            if not local and kind not in ("ddp", "corrected"):
                check_mass(name, left)
            # Where it dies too early; where residuals are those of nodes; where what is taken depends on times.
            if end == "early" or kind in ("node", "auto"):
                continue
            ahead = (check_local if local else check_step)(name, left, base)
            if kind == "plain":
                check_twice(left, base, ahead)
            if end in ("before", "first"):
                assert not ahead, name
            if end == "apart":
                assert ahead == {0, 2}, name
            if case.second:
                assert ahead == {0, 2} & set(left), name
            if end == "last":
                assert len(ahead) == RANKS - 1, name


def check_twice(left, base, ahead):
    """What counts twice, or is lost, is at entries that somebody had selected."""
    had = [added(one["before"][FATAL]["residual"], one["before"][FATAL]["gradients"]) for one in base]
    values = [torch.cat([value.flatten() for value in one.values()]) for one in had]
    k = round(0.1 * values[0].numel())
    selected = torch.cat([value.abs().topk(k).indices for value in values])
    for rank, one in left.items():
        if rank in ahead or not ahead:
            continue
        exact = base[rank]["after"][FATAL]["residual"]
        twice = torch.cat([(value - exact[name]).flatten() for name, value in one["attached"]["residual"].items()])
        assert set(twice.nonzero().flatten().tolist()) <= set(selected.tolist())
        assert twice.count_nonzero() > 0


def check_example(output):
    """Two ranks die; the loss goes on falling."""
    lines = re.findall(r"^step +(\d+)  ranks (\d)  loss ([\d.]+)$", output, re.MULTILINE)
    assert [(int(step), int(ranks)) for step, ranks, _ in lines] == [
        (20, 4),
        (40, 3),
        (60, 3),
        (80, 2),
        (100, 2),
        (120, 2),
    ]
    losses = [float(loss) for _, _, loss in lines]
    assert losses == sorted(losses, reverse=True), output
    assert losses[-1] < 0.25 * losses[0], output


def test_three_go_on(tmp_path):
    found, output = run(tmp_path, OFTEN)
    check(found, OFTEN)
    check_example(output)


@pytest.mark.long
def test_three_go_on_with_every_algorithm(tmp_path):
    check(run(tmp_path, RARELY)[0], RARELY)


@pytest.mark.long
def test_a_process_that_is_stopped_while_a_group_is_made_ends_in_an_error(tmp_path):
    _, output = start(tmp_path, ["plain stopped"])
    errors = output.count("StateError: torch.distributed did not make a group within 22 s, and did not give up")
    assert errors == 2, output


def mpirun(ranks, script, *arguments, limit=120):
    """Of an MPI that goes on when a rank is lost."""
    command = ["--with-ft", "ulfm", "-np", ranks, sys.executable, launcher.DISTRIBUTED / script, *arguments]
    status, output = launcher.mpirun_of(*command, limit=limit)
    if "--with-ft" in output and "unrecognized" in output.lower():
        pytest.skip("this mpirun knows no --with-ft")
    assert status == 0, output
    return output


def test_mpi_goes_on_without_ranks_that_are_lost():
    output = mpirun(4, "ulfm_rank.py")
    assert output.count("done\n") == 1, output
    assert "Aborted" not in output, output  # by MPI_Finalize
    status, output = launcher.mpirun(2, "ulfm_rank.py", "plain", limit=120)
    assert status == 0, output


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gtopk", "dense", "topk", "gtopk-split", "auto", "corrected", "local", "narrow"])
def test_mpi_trains_on_when_ranks_die_at_any_time(kind):
    for seed in range(2):
        output = mpirun(5, "elastic_mpi_rank.py", seed, kind, limit=300)
        assert output.count(": done\n") == 2, output


@pytest.mark.long
def test_a_group_that_mpi4py_made():
    pytest.importorskip("mpi4py")
    assert mpirun(4, "elastic_mpi_rank.py", 0, "mpi4py", limit=300).count(": done\n") == 3


@pytest.mark.long
def test_the_example_goes_on_under_mpirun():
    example = Path(launcher.DISTRIBUTED).parents[1] / "examples" / "losing_a_rank" / "go_on.py"
    check_example(mpirun(4, example, "--lose", "0", "30", "--lose", "2", "70", limit=300))
