"""Qwen3Guard-Gen's answer: what it may say, as text and as a grammar for servers that constrain decoding.

Two lines, or three for a response (the smallest model leaves the third out at times): `Safety: X`, `Categories: Y`,
`Refusal: Z`. Whatever else a model says is unparsable: it judged nothing, and nothing is taken for safe.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from guardkit.engine.config import PUBLISHED, Categories
from guardkit.errors import ModelError
from guardkit.verdict import Category, Severity

SEVERITY_LABELS = {"Safe": Severity.safe, "Unsafe": Severity.unsafe, "Controversial": Severity.controversial}
NO_CATEGORY = "None"
REFUSAL_LABELS = {"Yes": True, "No": False}

MAX_CHARS = 1000  # longer than the longest answer of Qwen3Guard: all categories, once each
_SHOWN = 200  # characters of an unparsable answer that its error shows
_ESCAPED, _BACKSLASH = re.compile(r"[\\^$.|?*+()\[\]{}]"), r"\\\g<0>"
_NO_THOUGHT = re.compile(r"\s*<think>\s*</think>")
_END = re.compile(r"<\|(?:im_end|endoftext)\|>\s*\Z")
_ANSWER = re.compile(
    rf"[ \t]*Safety:[ \t]*({'|'.join(SEVERITY_LABELS)})[ \t]*\n"
    r"[ \t]*Categories:[ \t]*([^\n]*\S)[ \t]*"
    rf"(?:\n[ \t]*Refusal:[ \t]*({'|'.join(REFUSAL_LABELS)})[ \t]*)?"
)


class Unparsable(ModelError, ValueError):
    """Raised for an answer outside the grammar. The message shows at most 200 characters of it."""

    def __init__(self, text: str, why: str):
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
        super().__init__(f"the model's answer is not in Qwen3Guard-Gen's grammar ({why}): {shown!r}")


@dataclass(frozen=True)
class Answer:
    """What the model said. categories: in its order, each once, empty for None; refusal: None where it was left out."""

    severity: Severity
    categories: tuple[Category, ...] = ()
    refusal: bool | None = None


def parse(text: str, categories: Categories = PUBLISHED) -> Answer:
    """Read an answer of a model that names `categories`. Blanks around it and its lines, an empty think block before it
    and an end token after it are no part of it. Raises `Unparsable` for everything else."""
    if len(text) > MAX_CHARS + sum(len(c.label) + 2 for c in categories.all if c.is_own):
        raise Unparsable(text, "too long")
    body = text.replace("\r\n", "\n")
    thought = _NO_THOUGHT.match(body)
    body = _END.sub("", body[thought.end() :] if thought else body).strip()
    found = _ANSWER.fullmatch(body)
    if found is None:
        raise Unparsable(text, "expected the lines Safety, Categories and perhaps Refusal")
    severity, listed, refusal = found.groups()
    return Answer(
        SEVERITY_LABELS[severity],
        () if listed == NO_CATEGORY else _categories(text, listed, categories),
        None if refusal is None else REFUSAL_LABELS[refusal],
    )


def _categories(text: str, listed: str, categories: Categories) -> tuple[Category, ...]:
    by_label = {category.label: category for category in categories.all}
    named: dict[Category, None] = {}
    for name in listed.split(","):
        category = by_label.get(name.strip())
        if category is None:
            raise Unparsable(text, "unknown category")
        named[category] = None
    return tuple(named)


def regex(is_query: bool, categories: Categories = PUBLISHED) -> str:
    """The grammar as a regular expression without look-around, as constrained decoding takes it. A query's answer has
    no Refusal line; a response's names what responses can be of, and has the Refusal line or leaves it out."""
    names = _names(is_query, categories)
    one = f"({'|'.join(_ESCAPED.sub(_BACKSLASH, name) for name in names)})"
    refusal = "" if is_query else "(\\nRefusal: (Yes|No))?"
    return f"Safety: (Safe|Unsafe|Controversial)\\nCategories: (None|{one}(, {one}){{0,{len(names) - 1}}}){refusal}"


def gbnf(is_query: bool, categories: Categories = PUBLISHED) -> str:
    """The same grammar in llama.cpp's notation."""
    names = " | ".join(json.dumps(name, ensure_ascii=False) for name in _names(is_query, categories))
    refusal = "" if is_query else ' ("\\nRefusal: " ("Yes" | "No"))?'
    return (
        'root ::= "Safety: " ("Safe" | "Unsafe" | "Controversial") "\\nCategories: " '
        f'("None" | category (", " category)*){refusal}\n'
        f"category ::= {names}\n"
    )


def _names(is_query: bool, categories: Categories) -> list[str]:
    return [category.label for category in (categories.query if is_query else categories.response)]
