"""The shared vocabulary: how bad, of which kind, where in an application, and the frozen verdict that says so."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import total_ordering
from typing import Any, Literal, TypeVar


@total_ordering
class Severity(Enum):
    """How unsafe a text is. Ordered: ``safe < controversial < unsafe``."""

    safe = "safe"
    controversial = "controversial"
    unsafe = "unsafe"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Severity):
            return NotImplemented
        return SEVERITIES.index(self) < SEVERITIES.index(other)


SEVERITIES: tuple[Severity, ...] = tuple(Severity)
"""All severities, mildest first. Every array of severity scores in guardkit is in this order."""


class Category(Enum):
    """What a text is unsafe about. `.label` is the model's wording, Qwen3Guard's own for its nine categories.

    The nine are the members. A model that was trained on categories of one's own has others, made by `named`: equal
    where their values are, and no part of ``list(Category)``.
    """

    violent = "violent"
    non_violent_illegal = "non_violent_illegal"
    sexual = "sexual"
    pii = "pii"
    self_harm = "self_harm"
    unethical = "unethical"
    political = "political"
    copyright = "copyright"
    jailbreak = "jailbreak"

    @property
    def label(self) -> str:
        return _LABELS.get(self.value) or str(vars(self)["_label"])

    @property
    def is_own(self) -> bool:
        """Whether this is none of Qwen3Guard's nine."""
        return self.value not in _LABELS

    @classmethod
    def named(cls, name: str) -> Category:
        """The category of a value or a label: one of the nine however it is spelled, else a model's own.

        The value of an own category is its label's words in lower case, joined by "_". Raises ValueError for a name
        that has none, or that an answer could not list (a comma or a line end in it, or "None").
        """
        name = _QUOTED.sub(r"\2", html.unescape(name).strip()).strip()
        known = _KNOWN.get(_letters(name))
        if known is not None:
            return cls(known)
        value = "_".join(re.findall(r"[^\W_]+", name.casefold()))
        if value in _LABELS:
            return cls(value)
        if not value or value == "none" or "," in name or not name.isprintable() or len(name) > MAX_LABEL:
            raise ValueError(
                f"{name[:MAX_LABEL]!r} is no name for a category: letters or digits, no comma, no line end, "
                f"not 'None', at most {MAX_LABEL} characters"
            )
        own = object.__new__(cls)
        own._name_ = own._value_ = value
        vars(own)["_label"] = name
        return own

    def __eq__(self, other: object) -> bool:
        return self._value_ == other._value_ if isinstance(other, Category) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value_)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _category, (self.label,)

    def __deepcopy__(self, memo: Any) -> Category:
        return self


MIN_OWN, MAX_OWN = 2, 50
"""How many categories a set of one's own may have."""
MAX_LABEL = 100
"""Characters that a category's label may have."""
_LABELS = {
    "violent": "Violent",
    "non_violent_illegal": "Non-violent Illegal Acts",
    "sexual": "Sexual Content or Sexual Acts",
    "pii": "PII",
    "self_harm": "Suicide & Self-Harm",
    "unethical": "Unethical Acts",
    "political": "Politically Sensitive Topics",
    "copyright": "Copyright Violation",
    "jailbreak": "Jailbreak",
}


_QUOTED = re.compile(r"\A(['\"])(.*)\1\Z", re.DOTALL)


def _category(label: str) -> Category:
    return Category.named(label)


def _letters(name: str) -> str:
    """A name's letters alone: quotes, blanks, hyphens and case vary between releases."""
    return "".join(c for c in name.replace("&", "and").casefold() if c.isalnum())


_KNOWN = {_letters(spelled): value for value, label in _LABELS.items() for spelled in (value, label)} | {
    "sexualcontent": "sexual",
    "suicideselfharm": "self_harm",
    "personallyidentifiableinformation": "pii",
    "personallyidentifiableinformationpii": "pii",
    "copyright": "copyright",
}


class Stage(Enum):
    """Where in an application a text stands. Queries flow in; the others are the model's own output."""

    prompt = "prompt"
    response = "response"
    reasoning = "reasoning"
    tool_call = "tool_call"
    tool_output = "tool_output"
    document = "document"

    @property
    def is_query(self) -> bool:
        """Whether models with the Stream contract judge this stage with their query heads."""
        return self in (Stage.prompt, Stage.tool_output, Stage.document)


_T = TypeVar("_T")
SAME_SCORE = 0.02
"""How far two scores may differ and still count as equal: what rounding can move when a model that uses
floating point gets the same text in another batch or in other pieces (nano uses integers and never differs)."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a model found in one text. Equality ignores `latency_ms`, and differences of scores below `SAME_SCORE`.

    severity: the worst that was found.
    categories: most likely first; empty when safe.
    scores: probability by severity, summing to 1: ``{"safe": p, "controversial": p, "unsafe": p}``.
    refusal: whether a response declines its request; None where that was not judged.
    stage: what the text was judged as.
    model: the name of the model that judged.
    token_index: for responses, the token the verdict stands on: the one that completed the flagged run, else the
        last one (0-based within the response, None for queries and empty texts).
    char_index: the first character of that token in the original text; for a query judged in windows, the first
        character of the worst window.
    char_start, char_end: the flagged place, as characters of the original text (end exclusive); None when safe. In a
        response the flagged run, from where its sentence begins; elsewhere the smallest sentence or stretch that is as
        severe by itself (see `locate.py`).
    threshold: the least `score` that the model calls this severity (of a safe text: that it would not call safe);
        None for models that name the likeliest severity.
    coverage: "unmeasured" where the text is in a language or script that the model was not measured on, else None.
    windowed: whether the text and its context outgrew what the model sees at once, so that it saw them in parts.
    latency_ms: wall time of the check that this verdict came from.
    """

    severity: Severity
    categories: tuple[Category, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    refusal: bool | None = None
    stage: Stage = Stage.prompt
    model: str = ""
    token_index: int | None = None
    char_index: int | None = None
    char_start: int | None = None
    char_end: int | None = None
    threshold: float | None = None
    coverage: Literal["unmeasured"] | None = None
    windowed: bool = False
    latency_ms: float = field(default=0.0, compare=False)

    @property
    def score(self) -> float:
        """The probability that `threshold` is held against: of "unsafe" where that is the severity, else of harm."""
        return self.scores.get("unsafe", 0.0) if self.severity is Severity.unsafe else self.risk

    @property
    def risk(self) -> float:
        """The probability that the text is not safe: one scale for all verdicts."""
        return 1.0 - self.scores.get("safe", 1.0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Verdict):
            return NotImplemented
        exact = all(
            getattr(self, f.name) == getattr(other, f.name) for f in fields(self) if f.compare and f.name != "scores"
        )
        close = self.scores.keys() == other.scores.keys() and all(
            abs(p - other.scores[name]) <= SAME_SCORE for name, p in self.scores.items()
        )
        return exact and close

    def __hash__(self) -> int:
        return hash((self.severity, self.categories, self.stage, self.model, self.token_index, self.char_index))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: enums as their values, categories as a list."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Enum):
                value = value.value
            elif f.name == "categories":
                value = [c.value for c in value]
            elif f.name == "scores":
                value = dict(value)
            out[f.name] = value
        return out


def changed(found: _T, **values: Any) -> _T:
    """`dataclasses.replace` at a tenth of its time, for a frozen dataclass that checks nothing."""
    twin = object.__new__(type(found))
    vars(twin).update(vars(found), **values)
    return twin
