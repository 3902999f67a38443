"""Checks what the C sources include against the layers of docs/architecture.md: downward only, and no MPI, NCCL or CUDA
above the layer that is there to hide it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"

# A layer may include itself, the public header, and these.
BELOW = {
    "core": {"exchange", "transport", "device", "wire", "util"},
    "exchange": {"transport", "device", "wire", "util"},
    "transport": {"wire", "util"},
    "device": {"wire", "util"},
    "torch": {"core", "device", "util"},
    "wire": {"util"},
    "util": set(),
}
# What other layers may include of a layer that is a joint; all else in there is its own affair.
JOINTS = {
    "device": {"device/device.h"},
    "transport": {"transport/transport.h", "transport/places.h", "transport/thread.h"},
    "exchange": {
        "exchange/exchange.h",
        "exchange/link.h",
        "exchange/check.h",
        "exchange/collective.h",
        "exchange/cost.h",
        "exchange/node.h",
        "exchange/probe.h",
        "exchange/scatter.h",
    },
}
# Folders within a layer that know nothing of each other, and what all of them share.
ROOMS = {
    "device": {"reference", "cpu", "cuda"},
    "transport": {"mpi", "nccl"},
}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+(["<])([^">]+)[">]', re.MULTILINE)
# Foreign interfaces, and the folders or files that may name them.
FOREIGN = {
    re.compile(r"mpi(-ext)?\.h|mpi/.*"): {"csrc/transport/mpi/"},
    re.compile(r"nccl.*"): {"csrc/transport/nccl/"},
    re.compile(r"(cuda|cudart|driver_types|nvrtc|cub/).*"): {"csrc/device/cuda"},
    re.compile(r"(torch|ATen|c10)/.*"): {"csrc/torch"},
}


def faults(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    layer = path.relative_to(SOURCES).parts[0]
    found = []
    if layer not in BELOW:
        return [f"{name}: {layer}/ is no layer: give it a place in {Path(__file__).name} and docs/architecture.md"]
    for kind, header in INCLUDE.findall(path.read_text()):
        if kind == "<":
            found += [
                f"{name}: includes <{header}>, which belongs to {' and '.join(sorted(places))}"
                for pattern, places in FOREIGN.items()
                if pattern.fullmatch(header) and not any(name.startswith(place) for place in places)
            ]
        elif header == "gtopk.h":
            pass
        elif not (SOURCES / header).is_file():
            found.append(f'{name}: write "{header}" with its folder, from csrc/ on')
        else:
            found += [f"{name}: {fault}" for fault in faults_of_include(layer, path, header)]
    return found


def faults_of_include(layer: str, path: Path, header: str) -> list[str]:
    other, *rest = Path(header).parts
    if other != layer:
        if other not in BELOW[layer]:
            return [f'{layer}/ includes "{header}", but {other}/ is not below it']
        if header not in JOINTS.get(other, {header}):
            return [f'{layer}/ includes "{header}", but {other}/ is a joint: {" or ".join(sorted(JOINTS[other]))}']
        return []
    rooms = ROOMS.get(layer, set())
    mine = path.relative_to(SOURCES).parts[1]
    if rest[0] in rooms and mine in rooms and mine != rest[0]:
        return [f'{layer}/{mine}/ includes "{header}", but {rest[0]}/ is another room']
    if rest[0] in rooms and mine not in rooms:
        return [f'{layer}/ includes "{header}": what is in {rest[0]}/ stays there; device.h has what others may call']
    return []


def main() -> int:
    found = [fault for path in sorted([*SOURCES.rglob("*.[ch]"), *SOURCES.rglob("*.cu")]) for fault in faults(path)]
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
