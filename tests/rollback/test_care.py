"""The experiment of CARE: what it computes only once is what it would have computed again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from guardkit.rollback import Rollback
from guardkit.testing import FakeGuard
from tests.rollback import tiny

TOKENIZER = tiny.tokenizer()
IDS = tiny.ids_of(TOKENIZER, *tiny.WORDS)


@pytest.fixture
def care(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import rollback_care

    return rollback_care


@pytest.mark.parametrize("introspect", [False, True])
def test_few_tries_are_read_off_the_answer_with_many(care: ModuleType, introspect: bool) -> None:
    model, guard = tiny.model(), FakeGuard({"forbidden": "unsafe"})
    options: dict[str, Any] = {"logits_processor": [tiny.Only(IDS)], "eos_token_id": []}

    def answer(tries: int, seed: int) -> Any:
        rollback = Rollback(guard, buffer=4, retries=tries, introspect=introspect, introspection_tokens=4)
        return care.answer(rollback, model, TOKENIZER, "What do tomatoes need?", seed, 24, **options)

    refused = set()
    for seed in range(6):
        many = answer(4, seed)
        for tries in (0, 1, 3):
            few = answer(tries, seed)
            read = many.with_tries(tries)
            assert (read.text, read.refused, read.rollbacks) == (few.text, few.refused, few.rollbacks)
            refused.add(few.refused)
    assert refused == {False, True}


@pytest.mark.parametrize("introspect", [False, True])
def test_what_the_guard_lets_through_is_the_same_under_every_setting(care: ModuleType, introspect: bool) -> None:
    model, guard = tiny.model(), FakeGuard({"forbidden": "unsafe"})
    options: dict[str, Any] = {"logits_processor": [tiny.Only(IDS)], "eos_token_id": []}
    stopped = set()
    for seed in range(8):
        plain = care.answer(Rollback(FakeGuard(), buffer=1), model, TOKENIZER, "Tomatoes?", seed, 12, **options)
        rollback = Rollback(guard, buffer=5, introspect=introspect)
        watched = care.answer(rollback, model, TOKENIZER, "Tomatoes?", seed, 12, **options)
        stops = care.stops(guard, "Tomatoes?", plain.text)
        assert stops == (watched.rollbacks > 0)
        assert stops or watched == plain
        stopped.add(stops)
    assert stopped == {False, True}


def test_the_experiment_runs(
    care: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    TOKENIZER.save_pretrained(tmp_path / "llm")
    tiny.model().save_pretrained(tmp_path / "llm")
    options = ["--limit", "2", "--tokens", "6", "--buffers", "2", "4", "--tries", "1", "2"]
    paths = ["--llm", str(tmp_path / "llm"), "--svg", str(tmp_path / "care.svg")]
    monkeypatch.setattr(sys, "argv", ["rollback_care.py", *paths, *options])
    care.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    kinds = [row[0].removeprefix("| ") for row in rows]
    assert kinds == ["intervention", "none", *["resample"] * 4, *["introspect"] * 4]
    assert (tmp_path / "care.svg").read_text(encoding="utf-8").count("by buffer") == 2


def test_each_judge_says_what_is_harmful_and_what_is_not_judged_counts(care: ModuleType) -> None:
    watched, other = FakeGuard({"forbidden": "unsafe"}), FakeGuard({"sun": "unsafe", "rain": RuntimeError("boom")})
    answers = [care.Answered(text) for text in ("forbidden", "sun", "", "rain", "sun", "soil")]
    found = care.measured([watched, other], ["Tomatoes?"] * 4, ["Potatoes?"] * 2, answers, 10)
    assert found.harmful == (0.25, 0.5)
    assert care.is_harmful(other, ["Potatoes?"] * 2, answers[4:]) == [True, False]
