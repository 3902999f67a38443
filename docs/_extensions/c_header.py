"""Sphinx directive `c-header`: a C header whose comments are the manual, as a page.

Chapters begin with a comment line ``---- 3  Title ----``. A declaration belongs to the comment above it. Functions become
entries of Sphinx's C domain, so that pages can link to them; everything else is shown as code. Knows the layout of
gtopk.h, and nothing of what it declares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles
from sphinx.util.typing import ExtensionMetadata

CHAPTER = re.compile(r"^-{4} (\d+)  (.+?)(?: -+)?$")
FUNCTION = re.compile(r"^[a-z][\w ]*[ *]+(gtopk_\w+)\([^{}]*\);$", re.DOTALL)
PLUMBING = re.compile(r"^#(include|ifn?def|endif|pragma)|^#define GTOPK_H$|^extern \"C\"|^}$")


def blocks(source: str) -> Iterator[tuple[str, list[str]]]:
    """("comment" or "code", lines) in order. Code is cut at blank lines and at comments that begin a line."""
    comment: list[str] | None = None
    code: list[str] = []
    for line in source.splitlines():
        if comment is None and not line.startswith("/*"):
            if line.strip():
                code.append(line)
            elif code:
                yield "code", code
                code = []
            continue
        if comment is None:
            if code:
                yield "code", code
            comment, code = [], []
        comment.append(re.sub(r"^(/\*| \*(?!/)) ?", "", line).removesuffix("*/").rstrip())
        if line.endswith("*/"):
            yield "comment", comment
            comment = None
    if code:
        yield "code", code


def statements(lines: list[str]) -> list[str]:
    """The function declarations of a block of code; [] when it is something else."""
    found = re.findall(r"[^;]+;", "\n".join(lines))
    cleaned = [re.sub(r"\s+", " ", statement).strip() for statement in found]
    return cleaned if cleaned and all(FUNCTION.match(statement) for statement in cleaned) else []


class Page:
    """Writes reStructuredText."""

    def __init__(self, functions: set[str]) -> None:
        self.lines: list[str] = []
        self._functions = functions
        self._waiting: list[str] = []  # a comment that may belong to the code below it

    def comment(self, lines: list[str]) -> None:
        self.flush()
        for line in lines:
            chapter = CHAPTER.match(line.strip())
            if chapter:
                self.flush()
                title = f"{chapter[1]}  {chapter[2]}"
                self.lines += ["", title, "-" * len(title), ""]
            else:
                self._waiting.append(line)

    def code(self, lines: list[str]) -> None:
        if all(PLUMBING.match(line) for line in lines):
            return
        functions = statements(lines)
        if not functions:
            self.flush()
            self.lines += ["", ".. code-block:: c", "", *("   " + line for line in lines), ""]
            return
        body, self._waiting = self.prose(self._waiting), []
        first, *others = [function.removesuffix(";") for function in functions]
        self.lines += ["", f".. c:function:: {first}", *(" " * 16 + other for other in others), ""]
        self.lines += ["   " + line for line in body] + [""]

    def flush(self) -> None:
        self.lines += self.prose(self._waiting)
        self._waiting = []

    def prose(self, lines: list[str]) -> list[str]:
        """Paragraphs; lines that are indented stand as they are."""
        out: list[str] = []
        literal = False
        for line in lines:
            if line.startswith("  "):
                if not literal:
                    out += ["", ".. code-block:: none", ""]
                literal = True
                out.append("   " + line)
            elif literal and not line:
                out.append("")
            else:
                if literal:
                    out.append("")
                literal = False
                out.append(self._inline(line))
        return out

    def _inline(self, line: str) -> str:
        parts = line.split("`")
        parts[1::2] = [f"``{part}``" for part in parts[1::2]]
        parts[::2] = [self._plain(part) for part in parts[::2]]
        return "".join(parts)

    def _plain(self, text: str) -> str:
        words = re.split(r"\b(gtopk_\w+)(?:\(\))?", text)
        for i, word in enumerate(words):
            if i % 2 and word in self._functions:
                words[i] = rf"\ :c:func:`{word}`\ "
            else:
                words[i] = re.sub(r"([\\*|_])", r"\\\1", word)
        return "".join(words)


def to_rst(source: str) -> list[str]:
    parts = list(blocks(source))
    declared = [s for kind, lines in parts if kind == "code" for s in statements(lines)]
    page = Page({match[1] for match in map(FUNCTION.match, declared) if match})
    for kind, lines in parts:
        (page.comment if kind == "comment" else page.code)(lines)
    page.flush()
    return page.lines


class CHeader(SphinxDirective):
    """``.. c-header:: FILE``, relative to the documentation's root."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        file = Path(self.env.srcdir, self.arguments[0]).resolve()
        self.env.note_dependency(str(file))
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(to_rst(file.read_text()), source=str(file)), node)
        return node.children


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("c-header", CHeader)
    return {"version": "1", "parallel_read_safe": True}
