"""Inputs of lines: JSON lines, JSON arrays, lines of text.

What a record was is kept to the byte: a label is put into the line before its last brace.
Memory grows with the longest record, not with the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from guardkit.errors import LabelError
from guardkit.labelling.packed import Misread, lines_of, opened, settled
from guardkit.labelling.rows import UNIT_BYTES, UNIT_ROWS, WHOLE, Reading, Row, Split, Unit, Unread, wrapped
from guardkit.reading.jsontext import parse

# ------------------------------------------------------------------------------------------------------------ units


class JsonLines(Unit):
    """Lines of JSON, or of text, as bytes without their ends.

    A row's form is "o" for an object, "e" for an empty one, "v" for another JSON value and "t" for what is no JSON:
    these two become the "value" of an object.
    """

    def __init__(self, first: int, lines: Sequence[bytes], column: str, text: bool = False):
        self.first, self.lines, self.column, self.text = first, lines, column, text

    def __len__(self) -> int:
        return len(self.lines)

    def rows(self, reading: Reading, wanted: Sequence[int]) -> list[Row]:
        if self.text:
            return [self._of_text(at) for at in wanted]
        return [reading.row(self.first + at, *self._parsed(self.lines[at])) for at in wanted]

    def _of_text(self, at: int) -> Row:
        line = self.lines[at]
        if isinstance(line, Misread):
            return Row(self.first + at, (), error=line.ERROR, form="t")
        return Row(self.first + at, (line.decode(),), ("",), form="t")

    def _parsed(self, line: bytes) -> tuple[object, str]:
        """A line's value, or why it has none, and its form."""
        text = line.decode()
        if isinstance(line, Misread):
            return Unread(line.ERROR), self._form_of_broken(text)
        try:
            value = parse(text)
        except ValueError as error:
            return Unread(str(error)), self._form_of_broken(text)
        if not isinstance(value, dict):
            return value, "v"
        if self.column in value:
            return Unread(f"it has a '{self.column}' already: --column NAME puts the labels elsewhere"), "v"
        return value, "o" if value else "e"

    def _form_of_broken(self, text: str) -> str:
        """Of what was refused: an object with a key given twice is still an object."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "t"
        return "v" if not isinstance(value, dict) or self.column in value else "o"

    def objects(self) -> list[Any]:
        """With what no table can hold, halves of surrogate pairs, as their escapes."""
        found = [{"text": line.decode()} if self.text else self._object(line) for line in self.lines]
        return [_whole(o) if b"\\u" in line else o for o, line in zip(found, self.lines, strict=True)]

    def _object(self, line: bytes) -> Any:
        value, form = self._parsed(line)
        if isinstance(value, Unread):
            return wrapped(line.decode()) if form == "t" else wrapped(json.loads(line)) if form == "o" else {
                "value": json.loads(line)
            }  # fmt: skip
        return wrapped(value)

    def take(self, at: Sequence[int]) -> Unit:
        return JsonLines(self.first, [self.lines[i] for i in at], self.column, self.text)

    def json_lines(self, labels: Sequence[tuple[str, bytes]], column: str) -> list[bytes]:
        key = json.dumps(column).encode()
        name = b"text" if self.text else b"value"
        return [
            _with_label(line, form, label, key, name) for line, (form, label) in zip(self.lines, labels, strict=True)
        ]


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _with_label(line: bytes, form: str, label: bytes, key: bytes, name: bytes) -> bytes:
    if form in "oe":
        end = line.rindex(b"}")
        return b"%b%b%b: %b%b" % (line[:end], b", " if form == "o" else b"", key, label, line[end:])
    value = json.dumps(line.decode()).encode() if form == "t" else line.strip()
    return b'{"%b": %b, %b: %b}' % (name, value, key, label)


def dumped(objects: Iterable[Any], labels: Sequence[tuple[str, bytes]], column: str) -> list[bytes]:
    """Objects as lines of JSON with their labels."""
    key = json.dumps(column).encode()
    out = []
    for value, (_, label) in zip(objects, labels, strict=True):
        line = json.dumps(value, ensure_ascii=False, default=as_json).encode("utf-8", "backslashreplace")
        out.append(_with_label(line, "o" if value else "e", label, key, b"value"))
    return out


def as_json(value: object) -> object:
    """What JSON has no form for: bytes as Base64, dates in ISO's form, the rest as text."""
    if isinstance(value, bytes | bytearray | memoryview):
        import base64

        return base64.b64encode(bytes(value)).decode()
    told = getattr(value, "isoformat", None)
    return told() if told is not None else str(value)


# ---------------------------------------------------------------------------------------------------------- reading


def json_units(path: Path, column: str, text: bool = False, start: Split = WHOLE) -> Iterator[JsonLines]:
    """The lines of a file, from `start` on; blank lines of JSON hold no record."""
    with opened(path) as (file, read):
        lines = (line.rstrip(b"\r\n") for line in lines_of(file, start.offset))
        yield from _units(lines if text else (line for line in lines if line.strip()), column, text, read, start.first)


def value_units(path: Path, column: str) -> Iterator[JsonLines]:
    """The values of a file of JSON, an array or one after another, each as one line."""
    with opened(path) as (file, read):
        yield from _units(_values(path, file), column, False, read)


def _units(
    lines: Iterable[bytes], column: str, text: bool, read: Callable[[], float], first: int = 0
) -> Iterator[JsonLines]:
    n_bytes, kept = 0, cast(list[bytes], [])
    for line in lines:
        kept.append(line)
        n_bytes += len(line)
        if len(kept) >= UNIT_ROWS or n_bytes >= UNIT_BYTES:
            unit = JsonLines(first, kept, column, text)
            unit.share = read()
            yield unit
            first, n_bytes, kept = first + len(kept), 0, []
    if kept:
        unit = JsonLines(first, kept, column, text)
        unit.share = 1.0
        yield unit


_BLANK = re.compile(r"[ \t\r\n]*")
_ENDS = re.compile(r"[\r\n]+")


def _values(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    decoder, at, in_array, started = json.JSONDecoder(), 0, False, False
    buffer, ended = "", False
    utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    while True:
        at = _BLANK.match(buffer, at).end()  # type: ignore[union-attr]
        if at < len(buffer) and not started and buffer[at] == "[":
            in_array, started, at = True, True, at + 1
            continue
        if at < len(buffer) and in_array and buffer[at] in ",]":
            in_array = buffer[at] == ","
            at += 1
            continue
        try:
            if at >= len(buffer):
                raise ValueError("more is needed")
            _, end = decoder.raw_decode(buffer, at)
            if end == len(buffer) and not ended and not in_array:
                raise ValueError("a number may go on")
        except ValueError as error:
            if ended:
                if at < len(buffer) or in_array:
                    raise LabelError(
                        f"{path}: not valid JSON: {error if at < len(buffer) else 'it ends too early'}"
                    ) from None
                return
            piece = file.read(1 << 18)
            ended = not piece
            buffer, at = buffer[at:] + utf8.decode(piece, ended).removeprefix("\ufeff"), 0
            continue
        started = True
        yield settled(_ENDS.sub(" ", buffer[at:end]))
        at = end
