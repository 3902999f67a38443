"""Renders the folder of results as one HTML page that needs no other file.

    python benchmarks/results_page.py [--output build/report.html]

It has what the folder's README.md says, and for each result its machine, date and command, its pictures, and every value in
tables. Pictures are those that lie beside a result; where there is none, results_plots.py may know how to draw one.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import markdown
import results_plots

HERE = Path(__file__).resolve().parent
LONG = 16  # tables with more rows are folded
FACTS = ("machine", "date", "command")  # stand above the tables
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
h1, h2 { border-bottom: 1px solid #ccc; padding-bottom: .2em } h2 { margin-top: 2.5em }
table { border-collapse: collapse; margin: .6em 0; display: block; overflow-x: auto; font-size: 13px }
td, th { border: 1px solid #ddd; padding: .2em .6em; text-align: left; vertical-align: top }
th { background: #f3f3f3 } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
img { max-width: 100% } code, pre { background: #f3f3f3; font-size: 13px } pre { padding: .6em; overflow-x: auto }
summary { cursor: pointer; color: #05a } h4 { margin: .8em 0 .2em } .part .part { margin-left: 1.5em }
.contents td:last-child { white-space: nowrap }
"""


class Entry(NamedTuple):
    """What README.md says of a result: both in Markdown."""

    command: str
    what: str


class Result(NamedTuple):
    """The files of one name, read."""

    name: str
    entry: Entry
    data: Any
    pictures: list[tuple[str, bytes]]
    texts: list[str]
    machine: str
    date: str


def page(folder: Path) -> str:
    readme = (folder / "README.md").read_text()
    entries = catalogue(readme)
    names = sorted({file.stem for file in folder.iterdir() if file.suffix != ".md"})
    results = [read(folder, name, entries.get(name, Entry("?", "?"))) for name in names]
    rows = ["<tr><th>result</th><th>what</th><th>machine</th><th>date</th></tr>"]
    for result in results:
        cells = [f'<a href="#{result.name}">{result.name}</a>', inline(result.entry.what), result.machine, result.date]
        rows.append("<tr>" + "".join(f"<td>{text}</td>" for text in cells) + "</tr>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>gtopk: what was measured</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>What was measured</h1>\n{table_of('contents', rows)}\n"
        f"{prose(readme)}\n{''.join(map(section, results))}</body></html>\n"
    )


def read(folder: Path, name: str, entry: Entry) -> Result:
    data, pictures, texts = None, [], []
    for file in sorted(folder.glob(f"{name}.*")):
        if file.suffix == ".json":
            data = json.loads(file.read_text())
        elif file.suffix == ".png":
            pictures.append((name, file.read_bytes()))
        else:
            texts.append(file.read_text())
    machines = sorted({escape(text_of_machine(machine)) for machine in values_of("machine", data)})
    return Result(
        name,
        entry,
        data,
        pictures or results_plots.draw(data),
        texts,
        "<br>".join(machines) or "that of most (below)",
        days(data) or f"kept on {committed(folder, name) or '?'}",
    )


# ---- what README.md says ----


def catalogue(readme: str) -> dict[str, Entry]:
    """The rows of its table of files, by the name without its ending."""
    rows = re.findall(r"^\| `([\w.-]+)`[^|]* \| (.+?) \| (.+?) \|$", readme, re.MULTILINE)
    return {Path(name).stem: Entry(command, what) for name, command, what in rows if Path(name).suffix}


def prose(readme: str) -> str:
    """Without the title and the table of files, which are made here; pictures stand with their results."""
    text = readme.partition("\n")[2]
    text = re.sub(r"^\| file \|.*?\n(?=\n)", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!\[([^\]]*)\]\(([\w-]+)\.png\)", r"\1: [picture](#\2)", text)
    return re.sub(r"(</?h)2", r"\g<1>3", html_of(text))


def html_of(text: str) -> str:
    """From Markdown. Links to other files lead nowhere from a page that stands alone, so only their text stays."""
    html = markdown.markdown(text, extensions=["tables", "fenced_code"])
    return re.sub(r'<a href="(?!#|https?:)[^"]*">(.*?)</a>', r"\1", html, flags=re.DOTALL)


def inline(text: str) -> str:
    return html_of(text).removeprefix("<p>").removesuffix("</p>")


# ---- one result ----


def section(result: Result) -> str:
    found = [f'<h2 id="{result.name}">{result.name}</h2>', f"<p>{inline(result.entry.what)}</p>", facts(result)]
    for caption, png in result.pictures:
        source = base64.b64encode(png).decode()
        found.append(f'<p><img alt="{escape(caption)}" src="data:image/png;base64,{source}"></p>')
    if isinstance(result.data, dict):
        found.append(tables({name: value for name, value in result.data.items() if name not in FACTS}))
    elif result.data is not None:
        found.append(tables(result.data))
    found += [f"<pre>{escape(text)}</pre>" for text in result.texts]
    return "\n".join(found) + "\n"


def facts(result: Result) -> str:
    """Machine, date and command: what the file itself says, and where it does not, what README.md and git say."""
    rows = [("machine", result.machine), ("date", result.date), ("again by", inline(result.entry.command))]
    if isinstance(result.data, dict) and "command" in result.data:
        rows.append(("was run as", f"<code>{escape(str(result.data['command']))}</code>"))
    return table_of("facts", [f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows])


def values_of(key: str, data: Any, depth: int = 2) -> Iterator[Any]:
    """Wherever it stands, down to the parts of a file and their rows: some name the machine or the command in each."""
    for row in data if is_rows(data) else ():
        yield from values_of(key, row, depth)
    for name, value in data.items() if isinstance(data, dict) else ():
        if name == key:
            yield value
        if depth > 0:
            yield from values_of(key, value, depth - 1)


def days(data: Any) -> str:
    """The first and the last that stand in it, and whether rows are there from before rows had one; "" where there are none."""
    found = sorted({escape(str(date)) for date in values_of("date", data)})
    rows = data.get("rows") if isinstance(data, dict) else None
    some = is_rows(rows) and 0 < sum("date" in row for row in rows or []) < len(rows or [])
    return " to ".join(found[:1] + found[1:][-1:]) + (", and rows without a date" if some else "")


def text_of_machine(machine: Any) -> str:
    if not isinstance(machine, dict):
        return str(machine)
    plain = ("cpu", "gpu", "system")
    return ", ".join(str(v) if k in plain else f"{k} {text(v)}" for k, v in machine.items() if k != "date")


def committed(folder: Path, name: str) -> str:
    """The day of the last commit that changed it; "" outside a clone."""
    command = ["git", "-C", str(folder), "log", "-1", "--format=%as", "--", f"{name}.*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


# ---- any value as tables ----


def tables(value: Any) -> str:
    if is_rows(value):
        return table_of_rows(dict(enumerate(value)), named=False)
    if not isinstance(value, dict):
        return f"<p>{cell(value)}</p>"
    if is_alike(value):
        return table_of_rows(value, named=True)
    plain = {name: item for name, item in value.items() if not nested(item)}
    found = [f"<tr><th>{escape(name)}</th>{box(item)}</tr>" for name, item in plain.items()]
    html = table_of("", found) if found else ""
    for name, item in value.items():
        if nested(item):
            html += f'\n<div class="part"><h4>{escape(name)}</h4>\n{tables(item)}</div>'
    return html


def nested(value: Any) -> bool:
    return is_rows(value) or (isinstance(value, dict) and bool(value))


def is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def is_alike(value: dict[str, Any]) -> bool:
    """Parts that have most of their names in common make a table with a row for each."""
    if len(value) < 3 or not all(isinstance(item, dict) and item for item in value.values()):
        return False
    names = [set(item) for item in value.values()]
    return 2 * len(set.intersection(*names)) >= len(set.union(*names))


def table_of_rows(rows: dict[Any, dict[str, Any]], named: bool) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in ([""] if named else []) + columns)
    lines = [f"<tr>{head}</tr>"]
    for name, row in rows.items():
        first = f"<th>{escape(str(name))}</th>" if named else ""
        lines.append(f"<tr>{first}{''.join(box(row.get(column, '')) for column in columns)}</tr>")
    html = table_of("", lines)
    return folded(f"{len(rows)} rows", html) if len(rows) > LONG else html


def table_of(kind: str, rows: list[str]) -> str:
    return f'<table class="{kind}">' + "\n".join(rows) + "</table>"


def box(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f'<td class="number">{cell(value)}</td>' if number else f"<td>{cell(value)}</td>"


def cell(value: Any) -> str:
    if isinstance(value, list) and not is_rows(value):
        return (
            folded(f"{len(value)} values", ", ".join(map(cell, value)))
            if len(value) > LONG
            else ", ".join(map(cell, value))
        )
    if isinstance(value, dict) and len(value) <= LONG and not any(map(nested, value.values())):
        return "<br>".join(f"{escape(name)}: {cell(item)}" for name, item in value.items())
    if nested(value):
        return folded(f"{len(value)} {'rows' if isinstance(value, list) else 'values'}", tables(value))
    return escape(text(value))


def folded(summary: str, html: str) -> str:
    return f"<details><summary>{summary}</summary>{html}</details>"


def text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return "" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, default=Path("build/report.html"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(options.folder))
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
