"""Records to labelled rows. A record that cannot be read becomes a row with an error, never nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guardkit.evaluation.specs import Fields, Labels
from guardkit.verdict import SEVERITIES, Category

CATEGORIES = tuple(Category)
NO_LABEL = -1

_SEVERITIES = {s.value: i for i, s in enumerate(SEVERITIES)} | {
    **dict.fromkeys(("0", "unharmful", "harmless", "benign"), 0),
    **dict.fromkeys(("1", "harmful", "toxic"), 2),
}
_REFUSALS = {
    **dict.fromkeys(("true", "1", "yes", "refusal"), 1),
    **dict.fromkeys(("false", "0", "no", "compliance"), 0),
}
_UNLABELLED = ("", "none", "null", "nan")
_CATEGORY_BITS = {c.value: 1 << i for i, c in enumerate(CATEGORIES)} | {
    c.label.lower(): 1 << i for i, c in enumerate(CATEGORIES)
}


@dataclass(slots=True)
class Row:
    """A text with its labels. number: 1-based within its source. item: what the guard judges. text: the part of it
    that is judged. severity: index into `SEVERITIES`, refusal: 0 or 1; -1 where there is no label. categories: bits
    in the order of `Category`. span: first character and end (exclusive) of the annotated sentence in `text`.
    tokens: the same as first and last token in Qwen's template. error: why there is no item."""

    number: int
    item: str | list[dict[str, Any]] | None
    text: str = ""
    stage: str | None = None
    language: str = ""
    severity: int = NO_LABEL
    refusal: int = NO_LABEL
    categories: int = 0
    span: tuple[int, int] | None = None
    tokens: tuple[int, int] | None = None
    error: str | None = None

    @property
    def is_labelled(self) -> bool:
        return self.severity != NO_LABEL or self.refusal != NO_LABEL


def row_of(number: int, record: object, fields: Fields, kind: str | None = None) -> Row:
    """The row of `record`. kind: "prompt" or "response" where the record does not say itself."""
    try:
        if not isinstance(record, Mapping):
            raise ValueError(f"expected an object, not {type(record).__name__}")
        return _read(number, record, fields, kind)
    except (ValueError, TypeError) as error:
        return Row(number, None, error=str(error))


def _read(number: int, record: Mapping[str, Any], fields: Fields, kind: str | None) -> Row:
    def get(name: str, *aliases: str) -> Any:
        if name in fields.columns:
            return dig(record, fields.columns[name])
        return next((record[key] for key in (name, *aliases) if key in record), None)

    kind = get("kind") or kind
    if kind not in (None, "prompt", "response"):
        raise ValueError(f"'kind' must be prompt or response, not '{plain(kind)[:40]}'")
    prompt, response, messages = get("prompt", "text"), get("response"), get("messages")
    item: str | list[dict[str, Any]]
    if messages is not None:
        if not isinstance(messages, Sequence) or not messages or not all(isinstance(m, Mapping) for m in messages):
            raise ValueError("'messages' must be a list of objects, with at least one")
        item = [dict(m) for m in messages]
        text = text_of(item[-1])
    elif kind == "response" or (kind is None and response is not None):
        text = _string(response, "response")
        item = [{"role": "user", "content": _string(prompt, "prompt")}] if prompt else []
        item.append({"role": "assistant", "content": text})
    else:
        item = text = _string(prompt, "prompt")
    native = Labels(column="severity" if "severity" in record else "label")
    span, start, end = get("span"), get("start_token"), get("end_token")
    return Row(
        number,
        item,
        text,
        stage=get("stage"),
        language=str(get("language", "lang") or ""),
        severity=_label(fields.severity or native, record, _SEVERITIES),
        refusal=_label(fields.refusal or Labels(column="refusal"), record, _REFUSALS),
        categories=_categories(get("categories", "category")),
        span=None if span is None else (int(span[0]), int(span[1])),
        tokens=None if start is None or end is None else (int(start), int(end)),
    )


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message as one string, reasoning in think tags before the answer."""
    content = message.get("content")
    if not isinstance(content, str):
        return ""
    reasoning = message.get("reasoning_content")
    return f"<think>\n{reasoning}\n</think>\n\n{content}" if isinstance(reasoning, str) and reasoning else content


def dig(record: Any, name: str) -> Any:
    """`record[name]`, or along the dots of `name` where no key is called that; None where there is nothing."""
    if isinstance(record, Mapping) and name in record:
        return record[name]
    for key in name.split("."):
        if not isinstance(record, Mapping) or key not in record:
            return None
        record = record[key]
    return record


def plain(value: object) -> str:
    """A label as it is written in a table: lower case, a whole float as an integer."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip().lower()


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' must be a string, not {'missing' if value is None else type(value).__name__}")
    return value


def _label(labels: Labels, record: Mapping[str, Any], words: Mapping[str, int]) -> int:
    if labels.constant is not None:
        return words[labels.constant]
    if labels.columns:
        values = [plain(dig(record, c)) for c in labels.columns]
        if labels.majority:
            votes = [_word(v, labels, words) for v in values if v not in _UNLABELLED]
            # The most votes win; of equally many, the more severe label.
            return max(set(votes), key=lambda v: (votes.count(v), v)) if votes else NO_LABEL
        return 2 * any(v in ("1", "true") for v in values)
    value = dig(record, labels.column or "")
    if labels.above is not None:
        if not isinstance(value, Mapping):
            return NO_LABEL
        return 2 * any(isinstance(v, int | float) and v > labels.above for v in value.values())
    word = plain(value)
    return NO_LABEL if word in _UNLABELLED and word not in labels.map else _word(word, labels, words)


def _word(word: str, labels: Labels, words: Mapping[str, int]) -> int:
    named = labels.map.get(word, word)
    if named not in words and labels.default is not None:
        named = labels.default
    if named not in words:
        known = ", ".join(dict.fromkeys([*labels.map, *words]))
        raise ValueError(f"unknown label '{word[:40]}'; known: {known}")
    return words[named]


def _categories(value: object) -> int:
    """Bits of the categories that guardkit knows; others say nothing about them."""
    if isinstance(value, str):
        value = list(value.replace(";", ",").split(","))
    if not isinstance(value, Sequence):
        return 0
    bits = 0
    for name in value:
        bits |= _CATEGORY_BITS.get(plain(name), 0)
    return bits
