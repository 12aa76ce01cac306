"""One record of any log, data set, request or response: what in it is judged, after what, and what is not.

    found = read_record({"prompt": "…", "response": "…"})
    found.judged[0].item      # messages, or a text, as `Guard.check` takes them
    found.ignored             # ("prompt",): read as context, not judged

The shape is found out from the content; `shape` says it outright.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardkit.errors import MessageError
from guardkit.messages import Message
from guardkit.reading.drafts import Draft, holds_text, kind_of
from guardkit.reading.shapes import read_draft
from guardkit.reading.values import as_sequence
from guardkit.verdict import Stage


@dataclass(frozen=True)
class Judged:
    """One thing to judge. item: a text, or messages of which the last is judged; path: where it stands in the record;
    number: its index among the record's messages or candidates, None where the record is itself one output."""

    item: str | list[Message]
    path: str
    number: int | None = None


@dataclass(frozen=True)
class RecordReading:
    """What a record holds. shape: one of `shapes.SHAPES`; judged: never empty; ignored: paths of texts that are not
    judged (of those, the messages before what is judged are its context)."""

    shape: str
    judged: tuple[Judged, ...]
    ignored: tuple[str, ...] = ()


def read_record(
    data: Any,
    *,
    shape: str | None = None,
    field: str | None = None,
    outputs: bool = False,
    last: bool = False,
    ignored: bool = True,
) -> RecordReading:
    """What is judged in a record. Raises ValueError (`MessageError` is none: it is turned into one) that says why a
    record cannot be read.

    Of a list of messages the last one is judged, of ``{"prompt", "response"}`` the response, of several candidates
    (``choices``, ``chosen`` and ``rejected``) each. An object of no known shape is judged whole, as one text.
    outputs: instead, every text that a model wrote, for traces; last: only the newest of them. field: judge what
    stands in that field; dots go into nested objects. Of what is nested too deeply nothing is judged. ignored: whether
    to look for what is not judged; it takes longer than all else.
    """
    try:
        if field is not None:
            return _field(data, field, shape, outputs, last, ignored)
        return _reading(data, shape, outputs, last, ignored)
    except MessageError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _reading(data: Any, shape: str | None, outputs: bool, last: bool, ignored: bool) -> RecordReading:
    name, draft = read_draft(data, shape, outputs)
    if isinstance(data, Mapping):
        _refuse_twins(data, draft.used)
    judged, unjudged = _judged(draft, outputs)
    if not ignored:
        unjudged = []
    else:
        unjudged += draft.ignored
        if isinstance(data, Mapping):
            unjudged += [key for key, value in data.items() if key not in draft.used and holds_text(key, value)]
    return RecordReading(name, tuple(judged[-1:] if last else judged), tuple(unjudged))


def _refuse_twins(data: Mapping[Any, Any], used: tuple[str, ...]) -> None:
    """Raises for a key that many parsers take for one that is judged: "Text" beside "text"."""
    others = [key for key in data if key not in used]
    known = {_plain_key(key): key for key in used} if others else {}
    for key in others:
        twin = known.get(_plain_key(str(key)), key)
        if twin != key:
            raise ValueError(f"'{key}' and '{twin}': for many parsers that is a key given twice")


def _plain_key(key: str) -> str:
    return (key if key.isascii() else unicodedata.normalize("NFKC", key)).strip().casefold()


def _judged(draft: Draft, outputs: bool) -> tuple[list[Judged], list[str]]:
    messages = [message for _, _, message in draft.messages]
    if draft.text is not None:
        return [Judged(draft.text, draft.used[0] if draft.used else "")], []
    answers = [Judged([*messages, *found], path, number) for path, number, found in draft.answers]
    if outputs:
        turns = [
            Judged(messages[: i + 1], path, number)
            for i, (path, number, message) in enumerate(draft.messages)
            if message.stage is Stage.response and not answers
        ]
        given = (a for a, (_, _, told) in zip(answers, draft.answers, strict=True) if told[-1].stage is Stage.response)
        written = [*turns, *given]
        if not written:
            raise ValueError("no message of an assistant in it: nothing to trace")
        return written, []
    if answers:
        before = [path for path, _, m in draft.messages if _says(m)]
        before += [f"{path}[{i}]" for path, _, found in draft.answers for i, m in enumerate(found[:-1]) if _says(m)]
        return answers, _span(before)
    if not draft.messages:
        raise ValueError("no message in it")
    path, number, _ = draft.messages[-1]
    return [Judged(messages, path, number)], _span([p for p, _, m in draft.messages[:-1] if _says(m)])


def _span(paths: list[str]) -> list[str]:
    """Paths, a run of items of one list as one: ``messages[0..4]``."""
    found: list[str] = []
    for path in paths:
        head, bracket, index = path.rpartition("[")
        before, _, span = found[-1].rpartition("[") if found else ("", "", "")
        if bracket and found and before == head:
            found[-1] = f"{head}[{span.rstrip(']').split('..')[0]}..{index}"
        else:
            found.append(path)
    return found


def _says(message: Message) -> bool:
    return any(part.text is None or part.text for part in message.parts())


def _field(data: Any, field: str, shape: str | None, outputs: bool, last: bool, ignored: bool) -> RecordReading:
    value, beside, path = data, [], ""
    steps = [field] if isinstance(data, Mapping) and field in data else field.split(".")
    for step in steps:
        if not isinstance(value, Mapping) or step not in value:
            raise ValueError(f"no field '{field}'")
        if ignored:
            beside += [f"{path}{key}" for key, inner in value.items() if key != step and holds_text(key, inner)]
        value, path = value[step], f"{path}{step}."
    if isinstance(value, str):
        item: str | list[Message] = [Message("assistant", value)] if outputs else value
        return RecordReading("text", (Judged(item, field),), tuple(beside))
    if not isinstance(value, Mapping) and not as_sequence(value):
        raise ValueError(f"'{field}' must be a string, not {kind_of(value)}")
    found = _reading(value, shape, outputs, last, ignored)
    judged = tuple(Judged(j.item, f"{field}.{j.path}".rstrip("."), j.number) for j in found.judged)
    return RecordReading(found.shape, judged, (*beside, *(f"{field}.{path}" for path in found.ignored)))
