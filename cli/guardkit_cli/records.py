"""Bytes in, records out: whatever arrives is decoded, split and numbered; nothing is skipped in silence."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from guardkit import Message

Item = str | list["Message"]
CHUNK_BYTES = 1 << 18
MAX_IGNORED = 100  # different paths that are counted
NAME_IT = "--encoding NAME says what it is"
SHOWN_OF_LONG = 1024  # bytes of a line that is not read
_ODD = re.compile("[\udc80-\udcff]")
_INDEX = re.compile(r"\[[\d.]+\]")
_BOM = b"\xef\xbb\xbf"


class TooLong(bytes):
    """The beginning of a line that is too long to be held."""


@dataclass(slots=True)
class Record:
    """One record. `item` is None where the input could not be read as one; `error` then says why. `more`: what else of
    it is judged (other candidates); `ignored`: paths of its texts that are not judged; `numbers`: the index of each
    judged message or candidate, None where there is no list of them; `over`: how many lines just before it this record
    puts together: it counts only where it is worse than each of them."""

    line: int
    item: Item | None
    text: str
    source: str = ""
    error: str | None = None
    more: tuple[Item, ...] = ()
    ignored: tuple[str, ...] = ()
    numbers: tuple[int | None, ...] = (None,)
    over: int = 0


# ---------------------------------------------------------------------------------------------------- decoding


class Decoder:
    """UTF-8, with windows-1252 for the bytes that are not; `fallback_lines` counts the texts that needed it."""

    def __init__(self) -> None:
        self.fallback_lines = 0
        self.is_unknown = False  # whether the newest text is of an encoding that is not known

    def decode(self, raw: bytes) -> str:
        self.is_unknown = False
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return self.settle(raw.decode("utf-8", "surrogateescape"))

    def settle(self, text: str) -> str:
        """A text whose odd bytes are escaped, as `surrogateescape` leaves them."""
        self.is_unknown = False
        if text.isascii() or not _ODD.search(text):
            return text
        from guardkit.reading.encodings import decoded_odd, is_unknown_encoding

        self.fallback_lines += 1
        self.is_unknown = is_unknown_encoding(text)
        return decoded_odd(text)


# ----------------------------------------------------------------------------------------------------- sources


class Source:
    """A stream of bytes, read as they come: `read` returns what is there and waits only when nothing is."""

    def __init__(self, name: str, file: BinaryIO, encoding: str | None = None):
        self.name = name
        self.n_read = 0
        self.encoding = encoding
        self.recognised: list[str] = []  # compressions and encodings, from the outside in
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
    def open(cls, path: str, encoding: str | None = None) -> Source:
        source = cls.stdin() if path == "-" else cls(path, open(path, "rb", buffering=0))
        source.encoding = encoding
        return source

    def read(self, n_bytes: int = CHUNK_BYTES) -> bytes:
        """The next bytes, at most `n_bytes`; b"" at the end."""
        while True:
            self._wait()
            try:
                data = self._file.read(n_bytes) if self.fd is None else os.read(self.fd, n_bytes)
            except BlockingIOError:  # somebody made the descriptor non-blocking, and another reader was faster
                continue
            self.n_read += len(data)
            return data

    def is_ready(self) -> bool:
        """Whether `read` would return at once."""
        return self._is_regular or bool(self._ready(0))

    def _ready(self, timeout: float) -> bool | None:
        """Whether there is something to read, waiting so many seconds for it; None where that cannot be told."""
        import select

        if self.fd is None:
            return True
        try:
            return bool(select.select([self.fd], [], [], timeout)[0])
        except (OSError, ValueError):  # not a socket (Windows), or a descriptor beyond select's range
            return None

    def _wait(self) -> None:
        """Until there is something to read. A signal that comes just before a call of `read` does not interrupt it, so
        Ctrl-C could be left unheard for as long as no more input came: this wait looks up."""
        while not self._is_regular and self._ready(0.2) is False:
            pass

    def chunks(self) -> Iterator[bytes]:
        """All of the input, without a byte order mark; what is compressed or of another encoding as UTF-8. Raises
        OSError for what cannot be read to its end, and for what is no text."""
        first = self.read()
        while 0 < len(first) < len(_BOM) and not first.isascii() and (more := self.read()):
            first += more
        rest = iter(self.read, b"")
        from guardkit.reading import encodings

        if self.encoding is None and not encodings.is_suspicious(first):
            yield first
            yield from rest
        else:
            yield from encodings.text_chunks(chain([first], rest), self.encoding, self.recognised.append)

    def lines(self) -> Iterator[list[bytes]]:
        """The complete lines of each read, in order; a last line without its newline counts, also where the input
        breaks off. Of a line that is longer than `MAX_RECORD` only the beginning is there, as a `TooLong`."""
        from guardkit.reading.encodings import MAX_RECORD

        head = bytearray()
        is_cut = False
        try:
            for data in self.chunks():
                end = data.find(b"\n")
                if end < 0:
                    if not is_cut:
                        head += data
                        if len(head) > MAX_RECORD:
                            head, is_cut = head[:SHOWN_OF_LONG].rstrip(b"\r"), True
                    continue
                parts = data.split(b"\n")
                if is_cut:
                    parts[0] = TooLong(head)
                elif head:
                    head += parts[0]
                    parts[0] = bytes(head) if len(head) < CHUNK_BYTES else head  # type: ignore[assignment]
                head, is_cut = bytearray(parts.pop()), False
                yield parts
        except OSError:
            if head:
                yield [TooLong(head) if is_cut else bytes(head)]
            raise
        if head:
            yield [TooLong(head) if is_cut else head]  # type: ignore[list-item]

    def close(self) -> None:
        if self.name != "-":
            self._file.close()


# ----------------------------------------------------------------------------------------------------- records


@dataclass
class Reader:
    """Turns the parts of an input into records.

    jsonl: each line is a JSON record; format: one of `formats.FORMATS`, or found out from the name and the content;
    shape: that of the records; field: what of a record is judged; whole: an input is one text; join: lines that go on
    belong to the record that they go on from; outputs: of JSON records every output of a model, last: only the newest.
    """

    jsonl: bool = False
    field: str | None = None
    whole: bool = False
    format: str | None = None
    shape: str | None = None
    join: bool = False
    outputs: bool = False
    last: bool = False

    def __post_init__(self) -> None:
        self.decoder = Decoder()
        self.n_blank = 0
        self.ignored: dict[str, int] = {}  # how often texts at a path were not judged

    def reads_lines_of(self, name: str) -> bool:
        """Whether a file whose name tells that it is a document is read line by line, of which none was asked for."""
        from guardkit_cli.passages import is_document

        asked = self.whole or self.join or self.jsonl or self.outputs or self.format is not None
        return not asked and is_document(name)

    def argument(self, number: int, text: str) -> list[Record]:
        """A TEXT of the command line."""
        try:
            raw = os.fsencode(text)
        except UnicodeEncodeError:  # a lone surrogate, from a caller in Python
            raw = text.encode("utf-8", "surrogatepass")
        record = self.text(number, raw, "")
        return [self.json(record.text, number, "") if self.jsonl and record.error is None else record]

    def read(self, source: Source) -> Iterator[list[Record]]:
        """The records of each read, as they come."""
        if self.whole:
            raw = b"".join(_held(source.chunks()))
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
            yield [self.text(1, raw, source.name)]
        elif self.format == "text" and not self.join:
            yield from self.plain_lines(source)
        else:
            from guardkit_cli.formats import records_of

            yield from records_of(self, source)

    def plain_lines(self, source: Source) -> Iterator[list[Record]]:
        """Each line is a text."""
        number, name = 0, source.name
        for lines in source.lines():
            records = []
            for raw in lines:
                number += 1
                records.append(self.text(number, raw[:-1] if raw.endswith(b"\r") else raw, name))
            yield records

    def text(self, number: int, raw: bytes, name: str) -> Record:
        if isinstance(raw, TooLong):
            from guardkit.reading.encodings import TOO_LONG

            return Record(number, None, self.decoder.decode(raw), name, TOO_LONG)
        text = self.decoder.decode(raw)
        error = self.unread(raw)
        return Record(number, text if error is None else None, text, name, error)

    def unread(self, raw: bytes = b"") -> str | None:
        """Why the text that was decoded last, from `raw`, cannot be judged."""
        from guardkit.reading.encodings import GARBLED, UNKNOWN, is_garbled

        told = UNKNOWN if self.decoder.is_unknown else GARBLED if is_garbled(raw) else None
        return told and f"{told}; {NAME_IT}"

    def json(self, text: str, line: int, source: str, *, or_text: bool = False) -> Record:
        """The record in a JSON text; one with an error where it cannot be read. or_text: what is no JSON is a text."""
        from guardkit.reading.jsontext import parse

        if or_text and not text.lstrip().startswith("{"):
            return Record(line, text, text, source)
        try:
            record = self.value(parse(text), line, source)
        except ValueError as error:
            if or_text and not isinstance(error.__context__, RecursionError) and "given twice" not in str(error):
                return Record(line, text, text, source)
            return Record(line, None, text, source, str(error))
        return replace(record, text=text) if self.outputs else record

    def value_record(self, data: Any, line: int, source: str) -> Record:
        """`value`, or a record with an error where it cannot be read."""
        try:
            return self.value(data, line, source)
        except ValueError as error:
            return Record(line, None, str(data)[:SHOWN_OF_LONG], source, str(error))

    def value(self, data: Any, line: int, source: str) -> Record:
        """The record that a parsed value is. Raises ValueError that says why it cannot be read."""
        from guardkit.reading.records import read_record

        found = read_record(data, field=self.field, shape=self.shape, outputs=self.outputs, last=self.last)
        items = [judged.item for judged in found.judged]
        shown = "\n".join(filter(None, map(text_of, items)))
        numbers = tuple(judged.number for judged in found.judged)
        return self.note(Record(line, items[0], shown, source, None, tuple(items[1:]), found.ignored, numbers))

    def note(self, record: Record) -> Record:
        """Count what is not judged in a record, for the note at the end."""
        for path in record.ignored:
            path = _INDEX.sub("[]", path)
            if path in self.ignored or len(self.ignored) < MAX_IGNORED:
                self.ignored[path] = self.ignored.get(path, 0) + 1
        return record


def _held(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks of one record. Raises OSError for more than can be held."""
    from guardkit.reading.encodings import MAX_RECORD, TOO_LONG

    n_bytes = 0
    for data in chunks:
        n_bytes += len(data)
        if n_bytes > MAX_RECORD:
            raise OSError(TOO_LONG)
        yield data


def text_of(item: Item) -> str:
    """The text of `item` that is judged, for people."""
    if isinstance(item, str):
        return item
    last = item[-1]
    texts = [part.text or f"[{part.what}]" for part in last.parts() if part.text != last.content]
    return "\n".join(filter(None, [last.content, *texts]))
