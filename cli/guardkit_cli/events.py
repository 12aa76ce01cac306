"""Server-sent events, as they are dumped from an API: the pieces of each answer put together, all else as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from guardkit_cli.records import Record, text_of

if TYPE_CHECKING:
    from guardkit_cli.records import Reader

_FIELD = re.compile(r"(data|event|id|retry)(?:: ?|$)")
_BEGIN = re.compile(rb"(?:data|event|id|retry|):")
_DATA = re.compile(rb"data: ?[{\[]")
_ENDS = ("message_stop", "response.completed", "response.incomplete", "response.failed", "response.done", "finish",
         "message-end")  # fmt: skip


def are_events(lines: list[bytes]) -> bool:
    """Whether an input that begins so is a dump of server-sent events with JSON in them."""
    first = next((line for line in lines if line.strip()), b"")
    return bool(_BEGIN.match(first)) and any(_DATA.match(line) for line in lines)


def is_piece_line(raw: bytes) -> bool:
    """Whether a line of text is an event that holds a piece of an answer."""
    if not _DATA.match(raw):
        return False
    value = _json(raw.decode(errors="replace")[5:])
    return value is not None and _is_streamed(value)


def _json(text: str) -> Any:
    """The object or list that `text` is; None for all else."""
    from guardkit.reading.jsontext import parse

    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return parse(text.strip())
    except ValueError:
        return None


def _is_streamed(value: Any) -> bool:
    """Whether an event's data is a piece. Gemini's and LangChain's look like whole answers elsewhere."""
    from guardkit.reading.pieces import is_piece

    told = value[0] if isinstance(value, list) and value else value
    if not isinstance(told, dict):
        return False
    kind = told.get("type")
    return (
        is_piece(told)
        or "candidates" in told
        or kind == "AIMessageChunk"
        or (isinstance(kind, str) and kind.startswith("response.") and "response" not in told)
    )


class _Answer:
    """The pieces of one answer, until it ends."""

    def __init__(self, name: str):
        self._name = name
        self._pieces: list[Any] = []
        self._line = self.n_chars = 0

    def add(self, piece: Any, line: int, n_chars: int) -> None:
        self._line = self._line if self._pieces else line
        self._pieces.append(piece)
        self.n_chars += n_chars

    def end(self) -> list[Record]:
        """The record that it comes to; none where no text was in it."""
        from guardkit.reading.pieces import joined

        message = joined(self._pieces)
        self._pieces, self.n_chars = [], 0
        if not any((message.content, message.reasoning, message.tool_calls, message.unjudgeable)):
            return []
        return [Record(self._line, [message], text_of([message]), self._name)]


def records_of_events(reader: Reader, parts: Iterable[list[bytes]], name: str) -> Iterator[list[Record]]:
    """One record an answer, at its end; one for each event that is no piece; lines that are no event are texts."""
    from guardkit.reading.encodings import MAX_RECORD

    answer = _Answer(name)
    data: list[str] = []
    number = start = 0
    for lines in parts:
        out: list[Record] = []
        for raw in lines:
            number += 1
            record = reader.text(number, raw.removesuffix(b"\r"), name)
            field = _FIELD.match(record.text)
            if record.error is not None:
                out.append(record)
            elif field is not None and field[1] == "data":
                start = start if data else number
                data.append(record.text[field.end() :])
            elif not record.text.strip():
                out += _event(reader, "\n".join(data), start, answer, name)
                data = []
            else:
                out += _other(record, field)
        if answer.n_chars + sum(map(len, data)) > MAX_RECORD:  # bounded: what goes on is the next record
            out += answer.end()
        yield out
    yield [*_event(reader, "\n".join(data), start, answer, name), *answer.end()]


def _event(reader: Reader, text: str, line: int, answer: _Answer, name: str) -> list[Record]:
    if text.strip() in ("", "[DONE]"):
        return answer.end() if text else []
    value = _json(text)
    if value is None:
        return [Record(line, text, text, name)]
    told = value if isinstance(value, dict) else {}
    if _is_streamed(value):
        out = answer.end() if told.get("type") == "message_start" else []
        answer.add(value, line, len(text))
        return [*out, *(answer.end() if told.get("type") in _ENDS else [])]
    ended = answer.end() if told.get("type") in _ENDS else []
    return [*ended, reader.json(text, line, name)]


def _other(record: Record, field: re.Match[str] | None) -> list[Record]:
    """A line that is no data: names of events and comments that keep a connection alive hold no text."""
    from guardkit.reading.values import is_name

    told = record.text[field.end() :] if field else record.text.removeprefix(":")
    return [] if (field or record.text.startswith(":")) and is_name(told.strip(), 6) else [record]
