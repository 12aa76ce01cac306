"""Bytes in, records out: whatever arrives is decoded, split and numbered; nothing is skipped in silence."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from guardkit import Message

Item = str | list["Message"]
CHUNK_BYTES = 1 << 18
MAX_IGNORED = 100  # different paths that are counted
_INDEX = re.compile(r"\[[\d.]+\]")
_BOM = b"\xef\xbb\xbf"


@dataclass(slots=True)
class Record:
    """One record. `item` is None where the input could not be read as one; `error` then says why. `more`: what else of
    it is judged (other candidates); `ignored`: paths of its texts that are not judged."""

    line: int
    item: Item | None
    text: str
    source: str = ""
    error: str | None = None
    more: tuple[Item, ...] = ()
    ignored: tuple[str, ...] = ()


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
            raise OSError(errno.EBADF, "standard input is closed", "-")
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
        self.ignored: dict[str, int] = {}  # how often texts at a path were not judged

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
        record = read_json(text, number, source, field=self.field)
        self.note(record)
        return record

    def note(self, record: Record) -> None:
        """Count what is not judged in a record, for the note at the end."""
        for path in record.ignored:
            path = _INDEX.sub("[]", path)
            if path in self.ignored or len(self.ignored) < MAX_IGNORED:
                self.ignored[path] = self.ignored.get(path, 0) + 1


def read_json(text: str, line: int, source: str, *, field: str | None = None, shape: str | None = None) -> Record:
    """The record in a JSON text; one with an error where it cannot be read."""
    from guardkit.reading.jsontext import parse

    try:
        return read_value(parse(text), line, source, field=field, shape=shape)
    except ValueError as error:
        return Record(line, None, text, source, str(error))


def read_value(data: Any, line: int, source: str, *, field: str | None = None, shape: str | None = None) -> Record:
    """The record that a parsed value is. Raises ValueError that says why it cannot be read."""
    from guardkit.reading.records import read_record

    found = read_record(data, field=field, shape=shape)
    items = [judged.item for judged in found.judged]
    shown = "\n".join(filter(None, map(_shown, items)))
    return Record(line, items[0], shown, source, None, tuple(items[1:]), found.ignored)


def _shown(item: Item) -> str:
    """The text of `item` that is judged, for people."""
    if isinstance(item, str):
        return item
    last = item[-1]
    texts = [part.text or f"[{part.what}]" for part in last.parts() if part.text != last.content]
    return "\n".join(filter(None, [last.content, *texts]))
