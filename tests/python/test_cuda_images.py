"""What the compiled CUDA kernels use, read from the binaries that the library embeds. No GPU or CUDA tool is needed.

The layout of a cubin's `.nv.info` sections is not documented by NVIDIA; attribute numbers are those that cuobjdump prints.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / os.environ.get("GTOPK_BUILD", "build") / "cuda" / "images.c"
LIBRARY = IMAGES.parents[1] / "libgtopk.so"
LARGEST = 1_000_000  # bytes of the library without its debug information and symbols
PACKED = {"id": lzma.FILTER_LZMA1, "lc": 1, "lp": 2, "pb": 4, "dict_size": 1 << 26}
FRAME_SIZE, MIN_STACK_SIZE, PARAMETER_BYTES, REGISTERS = 0x11, 0x12, 0x19, 0x2F
WITHOUT_VALUE, ONE_BYTE, TWO_BYTES = 1, 2, 3


def kernels(meeting: str = "01") -> set[str]:
    """All of them, or those whose blocks meet ("1"), or do not ("0")."""
    names = re.findall(r"X\((\w+), \w+, ([01])\)", (ROOT / "csrc/device/cuda/args.h").read_text())
    assert len(names) > 20
    return {f"gtopk_cuda_{name}" for name, meets in names if meets in meeting}


def images() -> dict[str, bytes]:
    """Unpacked, by name: cubin_90, ptx_75. The library's own unpacking: tests/unit/test_cuda_driver.c."""
    text = IMAGES.read_text() if IMAGES.is_file() else ""
    if "cubin_90" not in text:
        pytest.skip("this build has no CUDA kernels")
    sizes = {name: int(size) for size, name in re.findall(r"(\d+), (\w+_\d+)\},", text)}
    found = {}
    for name, words in re.findall(r"const uint64_t (\w+)\[\] = \{(.*?)\};", text, re.DOTALL):
        values = [int(word, 16) for word in re.findall(r"0x[0-9a-f]+", words)]
        packed = struct.pack(f"<{len(values)}Q", *values)[: sizes[name]]
        found[name] = lzma.decompress(packed, lzma.FORMAT_RAW, filters=[PACKED])
    return found


class Cubin:
    """An ELF file of 64 bits: its sections, the symbols' names, and the attributes of its functions."""

    def __init__(self, data: bytes) -> None:
        offset, size, count, names = (
            *struct.unpack_from("<Q", data, 40),
            *struct.unpack_from("<3H", data, 58),
        )
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]
        strings = data[headers[names][4] :]
        self.sections = {
            strings[h[0] : strings.index(b"\0", h[0])].decode(): (data[h[4] : h[4] + h[5]] if h[1] != 8 else b"", h[5])
            for h in headers
        }
        table, text = self.sections[".symtab"][0], self.sections[".strtab"][0]
        self.symbols = [
            text[(start := struct.unpack_from("<I", table, at)[0]) : text.index(b"\0", start)].decode()
            for at in range(0, len(table), 24)
        ]

    def attributes(self, section: str) -> list[tuple[int, bytes]]:
        data, _ = self.sections[section]
        found, at = [], 0
        while at < len(data):
            kind, number, value = struct.unpack_from("<BBH", data, at)
            at += 4
            if kind in (WITHOUT_VALUE, ONE_BYTE, TWO_BYTES):
                found.append((number, struct.pack("<H", value)))
            else:
                found.append((number, data[at : at + value]))
                at += value
        return found

    def of_functions(self, number: int) -> dict[str, int]:
        pairs = [struct.unpack("<II", value) for n, value in self.attributes(".nv.info") if n == number]
        return {self.symbols[symbol]: value for symbol, value in pairs}


@pytest.fixture(scope="module")
def binaries() -> dict[str, bytes]:
    return images()


def test_no_kernel_uses_local_memory(binaries: dict[str, bytes]) -> None:
    cubins = [name for name in binaries if name.startswith("cubin")]
    assert len(cubins) == 5
    for name in cubins:
        cubin = Cubin(binaries[name])
        for number in (FRAME_SIZE, MIN_STACK_SIZE):
            sizes = cubin.of_functions(number)
            assert kernels() <= set(sizes), name
            assert {function for function, size in sizes.items() if size != 0} == set(), name


def test_blocks_fit(binaries: dict[str, bytes]) -> None:
    """Four blocks of 256 threads run on a multiprocessor, or two of kernels whose blocks meet, with what each may have without
    asking for more."""
    for name in (name for name in binaries if name.startswith("cubin")):
        cubin = Cubin(binaries[name])
        registers = cubin.of_functions(REGISTERS)
        for kernel in kernels():
            assert 0 < registers[kernel] <= (128 if kernel in kernels("1") else 64), (name, kernel)
            _, shared = cubin.sections.get(f".nv.shared.{kernel}", (b"", 0))
            assert shared <= 48 << 10, (name, kernel)
            (bytes_passed,) = [v for n, v in cubin.attributes(f".nv.info.{kernel}") if n == PARAMETER_BYTES]
            assert struct.unpack("<H", bytes_passed)[0] <= 4096, (name, kernel)


def test_instructions(binaries: dict[str, bytes]) -> None:
    """Vectors are moved as such, denormals are kept, and what other blocks have written is not read from a cache for
    constants."""
    text = binaries["ptx_75"].rstrip(b"\0").decode()
    for never in (".local", ".ftz", "ld.global.nc", "div.approx", "div.full"):
        assert never not in text, never
    bodies = {m.group(1): m.group(2) for m in re.finditer(r"\.entry (\w+)\((.*?)\n\}", text, re.DOTALL)}
    for kernel, reads in (("f32", "ld.global.cs.v4"), ("f16", "ld.global.cs.v2"), ("bf16", "ld.global.cs.v2")):
        body = bodies[f"gtopk_cuda_accumulate_{kernel}"]
        assert body.count(reads) >= 2, kernel
        assert body.count("ld.global.v4") >= 2, kernel
        assert body.count("fma.rn.f32") >= 17, kernel
        assert "div" not in body, kernel
        assert ("cvt.f32.f16" in body) == (kernel == "f16")


@pytest.mark.skipif(not shutil.which("strip"), reason="there is no strip")
def test_size_of_the_library(binaries: dict[str, bytes], tmp_path: Path) -> None:
    """With every image in."""
    assert len(binaries) == 6
    stripped = tmp_path / "libgtopk.so"
    subprocess.run(["strip", "-o", stripped, LIBRARY], check=True)
    assert stripped.stat().st_size <= LARGEST


def test_a_wrong_kernel_ends_the_build(binaries: dict[str, bytes], tmp_path: Path) -> None:
    """Whatever the setting: a library without its kernels looks like one built where there is no NVRTC."""
    for part in ("csrc", "include", "scripts/cuda_images.py", "scripts/cuda_images.sh"):
        source, copy = ROOT / part, tmp_path / part
        copy.parent.mkdir(exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    with (tmp_path / "csrc/device/cuda/kernels.cu").open("a") as kernels_file:
        kernels_file.write("\nint wrong = ;\n")
    script, output = tmp_path / "scripts/cuda_images.sh", tmp_path / "images.c"
    venv = Path(sys.prefix)
    for setting in ("auto", "1"):
        command = [script, setting, output, tmp_path / "cache", venv, "true"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "kernels.cu" in done.stderr
        assert "expected an expression" in done.stderr
        assert not output.exists()
