"""What a run will take, what guards agree on, and what was found as a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from guardkit.labelling.agreement import agreement
from tests.labelling.conftest import Label, write_jsonl


def test_a_plan_counts_and_measures_and_labels_nothing(
    label: Label, tmp_path: Path, records: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", records)
    write_jsonl(tmp_path / "in" / "b.jsonl", records[:10])
    from guardkit_cli import run

    assert run(["label", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "2 inputs, 5,010 rows" in said
    assert re.search(r"measured here on \d+ rows: [\d,]+ rows/s", said)
    assert "time left" in said
    assert not (tmp_path / "out").exists()
    assert label(tmp_path / "in", "--out", tmp_path / "out").code == 0
    assert run(["label", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "5,010 of them labelled already" in said
    assert "about 0 s" in said


def test_agreement_of_two_and_of_three() -> None:
    # Cohen's own example has this form: 20 + 15 agreed, 5 + 10 not; kappa 0.4
    found = agreement({"unsafe unsafe": 20, "unsafe safe": 5, "safe unsafe": 10, "safe safe": 15}, ["a", "b"])
    share, kappa = found.pairs["a", "b"]
    assert (found.rows, share) == (50, pytest.approx(0.7))
    assert kappa == pytest.approx(0.4)
    assert found.unanimous == pytest.approx(0.7)
    three = agreement({"safe safe safe": 6, "safe safe unsafe": 2, "unsafe unsafe unsafe": 2}, ["a", "b", "c"])
    assert set(three.pairs) == {("a", "b"), ("a", "c"), ("b", "c")}
    # by hand: P = (6 + 2 + 2/3) / 10... of each row 1, or 1/3; chance (22/30)^2 + (8/30)^2
    observed = (6 * 1 + 2 * (2 / 6) + 2 * 1) / 10
    chance = (22 / 30) ** 2 + (8 / 30) ** 2
    assert three.fleiss == pytest.approx((observed - chance) / (1 - chance))
    assert agreement({"safe safe": 5}, ["a", "b"]).fleiss is None
    assert agreement({}, ["a", "b"]).lines() == []


def test_agreement_is_told(label: Label, tmp_path: Path) -> None:
    label.scripts = {"a": {"ONE": "unsafe"}, "b": {"ONE": "unsafe", "TWO": "unsafe"}}
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": t} for t in ("ONE", "TWO", "nil", "nix")])
    done = label(source, "--out", tmp_path / "out.jsonl", "--model", "a", "--vote", "b")
    assert "all guards agree on 75.0% of 4 rows" in done.err
    assert "a and b: 75.0%, Cohen's kappa 0.50" in done.err


def test_the_report_shows_what_was_found_by_column(label: Label, tmp_path: Path) -> None:
    records = [
        {"text": f"row {i} <b>{' BAD' * (i % 4 == 0)}", "lang": "en" if i % 2 else "de", "id": i} for i in range(200)
    ]
    source = write_jsonl(tmp_path / "in.jsonl", [*records, {"text": "BOOM <i>", "lang": "en", "id": -1}])
    args = ["--report", tmp_path / "report.html"]
    assert label(source, "--out", tmp_path / "out.jsonl", *args).code == 3
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Column lang" in page
    assert "Column id" not in page
    assert "Column text" not in page
    assert "boom" in page
    assert "201 rows" in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    label(source, "--out", tmp_path / "out.jsonl", *args, "--no-text")
    assert "&lt;b&gt;" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_report_of_a_vote_shows_agreement_and_confusion(label: Label, tmp_path: Path) -> None:
    label.scripts = {"one": {"BAD": "unsafe"}, "two": {"BAD": "unsafe", "HMM": "controversial"}}
    texts = ["fine"] * 6 + ["BAD"] * 3 + ["HMM"]
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": f"{text} {i}"} for i, text in enumerate(texts)])
    args = [source, "--out", tmp_path / "out.jsonl", "--model", "one", "--vote", "two"]
    assert label(*args, "--report", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Agreement of the guards" in page
    assert "one and two: 90.0%" in page  # Cohen's kappa: (0.9 - (0.7 x 0.6 + 0.3 x 0.3)) / (1 - 0.51)
    assert "kappa 0.80" in page
    label(source, "--out", tmp_path / "alone.jsonl", "--report", tmp_path / "page.html")
    assert "Agreement of the guards" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_report_that_has_no_place_is_told_before_the_run(label: Label, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    done = label(source, "--out", tmp_path / "out", "--report", tmp_path / "nowhere" / "page.html")
    assert done.code == 2
    assert "page.html: there is no such folder" in done.err
    assert not label.guards
    assert not (tmp_path / "out").exists()
