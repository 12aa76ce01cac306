"""Records to labelled rows. A record that cannot be read becomes a row with an error, never nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from guardkit.evaluation.specs import Fields, Labels
from guardkit.messages import Message
from guardkit.reading.records import read_record
from guardkit.verdict import SEVERITIES, Category

NO_LABEL = -1

_SEVERITIES = {s.value: i for i, s in enumerate(SEVERITIES)} | {
    **dict.fromkeys(("0", "unharmful", "harmless", "benign"), 0),
    **dict.fromkeys(("1", "harmful", "toxic"), 2),
}
_REFUSALS = {
    **dict.fromkeys(("true", "1", "yes", "refusal"), 1),
    **dict.fromkeys(("false", "0", "no", "compliance"), 0),
}
_FLAGS = {"true": 2, "1": 2, "false": 0, "0": 0}
_UNLABELLED = ("", "none", "null", "nan")
_LABELS = frozenset((
    "severity", "label", "refusal", "language", "lang", "categories", "category", "span", "start_token", "end_token",
    "kind", "stage",
))  # fmt: skip
"""guardkit's own columns beside a record's texts."""


@dataclass(frozen=True)
class Vocabulary:
    """The categories that figures tell apart, each a bit: Qwen3Guard's nine, then a model's own."""

    categories: tuple[Category, ...]

    @classmethod
    def of(cls, known: Iterable[Category]) -> Vocabulary:
        return cls((*Category, *dict.fromkeys(c for c in known if c.is_own)))

    @cached_property
    def _bits(self) -> dict[str, int]:
        named = [(name, i) for i, c in enumerate(self.categories) for name in (c.label.lower(), c.value)]
        return {name: 1 << i for name, i in named}

    def bits(self, names: Iterable[str]) -> int:
        """Of values or labels, as `plain` writes them; those of no category say nothing about any."""
        found = 0
        for name in names:
            found |= self._bits.get(name, 0)
        return found


@dataclass(slots=True)
class Row:
    """A text with its labels. number: 1-based within its source. item: what the guard judges; others: what else of the
    record is judged (the other candidates of a response: the worst counts). text: the part of the item that is judged.
    severity: index into `SEVERITIES`, refusal: 0 or 1; -1 where there is no label. categories: as
    they are named, in lower case. span: first character and end (exclusive) of the annotated sentence in `text`.
    tokens: the same as first and last token in Qwen's template. error: why there is no item. left_out: the data set's
    definition has no place for this record; then there is no item either."""

    number: int
    item: str | list[Message] | None
    text: str = ""
    others: tuple[str | list[Message], ...] = ()
    stage: str | None = None
    language: str = ""
    severity: int = NO_LABEL
    refusal: int = NO_LABEL
    categories: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    tokens: tuple[int, int] | None = None
    error: str | None = None
    left_out: bool = False

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
    stage = get("stage")
    if not (stage is None or isinstance(stage, str)):
        raise ValueError(f"'stage' must be a string, not {type(stage).__name__}")
    given = {"prompt": get("prompt", "text"), "response": get("response"), "messages": get("messages")}
    item, *others = _items(record, given, fields, kind)
    # `label` stands for the severity unless it is what says of a refusal.
    is_refusal = fields.refusal is not None and fields.refusal.column == "label"
    native = Labels(column="severity" if "severity" in record or is_refusal else "label")
    span, start, end = get("span"), get("start_token"), get("end_token")
    return Row(
        number,
        item,
        item if isinstance(item, str) else text_of(item[-1]),
        tuple(others),
        stage=stage,
        language=str(get("language", "lang") or ""),
        severity=_label(fields.severity or native, record, _SEVERITIES),
        refusal=_label(fields.refusal or Labels(column="refusal"), record, _REFUSALS),
        categories=_categories(get("categories", "category")),
        span=None if span is None else _span(span),
        tokens=None if start is None or end is None else (_whole(start, "start_token"), _whole(end, "end_token")),
    )


def _span(value: object) -> tuple[int, int]:
    if isinstance(value, str):  # a cell of a CSV
        value = value.strip(" []").split(",")
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError("'span' must be [start, end]")
    return _whole(value[0], "span"), _whole(value[1], "span")


def _whole(value: object, name: str) -> int:
    word = plain(value)
    if not word.isdecimal():
        raise ValueError(f"'{name}' must be of whole numbers, not '{word[:40]}'")
    return int(word)


def _items(
    record: Mapping[str, Any], given: Mapping[str, Any], fields: Fields, kind: str | None
) -> list[str | list[Message]]:
    """What is judged in a record of any shape that the reader knows. given: its text fields, of the columns that stand
    for them; they alone count where a column or a kind is named."""
    told = {name: value for name, value in given.items() if value is not None}
    if told and (kind is not None or any(name in fields.columns for name in given)):
        if "messages" in told:
            told = {"messages": told["messages"]}
        elif kind == "prompt" or (kind is None and "response" not in told):
            told = {"prompt": _string(told.get("prompt"), "prompt")}
        else:
            told = {"prompt": told.get("prompt") or "", "response": _string(told.get("response"), "response")}
    else:
        columns = {c for labels in (fields.severity, fields.refusal) if labels is not None for c in labels.read}
        told = {k: v for k, v in record.items() if v is not None and k not in _LABELS and k not in columns}
        if "response" in told and "prompt" not in told and "text" in told:
            told["prompt"] = told.pop("text")
    if not told:
        raise ValueError("no text in it")
    found = read_record(told)
    if found.shape == "values":  # what in it is text, and what a label or a name, is not known
        raise ValueError(f"of no known shape (columns: {', '.join(map(str, told))}): name its text with --column")
    return [judged.item for judged in found.judged]


def text_of(source: Message | Mapping[str, Any], index: int = 0) -> str:
    """The text of a message as one string, reasoning in think tags before the answer; of a message without a text of
    its own, what is attached to it. index: named in errors."""
    message = Message.of(source, index)
    if not message.reasoning:
        return message.content or message.said
    return f"<think>\n{message.reasoning}\n</think>\n\n{message.content}"


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
        values = [v for c in labels.columns if (v := plain(dig(record, c))) not in _UNLABELLED]
        if not labels.majority:
            return max((_word(v, labels, _FLAGS) for v in values), default=NO_LABEL)
        votes = [_word(v, labels, words) for v in values]
        # The most votes win; of equally many, the more severe label.
        return max(set(votes), key=lambda v: (votes.count(v), v), default=NO_LABEL)
    value = dig(record, labels.column or "")
    if labels.above is not None:
        if not isinstance(value, Mapping):
            return NO_LABEL
        ratings = [v for v in value.values() if isinstance(v, int | float) and plain(v) not in _UNLABELLED]
        return max((2 * (v > labels.above) for v in ratings), default=NO_LABEL)
    word = plain(value)
    return NO_LABEL if word in _UNLABELLED and word not in labels.map else _word(word, labels, words)


def _word(word: str, labels: Labels, words: Mapping[str, int]) -> int:
    """A map is the whole truth about its column: guardkit's own words may mean the opposite there ("1" of is_safe)."""
    known = labels.map or {w: w for w in words}
    named = known.get(word, labels.default)
    if named is None:
        raise ValueError(f"unknown label '{word[:40]}'; known: {', '.join(known)}")
    return words[named]


def _categories(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = list(value.replace(";", ",").split(","))
    if not isinstance(value, Sequence):
        return ()
    return tuple(plain(name) for name in value)
