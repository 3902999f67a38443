"""The page of results: it has every file of the folder, and every value of each."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
markdown = pytest.importorskip("markdown")
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))

import results_page


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """What stands below each heading of a result."""
    parts = re.split(r'<h2 id="([\w-]+)">', results_page.page(RESULTS))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def test_every_result_is_on_the_page(sections: dict[str, str]) -> None:
    assert set(sections) == {file.stem for file in RESULTS.iterdir() if file.suffix != ".md"}
    for file in RESULTS.glob("*.png"):
        assert '<img alt="' + file.stem in sections[file.stem]
    for file in RESULTS.glob("*.json"):
        shown = set(re.split(r"<[^>]+>|, |: ", sections[file.stem]))
        hidden = {escape(results_page.text(leaf)) for leaf in leaves(json.loads(file.read_text()))} - shown
        whole = unescape(sections[file.stem])
        assert not [value for value in hidden if unescape(value) not in whole], file.name


def test_readme_says_how_each_was_measured(sections: dict[str, str]) -> None:
    named = results_page.catalogue((RESULTS / "README.md").read_text())
    assert set(named) == set(sections), "each result has a row in benchmarks/results/README.md, and each row a result"
    for stem, html in sections.items():
        assert results_page.inline(named[stem].what) in html
        for fact in ("machine", "date", "again by"):
            assert re.search(rf"<th>{fact}</th><td>.+?</td>", html), stem


def test_a_page_of_other_results(tmp_path: Path) -> None:
    """What is said in a file comes before what is said elsewhere; text is text; nothing on the page is elsewhere."""
    cases = [{"ranks": 2, "rate": "1gbit", "entries": 1e6, "rows": [{"method": "<b>", "median_exchange_ms": 2.0}]}]
    part = {"machine": {"cpu": "a & b", "cores": 2}, "date": "2026-01-02", "command": "run <it>", "cases": cases}
    (tmp_path / "new.json").write_text(json.dumps(part | {"list": list(range(20)), "no": None, "yes": True}))
    (tmp_path / "README.md").write_text(
        "# Results\n\nSee [there](../x.md#y).\n\n| file | command | what |\n| --- | --- | --- |\n"
        "| `new.json`, `.png` | `make new` | of [this](z.md) |\n\n## More\n\nText.\n"
    )
    html = results_page.page(tmp_path)
    assert "<td>a &amp; b, cores 2</td>" in html and "<td>2026-01-02</td>" in html
    assert "<td><code>make new</code></td>" in html and "<code>run &lt;it&gt;</code>" in html
    assert "&lt;b&gt;" in html and "<b>" not in html and "20 values" in html
    assert html.count("data:image/png;base64,") == 1 and "<h3>More</h3>" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)


def test_rows_that_name_their_machine_and_day(tmp_path: Path) -> None:
    rows = [{"machine": "one"}, {"machine": "two", "date": "2026-01-02"}, {"machine": "two", "date": "2026-03-04"}]
    (tmp_path / "new.json").write_text(json.dumps({"rows": rows}))
    found = results_page.read(tmp_path, "new", results_page.Entry("", ""))
    assert (found.machine, found.date) == ("one<br>two", "2026-01-02 to 2026-03-04, and rows without a date")
    assert results_page.days({"rows": rows[1:]}) == "2026-01-02 to 2026-03-04"


def test_first_steps_are_drawn_by_task_and_many_ranks_apart() -> None:
    import results_plots

    row = {"task": "line", "setting": "dense", "ranks": 4, "start": 2.0, "losses": {"100": 1.0, "300": None}}
    pictures = results_plots.draw({"rows": [row, {**row, "ranks": 2}, {**row, "ranks": 16}]})
    assert [caption for caption, _ in pictures] == ["line", "line, 16 ranks"], "and where it diverged there is no point"


def test_trainings_are_drawn_by_network_and_task() -> None:
    import results_plots

    curve = [{"step": 0, "seconds": 0.0, "loss": 2.3}, {"step": 4, "seconds": 1.0, "loss": 2.0}]
    rows = [
        {"ranks": ranks, "rate": rate, "task": task, "method": method, "curve": curve}
        for ranks, rate in ((4, "100mbit"), (2, "1gbit"))
        for task in ("resnet20", "transformer")
        for method in ("DDP", "gtopk")
    ]
    ((caption, picture),) = results_plots.draw({"summary": [], "trainings": rows})
    assert caption == "loss over time" and picture.startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    ((_, one),) = results_plots.draw({"trainings": rows[:2]})
    assert (width, height) == tuple(2 * int.from_bytes(one[at : at + 4], "big") for at in (16, 20))
