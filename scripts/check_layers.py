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
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+(["<])([^">]+)[">]', re.MULTILINE)
# Foreign interfaces, and the folders or files that may name them.
FOREIGN = {
    re.compile(r"mpi(-ext)?\.h|mpi/.*"): {"csrc/transport/mpi_module.c"},
    re.compile(r"nccl.*"): {"csrc/transport/nccl"},
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
        elif (other := header.partition("/")[0]) != layer and other not in BELOW[layer]:
            found.append(f'{name}: {layer}/ includes "{header}", but {other}/ is not below it')
    return found


def main() -> int:
    found = [fault for path in sorted(SOURCES.rglob("*.[ch]")) for fault in faults(path)]
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
