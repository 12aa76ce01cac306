"""Server-sent events: bytes cut anywhere in, whole frames out, each with the very bytes that it came in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from guardkit.reading.values import is_name
from guardkit_serve.errors import HttpError

_END = re.compile(rb"(?:\r\n|\n|\r)(?:\r\n|\n|\r)")
_LINE = re.compile(r"\r\n|\n|\r")
DONE = "[DONE]"
_Bytes = TypeVar("_Bytes", bytes, bytearray)


class Frame(NamedTuple):
    """raw: the frame's bytes, its empty line included. data: None where it has none but blanks. aside: what else it
    says that is no event and no data: comments, fields of no known name, ids that are no names."""

    raw: bytes
    data: str | None = None
    event: str | None = None
    aside: str = ""


class Parser:
    """Finds where frames end. Raises `HttpError` for one that is larger than `max_bytes`."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now."""
        if not self._buffer and data.endswith(b"\n\n") and b"\r" not in data:  # whole frames, as nearly always
            if data.find(b"\n\n") == len(data) - 2 and len(data) <= self._max_bytes:
                return [data]
            *whole, rest = data.split(b"\n\n")
            self._buffer += rest
            return [self._whole(raw + b"\n\n") for raw in whole]
        self._buffer += data
        frames, start = [], 0
        at = self._searched
        while (end := _END.search(self._buffer, at)) is not None:
            stop = end.end()
            if stop == len(self._buffer) and self._buffer[stop - 1] == 13:  # the CR may be half of a CRLF
                break
            frames.append(self._whole(bytes(self._buffer[start:stop])))
            start = at = stop
        del self._buffer[:start]
        self._searched = max(0, len(self._buffer) - 3)
        self._whole(self._buffer)
        return frames

    def close(self) -> tuple[list[bytes], bool]:
        """What is left at the end: its frame, where a line end is all that it lacks; and whether a frame is cut off."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        if not rest.strip(b"\r\n"):
            return [], False
        if rest.endswith((b"\n", b"\r")):
            return [self._whole(rest if rest.endswith((b"\r\r", b"\n\r")) else rest + b"\n")], False
        return [], True

    def _whole(self, raw: _Bytes) -> _Bytes:
        if len(raw) > self._max_bytes:
            raise HttpError(502, f"the upstream sent an event of more than {self._max_bytes:,} bytes", "upstream_error")
        return raw


def read(raw: bytes) -> Frame:
    """What a frame says. Raises `HttpError` where it is not UTF-8."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise HttpError(502, "the upstream sent an event that is not UTF-8", "upstream_error") from None
    if text.startswith("data: {") and text.endswith("\n\n") and text.count("\n") == 2 and "\r" not in text:
        return Frame(raw, text[6:-2])
    data: list[str] = []
    aside: list[str] = []
    event = None
    for line in _LINE.split(text.removeprefix("\ufeff")):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name in ("id", "retry"):
            aside += [] if is_name(value, 6) else [value]
        elif line:
            aside += [value] if is_name(name) else [name, value]
    told = "\n".join(data)
    return Frame(raw, told if told.strip() else None, event, "\n".join(filter(None, aside)))


def frame(data: Mapping[str, Any] | str, event: str | None = None) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {text}\n\n".encode("utf-8", "surrogatepass" if isinstance(data, str) else "replace")
