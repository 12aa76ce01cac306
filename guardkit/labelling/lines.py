"""Inputs of text: JSON lines, JSON arrays, lines of text, CSV and TSV, compressed or not.

What a record was is kept to the byte: a label is put into the line before its last brace, or before the first cell.
Memory grows with the longest record, not with the file.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from guardkit.errors import LabelError, MissingExtra
from guardkit.labelling.rows import UNIT_BYTES, UNIT_ROWS, Reading, Row, Unit, Unread, wrapped
from guardkit.reading.jsontext import parse

MAX_CELL = 1 << 24  # characters: a quote that is never closed must not swallow the file
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BOM = b"\xef\xbb\xbf"
_ODD = {
    0xDC00 + byte: bytes([byte]).decode("cp1252", "replace").replace("\ufffd", chr(byte)) for byte in range(128, 256)
}

# ----------------------------------------------------------------------------------------------------------- bytes


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, taken out of their compression, which is told by its first bytes. Raises `LabelError` for
    what is damaged or no text."""
    with path.open("rb") as raw:
        head = raw.read(4096)
        raw.seek(0)
        kind = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
        if kind is None and b"\0" in head:
            raise LabelError(f"{path}: binary data, or text that is not UTF-8 (convert UTF-16 first)")
        try:
            yield cast(IO[bytes], raw if kind is None else _decompressed(kind, raw))
        except (EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise LabelError(f"{path}: damaged {kind or 'data'}: {error}") from error
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("zlib", "_lzma", "lzma", "zstandard", "compression"):
                raise
            raise LabelError(f"{path}: damaged {kind} data: {error}") from error


def _decompressed(kind: str, raw: IO[bytes]) -> object:
    if kind == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=raw)
    if kind == "bz2":
        import bz2

        return bz2.BZ2File(raw)
    if kind == "xz":
        import lzma

        return lzma.LZMAFile(raw)
    zstd = _zstd("zstd data")
    if hasattr(zstd, "ZstdFile"):
        return zstd.ZstdFile(raw)
    return io.BufferedReader(cast(Any, _WholeZstd(zstd, raw)))


class _WholeZstd(io.RawIOBase):
    """All frames of zstd data; one that breaks off is an error, which the library itself does not tell."""

    def __init__(self, zstd: Any, raw: IO[bytes]):
        self._zstd, self._raw = zstd, raw
        self._frame: Any = None
        self._out = memoryview(b"")
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._out:
            data = self._left or self._raw.read(1 << 16)
            self._left = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends too early")
                return 0
            if self._frame is None:
                self._frame = self._zstd.ZstdDecompressor().decompressobj()
            # a small piece at a time, since the library does not bound its output
            data, self._left = data[:4096], data[4096:]
            self._out = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._left = self._frame.unused_data + self._left
                self._frame = None
        n = min(len(into), len(self._out))
        into[:n] = self._out[:n]
        self._out = self._out[n:]
        return n


def _zstd(what: str) -> Any:
    from importlib import import_module

    for module in ("compression.zstd", "zstandard"):  # the first from Python 3.14 on
        try:
            return import_module(module)
        except ImportError:
            continue
    raise MissingExtra(what, "label")


@contextmanager
def compressing(kind: str | None, raw: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file that compresses into `raw`, the same for the same bytes (no time, no name)."""
    if kind is None:
        yield raw
    elif kind == "gzip":
        import gzip

        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed:
            yield cast(IO[bytes], packed)
    elif kind in ("bz2", "xz"):
        from importlib import import_module

        module = import_module("bz2" if kind == "bz2" else "lzma")
        with (module.BZ2File if kind == "bz2" else module.LZMAFile)(raw, "wb") as packed:
            yield packed
    else:
        zstd = _zstd("zstd data")
        if hasattr(zstd, "ZstdFile"):
            with zstd.ZstdFile(raw, "wb") as packed:
                yield packed
        else:
            with zstd.ZstdCompressor().stream_writer(raw, closefd=False) as packed:
                yield packed


def decoded(raw: bytes) -> str:
    """UTF-8, with windows-1252 for the bytes that are not: by byte, since one stray byte must not garble a line."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape").translate(_ODD)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends, without a byte order mark; as UTF-8, whatever they were."""
    for number, line in enumerate(file):
        line = line.removeprefix(_BOM) if number == 0 else line
        if line and not line.isascii() and not _is_utf8(line):
            line = decoded(line).encode()
        if line:
            yield line


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
            return [Row(self.first + at, (self.lines[at].decode(),), ("",), form="t") for at in wanted]
        return [reading.row(self.first + at, *self._parsed(self.lines[at])) for at in wanted]

    def _parsed(self, line: bytes) -> tuple[object, str]:
        """A line's value, or why it has none, and its form."""
        text = line.decode()
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
        return [{"text": line.decode()} if self.text else self._object(line) for line in self.lines]

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


def _with_label(line: bytes, form: str, label: bytes, key: bytes, name: bytes) -> bytes:
    if form in "oe":
        end = line.rindex(b"}")
        return b"%b%b%b: %b%b" % (line[:end], b", " if form == "o" else b"", key, label, line[end:])
    value = json.dumps(line.decode()).encode() if form == "t" else line.strip()
    return b'{"%b": %b, %b: %b}' % (name, value, key, label)


class CsvRows(Unit):
    """Rows of a table of text: the cells, and the row as it stood."""

    def __init__(
        self, first: int, heading: Sequence[str], rows: Sequence[tuple[list[str] | Unread, str]], delimiter: str
    ):
        self.first, self.heading, self._rows, self.delimiter = first, heading, rows, delimiter

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, reading: Reading, wanted: Sequence[int]) -> list[Row]:
        return [reading.row(self.first + at, self._record(self._rows[at][0], reading.field)) for at in wanted]

    def _record(self, cells: list[str] | Unread, field: str | None) -> object:
        """The cells that are not empty, by their column."""
        if isinstance(cells, Unread):
            return cells
        if len(cells) > len(self.heading):
            return Unread(f"{len(cells)} cells under {len(self.heading)} columns")
        return {k: v for k, v in zip(self.heading, cells, strict=False) if v or k == field}

    def objects(self) -> list[Any]:
        return [
            {"value": raw} if isinstance(cells, Unread) else {
                **dict(zip(self.heading, cells, strict=False)),
                **{f"column {i + 1}": cells[i] for i in range(len(self.heading), len(cells))},
            }
            for cells, raw in self._rows
        ]  # fmt: skip

    def take(self, at: Sequence[int]) -> Unit:
        return CsvRows(self.first, self.heading, [self._rows[i] for i in at], self.delimiter)

    def json_lines(self, labels: Sequence[tuple[str, bytes]], column: str) -> list[bytes]:
        return dumped(self.objects(), labels, column)

    def csv_lines(self, labels: Sequence[tuple[str, bytes]]) -> list[bytes]:
        """The label as the first cell: what a row lacks, or has too much of, cannot shift it."""
        return [
            f'"{label.decode().replace(chr(34), chr(34) * 2)}"{self.delimiter}{raw}'.encode()
            for (_, raw), (_, label) in zip(self._rows, labels, strict=True)
        ]


def dumped(objects: Iterable[Any], labels: Sequence[tuple[str, bytes]], column: str) -> list[bytes]:
    """Objects as lines of JSON with their labels."""
    key = json.dumps(column).encode()
    out = []
    for value, (_, label) in zip(objects, labels, strict=True):
        line = json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8", "backslashreplace")
        out.append(_with_label(line, "o" if value else "e", label, key, b"value"))
    return out


def _plain(value: object) -> object:
    """What JSON has no form for: bytes as Base64, dates in ISO's form, the rest as text."""
    if isinstance(value, bytes | bytearray | memoryview):
        import base64

        return base64.b64encode(bytes(value)).decode()
    told = getattr(value, "isoformat", None)
    return told() if told is not None else str(value)


# ---------------------------------------------------------------------------------------------------------- reading


def json_units(path: Path, column: str, text: bool = False) -> Iterator[JsonLines]:
    """The lines of a file; blank lines of JSON hold no record."""
    with opened(path) as file:
        lines = (line.rstrip(b"\r\n") for line in _lines(file))
        yield from _units(lines if text else (line for line in lines if line.strip()), column, text)


def value_units(path: Path, column: str) -> Iterator[JsonLines]:
    """The values of a file of JSON, an array or one after another, each as one line."""
    with opened(path) as file:
        yield from _units(_values(path, file), column, False)


def _units(lines: Iterable[bytes], column: str, text: bool) -> Iterator[JsonLines]:
    first, n_bytes, kept = 0, 0, cast(list[bytes], [])
    for line in lines:
        kept.append(line)
        n_bytes += len(line)
        if len(kept) >= UNIT_ROWS or n_bytes >= UNIT_BYTES:
            yield JsonLines(first, kept, column, text)
            first, n_bytes, kept = first + len(kept), 0, []
    if kept:
        yield JsonLines(first, kept, column, text)


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
            buffer, at = buffer[at:] + utf8.decode(piece, ended).translate(_ODD).removeprefix("\ufeff"), 0
            continue
        started = True
        yield _ENDS.sub(" ", buffer[at:end]).encode()
        at = end


def csv_units(path: Path, delimiter: str | None, column: str) -> Iterator[CsvRows]:
    """The rows of a table below its heading. Raises `LabelError` for a heading that names a column twice."""
    csv.field_size_limit(MAX_CELL)
    with opened(path) as file:
        seen: list[str] = []

        def lines() -> Iterator[str]:
            for line in _lines(file):
                seen.append(line.decode())
                yield seen[-1]

        source = lines()
        head = next(source, "")
        delimiter = delimiter or max(",;\t|", key=head.count)
        rows = csv.reader(_again(head, source), delimiter=delimiter, strict=True)
        heading: list[str] | None = None
        first, n_bytes, kept = 0, 0, cast(list[tuple[list[str] | Unread, str]], [])
        while True:
            try:
                cells: list[str] | Unread = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                cells = Unread(f"not valid CSV: {error}")
            raw = "".join(seen).rstrip("\r\n")
            seen.clear()
            if heading is None:
                heading = _heading(path, cells, column)
                yield CsvRows(0, heading, [], delimiter)
            elif cells:
                kept.append((cells, raw))
                n_bytes += len(raw)
                if len(kept) >= UNIT_ROWS or n_bytes >= UNIT_BYTES:
                    yield CsvRows(first, heading, kept, delimiter)
                    first, n_bytes, kept = first + len(kept), 0, []
        if kept and heading is not None:
            yield CsvRows(first, heading, kept, delimiter)


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _heading(path: Path, cells: list[str] | Unread, column: str) -> list[str]:
    if isinstance(cells, Unread):
        raise LabelError(f"{path}: {cells.error}")
    twice = next((name for i, name in enumerate(cells) if name in cells[:i]), None)
    if twice is not None:
        raise LabelError(f"{path}: the column '{twice}' is there twice")
    if column in cells:
        raise LabelError(f"{path}: there is a column '{column}' already: --column NAME puts the labels elsewhere")
    return cells
