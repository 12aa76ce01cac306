"""Events that differ from one before in their text alone, as nearly all of an answer do: read without being parsed and
walked anew.

A shape is the bytes of an event with holes: its one text, numbers beside it that say nothing, and padding. What fits
in reads as the event that the shape was made of does, with another text: one whole string of JSON in the place of
another changes nothing else. That the reading does not depend on what is in the holes is tried when a shape is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from guardkit.reading.values import Path, is_name
from guardkit_serve.errors import HttpError
from guardkit_serve.protocols.base import Piece, Reading

MAX_SHAPES = 4  # of a stream: choices and stages that take turns
MAX_BYTES = 8192  # of an event that makes one
WORTH = 4  # events that each shape should have read, before there are more than a few of them
PADDING = "obfuscation"
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+)"')
_TEXT = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+')
_NUMBER = re.compile(rb"(?:0|[1-9][0-9]{0,17})(?![0-9.eE])")
_PADDING = re.compile(rb"[A-Za-z0-9]{0,64}")
Read = Callable[[bytes], tuple[Any, Reading]]
"""An event's data and what it holds, the long way. Raises `HttpError`."""


class Shapes:
    """Those of one stream. read: parses and reads an event."""

    def __init__(self, read: Read):
        self._read = read
        self._shapes: list[Shape] = []
        self._before: tuple[Any, Any] = None, None  # the key of the text in the event before, and its data
        self._n_made = self._n_fitted = 0

    def fit(self, raw: bytes) -> Fitted | None:
        """An event that has a known shape; None for all others."""
        for shape in self._shapes:
            if raw.startswith(shape.head) and (found := shape.fit(raw)) is not None:
                self._n_fitted += 1
                return found
        return None

    def note(self, raw: bytes, data: Any, reading: Reading) -> None:
        """An event that was read the long way: the second in a row of one text makes a shape. What had to be judged
        beside the texts may have changed how others are read: all begins anew."""
        if reading.wholes or reading.late is not None:
            self._shapes.clear()
        if not _is_plain(reading):
            self._before = None, None
            return
        piece = reading.pieces[0]
        key, before = self._before
        self._before = piece.key, data
        if piece.key != key:
            return
        if len(raw) > MAX_BYTES or (self._n_made >= MAX_SHAPES and self._n_fitted < WORTH * self._n_made):
            return
        self._n_made += 1
        shape = _made(raw, data, piece, before, self._read)
        if shape is not None:
            self._shapes = [shape, *self._shapes[: MAX_SHAPES - 1]]


class Fitted(NamedTuple):
    """piece: its one text."""

    piece: Piece
    shape: Shape
    others: Mapping[str, Any]

    def data(self) -> dict[str, Any]:
        """All that it says."""
        return self.shape.filled(self.piece.text, self.others)


class Shape:
    """parts: the bytes around the holes; holes: what each of them takes, the text's None, others a key of the data."""

    def __init__(self, parts: list[bytes], holes: list[str | None], data: Mapping[str, Any], path: Path, piece: Piece):
        self.head, self._holes = parts[0], tuple(zip(holes, parts[1:], strict=True))
        self._data, self._path, self._piece = data, path, piece

    def fit(self, raw: bytes) -> Fitted | None:
        """An event that begins with `head`."""
        at, text = len(self.head), ""
        others: dict[str, Any] = {}
        for key, behind in self._holes:
            kind = _TEXT if key is None else _PADDING if key == PADDING else _NUMBER
            found = kind.match(raw, at)
            if found is None:
                return None
            at = found.end()
            if not raw.startswith(behind, at):
                return None
            at += len(behind)
            if key is None:
                try:
                    text = found[0].decode() if b"\\" not in found[0] else _string(found[0]) or ""
                except UnicodeDecodeError:
                    return None
                if not text:
                    return None
            elif key == PADDING:
                others[key] = found[0].decode()
                if not is_name(others[key], 6):
                    return None
            else:
                others[key] = int(found[0])
        if at != len(raw):
            return None
        which, stage, _, path, arguments, _ = self._piece
        return Fitted(Piece(which, stage, text, path, arguments), self, others)

    def filled(self, text: str, others: Mapping[str, Any]) -> dict[str, Any]:
        """The data with others of its values, and another text; what lies elsewhere is shared."""
        out: dict[str, Any] = {**self._data, **others}
        inside: Any = out
        for step in self._path[:-1]:
            inner = inside[step]
            inside[step] = inner = inner.copy()
            inside = inner
        inside[self._path[-1]] = text
        return out


def _is_plain(reading: Reading) -> bool:
    """Whether one text is all that it holds."""
    if reading.wholes or reading.ends or reading.late is not None or reading.last:
        return False
    return len(reading.pieces) == 1 and not reading.pieces[0].added


def _made(raw: bytes, data: Any, piece: Piece, before: Mapping[str, Any], read: Read) -> Shape | None:
    """The shape of an event, where it can be told which of its bytes are the text, and where nothing else in it is read
    otherwise beside another text. before: the data of the one before it."""
    try:
        paths = list(_paths(data, piece.text))
    except RecursionError:
        return None
    places = [m.span(1) for m in _STRING.finditer(raw) if _string(m[1]) == piece.text]
    if len(paths) != 1 or len(places) != 1 or not paths[0]:
        return None
    holes: list[tuple[int, int, str | None]] = [(*places[0], None)]
    for key, value in data.items():
        span = None if before.get(key) == value else _span(raw, key, value)
        if span is not None:
            holes.append((*span, key))
    holes.sort(key=lambda hole: hole[0])
    ends = [0, *(end for _, end, _ in holes)]
    starts = [*(start for start, _, _ in holes), len(raw)]
    parts = [raw[end:start] for end, start in zip(ends, starts, strict=True)]
    shape = Shape(parts, [key for _, _, key in holes], data, paths[0], piece)
    other = "x"
    while other.encode() in raw:
        other += "x"
    others = {key: data[key] + (1 if key != PADDING else "x") for _, _, key in holes if key is not None}
    filled = parts[0] + b"".join(
        (other if key is None else str(others[key])).encode() + part
        for (_, _, key), part in zip(holes, parts[1:], strict=True)
    )
    try:
        wanted, reading = read(filled)
    except HttpError:  # it has no place beside another text
        return None
    if not _is_plain(reading):
        return None
    for event, said, one in ((filled, wanted, reading.pieces[0]), (raw, data, piece)):
        found = shape.fit(event)
        if found is None or found.piece != one or found.data() != said:
            return None
    return shape


def _span(raw: bytes, key: str, value: Any) -> tuple[int, int] | None:
    """Where a value at the top of the data stands that may be another in each event and is not looked at: a number that
    does not say which text goes on, or padding."""
    if type(value) is int and not key.endswith("index"):
        pattern = rb'"' + re.escape(key.encode("utf-8", "replace")) + rb'"\s*:\s*(' + _NUMBER.pattern + rb")"
    elif key == PADDING and isinstance(value, str):
        pattern = rb'"' + PADDING.encode() + rb'"\s*:\s*"(' + _PADDING.pattern + rb')"'
    else:
        return None
    found = list(re.finditer(pattern, raw))
    return found[0].span(1) if len(found) == 1 else None


def _string(body: bytes) -> str | None:
    """What a string of JSON says, without its quotes; None for what is none."""
    try:
        if b"\\" not in body:
            return body.decode("utf-8")
        found: str = json.loads(b'"' + body + b'"')
        return found
    except ValueError:
        return None


def _paths(value: Any, text: str, path: Path = ()) -> Iterator[Path]:
    """Where in a value a string stands; () for a key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == text:
                yield ()
            yield from _paths(inner, text, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _paths(inner, text, (*path, at))
    elif value == text and isinstance(value, str):
        yield path
