"""What importing does, the public names, the examples in docstrings, and where a process finds itself."""

from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gtopk
from gtopk import _descendants, _launcher, _slurm, errors

MODULES = ("errors", "comm", "_communicator", "_collectives", "reducer", "blocks", "_launcher", "_slurm", "_tensors")


def python(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    program = "import sys, gtopk; print([m for m in ('numpy', 'torch', 'ctypes', 'logging') if m in sys.modules])"
    assert python(program) == "[]\n"


def test_numpy_works_without_torch():
    program = """
import sys, numpy, gtopk
gtopk.init()
r = gtopk.Reducer([4], density=1.0)
r.accumulate(0, numpy.ones(4, dtype=numpy.float32))
r.reduce_sparse(), r.state_dict(), gtopk.allreduce(numpy.ones(2))
print('torch' in sys.modules)
"""
    assert python(program) == "False\n"


def test_public_names_are_those_of_the_modules():
    for module, names in gtopk._EXPORTS.items():
        if module == "torch":
            pytest.importorskip("torch")
        assert sorted(importlib.import_module(f"gtopk.{module}").__all__) == sorted(names)
    assert set(gtopk.__all__) <= set(dir(gtopk))
    with pytest.raises(AttributeError, match="nothing"):
        _ = gtopk.nothing


def test_version_is_the_headers():
    header = (Path(__file__).resolve().parents[2] / "include" / "gtopk.h").read_text()
    parts = [
        f"#define GTOPK_VERSION_{name} {number}\n"
        for name, number in zip(("MAJOR", "MINOR", "PATCH"), gtopk.__version__.split("."), strict=True)
    ]
    assert all(part in header for part in parts)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    pytest.importorskip("numpy")
    gtopk.shutdown()
    result = doctest.testmod(importlib.import_module(f"gtopk.{module}"))
    assert result.failed == 0
    assert result.attempted > 0 or module.startswith("_")
    gtopk.shutdown()


def test_every_error_has_one_base():
    kinds = [getattr(gtopk, name) for name in errors.__all__]
    assert all(issubclass(kind, gtopk.GtopkError) for kind in kinds)
    assert issubclass(gtopk.InvalidError, ValueError)
    assert issubclass(gtopk.DeadlineError, TimeoutError)
    assert issubclass(gtopk.OutOfMemoryError, MemoryError)
    error = errors.from_status(-8, "too late")
    assert (str(error), error.text, error.status) == ("too late", "too late", -8)


BY_HAND = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}


@pytest.mark.parametrize(
    ("environment", "transport"),
    [
        ({}, "self"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpi"),
        ({"PMI_RANK": "0"}, "mpi"),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "4"}, "mpi"),
        (BY_HAND, "torch"),
        ({**BY_HAND, "TORCHELASTIC_RUN_ID": "x"}, "torch"),
        ({**BY_HAND, "OMPI_COMM_WORLD_SIZE": "2"}, "mpi"),
        ({**BY_HAND, "OMPI_COMM_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, "torch"),
        ({**BY_HAND, "SLURM_STEP_NUM_TASKS": "4"}, "torch"),
        ({"RANK": "0"}, "self"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, "self"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, "torch"),
        ({"PMI_RANK": "0", "SLURM_STEP_NUM_TASKS": "4"}, "mpi"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "4"}, "mpi"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "self"),
    ],
)
def test_launchers_are_told_apart(environment, transport):
    assert _launcher.detect(environment) == transport


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "WORLD_SIZE is 2, so there are more processes, but MASTER_ADDR and MASTER_PORT",
        ),
        ({"WORLD_SIZE": "2"}, "but RANK and MASTER_ADDR and MASTER_PORT are not set"),
        ({"RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is 1, .* but WORLD_SIZE is not set"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', but must be a number"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "but OMPI_COMM_WORLD_SIZE is not set"),
        ({"PMI_SIZE": "4"}, "but PMI_RANK is not set"),
        ({"MV2_COMM_WORLD_RANK": "3"}, "but MV2_COMM_WORLD_SIZE is not set"),
        ({"SLURM_PROCID": "1"}, "but SLURM_STEP_NUM_TASKS is not set"),
    ],
)
def test_half_a_launcher_is_an_error(environment, words):
    with pytest.raises(gtopk.InvalidError, match=words):
        _launcher.detect(environment)


def test_a_rank_without_its_peers_is_an_error():
    for environment in ({"OMPI_COMM_WORLD_SIZE": "2"}, {"PMIX_RANK": "1"}):
        command = [sys.executable, "-c", "import gtopk; gtopk.init()"]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
        if "no MPI module" in done.stderr:
            pytest.skip("there is no MPI")
        assert done.returncode == 1
        assert "the launcher's variables came along from another shell" in done.stderr


def test_a_forked_child_is_no_rank(alone):
    alone.shutdown()
    os.environ["RANK"] = "0"  # as if a launcher had started this process
    try:
        _descendants.mark(0)
        child = os.fork()
        if child == 0:
            try:
                alone.init(transport="self")
                _descendants.refuse()
            except alone.StateError as error:
                os._exit(0 if "was started by rank 0" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        _descendants.refuse()  # the process itself
        _descendants.refuse({**os.environ, "RANK": "1"})  # what a launcher of its own started
    finally:
        _descendants.unmark()
        del os.environ["RANK"]


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "PMIX_NAMESPACE": "prterun-host-1@1"}, 4),
        ({"PMI_SIZE": "3", "SLURM_STEP_NUM_TASKS": "3"}, 3),
        ({"PMIX_NAMESPACE": "slurm.pmix.17.0", "SLURM_STEP_NUM_TASKS": "5"}, 5),
        ({"OMPI_COMM_WORLD_SIZE": "4", "PMIX_NAMESPACE": "prterun-host-1@1", "SLURM_STEP_NUM_TASKS": "2"}, 4),
        ({"PMIX_NAMESPACE": "prterun-host-1@1", "SLURM_STEP_NUM_TASKS": "2"}, None),
    ],
)
def test_number_of_processes_that_mpi_must_show(environment, size):
    assert _launcher.mpi_size(environment) == size


# Of srun -N2 -n3, as Slurm 22.05 sets them.
SRUN = {
    "SLURM_JOB_ID": "1041",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_JOB_NODELIST": "node[1-8]",
    "SLURM_STEP_NODELIST": "node[3-4]",
}


def without(*names):
    return {name: value for name, value in SRUN.items() if name not in names}


def test_task_of_srun():
    task = _slurm.task(SRUN)
    assert (task.rank, task.size, task.node, task.host) == (2, 3, "slurm 1", "node3")
    given = _slurm.task({**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234", "WORLD_SIZE": "3", "PMIX_RANK": "2"})
    assert (given.host, given.port) == ("10.0.0.7", 1234)
    assert _slurm.task({**without("SLURM_STEP_NODELIST"), "MASTER_ADDR": "a"}).host == "a"
    assert _slurm.task({**without("SLURM_STEP_ID"), "MASTER_PORT": "1"}).port == 1


def test_port_of_a_step():
    """One for all tasks of a step; another for the other steps, and for the jobs before and after."""
    rank_0 = _slurm.task({**SRUN, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert rank_0.port == _slurm.task(SRUN).port
    ports = [
        _slurm.task({**SRUN, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port
        for job in range(1000, 1300)
        for step in range(31)
    ]
    assert len(set(ports)) == len(ports)
    assert 20000 <= min(ports) < max(ports) < 32000
    assert 20000 <= _slurm.task({**SRUN, "SLURM_JOB_ID": "67108863", "SLURM_STEP_ID": "4294967290"}).port < 32000


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[1-3]", "node1"),
        ("node[007-012,20]", "node007"),
        ("gpu-[4,7]-ib0,login1", "gpu-4-ib0"),
        ("rack[2-3]n[05-06],x", "rack2n05"),
        ("a.example.org", "a.example.org"),
        ("127.0.0.[1-2]", "127.0.0.1"),
    ],
)
def test_first_host_of_a_list(nodes, host):
    assert _slurm.first_host(nodes) == host


@pytest.mark.parametrize("nodes", ["", ",", "node[", "[]", "node[,1]", "node[1-2"])
def test_list_without_a_host(nodes):
    with pytest.raises(gtopk.InvalidError, match="MASTER_ADDR"):
        _slurm.first_host(nodes)


@pytest.mark.parametrize(
    "name", ["SLURM_PROCID", "SLURM_NODEID", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST"]
)
def test_missing_variable_of_srun(name):
    with pytest.raises(gtopk.InvalidError, match=f"{name} is not set.*container"):
        _slurm.task(without(name))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RANK", "0", "RANK is '0', but srun made this process task 2 of 3"),
        ("WORLD_SIZE", "8", "WORLD_SIZE is '8', but srun made this process task 2 of 3"),
        ("OMPI_COMM_WORLD_RANK", "1", "OMPI_COMM_WORLD_RANK is '1'"),
        ("SLURM_PROCID", "two", "SLURM_PROCID is 'two', but must be a number"),
        ("SLURM_PROCID", "-1", "SLURM_PROCID is '-1', but must be a number"),
        ("MASTER_PORT", "99999", "MASTER_PORT is 99999, but must be from 1 to 65535"),
    ],
)
def test_wrong_variable_of_srun(name, value, words):
    with pytest.raises(gtopk.InvalidError, match=words):
        _slurm.task({**SRUN, name: value})


def test_rank_0_on_another_host():
    """srun --distribution=arbitrary: the others would look for rank 0 on node3."""
    elsewhere = {**SRUN, "SLURM_PROCID": "0", "SLURMD_NODENAME": "node4"}
    with pytest.raises(gtopk.InvalidError, match=r"task 0 is on host node4.*MASTER_ADDR"):
        _slurm.task(elsewhere)
    assert _slurm.task({**elsewhere, "MASTER_ADDR": "node4"}).host == "node4"


def test_init_arguments():
    gtopk.shutdown()
    for options, words in (
        ({"transport": "pigeon"}, "torch"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "long"}, "timeout"),
        ({"warn_after": 0}, "warn_after"),
    ):
        with pytest.raises(gtopk.InvalidError, match=words):
            gtopk.init(**{"transport": "self", **options})
        assert not gtopk.is_initialized()
    gtopk.init(transport="self", timeout=5)
    gtopk.init(transport="self")
    assert gtopk.is_initialized()
    gtopk.shutdown()
    gtopk.shutdown()


def test_errors_that_nobody_catches_are_short():
    """The lines of the program, then the error; all of it with GTOPK_DEBUG."""
    program = "import gtopk\n\ndef train():\n    gtopk.broadcast(1)\n\ngtopk.init(transport='self')\ntrain()\n"
    command = [sys.executable, "-c", program]
    for debug in ("", "warn"):
        environment = {**os.environ, "GTOPK_DEBUG": debug}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("gtopk.errors.InvalidError: tensor is a builtins.int")
        assert "in train" in done.stderr
        assert ("_collectives.py" in done.stderr) == bool(debug), done.stderr


def test_wrong_timeout_in_the_environment(monkeypatch):
    gtopk.shutdown()
    for text in ("soon", "-3", "nan"):
        monkeypatch.setenv("GTOPK_TIMEOUT", text)
        with pytest.raises(gtopk.InvalidError, match="GTOPK_TIMEOUT"):
            gtopk.init(transport="self")


def test_missing_mpi_module_says_what_to_do(tmp_path):
    with pytest.raises(gtopk.NotFoundError, match="build-mpi"):
        gtopk.Comm(transport="mpi", mpi_module=tmp_path / "none.so")


def test_torch_transport_without_its_variables(monkeypatch):
    pytest.importorskip("torch")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(gtopk.InvalidError, match="torchrun"):
        gtopk.Comm(transport="torch")


def test_collectives_of_one_process():
    np = pytest.importorskip("numpy")
    with gtopk.Comm() as comm:
        assert comm.allreduce(np.array([1.5])).tolist() == [1.5]
        assert comm.allgather(np.array(3)).tolist() == [3]
        assert comm.broadcast(np.array([[1, 2]])).tolist() == [[1, 2]]
        assert comm.broadcast_object([1]) == [1]
        assert comm.allgather_json({"a": None}) == [{"a": None}]
        comm.barrier()
        read_only = np.ones(2)
        read_only.flags.writeable = False
        for call in (
            lambda: comm.broadcast_(read_only),
            lambda: comm.broadcast([1, 2]),
            lambda: comm.broadcast(np.array([object()])),
            lambda: comm.broadcast(np.ones(2), 1),
            lambda: comm.broadcast_object(1, "first"),
            lambda: comm.allreduce(np.ones(2, np.complex64)),
            lambda: comm.allgather("text"),
        ):
            with pytest.raises(gtopk.InvalidError):
                call()


def test_warnings_of_the_library_go_to_logging(monkeypatch):
    program = """
import logging, gtopk
logging.basicConfig(format='%(name)s %(levelname)s %(message)s', level=logging.INFO)
gtopk.init()
from gtopk import _c_api
_c_api._log_fn(None, _c_api.LOG_WARN, b'from C')
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GTOPK_DEBUG": ""},
    )
    assert "gtopk INFO rank 0 of 1, self" in done.stderr
    assert "gtopk WARNING from C" in done.stderr
