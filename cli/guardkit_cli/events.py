"""Server-sent events, as they are dumped from an API: the pieces of each answer put together, all else as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from guardkit_cli.records import Record, text_of

if TYPE_CHECKING:
    from guardkit.reading.streams import Streamed
    from guardkit_cli.records import Reader

_FIELD = re.compile(r"(data|event|id|retry)(?:: ?|$)")
_BEGIN = re.compile(rb"(?:data|event|id|retry|):")
_PART = re.compile(r'([0g]):("(?:[^"\\]|\\.)*")')
_DATA = re.compile(rb"data: ?[{\[]")


def are_events(lines: list[bytes]) -> bool:
    """Whether an input that begins so is a dump of server-sent events with JSON in them."""
    first = next((line for line in lines if line.strip()), b"")
    return bool(_BEGIN.match(first)) and any(_DATA.match(line) for line in lines)


def is_piece_line(raw: bytes) -> bool:
    """Whether a line of text is an event that holds a piece of an answer."""
    from guardkit.reading.streams import piece_in

    return bool(_DATA.match(raw)) and piece_in(_json(raw.decode(errors="replace")[5:])) is not None


def piece_in_line(text: str) -> str:
    """The JSON of a piece at the end of a line of a log, or in a line of an AI SDK's stream; empty for other lines."""
    if (told := _PART.fullmatch(text)) is not None:
        kind = "reasoning" if told[1] == "g" else "text"
        return f'{{"type": "{kind}-delta", "id": "0", "delta": {told[2]}}}'
    begin = text.find("{", 1)
    if begin < 0 or not text.rstrip().endswith("}"):
        return ""
    from guardkit.reading.streams import HINT, piece_in

    tail = text[begin:]
    return tail if HINT.search(tail) is not None and piece_in(_json(tail)) is not None else ""


def _json(text: str) -> Any:
    """The object or list that `text` is; None for all else."""
    from guardkit.reading.jsontext import parse

    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return parse(text.strip())
    except ValueError:
        return None


class Answers:
    """The answers of an input that are under way: JSON records go in, and come out whole."""

    def __init__(self, reader: Reader, name: str, in_events: bool = False):
        """in_events: what is a stream's by itself, so that each candidate of a Gemini answer is a piece, too."""
        from guardkit.reading.streams import Streams

        self._reader, self._name, self._in_events = reader, name, in_events
        self._streams = Streams()
        self._seen = False

    def take(self, text: str, line: int) -> list[Record] | None:
        """The records that a piece gives: answers that end with it, and what stands around it; None for what is none
        and is to be read like any other record."""
        from guardkit.reading.streams import HINT, has_text, piece_in, says_nothing

        if not self._in_events and not self._seen and HINT.search(text) is None:
            return None
        value = _json(text)
        if value is None:
            return None
        piece = piece_in(value, self._streams.known, self._in_events)
        if piece is None:
            if _begins(value):
                self._seen = True
                return []
            if self._seen and says_nothing(value):
                return []  # what a stream says between its pieces
            return None
        self._seen = True
        out = self._records(self._streams.take(piece, line, len(text)))
        if piece.rest is not None and has_text(piece.rest):
            out.append(self._reader.value_record(piece.rest, line, self._name))
        return out

    def done(self) -> list[Record]:
        return self._records(self._streams.done())

    def end(self) -> list[Record]:
        return self._records(self._streams.end())

    def _records(self, answers: Sequence[Streamed]) -> list[Record]:
        from guardkit.reading.pieces import joined

        out: list[Record] = []
        for answer in answers:
            message = joined(answer.pieces)
            if not any((message.content, message.reasoning, message.tool_calls, message.unjudgeable)):
                continue
            record = Record(answer.line, [message], text_of([message]), self._name)
            if (
                len(answer.pieces) == 1 and not self._in_events
            ):  # the rest is missing, or it is a whole answer after all
                alone = self._reader.value_record(answer.pieces[0], answer.line, self._name)
                record = alone if answer.is_lone or alone.error is None else record
            out.append(record)
        return out


def _begins(value: Any) -> bool:
    """Whether an event of the Responses API only says that an answer begins: with the settings, and nothing in it."""
    response = value.get("response") if isinstance(value, dict) else None
    if not isinstance(response, dict) or not str(value.get("type", "")).startswith("response."):
        return False
    return not response.get("output") and response.get("status") in ("queued", "in_progress")


def records_of_events(reader: Reader, parts: Iterable[list[bytes]], name: str) -> Iterator[list[Record]]:
    """One record an answer, at its end; one for each event that is no piece; lines that are no event are texts."""
    answers = Answers(reader, name, in_events=True)
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
                out += _event(reader, "\n".join(data), start, answers, name)
                data = []
            else:
                out += _other(record, field)
        yield out
    yield [*_event(reader, "\n".join(data), start, answers, name), *answers.end()]


def _event(reader: Reader, text: str, line: int, answers: Answers, name: str) -> list[Record]:
    if text.strip() in ("", "[DONE]"):
        return answers.done() if text else []
    if _json(text) is None:
        return [Record(line, text, text, name)]
    taken = answers.take(text, line)
    return [reader.json(text, line, name)] if taken is None else taken


def _other(record: Record, field: re.Match[str] | None) -> list[Record]:
    """A line that is no data: names of events and comments that keep a connection alive hold no text."""
    from guardkit.reading.values import is_name

    told = record.text[field.end() :] if field else record.text.removeprefix(":")
    return [] if (field or record.text.startswith(":")) and is_name(told.strip(), 6) else [record]
