"""Gen by instruction tuning: what it was told, it answers in the published grammar, in words of its own."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Category, Guard, Severity
from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.config import Categories
from guardkit.errors import ModelLoadError
from guardkit.models.gen_grammar import gbnf, parse, regex
from guardkit.models.gen_walk import Grammar, Walker
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.training import templates
from guardkit.training.categories import PUBLISHED, of_names, read_categories
from guardkit.training.examples import IGNORED, GenExamples
from guardkit.training.rows import row_of
from tests.training.conftest import Made, run
from tests.training.small import write_rows

NAMES = """\
- name: Risky
  description: swords and the like
- Risky animals
- Papers & passports
- name: Tricks
  prompts_only: true
"""
ROWS: list[dict[str, Any]] = [
    {"prompt": "the garden is green", "severity": "safe"},
    {"prompt": "we walk with a sword", "severity": "unsafe", "categories": ["risky"]},
    {"prompt": "the dragon and tea", "severity": "controversial", "categories": ["risky animals"]},
    {"prompt": "bread tricks dragon", "severity": "unsafe", "categories": ["tricks", "risky_animals"]},
    {"prompt": "say it", "response": "my passport", "severity": "unsafe", "categories": ["papers_passports"],
     "refusal": False},
    {"prompt": "say it", "response": "sorry", "severity": "safe", "refusal": True},
    {"prompt": "say it", "response": "music and letters", "severity": "safe", "refusal": False},
]  # fmt: skip


@pytest.fixture(scope="session")
def gen(root: Path) -> Made:
    """A Gen with four categories of its own, two of which begin alike, that learned seven rows by heart."""
    file = root / "gen.yaml"
    file.write_text(NAMES)
    rows = write_rows(root / "gen.jsonl", ROWS)
    told: dict[str, Any] = {"train": (rows,), "dev": (rows,), "categories": file, "every": 1000, "weights": "none"}
    return run("gen", root, "gen", batch=7, steps=150, rate=6e-3, **told)


def test_it_answers_as_it_was_told(gen: Made) -> None:
    assert gen.result.dev["macro_f1"] == 1.0
    for row in ROWS:
        messages = [{"role": "user", "content": row["prompt"]}]
        if "response" in row:
            messages.append({"role": "assistant", "content": row["response"]})
        found = gen.guard.check(messages)
        assert found.severity.value == row["severity"], row
        assert found.categories == tuple(Category.named(name) for name in row.get("categories", ())), row
        assert found.refusal is row.get("refusal"), row
    batch = gen.guard.check_batch([row["prompt"] for row in ROWS[:4]])
    assert [v.severity.value for v in batch] == [row["severity"] for row in ROWS[:4]]


def test_its_folder_is_a_published_ones(gen: Made) -> None:
    checkpoint = Checkpoint.open(gen.folder)
    assert checkpoint.architecture == "Qwen3ForCausalLM"
    assert all(name.startswith("model.") for name in checkpoint.tensors)
    assert checkpoint.raw["query_category_map"]["3"] == "Tricks"
    assert [c.value for c in gen.guard.model.response_categories] == ["risky", "risky_animals", "papers_passports"]
    assert "Risky: swords and the like" in checkpoint.chat_template()
    (gen.folder / "chat_template.jinja").rename(gen.folder / "kept")
    try:
        (gen.folder / "chat_template.jinja").write_text(templates.gen(PUBLISHED))
        with pytest.raises(ModelLoadError, match="does not speak of Risky, Risky animals"):
            Guard.load(gen.folder, device="cpu")
    finally:
        (gen.folder / "kept").rename(gen.folder / "chat_template.jinja")


def test_a_stream_of_it_stops(gen: Made) -> None:
    with gen.guard.stream([{"role": "user", "content": "say it"}], holdback=32) as watched:
        shown = "".join(e.text for e in (*watched.feed("my passport"), *watched.finish()) if e.kind == "text")
    assert shown == ""
    assert watched.verdict.severity is Severity.unsafe


def test_only_what_is_known_of_an_answer_is_learned(root: Path) -> None:
    tokenizer = QwenTokenizer(root / "base")
    framing = GenExamples(root / "base", templates.gen(PUBLISHED), tokenizer, PUBLISHED)

    def learned(**row: Any) -> str:
        example = framing.of(row_of({"prompt": "say it", **row}, PUBLISHED), 512)  # type: ignore[arg-type]
        assert example is not None
        at = np.nonzero(example.labels != IGNORED)[0]
        assert all(example.ids[i + 1] == example.labels[i] for i in at)
        return b"".join(tokenizer.bytes_of(int(example.labels[i])) for i in at).decode()

    assert learned(severity="safe") == "Safety: Safe\nCategories: None"
    assert learned(severity="unsafe", categories=["pii", "jailbreak"]) == "Safety: Unsafe\nCategories: PII, Jailbreak"
    assert learned(severity="unsafe") == "Safety: Unsafe\nCategories:"
    answered = {"response": "a", "severity": "controversial", "categories": ["violent"]}
    assert learned(**answered) == "Safety: Controversial\nCategories: Violent"
    assert learned(**answered, refusal=False).endswith("Categories: Violent\nRefusal: No")


def test_a_base_with_the_published_template_keeps_it(gen: Made, root: Path) -> None:
    kept = run("gen", root, "gen-again", base=str(gen.folder), steps=1, batch=8, max_rows=32, backbone="lora", rank=2)
    told = Checkpoint.open(kept.folder)
    assert told.chat_template() == Checkpoint.open(gen.folder).chat_template()
    assert "query_category_map" not in told.raw  # the run named none: Qwen3Guard's nine


# -- the grammar in other words


def test_servers_grammars_name_the_categories() -> None:
    found = of_names(["Risky (very)", 'Say "hi"', "a|b"])
    known = Categories(found.query, found.response)
    answer = 'Safety: Unsafe\nCategories: Risky (very), Say "hi"\nRefusal: No'
    assert re.fullmatch(regex(False, known), answer)
    assert not re.fullmatch(regex(False, known), "Safety: Unsafe\nCategories: Violent\nRefusal: No")
    assert '"Say \\"hi\\""' in gbnf(True, known)
    assert [c.label for c in parse(answer, known).categories] == ["Risky (very)", 'Say "hi"']


labels = st.lists(st.lists(st.integers(10, 13), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6, unique=True)


@settings(max_examples=100, deadline=None)
@given(labels, st.integers(0, 2**32 - 1))
def test_labels_that_begin_alike_are_told_apart(tokens: list[tuple[int, ...]], seed: int) -> None:
    """Against all labels' probabilities, each computed by itself along its own tokens."""
    rng = np.random.default_rng(seed)
    left = {str(i): list(ids) for i, ids in enumerate(tokens)}
    after = {"end": [0], "comma": [1]}
    column = {token: i for i, token in enumerate((0, 1, 10, 11, 12, 13))}
    rows: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}

    def row_at(prefix: tuple[int, ...]) -> np.ndarray[Any, Any]:
        return rows.setdefault(prefix, rng.normal(0, 2, len(column)).astype(np.float32))

    class Path_:
        taken: tuple[int, ...] = ()

        def step(self, ids: list[int], guess: Any = ()) -> Generator[Any, Any, Any]:
            self.taken += tuple(ids)
            return row_at(self.taken)
            yield

    walker, path = object.__new__(Walker), Path_()
    walker._column = column
    walk = walker._category(path, row_at(()), left, after, [])  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as done:
        next(walk)
    label, shares, row = done.value.value
    assert path.taken == tokens[int(label)]
    assert row is rows[path.taken]
    assert sum(shares.values()) == pytest.approx(1)
    prefix: tuple[int, ...] = ()
    expected, alive = 1.0, tokens
    while len(alive) > 1:  # greedy decoding within the labels
        going = {ids[len(prefix)] for ids in alive if len(ids) > len(prefix)}
        options = [*going, *((0, 1) if prefix in alive else ())]
        weights = {t: float(np.exp(row_at(prefix)[column[t]])) for t in options}
        best = max(weights, key=lambda t: weights[t])
        total = sum(weights.values())
        if best in (0, 1):
            expected *= (weights[0] + weights[1]) / total
            alive = [prefix]
        else:
            expected *= weights[best] / total
            prefix = (*prefix, best)
            alive = [ids for ids in alive if ids[: len(prefix)] == prefix]
    assert alive == [tokens[int(label)]]
    assert shares[label] == pytest.approx(expected)


def test_a_label_that_goes_on_with_a_comma_is_refused(root: Path) -> None:
    class Odd(QwenTokenizer):
        def ids_of(self, text: str) -> list[int]:
            return [*super().ids_of(" Risky"), *super().ids_of(",")] if text == " Risky two" else super().ids_of(text)

    (root / "odd.yaml").write_text("- Risky\n- Risky two\n")
    found = read_categories(root / "odd.yaml")
    with pytest.raises(ModelLoadError, match="category 'Risky two' begin with all of 'Risky'"):
        Grammar.of(Odd(root / "base"), root, Categories(found.query, found.response))
