"""Checks a built libgtopk.so: it exports what gtopk.h declares and nothing else, and needs libc and libm alone.

python scripts/check_library.py build/libgtopk.so
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# libpthread and libdl are parts of libc that had files of their own before glibc 2.34.
ALLOWED = re.compile(r"(libc|libm|libpthread|libdl|ld-linux.*|libc\.musl.*)\.so[.0-9]*")
DECLARATION = re.compile(r"\b(gtopk_[a-z0-9_]+)\(")


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def exported(library: str) -> set[str]:
    lines = (line.split() for line in output("nm", "-D", "--defined-only", library).splitlines())
    return {words[2].partition("@")[0] for words in lines if words[1] in "TDBRVWi"}


def declared() -> set[str]:
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", (ROOT / "include" / "gtopk.h").read_text(), flags=re.DOTALL)
    text = re.sub(r"^[ \t]*#.*?(?<!\\)\n", "", text, flags=re.MULTILINE | re.DOTALL)
    return set(DECLARATION.findall(text))


def main() -> int:
    library = sys.argv[1]
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", library))
    faults = [f"{library} needs {name}: open it on demand" for name in needed if not ALLOWED.fullmatch(name)]
    have, want = exported(library), declared()
    faults += [f"{library} exports {name}, which gtopk.h does not declare" for name in sorted(have - want)]
    faults += [f"gtopk.h declares {name}, which {library} does not export" for name in sorted(want - have)]
    print("\n".join(faults), end="\n" if faults else "", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
