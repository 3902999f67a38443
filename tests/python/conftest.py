"""Makes the tests use this tree: its package, and the library of GTOPK_BUILD (default: build/)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python"
BUILD = Path(os.environ.get("GTOPK_BUILD", ROOT / "build")).resolve()

# For this process and for those that tests start. An installed package is tested by leaving out PYTHONPATH and setting
# GTOPK_TEST_INSTALLED=1.
if not os.environ.get("GTOPK_TEST_INSTALLED"):
    sys.path.insert(0, str(PACKAGE))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("GTOPK_LIBRARY", str(BUILD / "libgtopk.so"))


@pytest.fixture(scope="module")
def examples_on_path():
    """As when a script of that folder is run."""
    sys.path.insert(0, str(ROOT / "examples"))
    yield
    sys.path.remove(str(ROOT / "examples"))


@pytest.fixture
def alone():
    """gtopk initialised with one process."""
    import gtopk

    gtopk.init(transport="self")
    yield gtopk
    gtopk.shutdown()


@pytest.fixture
def exchanging(alone, monkeypatch):
    """As `alone`, but gradients go through a reducer, as with several processes."""
    from gtopk.torch.session import Session

    monkeypatch.setattr(Session, "solo", False)
    return alone


@pytest.fixture(params=["alone", "exchanging"])
def either(request):
    return request.getfixturevalue(request.param)
