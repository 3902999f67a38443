"""Compiles the CUDA kernels with NVRTC and writes the binaries as a C file, which the library embeds.

python scripts/cuda_images.py OUTPUT.c [--cache FOLDER] [--include FOLDER]

One cubin for each architecture of ARCHITECTURES and a PTX for those that come later. Cubins of CUDA 12 load on drivers
from 525 on, because they are not compressed. No nvcc, no host compiler and no header of CUDA is needed. NVRTC is PyPI's
(requirements/cuda.txt), or the library that the environment variable NVRTC names. A kernel that needs local memory,
by spilling registers or otherwise, is an error.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import re
import struct
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "device" / "cuda"
MAIN = "kernels.cu"
ARCHITECTURES = (75, 80, 90, 100, 120)
PTX_ARCHITECTURE = 75
# The same bits as the CPU: every operation rounded once, denormals kept.
OPTIONS = (
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--std=c++17",
    "--device-as-default-execution-space",
    "--ptxas-options=--verbose",
)
# What our headers include of the C library; NVRTC comes without it.
HEADERS = {
    "stddef.h": "typedef unsigned long size_t;\n#ifndef NULL\n#define NULL 0\n#endif\n",
    "stdint.h": "typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t;"
    "typedef unsigned short uint16_t; typedef int int32_t; typedef unsigned int uint32_t;"
    "typedef long int64_t; typedef unsigned long uint64_t; typedef unsigned long uintptr_t;\n"
    "#define INT8_MIN (-128)\n#define UINT32_MAX 0xffffffffu\n#define UINT64_MAX 0xfffffffffffffffful\n",
    "string.h": "",
}


WRONG_SOURCES = 3  # exit status: NVRTC is there, and what it was given cannot be compiled


class CompileError(Exception):
    """The kernels are wrong: no build may go on without them."""


class Nvrtc:
    """The few functions of NVRTC that are needed, with errors as exceptions."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: {self.library.nvrtcGetErrorString(status).decode()}")

    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def compile(self, source: str, options: tuple[str, ...], kind: str) -> tuple[bytes, str]:
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(HEADERS))(*(name.encode() for name in HEADERS))
        texts = (ctypes.c_char_p * len(HEADERS))(*(text.encode() for text in HEADERS.values()))
        self.call(
            "nvrtcCreateProgram", ctypes.byref(program), source.encode(), MAIN.encode(), len(HEADERS), texts, names
        )
        flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self.library.nvrtcCompileProgram(program, len(options), flags)
        log = self.text(program, "ProgramLog").rstrip(b"\0").decode()
        if failed:
            raise CompileError(f"{' '.join(options)}:\n{log}")
        code = self.text(program, kind)
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return code, log


def find_nvrtc() -> str:
    named = os.environ.get("NVRTC")
    if named:
        return named
    found = sorted(Path(sysconfig.get_path("purelib"), "nvidia", "cuda_nvrtc", "lib").glob("libnvrtc.so.*"))
    if not found:
        raise RuntimeError("no NVRTC in this environment: install requirements/cuda.txt, or name the library: NVRTC=")
    return str(found[0])


def sources() -> list[Path]:
    """Whatever the kernels are made from."""
    places = (
        "csrc/device/cuda/*.cu",
        "csrc/device/cuda/*.h",
        "csrc/device/*.h",
        "csrc/wire/*.h",
        "csrc/util/status.h",
        "include/*.h",
    )
    return sorted(path for place in places for path in ROOT.glob(place))


def spills(log: str) -> list[str]:
    """Kernels that use local memory. Of each ptxas says its name in one line, and its stack frame in another."""
    found, name = [], ""
    for line in log.splitlines():
        if match := re.search(r"(?:Function properties for|Compiling entry function) (\S+)", line):
            name = match.group(1)
        match = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line)
        if match and match.groups() != ("0", "0"):
            found.append(f"{name}: {match.group()}")
    return found


def compile_all(nvrtc: Nvrtc) -> list[tuple[str, int, bytes]]:
    """Kind, architecture and code of each image."""
    source = (SOURCES / MAIN).read_text()
    includes = (f"--include-path={ROOT / 'csrc'}", f"--include-path={ROOT / 'include'}")
    images = []
    for arch in ARCHITECTURES:
        code, log = nvrtc.compile(source, (f"--gpu-architecture=sm_{arch}", *OPTIONS, *includes), "CUBIN")
        faults = spills(log)
        if "bytes stack frame" not in log:
            raise CompileError(f"sm_{arch}: ptxas does not say what the kernels use:\n{log}")
        if faults:
            raise CompileError(f"sm_{arch}: kernels with local memory: {'; '.join(faults)}")
        images.append(("cubin", arch, code))
    options = (f"--gpu-architecture=compute_{PTX_ARCHITECTURE}", *OPTIONS, *includes)
    images.append(("ptx", PTX_ARCHITECTURE, nvrtc.compile(source, options, "PTX")[0]))
    return images


def pack(data: bytes) -> bytes:
    """LZMA without a header, which csrc/device/cuda/unpack.c reads. Instructions have 16 bytes, so the position counts."""
    import lzma  # some builds of Python have none, and then the library is built without kernels

    settings = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 1, "lp": 2, "pb": 4}
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[settings])


def crc(data: bytes) -> int:
    """CRC-32C, as csrc/wire/crc.c has it."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    register = 0xFFFFFFFF
    for byte in data:
        register = register >> 8 ^ table[(register ^ byte) & 255]
    return register ^ 0xFFFFFFFF


def c_file(images: list[tuple[str, int, bytes]], version: str) -> str:
    lines = [
        f"/* Made by scripts/cuda_images.py with NVRTC {version}: do not edit. */",
        '#include "device/cuda/images.h"',
        "",
    ]
    sizes = {}
    for kind, arch, code in images:
        packed = pack(code)
        sizes[kind, arch] = len(packed)
        padded = packed + bytes(-len(packed) % 8)
        words = struct.unpack(f"<{len(padded) // 8}Q", padded)
        lines.append(f"static const uint64_t {kind}_{arch}[] = {{")
        lines += [", ".join(f"{word:#x}u" for word in words[at : at + 8]) + "," for at in range(0, len(words), 8)]
        lines.append("};")
    lines.append("const cuda_image_t cuda_images[] = {")
    lines += [
        f"    {{{arch}, {int(kind == 'ptx')}, {len(code)}, {crc(code):#x}u, {sizes[kind, arch]}, {kind}_{arch}}},"
        for kind, arch, code in images
    ]
    lines += ["};", f"const size_t cuda_image_count = {len(images)};", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cache", type=Path, help="folder for results, named by what they were made from")
    options = parser.parse_args()
    try:
        nvrtc = Nvrtc(find_nvrtc())
        version = nvrtc.version()
        made_from = hashlib.sha256("\n".join([version, *OPTIONS, Path(__file__).read_text()]).encode())
        for path in sources():
            made_from.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
        kept = options.cache / f"images-{made_from.hexdigest()[:16]}.c" if options.cache else None
        if kept and kept.is_file():
            text = kept.read_text()
        else:
            images = compile_all(nvrtc)
            text = c_file(images, version)
            print(f"  nvrtc {len(images)} images, {sum(len(code) for _, _, code in images)} bytes before packing")
    except (ImportError, OSError, RuntimeError, CompileError) as error:
        print(f"cuda_images.py: {error}", file=sys.stderr)
        return WRONG_SOURCES if isinstance(error, CompileError) else 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    if kept and not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
