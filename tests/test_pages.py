"""The look that all pages share: escaped, self-contained, readable on a phone and on a desk, by eye and by keyboard."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import pages
from guardkit.evaluation.page import as_html
from guardkit.evaluation.runner import Settings, evaluate
from guardkit.evaluation.sources import Source
from guardkit.pages.text import UNSEEN, attribute
from guardkit.testing import FakeGuard
from guardkit_cli import run

HOSTILE = '</pre></div><script>alert(1)</script><img src=x onerror=alert(2)> "quotes" \' & \x1b \x85 \u202e \ud800'


class _Reader(HTMLParser):
    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.data += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each command, of wide tables and hostile texts."""
    folder = tmp_path_factory.mktemp("pages")
    rows = [{"prompt": f"{'BAD' if i % 2 else 'ok'} {i} {HOSTILE}", "severity": "unsafe"} for i in range(12)]
    rows += [{"prompt": f"fine {i}", "severity": "safe", "lang": "en"} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    guard = FakeGuard({"BAD": "unsafe"})
    source = Source("rows", None, folder / "rows.jsonl")
    results = [evaluate(guard, f"a model with a long name {i}", "1", source, Settings(resamples=20)) for i in range(3)]
    (folder / "eval.html").write_text(as_html(results, {}, missing=[HOSTILE]), encoding="utf-8")
    text = "All is well. " * 60 + "BAD it is. " + HOSTILE
    (folder / "traces.jsonl").write_text(json.dumps({"prompt": HOSTILE, "response": text}, ensure_ascii=True) + "\n")
    assert run(["trace", "--quiet", "--html", str(folder / "trace.html"), str(folder / "traces.jsonl")]) in (0, 1)
    return {"eval": folder / "eval.html", "trace": folder / "trace.html"}


both = pytest.mark.parametrize("name", ["eval", "trace"])


@settings(max_examples=60)
@given(st.text())
def test_any_text_is_only_text(text: str) -> None:
    found = _Reader(f"<p>{pages.html(text)}</p>")
    assert {tag for tag, _ in found.tags} <= {"p", "b"}
    if text.isascii() and text.isprintable():
        assert found.data == text
    ((_, attributes),) = _Reader(f'<p title="{attribute(text)}">').tags
    assert set(attributes) == {"title"}


def test_what_is_html_is_not_escaped_twice() -> None:
    table = pages.table(["<a>", "n"], [[pages.badge("unsafe"), "1"], ["<i>", "2.5 [1-3]"]], 'a "name"')
    assert '<span class="badge unsafe">unsafe</span>' in table
    assert "&lt;i&gt;" in table
    assert table.count('class="n"') == 3  # the numbers and their head
    assert 'role="region" aria-label="a &quot;name&quot;" tabindex="0"' in table


def test_what_cannot_be_seen_is_listed_once() -> None:
    flat = [c for low, high in UNSEEN for c in range(low, high + 1)]
    assert len(flat) == len(set(flat))


@both
def test_a_page_holds_to_its_content_policy(made: dict[str, Path], name: str) -> None:
    """No inline style or handler, nothing loaded; the style is allowed by its hash alone."""
    page = made[name].read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe-inline" not in policy[1]
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    digest = base64.urlsafe_b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy[1]
    for tag, attributes in _Reader(page).tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "link", "base", "form"}
        assert not [a for a in attributes if a in ("style", "src") or a.startswith("on")]


@both
def test_a_page_can_be_found_ones_way_in(made: dict[str, Path], name: str) -> None:
    found = _Reader(made[name].read_text(encoding="utf-8"))
    names = [tag for tag, _ in found.tags]
    assert [names.count(tag) for tag in ("main", "header", "h1")] == [1, 1, 1]
    headings = [int(tag[1]) for tag in names if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in pairwise(headings))
    assert ("html", {"lang": "en"}) in found.tags
    for tag, attributes in found.tags:
        if attributes.get("role") in ("region", "img", "group") or (tag == "svg"):
            assert attributes.get("aria-label"), (tag, attributes)
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
@both
def test_a_page_in_a_browser(made: dict[str, Path], name: str, scheme: str, width: int, visit) -> None:
    with visit(made[name].as_uri(), width, scheme) as seen:
        page = seen.page
        assert seen.overflow == 0
        assert seen.complaints == []
        assert seen.requests == [made[name].as_uri()]
        assert seen.barriers() == []
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert (_light(ink) < _light(paper)) == (scheme == "light")
        boxes = page.locator("[role=region]")
        for i in range(boxes.count()):
            box = boxes.nth(i).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        if name == "eval" and width == 390:  # the table is wider than its box, and the keyboard moves it
            wide = boxes.first
            wide.focus()
            page.keyboard.press("ArrowRight")
            seen.until("document.querySelector('[role=region]').scrollLeft > 0")


def _light(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


@both
def test_a_printed_page_shows_all_of_its_tables(made: dict[str, Path], name: str, visit) -> None:
    with visit(made[name].as_uri(), 1280) as seen:
        seen.page.emulate_media(media="print")
        hidden = seen.page.evaluate(
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollHeight > e.clientHeight + 2 "
            "|| getComputedStyle(e).overflowY !== 'visible').length"
        )
        assert hidden == 0


def test_the_strip_leads_to_a_sentence(made: dict[str, Path], visit) -> None:
    with visit(made["trace"].as_uri(), 390) as seen:
        page = seen.page
        cell = page.locator(".strip a").nth(60)
        assert page.evaluate("getComputedStyle(document.querySelector('.strip rect')).fill") != "rgb(0, 0, 0)"
        cell.focus()
        page.keyboard.press("Enter")
        seen.until("location.hash.length > 1")
        seen.until("(y => 0 <= y && y <= 800)(document.querySelector(':target').getBoundingClientRect().top)")
