"""The documents are true: every Python block runs, links lead somewhere, quoted error texts are those of the code.

The blocks run alone here; on two ranks in tests/distributed/test_docs_ranks.py.
"""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import run_blocks

ROOT = Path(__file__).resolve().parents[2]
GUIDE = sorted((ROOT / "docs").rglob("*.md"))
READMES = [ROOT / "README.md", *(ROOT / "examples").rglob("README.md"), *(ROOT / "benchmarks").rglob("README.md")]
PAGES = [page for page in [ROOT / "README.md", *GUIDE] if run_blocks.blocks(page)]
SCRIPT = Path(run_blocks.__file__)


def test_blocks_alone(tmp_path):
    pytest.importorskip("torch")
    command = [sys.executable, str(SCRIPT), "alone", "1", *map(str, PAGES)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("blocks on 1 ranks)") == len(PAGES), done.stdout


def test_blocks_are_found_and_none_is_exempt_silently():
    found = [block for page in PAGES for block in run_blocks.blocks(page)]
    assert len(found) >= 20
    assert sum(block.how == "set-up" for block in found) == 1
    for page in [*READMES, *GUIDE]:
        # A fence that the pattern of blocks does not see (unclosed, or of another spelling) would not be run.
        text = page.read_text()
        written = len(re.findall(r"^\s*(?:```+|~~~+)\s*\{?(?:py|python)", text, re.MULTILINE | re.IGNORECASE))
        assert written == len(run_blocks.blocks(page)), page


def test_blocks_that_train_print_their_loss():
    found = [block for page in PAGES for block in run_blocks.blocks(page) if run_blocks.trains(block)]
    assert len(found) >= 15
    for block in found:
        assert re.search(r"print\(.*loss", block.code), f"{block.file}:{block.line}"


@pytest.mark.parametrize("page", [*READMES, *GUIDE], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in {slug(title) for title in re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)}, target


def slug(title):
    return re.sub(r"[^\w-]+", "-", title.lower().replace("`", "")).strip("-")


# ---- error texts ----


def source_texts():
    """Every string of the code, with `...` for what is filled in, as long texts without line breaks."""
    found = []
    for file in sorted((ROOT / "python").rglob("*.py")):
        module = ast.parse(file.read_text())
        constants = {
            node.targets[0].id: node.value.value
            for node in module.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(module):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(text_of(value, constants) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]", "...", re.sub(r"(?<!{){\w*}(?!})", "...", node.value)))
    for file in sorted((ROOT / "csrc").rglob("*.c")):
        text = file.read_text()
        for name, value in re.findall(r'^#define (\w+) (".*")$', text, re.MULTILINE):
            text = re.sub(rf"\b{name}\b", lambda _, value=value: value, text)
        joined = re.sub(r'"\s*"', "", text)
        for literal in re.findall(r'"((?:[^"\\\n]|\\.)*)"', joined):
            found.append(re.sub(r"%[-#.\d*]*(?:ll|z|l)?[a-zA-Z]", "...", literal.replace('\\"', '"')))
        # Texts made of a field's name and advice: compare(peer, "field", theirs, ours, "advice").
        for field, advice in re.findall(r'compare\(peer, "([^"]+)",[^;"]*"([^"]+)"\)', joined):
            sent = next(text for text in found if text.startswith("... sent ... ..., this rank"))
            found.append(sent.replace("sent ...", f"sent {field}").removesuffix("...") + advice)
    return found


def text_of(part, constants):
    """A part of an f-string: its text, that of a constant of the module, or `...`."""
    if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
        return str(constants.get(part.value.id, "..."))
    return str(part.value) if isinstance(part, ast.Constant) else "..."


def test_error_texts_are_those_of_the_code():
    page = ROOT / "docs/guide/troubleshooting.md"
    quoted = re.findall(r"^```text\n(.+?)\n```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(quoted) >= 30
    haystack = "\n".join(re.sub(r"\s+", " ", text) for text in source_texts())
    for text in quoted:
        for part in re.split(r"\s*\.\.\.\s*", text):
            assert len(part) < 4 or part in haystack, f"{page.name} quotes {part!r}, which no error has"


def test_targets_of_make_that_are_named_are_there():
    rules = "\n".join(file.read_text() for file in [ROOT / "Makefile", *(ROOT / "make").glob("*.mk")])
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", rules, re.MULTILINE))
    shown = set(re.findall(r"^#: make ([a-z0-9-]+)", rules, re.MULTILINE))
    assert len(shown) > 30 and shown <= targets
    for page in [*READMES, *GUIDE]:
        text = page.read_text()
        shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
        named = re.findall(r"`make ([a-z][a-z0-9-]*)", text) + re.findall(r"^make ([a-z0-9-]+)", shell, re.MULTILINE)
        assert set(named) <= targets, page


def test_the_pages_bear_the_version(monkeypatch):
    import gtopk

    monkeypatch.setattr(sys, "path", [*sys.path])  # Sphinx's settings add to it
    assert runpy.run_path(str(ROOT / "docs/conf.py"))["html_title"] == f"gtopk {gtopk.__version__}"


def test_the_reference_has_every_public_name():
    import gtopk

    page = (ROOT / "docs/reference/python.rst").read_text()
    missing = [name for name in gtopk.__all__ if not re.search(rf"\bgtopk\.{name}\b", page) and name != "__version__"]
    assert not missing
