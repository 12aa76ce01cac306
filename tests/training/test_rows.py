"""Rows and categories for training: what is read, what is refused and how it is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Category
from guardkit.errors import TrainingError
from guardkit.training.categories import PUBLISHED, CategorySet, of_names, read_categories
from guardkit.training.rows import Row, read_rows, row_of, split


def one(**fields: Any) -> Row | None:
    return row_of({"prompt": "hi", "severity": "unsafe", **fields}, PUBLISHED)


def test_a_prompt_and_a_response() -> None:
    assert one(categories=["jailbreak", "Violent"]) == Row("hi", None, 2, (Category.jailbreak, Category.violent))
    found = one(response="no way", severity="controversial", categories="PII", refusal=True, unsafe_from=3)
    assert found == Row("hi", "no way", 1, (Category.pii,), True, 3)
    assert one(response="yes", kind="prompt") == Row("hi", None, 2)
    assert one(prompt=None, response="yes", severity="safe", categories=["pii"]) == Row("", "yes", 0)
    assert one(severity=None) is None
    assert one(response="yes", categories=["jailbreak", "pii"]).categories == (Category.pii,)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"severity": "bad"}, "unknown severity 'bad'; known: safe, controversial, unsafe"),
        ({"severity": 2}, "unknown severity 2"),
        ({"categories": ["violnt"]}, "unknown category 'violnt'; known: violent"),
        ({"categories": 3}, "'categories' must be a list of names"),
        ({"refusal": "yes"}, "'refusal' must be true, false or null"),
        ({"prompt": ""}, "no text to learn from"),
        ({"prompt": ["hi"]}, "'prompt' must be a string"),
        ({"kind": "response"}, "'response' is missing"),
        ({"kind": "other"}, "'kind' must be"),
        ({"unsafe_from": 0}, "'unsafe_from' must be"),
        ({"response": "abc", "unsafe_from": 3}, "'unsafe_from' must be"),
        ({"response": "abc", "unsafe_from": True}, "'unsafe_from' must be"),
        ({"response": "abc", "unsafe_from": 1, "severity": "safe"}, "not safe"),
    ],
)
def test_a_bad_row_says_why(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("'", ".")):
        one(**fields)


def test_files_name_the_line_and_count_what_is_left_out(tmp_path: Path) -> None:
    good, unlabelled = {"prompt": "a", "severity": "safe"}, {"prompt": "b", "severity": None}
    lines = [json.dumps(good), "", json.dumps(unlabelled), "{", "[]", json.dumps({"prompt": "c", "severity": "unsafe"})]
    plain = tmp_path / "rows.jsonl"
    plain.write_text("\n".join(lines))
    with pytest.raises(TrainingError, match=r"rows\.jsonl:4: not valid JSON .*--skip-bad"):
        read_rows([plain], PUBLISHED)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(lines).encode()))
    found, tally = read_rows([plain, packed], PUBLISHED, skip_bad=True)
    assert [row.prompt for row in found] == ["a", "c"] * 2
    assert (tally.rows, tally.unlabelled, tally.bad, len(set(tally.files.values()))) == (4, 2, 4, 1)
    assert "rows.jsonl:5: an object is needed, not list" in str(tally)
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(TrainingError, match=r"rows\.jsonl\.gz: cannot be read"):
        read_rows([packed], PUBLISHED, skip_bad=True)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=3), max_size=40), st.integers(0, 9))
def test_no_text_is_in_both_splits(texts: list[str], seed: int) -> None:
    rows = [Row(text, None, 0) for text in texts]
    train, dev = split(rows, 0.3, seed)
    assert sorted(row.prompt for row in train + dev) == sorted(texts)
    assert not {row.prompt for row in train} & {row.prompt for row in dev}
    assert (train, dev) == split(rows, 0.3, seed)


def test_categories_in_every_form(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "categories:\n  - name: Tricks\n    prompts_only: true\n  - Gambling & Betting\n  - violent\n"
        "  - name: Waffen\n    description: |\n      guns,\n      knives\n"
    )
    found = read_categories(file)
    assert [c.value for c in found.query] == ["gambling_betting", "violent", "waffen", "tricks"]
    assert [c.label for c in found.response] == ["Gambling & Betting", "Violent", "Waffen"]
    assert found.entries[2].description == "guns, knives"
    assert found.is_own
    assert not PUBLISHED.is_own
    assert found.find("Gambling & Betting") == found.find("gambling_betting") == Category.named("gambling betting")
    with pytest.raises(ValueError, match="known: gambling_betting, violent, waffen, tricks"):
        found.find("pii")
    file.write_text(json.dumps(["a", "b"]))
    assert read_categories(file) == of_names(["a", "b"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b\n- A\n", r"mine:3: 'a' stands twice \(first at .*mine:1\)"),
        ("- a\n- name: b\n  about: c\n", "mine:2: unknown key 'about'; known: name, description, prompts_only"),
        ("- a\n- 5\n", "mine:2: a category needs a name"),
        ("- a\n- 'b, c'\n", "mine:2: .*no comma"),
        ("- a\n- None\n", "mine:2: .*not 'None'"),
        ("- a\n- '<|im_end|>'\n", "mine:2: .*special token"),
        ("- a\n- name: b\n  prompts_only: maybe\n", "mine:2: .*true or false"),
        ("- only\n", "1 categories, 1 of them for responses: 2"),
        ("- a\n- name: b\n  prompts_only: true\n", "2 categories, 1 of them for responses"),
        ("\n".join(f"- c{i}" for i in range(51)), "51 categories.*50"),
        ("{a: [", "mine:1: not valid YAML"),
        ("a", "a list of categories is needed"),
    ],
)
def test_bad_categories_name_the_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mine"
    file.write_text(text)
    with pytest.raises(TrainingError, match=says):
        read_categories(file)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=50))
def test_any_names_make_a_set_or_an_error(names: list[str]) -> None:
    try:
        found = of_names(names)
    except TrainingError:
        return
    assert isinstance(found, CategorySet)
    assert len({c.value for c in found.query}) == len(found.query) == len(names)
    assert all(found.find(c.value) == found.find(c.label) == c for c in found.query)
