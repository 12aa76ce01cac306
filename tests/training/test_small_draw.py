"""What `training/small/make.py` draws: rows as they are, or short answers alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import importlib.util

    folder = Path(__file__).parents[2] / "training" / "small"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("small_make", folder / "make.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def row(prompt: str, response: str | None = None, severity: str | None = "safe", lang: str = "en") -> dict[str, Any]:
    kind = "prompt" if response is None else "response"
    return {"kind": kind, "prompt": prompt, "response": response, "severity": severity, "lang": lang, "categories": []}


def test_short_answers_are_responses_alone_cut_each_once(make: ModuleType, tmp_path: Path) -> None:
    rows = [
        row("Tomatoes?"), row("Tomatoes?", "sun and water and soil", "unsafe"), row("Beans?", "sun and  water, too"),
        row("Peas?", "rain"), row("Peas?", "schon", lang="de"), row("Peas?", "no label", None),
    ]  # fmt: skip
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)
    short = make.draw(tmp_path, 10, 0, "en", 2)
    assert sorted(record["response"] for record, _ in short) == ["rain", "sun and"]
    assert {kept.response for _, kept in short} <= {"rain", "sun and water and soil", "sun and  water, too"}
    others = make.draw(tmp_path, 10, 0, "en", 2, frozenset(["sun and water and soil"]))
    assert sorted(record["response"] for record, _ in others) == ["rain", "sun and"]
    assert make.beginning(rows[2]) == "sun and water, too"
    whole = make.draw(tmp_path, 10, 0, "en", 0)
    assert len(whole) == 4
    assert {record["response"] for record, _ in whole} == {None, *(r["response"] for r in rows[1:4])}
