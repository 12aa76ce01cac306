"""Qwen3Guard-Gen's answers: what is read, and that everything else is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardkit import Category, GuardkitError, Severity
from guardkit.models.gen_grammar import Answer, Unparsable, gbnf, parse, regex

LABELS = [c.label for c in Category]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Safety: Safe\nCategories: None", Answer(Severity.safe)),
        ("Safety: Safe\nCategories: None\nRefusal: Yes", Answer(Severity.safe, (), True)),
        ("Safety: Unsafe\nCategories: Violent\nRefusal: No", Answer(Severity.unsafe, (Category.violent,), False)),
        ("Safety: Unsafe\nCategories: None", Answer(Severity.unsafe)),
        (
            "Safety: Controversial\nCategories: PII, Suicide & Self-Harm,Jailbreak, PII",
            Answer(Severity.controversial, (Category.pii, Category.self_harm, Category.jailbreak)),
        ),
        ("\n Safety: Unsafe \r\nCategories: PII\t\r\nRefusal: No\r\n", Answer(Severity.unsafe, (Category.pii,), False)),
        ("Safety: Safe\nCategories: None<|im_end|>\n", Answer(Severity.safe)),
        ("<think>\n\n</think>\n\nSafety: Safe\nCategories: None<|im_end|>", Answer(Severity.safe)),
    ],
)
def test_an_answer_is_read(text: str, answer: Answer) -> None:
    assert parse(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Safe",
        "Safety: Safe",
        "Safety: Safe\nCategories:",
        "Safety: Safe\nCategories: \nRefusal: No",
        "Safety: safe\nCategories: None",
        "Safety: Safer\nCategories: None",
        "Safety: Unsafe, Safe\nCategories: None",
        "Safety: Safe\nCategories: Weather",
        "Safety: Safe\nCategories: Violent, None",
        "Safety: Safe\nCategories: Violent,",
        "Safety: Safe\nCategories: None\nRefusal: Maybe",
        "Safety: Safe\nRefusal: No",
        "Categories: None\nSafety: Safe",
        "Safety: Safe\nCategories: None\nRefusal: No\nSafety: Unsafe",
        "Safety: Unsafe\nCategories: Violent\nSafety: Safe\nCategories: None",
        "Here you go. Safety: Safe\nCategories: None",
        "Safety: Safe\nCategories: None and nothing else",
        "Safety: Safe\n\nCategories: None",
        "<think>it is harmless</think>\n\nSafety: Safe\nCategories: None",
        "Safety: Safe\nCategories: None<|im_end|><|im_end|>",
        "Safety: Safe\nCategories: " + " " * 100_000 + "x",
    ],
)
def test_anything_else_is_unparsable(text: str) -> None:
    with pytest.raises(Unparsable) as caught:
        parse(text)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, GuardkitError)


def test_the_error_shows_the_beginning_of_the_answer() -> None:
    with pytest.raises(Unparsable, match="Well, ") as caught:
        parse("Well, " + "a" * 10_000)
    assert 150 < str(caught.value).count("a") < 250


answers = st.builds(
    lambda level, categories, refusal: (
        f"Safety: {level}\nCategories: {', '.join(categories) or 'None'}" + (f"\nRefusal: {refusal}" if refusal else "")
    ),
    st.sampled_from(["Safe", "Unsafe", "Controversial"]),
    st.lists(st.sampled_from([x for x in LABELS if x != "Jailbreak"]), unique=True),
    st.sampled_from(["", "Yes", "No"]),
)


@given(answers)
def test_the_regular_expression_allows_what_is_read(text: str) -> None:
    answer = parse(text)
    assert re.fullmatch(regex(is_query=False), text)
    assert bool(re.fullmatch(regex(is_query=True), text)) == (answer.refusal is None)


def test_jailbreak_is_a_query_s_category() -> None:
    text = "Safety: Unsafe\nCategories: Jailbreak"
    assert re.fullmatch(regex(is_query=True), text)
    assert not re.fullmatch(regex(is_query=False), text)
    assert '"Jailbreak"' in gbnf(is_query=True)
    assert '"Jailbreak"' not in gbnf(is_query=False)
    assert "Refusal" not in gbnf(is_query=True)


@given(st.text(alphabet="SafetyUnrCgoi: ,\nNVlPI<|>_", max_size=60))
def test_noise_is_never_an_answer(text: str) -> None:
    try:
        answer = parse(text)
    except Unparsable:
        return
    assert re.match(rf"\s*Safety:[ \t]*{answer.severity.value}", text, re.I)
