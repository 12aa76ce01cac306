"""Bytes in, records out: whatever arrives is decoded, split and numbered; nothing is skipped in silence."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

Item = str | list[dict[str, Any]]
CHUNK_BYTES = 1 << 18
_BOM = b"\xef\xbb\xbf"


@dataclass(slots=True)
class Record:
    """One thing to judge. `item` is None where the input could not be read as one; `error` then says why."""

    line: int
    item: Item | None
    text: str
    source: str = ""
    error: str | None = None


# ---------------------------------------------------------------------------------------------------- decoding


def _fallback_table() -> dict[int, str]:
    table = {}
    for byte in range(0x80, 0x100):
        try:
            table[0xDC00 + byte] = bytes([byte]).decode("cp1252")
        except UnicodeDecodeError:
            table[0xDC00 + byte] = chr(byte)
    return table


class Decoder:
    """UTF-8, with windows-1252 for the bytes that are not; `fallback_lines` counts the texts that needed it.

    The fallback is by byte, not by line: one stray byte must not garble, and so hide, a line of good UTF-8.
    """

    def __init__(self) -> None:
        self.fallback_lines = 0
        self._table: dict[int, str] = {}

    def decode(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fallback_lines += 1
            return self.repair(raw.decode("utf-8", "surrogateescape"))

    def repair(self, text: str) -> str:
        """Give escaped bytes (as `surrogateescape` leaves them, also in `sys.argv`) their windows-1252 meaning."""
        self._table = self._table or _fallback_table()
        return text.translate(self._table)


# ----------------------------------------------------------------------------------------------------- sources


class Source:
    """A stream of bytes, read as they come: `read` returns what is there and waits only when nothing is."""

    def __init__(self, name: str, file: BinaryIO):
        self.name = name
        self.n_read = 0
        self._file = file
        try:
            self.fd: int | None = file.fileno()
        except (OSError, AttributeError):
            self.fd = None
        mode = os.fstat(self.fd) if self.fd is not None else None
        self._is_regular = mode is not None and stat.S_ISREG(mode.st_mode)
        self.size = mode.st_size if mode is not None and self._is_regular else None

    @classmethod
    def stdin(cls) -> Source:
        if sys.stdin is None:
            raise OSError("standard input is closed")
        return cls("-", sys.stdin.buffer)

    @classmethod
    def open(cls, path: str) -> Source:
        return cls.stdin() if path == "-" else cls(path, open(path, "rb", buffering=0))

    def read(self, n_bytes: int = CHUNK_BYTES) -> bytes:
        """The next bytes, at most `n_bytes`; b"" at the end."""
        while True:
            try:
                data = self._file.read(n_bytes) if self.fd is None else os.read(self.fd, n_bytes)
            except BlockingIOError:  # somebody made the descriptor non-blocking
                self._ready(1.0)
                continue
            self.n_read += len(data)
            return data

    def is_ready(self) -> bool:
        """Whether `read` would return at once."""
        return self._is_regular or self._ready(0)

    def _ready(self, timeout: float) -> bool:
        import select

        if self.fd is None:
            return True
        try:
            return bool(select.select([self.fd], [], [], timeout)[0])
        except (OSError, ValueError):  # not a socket (Windows), or a descriptor beyond select's range
            return False

    def chunks(self) -> Iterator[bytes]:
        """All of the input, without a byte order mark."""
        first = self.read()
        while 0 < len(first) < len(_BOM) and _BOM.startswith(first) and (more := self.read()):
            first += more
        yield first.removeprefix(_BOM)
        while data := self.read():
            yield data

    def lines(self) -> Iterator[list[bytes]]:
        """The complete lines of each read, in order; a last line without its newline counts."""
        head: list[bytes] = []
        for data in self.chunks():
            parts = data.split(b"\n")
            if len(parts) == 1:
                head.append(data)
                continue
            head.append(parts[0])
            parts[0] = b"".join(head)
            head = [parts.pop()]
            yield parts
        last = b"".join(head)
        if last:
            yield [last]

    def close(self) -> None:
        if self.name != "-":
            self._file.close()


# ----------------------------------------------------------------------------------------------------- records


@dataclass
class Reader:
    """Turns the parts of an input into records. Without `jsonl` a line is a text."""

    jsonl: bool = False
    field: str | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        self.decoder = Decoder()
        self.n_blank = 0

    def argument(self, number: int, text: str) -> list[Record]:
        """A TEXT of the command line."""
        return [self._record(number, self.decoder.repair(text), "")]

    def read(self, source: Source) -> Iterator[list[Record]]:
        """The records of each read, as they come."""
        if self.whole:
            raw = b"".join(source.chunks())
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
            yield [Record(1, text := self.decoder.decode(raw), text, source.name)]
            return
        number, name = 0, source.name
        decode = self.decoder.decode
        for lines in source.lines():
            records = []
            for raw in lines:
                number += 1
                text = decode(raw[:-1] if raw.endswith(b"\r") else raw)
                if not self.jsonl:
                    records.append(Record(number, text, text, name))
                elif text.strip():
                    records.append(self._record(number, text, name))
                else:
                    self.n_blank += 1
            yield records

    def _record(self, number: int, text: str, source: str) -> Record:
        if not self.jsonl:
            return Record(number, text, text, source)
        try:
            item = parse_json(text, self.field)
        except ValueError as error:
            return Record(number, None, text, source, str(error))
        return Record(number, item, _shown(item), source)


def parse_json(text: str, field: str | None = None) -> Item:
    """What a JSONL line asks to have judged. Raises ValueError that says what is wrong with it."""
    import json

    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} (column {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    if field is not None:
        return _string(_dig(data, field), field)
    if isinstance(data, str):
        return data
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object or string, got {_kind(data)}")
    if "messages" in data:
        messages = data["messages"]
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError("'messages' must be a list of objects, with at least one")
        return messages
    if "response" in data:
        answer = {"role": "assistant", "content": _string(data["response"], "response")}
        if data.get("prompt") is None:
            return [answer]
        return [{"role": "user", "content": _string(data["prompt"], "prompt")}, answer]
    for key in ("text", "prompt"):
        if key in data:
            return _string(data[key], key)
    known = ", ".join(f"'{key}'" for key in list(data)[:8]) or "none"
    raise ValueError(f"no 'text', 'prompt', 'response' or 'messages' in it (keys: {known}); --field names another")


def _dig(data: Any, field: str) -> Any:
    """`data[field]`, or along the dots of `field` where no key is called that."""
    if isinstance(data, dict) and field in data:
        return data[field]
    for key in field.split("."):
        if not isinstance(data, dict) or key not in data:
            raise ValueError(f"no field '{field}'")
        data = data[key]
    return data


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' must be a string, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(item: Item) -> str:
    """The text of `item` that is judged, for people."""
    if isinstance(item, str):
        return item
    content = item[-1].get("content")
    if isinstance(content, str):
        return content
    import json

    return json.dumps(item[-1] if content is None else content, ensure_ascii=False)
