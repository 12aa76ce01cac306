"""Reports: the same figures in each format; hostile texts stay texts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from guardkit.evaluation import report
from guardkit.evaluation.charts import Line, bar_chart, line_chart
from guardkit.evaluation.page import as_html
from guardkit.evaluation.runner import Settings, evaluate
from guardkit.evaluation.sources import Source
from guardkit.evaluation.specs import Published, load_table
from guardkit.testing import FakeGuard

HOSTILE = '</pre></details><script>alert(1)</script><img src=x onerror="alert(2)"> & "quotes" | \x1b[31m \ud800'
VOID = {"meta", "img", "br", "link", "hr", "input"}


@pytest.fixture
def results(tmp_path):
    rows = [
        {"prompt": HOSTILE, "severity": "unsafe", "lang": "<b>en</b>", "categories": ["violent"]},
        {"prompt": f"BAD {HOSTILE}", "severity": "safe", "lang": "de|x"},
        *({"prompt": f"{'BAD' if i % 2 else 'ok'} {i}", "severity": ("safe", "unsafe")[i % 2]} for i in range(30)),
        {"prompt": "BOOM", "severity": "safe"},
    ]
    spans = [{"prompt": "q", "response": "so BAD it is", "severity": "unsafe", "span": [3, 6]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in spans))
    chat, located = (load_table().datasets[name] for name in ("toxicchat", "qwen3guardtest_response_loc"))
    sources = [Source(chat.name, chat, tmp_path / "a.jsonl"), Source(located.name, located, tmp_path / "b.jsonl")]
    guard = FakeGuard({"BAD": "unsafe", "BOOM": RuntimeError("<i>boom</i>")})
    return [evaluate(guard, name, "1", s, Settings(resamples=20)) for name in ("one", "<two>") for s in sources]


class Checker(HTMLParser):
    """Collects tags and attributes; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_alone(results):
    page = as_html(results, load_table().published, missing=["<missing>"])
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    tags = {tag for tag, _ in checker.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "i", "b", "two", "missing"}
    for _, attributes in checker.tags:
        assert not attributes.keys() & {"src", "href", "xlink:href", "action", "srcset"}
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", page)
    assert "default-src 'none'" in page
    assert "\x1b" not in page
    page.encode("utf-8")


def test_mistakes_are_hidden_until_clicked(results):
    page = as_html(results, {})
    assert "&lt;script&gt;alert(1)" in page
    outside = re.sub(r"<details>.*?</details>", "", page, flags=re.S)
    assert "alert(1)" not in outside
    assert "<details open" not in page
    assert "alert(1)" not in as_html(results, {}, with_text=False)


def test_the_page_has_every_chart(results):
    page = as_html(results, {})
    for title in ("Precision and recall", "Calibration", "Scores: one", "Detection latency", "Best F1 by language"):
        assert f'aria-label="{title}' in page


def test_markdown_tables_keep_their_columns(results):
    text = report.as_markdown(results, load_table().published)
    assert "<script" not in text
    widths: set[int] = set()
    for line in text.splitlines():
        if not line.startswith("|"):
            widths = set()
            continue
        widths.add(len(re.split(r"(?<!\\)\|", line)))
        assert len(widths) == 1, line


def test_models_stand_side_by_side_with_the_published_figure(results):
    table = report.summary(results, load_table().published)
    assert [row[:2] for row in table.rows[:2]] == [["toxicchat", "one"], ["toxicchat", "<two>"]]
    assert table.head[-1] == "published: Qwen3Guard-Gen-0.6B"
    assert table.rows[0][-1] == "77.7"
    assert "published" not in report.summary(results, {}).head[-1]
    sources = {row[-1] for row in report.published_figures(results, load_table().published).rows}
    assert any("2510.14276" in source for source in sources)


def test_a_file_that_is_called_like_a_set_is_another_set(results):
    table = load_table().published
    own = [replace(r, spec=None) for r in results]
    assert "published" not in report.summary(own, table).head[-1]
    assert report.published_figures(own, table).rows == []
    assert {row[-1] for row in report.streaming(own, table).rows} == {"-"}
    assert report.as_dict(own, table, [])["published"] == {}
    assert report.as_dict(results, table, [])["published"].keys() == {r.spec for r in results}
    renamed = [replace(r, dataset=f"{r.dataset}+") for r in results]
    assert report.summary(renamed, table).rows[0][-1] == "77.7"


def test_the_mode_of_a_figure_is_told(results):
    table = report.summary(results, {})
    assert table.head[-4:] == ["best mode", "AP", "FPR@R90", "ECE"]
    assert {row[-4] for row in table.rows} == {"strict"}


def test_a_set_without_positives_has_no_f1(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "severity": "safe"}) + "\n" for p in ("x", "BAD"))
    )
    guards = FakeGuard({}), FakeGuard({"BAD": "unsafe"})
    found = [evaluate(g, "m", "1", Source("s", None, tmp_path / "a.jsonl"), Settings(resamples=20)) for g in guards]
    rows = report.summary(found, {}).rows
    assert [(row[4], row[8]) for row in rows] == [("-", "0.0"), ("-", "50.0")], "best F1, FPR"


def test_no_cell_of_markdown_is_fetched(results):
    text = report.as_markdown([replace(r, errors={"no ![x](http://h/p.png) [y](http://h)": 1}) for r in results], {})
    assert "h/p.png" in text
    assert not re.search(r"\]\(", text)


def test_text_is_aligned_and_json_is_valid(results):
    lines = report.as_text(report.summary(results, {})).splitlines()
    assert len({line.index("fake" if "fake" in line else line.split()[1]) for line in lines[2:]}) == 1
    data = report.as_dict(results, {"toxicchat": [Published("s", "m", "strict", 1.0)]}, ["gone"])
    text = json.dumps(data, allow_nan=False)
    assert "alert(1)" not in text
    assert "alert(1)" in json.dumps(report.as_dict(results, {}, [], with_text=True))
    assert data["missing"] == ["gone"]


def test_charts_of_nothing():
    assert line_chart("t", "x", "y", []).endswith("</svg>")
    assert line_chart("t", "x", "y", [Line("one", [(0.5, 0.5)])]).count("<circle") == 1
    assert bar_chart("<t>", "x", "y", [], []).count("&lt;t&gt;") == 2
    named = line_chart("t", "x", "y", [Line(f"a rather long name {i}", []) for i in range(9)])
    height = int(re.search(r'height="(\d+)"', named)[1])
    assert all(int(y) < height for y in re.findall(r'y="(\d+)">a rather', named)), "the legend is not cut off"
    assert "NaN" not in bar_chart("t", "x", "y", ["a"], [("s", [0.0])])
