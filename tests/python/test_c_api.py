"""The ctypes declarations against gtopk.h: every function, and the layout of every struct as the compiler sees it."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

from gtopk import _c_api, _lib, errors

HEADER = ROOT / "include" / "gtopk.h"
STRUCTS = {
    "gtopk_comm_config_t": _c_api.CommConfig,
    "gtopk_tensor_t": _c_api.Tensor,
    "gtopk_reducer_config_t": _c_api.ReducerConfig,
    "gtopk_stats_t": _c_api.Stats,
    "gtopk_set_t": _c_api.Set,
    "gtopk_state_info_t": _c_api.StateInfo,
    "gtopk_callbacks_t": _c_api.Callbacks,
    "gtopk_hierarchy_info_t": _c_api.HierarchyInfo,
    "gtopk_costs_t": _c_api.Costs,
    "gtopk_choice_info_t": _c_api.ChoiceInfo,
}
CONSTANTS = {
    "GTOPK_F32": _c_api.F32,
    "GTOPK_F16": _c_api.F16,
    "GTOPK_BF16": _c_api.BF16,
    "GTOPK_F64": _c_api.F64,
    "GTOPK_ZERO_INPUT": _c_api.ZERO_INPUT,
    "GTOPK_FOUND_INF": _c_api.FOUND_INF,
    "GTOPK_OUTPUT_IS_ZERO": _c_api.OUTPUT_IS_ZERO,
    "GTOPK_JOINED": _c_api.JOINED,
    "GTOPK_LOG_WARN": _c_api.LOG_WARN,
    "GTOPK_LOG_TRACE": _c_api.LOG_TRACE,
    "GTOPK_ALGORITHM_DENSE": _c_api.ALGORITHMS["dense"],
    "GTOPK_ALGORITHM_TOPK": _c_api.ALGORITHMS["topk"],
    "GTOPK_ALGORITHM_GTOPK": _c_api.ALGORITHMS["gtopk"],
    "GTOPK_ALGORITHM_GTOPK_TREE": _c_api.ALGORITHMS["gtopk-tree"],
    "GTOPK_ALGORITHM_GTOPK_SPLIT": _c_api.ALGORITHMS["gtopk-split"],
    "GTOPK_ALGORITHM_AUTO": _c_api.AUTO["auto"],
    "GTOPK_CHOICES": _c_api.CHOICES,
    "GTOPK_VALUE_F32": _c_api.VALUE_TYPES["fp32"],
    "GTOPK_VALUE_F16": _c_api.VALUE_TYPES["fp16"],
    "GTOPK_VALUE_BF16": _c_api.VALUE_TYPES["bf16"],
    "GTOPK_VALUE_I8": _c_api.VALUE_TYPES["int8"],
    "GTOPK_RESIDUAL_SHARE": _c_api.RESIDUAL_POLICIES["share"],
    "GTOPK_RESIDUAL_PAPER": _c_api.RESIDUAL_POLICIES["paper"],
}


def header_code():
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def test_every_function_is_declared_with_as_many_arguments():
    found = {}
    for name, arguments in re.findall(r"^[a-z][\w ]*[ *](gtopk_\w+)\(([^()]*)\);", header_code(), flags=re.MULTILINE):
        found[name] = 0 if arguments.strip() == "void" else arguments.count(",") + 1
    assert len(found) > 40
    assert found == {name: len(arguments) for name, (_, arguments) in _c_api.FUNCTIONS.items()}


def test_status_codes_have_their_exception():
    codes = re.findall(r"X\((GTOPK_\w+), (-?\d+),", HEADER.read_text())
    assert len(codes) == 15
    kinds = {type(errors.from_status(int(code), "")) for name, code in codes if name != "GTOPK_OK"}
    assert len(kinds) == 14
    for name, code in codes:
        assert _c_api.describe_status(int(code)).startswith(name + ": ")
        assert name == "GTOPK_OK" or errors.from_status(int(code), "x").status == int(code)
    assert isinstance(errors.from_status(-999, "x"), errors.InternalError)


def test_layouts_and_constants_are_the_compilers(tmp_path):
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    rows, expected = [], []
    for name, structure in STRUCTS.items():
        rows.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(structure)}")
        for field, kind in structure._fields_:
            rows.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
            )
            expected.append(f"{name}.{field} {getattr(structure, field).offset} {ctypes.sizeof(kind)}")
    for name, value in CONSTANTS.items():
        rows.append(f'printf("{name} %d\\n", {name});')
        expected.append(f"{name} {value}")
    source = tmp_path / "layout.c"
    source.write_text(
        '#include <stdio.h>\n#include "gtopk.h"\nint main(void) {\n' + "\n".join(rows) + "\nreturn 0; }\n"
    )
    subprocess.run([compiler, f"-I{HEADER.parent}", str(source), "-o", str(tmp_path / "layout")], check=True)
    output = subprocess.run([str(tmp_path / "layout")], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == expected


def test_library_that_is_named_but_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("GTOPK_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(errors.NotFoundError, match="GTOPK_LIBRARY"):
        _lib.load()


def test_library_that_is_something_else(monkeypatch, tmp_path):
    bad = tmp_path / "bad.so"
    bad.write_bytes(b"no library")
    for name in (str(bad), "/proc/self/exe"):
        monkeypatch.setenv("GTOPK_LIBRARY", name)
        with pytest.raises(errors.NotFoundError, match="again"):
            _lib.load()


def test_library_of_another_version(monkeypatch, tmp_path):
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text("int gtopk_version(void) { return 90807; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    monkeypatch.setenv("GTOPK_LIBRARY", str(library))
    with pytest.raises(errors.NotFoundError, match=r"version 9\.8\.7.*make build"):
        _lib.load()


def test_search_order(monkeypatch):
    monkeypatch.delenv("GTOPK_LIBRARY", raising=False)
    places = _lib.candidates()
    assert places[0].name == "libgtopk.so"
    assert places[0].parent.name == "gtopk"
    assert _lib.source_tree() is None or places[1] == _lib.source_tree() / "build" / "libgtopk.so"
