"""Checks the files that git knows: no path of the machine or account that they were written on, no large file, no
conflict mark, no space at the end of a line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 1 << 20
# Home folders, and the folder that this very tree lies in.
HERE = [re.escape(str(folder)) for folder in (ROOT, ROOT.parent, Path.home()) if len(folder.parts) > 2]
MACHINE = "|".join([r"/home/\w[\w.-]*", r"/Users/\w[\w.-]*", r"/root/[\w.-]+", *HERE])
RULES = {
    "a path of one machine": re.compile(rf"(?<![\w./$}}*~-])(?:{MACHINE})(?![\w.-])"),
    "a conflict mark": re.compile(r"^(<<<<<<< |>>>>>>> )", re.MULTILINE),
    "a space at the end of a line": re.compile(r"[ \t]+$", re.MULTILINE),
}
# Names of files that are not ours to change.
EXCEPT = {"LICENSE"}


def faults(name: str) -> list[str]:
    path = ROOT / name
    if not path.is_file() or path.is_symlink():
        return []
    data = path.read_bytes()
    if len(data) > LARGEST:
        return [f"{name}: {len(data)} bytes: keep large files out of the repository"]
    if b"\0" in data or Path(name).name in EXCEPT:
        return []
    text = data.decode("utf-8", "replace")
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {what}: {match.group().strip()}"
        for what, rule in RULES.items()
        for match in rule.finditer(text)
    ]


def main() -> int:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print("check_tree.py: no git repository here, nothing checked")
        return 0
    found = [fault for name in filter(None, done.stdout.split("\0")) for fault in faults(name)]
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
