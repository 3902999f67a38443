"""One process with tensors on GPUs, or on what stands in for them; and what the doctor says of GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
import cuda_one_process
import torch_cuda
from cuda_standin import Control

pytestmark = pytest.mark.skipif(not torch_cuda.available(), reason="there is no GPU, and nothing stands in for one")
needs_standin = pytest.mark.skipif(torch_cuda.REAL, reason="of the stand-in alone")
CASES = [name for name in vars(cuda_one_process) if name.startswith("case_")]


@pytest.fixture(scope="module", autouse=True)
def installed():
    yield torch_cuda.install()
    torch_cuda.uninstall()


@pytest.mark.parametrize("name", CASES)
def test_one_process(alone, name):
    getattr(cuda_one_process, name)()


def test_the_standins_controls_are_those_of_its_header():
    header = (Path(__file__).resolve().parents[1] / "support" / "cuda_standin.h").read_text()
    named = re.findall(r"^    \w.*?\(\*(\w+)\)\(", header, re.MULTILINE)
    assert len(named) > 10
    assert [name.rstrip("_") for name, _ in Control._fields_] == named


# ---- what the doctor says ----


def doctor(**environment):
    """Its line on the GPU."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout


PROGRAM = """
import os, sys
kind, folder = os.environ.get("STANDIN"), os.environ.get("TESTS")
if kind:
    sys.path.insert(0, folder)
    import cuda_standin
    control = cuda_standin.controls()
    os.environ["GTOPK_CUDA_DRIVER"] = str(cuda_standin.STANDIN)
    if kind == "old GPU":
        control.gpu(70, 2, 2)
    elif kind == "lost":
        control.lose(700)
    elif kind != "good":
        control.driver(*eval(kind))
from gtopk import cli
for finding in cli._gpu():
    print(finding.ok, finding.text, finding.advice)
assert "torch" not in sys.modules
"""


@needs_standin
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("good", "True Stand-in 0, compute capability 9.0, driver for CUDA 12.8"),
        ("(1, 11080, b'')", "False the NVIDIA driver supports CUDA 11.8; gtopk needs CUDA 12.0"),
        ("(1, 12080, b'cuMemAlloc')", "has no cuMemAlloc"),
        ("(0, 12080, b'')", "False the CUDA driver finds no GPU"),
        ("old GPU", "has compute capability 7.0; gtopk needs 7.5"),
        ("lost", "start the process again"),
    ],
)
def test_the_doctor_says_why_a_gpu_cannot_be_used(kind, text):
    assert text in doctor(STANDIN=kind, TESTS=str(Path(__file__).parent))


@needs_standin
def test_the_doctor_finds_no_driver():
    said = doctor(GTOPK_CUDA_DRIVER="/nowhere/libcuda.so.1")
    assert "False no CUDA driver: /nowhere/libcuda.so.1 does not load" in said
    assert "needed on machines with an NVIDIA GPU only" in said
