"""The formats of an input: which it is, and its records.

Said by ``--format``, else by the name of the file, else found out from its beginning. Everything streams: the records
of each read, as they come.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from guardkit.reading.encodings import COMPRESSED, MAX_RECORD, TOO_LONG, decoded_odd
from guardkit.reading.values import is_name
from guardkit_cli.events import Answers, are_events, is_piece_line, piece_in_line, records_of_events
from guardkit_cli.records import Record

if TYPE_CHECKING:
    from guardkit_cli.records import Reader, Source

FORMATS = ("text", "jsonl", "json", "csv", "tsv", "sse")
A_PIECE = "a piece of a streamed answer: --format sse puts the pieces together"
MAX_FIELD = 1 << 24  # characters of a cell: a quote that is never closed must not swallow the file
MAX_JOINED = 1 << 20  # characters of a joined record
_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".sse": "sse",
}
_ARRAY = re.compile(r'\[\s*(?:\{\s*(?:"|\}|$)|$)')
_SEPARATOR = re.compile(r"sep=(.)\r?\n?")
"""The line that tells Excel what stands between cells."""
_GOES_ON = re.compile(
    r"[ \t]+\S|[})\]]|Caused by:|Suppressed:|During handling of the above|The above exception was the direct|Traceback "
)
_MESSAGE = re.compile(r'\{\s*"(?:role|from)"\s*:')
_EXCEPTION = re.compile(r"[\w.]+(?:Error|Exception|Warning|Interrupt|Exit|Group)?(?::|$)")


def format_of(name: str) -> str | None:
    """The format that a file's name tells, compressed or not."""
    name = name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), None)


def records_of(reader: Reader, source: Source) -> Iterator[list[Record]]:
    """The records of each read of an input, of whatever format."""
    named = reader.format or format_of(source.name)
    if reader.join:
        yield from _joined(reader, source)
    elif named in ("csv", "tsv"):
        yield from _table(reader, source, named)
    elif named == "json":
        yield from _values(reader, _texts(source.chunks()), source.name)
    elif named == "jsonl" or (named is None and reader.jsonl):
        yield from _json_lines(reader, source.lines(), source.name)
    elif named == "sse":
        yield from records_of_events(reader, source.lines(), source.name)
    elif named == "text":
        yield from reader.plain_lines(source)
    else:
        yield from _found_out(reader, source)


def _found_out(reader: Reader, source: Source) -> Iterator[list[Record]]:
    """By the first line: JSON lines where it is an object, JSON where an array or an object begins; else texts."""
    lines = source.lines()
    first = next(lines, None)
    if first is None:
        return
    told = next((line for line in first if line.strip()), b"")[: 1 << 20].decode(errors="replace").strip()
    if told.startswith("{") and _is_object(told):
        source.recognised.append("JSON lines")
        yield from _json_lines(reader, chain([first], lines), source.name, or_text=True)
    elif _ARRAY.match(told) or told == "{":
        source.recognised.append("JSON")
        pieces = (b"\n".join(part) + b"\n" for part in chain([first], lines))
        yield from _values(reader, _texts(pieces), source.name)
    elif are_events(first):
        source.recognised.append("server-sent events")
        yield from records_of_events(reader, chain([first], lines), source.name)
    elif reader.reads_lines_of(source.name):
        from guardkit_cli.passages import with_passages

        yield from with_passages(_text_lines(reader, chain([first], lines), source.name), source.name)
    else:
        yield from _text_lines(reader, chain([first], lines), source.name)


def _text_lines(reader: Reader, parts: Iterable[list[bytes]], name: str) -> Iterator[list[Record]]:
    """Each line is a text. Pieces of answers that stand in them are put together, too."""
    from guardkit_cli.passages import Partials

    answers, partials = Answers(reader, name), Partials(name)
    number = 0
    for part in parts:
        records: list[Record] = []
        for raw in part:
            number += 1
            record = reader.text(number, raw[:-1] if raw.endswith(b"\r") else raw, name)
            if raw.startswith(b"data:") and is_piece_line(raw):
                record = replace(record, item=None, error=A_PIECE)
            records.append(record)
            records += partials.text(record)
            if record.item is not None and (piece := piece_in_line(record.text)):
                records += answers.take(piece, number) or []
        yield records
    if held := answers.end() + partials.end():
        yield held


def _is_object(text: str) -> bool:
    import json

    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


# ------------------------------------------------------------------------------------------------------------ JSON


def _json_lines(
    reader: Reader, parts: Iterable[list[bytes]], name: str, or_text: bool = False
) -> Iterator[list[Record]]:
    from guardkit_cli.passages import Partials

    answers, partials = Answers(reader, name), Partials(name)
    number = 0
    for lines in parts:
        records: list[Record] = []
        for raw in lines:
            number += 1
            text = reader.text(number, raw[:-1] if raw.endswith(b"\r") else raw, name)
            if not text.text.strip():
                if or_text:
                    records.append(text)
                else:
                    reader.n_blank += 1
            elif text.error:
                records.append(text)
            elif (taken := answers.take(text.text, number)) is not None:
                records += taken
            else:
                records.append(reader.json(text.text, number, name, or_text=or_text))
                records += [] if reader.outputs else partials.json(text.text, number)
        yield records
    if held := answers.end() + partials.end():
        yield held


def _values(reader: Reader, texts: Iterable[str], name: str) -> Iterator[list[Record]]:
    from guardkit.reading.json_values import JsonValues

    values, answers = JsonValues(), Answers(reader, name)
    chat: list[str] | None = None  # for traces, the messages of one chat are one record
    for text in texts:
        found = values.feed(text)
        if values.n_held > MAX_RECORD:
            raise OSError(f"a JSON value is {TOO_LONG}")
        if chat is None and found and reader.outputs and _MESSAGE.match(found[0][1]):
            chat = []
        if chat is None:
            yield [record for line, value in found for record in _value(reader, answers, value, line, name)]
        else:
            chat += [value for _, value in found]
    found = values.finish()
    if chat is not None:
        found = [(1, f"[{','.join([*chat, *(value for _, value in found)])}]")]
    records = [record for line, value in found for record in _value(reader, answers, value, line, name)]
    records += answers.end()
    if values.is_cut_off and not any(record.error for record in records):
        records.append(Record(1, None, "", name, "not valid JSON: it ends too early"))
    yield records


def _value(reader: Reader, answers: Answers, text: str, line: int, name: str) -> list[Record]:
    text = reader.decoder.settle(text)
    if error := reader.unread():
        return [Record(line, None, text, name, error)]
    taken = answers.take(text, line)
    return [reader.json(text, line, name)] if taken is None else taken


def _texts(chunks: Iterable[bytes]) -> Iterator[str]:
    """Chunks as text; bytes that are no UTF-8 are escaped until it is known what record they are in."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for data in chunks:
        yield decoder.decode(data)
    yield decoder.decode(b"", True)


# ---------------------------------------------------------------------------------------------------------- tables


def _table(reader: Reader, source: Source, kind: str) -> Iterator[list[Record]]:
    """Rows with a heading; each is an object of its cells that are not empty."""
    csv.field_size_limit(MAX_FIELD)
    lines = _Lines(_texts(source.chunks()))
    first = next(lines, "")
    n_before = 0
    while first and not first.strip():
        first, n_before = next(lines, ""), n_before + 1
    if told := _SEPARATOR.fullmatch(first):
        first, n_before = next(lines, ""), n_before + 1
    if not first.strip():
        return
    delimiter = "\t" if kind == "tsv" else told[1] if told else max(",;\t|", key=first.count)
    rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    heading: list[str] | None = None
    n_rows = 0
    while True:
        start = rows.line_num + 1 + n_before
        try:
            cells = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            what = (
                "a quote is never closed: nothing from here on was judged"
                if "end of data" in str(error)
                else str(error)
            )
            yield [Record(start, None, "", source.name, f"not valid {kind.upper()}: {what}")]
            continue
        if heading is None:
            heading = [reader.decoder.settle(cell) or f"column {i}" for i, cell in enumerate(cells, 1)]
            if reader.field is not None and reader.field not in heading:
                raise OSError(f"no column '{reader.field}'; the columns are {', '.join(heading)}"[:500])
        elif cells:
            n_rows += 1
            yield [_row(reader, heading, cells, start, source.name)]
    if heading and not n_rows and not all(map(is_name, heading)):  # a table of one row, and no heading
        yield [_row(reader, [f"column {i}" for i in range(1, len(heading) + 1)], heading, 1 + n_before, source.name)]


def _row(reader: Reader, heading: list[str], cells: list[str], line: int, name: str) -> Record:
    shown = " ".join(cells)
    if not shown.isascii():
        shown = reader.decoder.settle(shown)
        if error := reader.unread():
            return Record(line, None, shown, name, error)
        cells = [decoded_odd(cell) for cell in cells]
    names = [*heading, *(f"column {i + 1}" for i in range(len(heading), len(cells)))]
    cell = dict(zip(names, cells, strict=False))
    if len(cell) < min(len(names), len(cells)):
        return Record(line, None, shown, name, "a column of the heading is there twice")
    try:
        data = {key: text for key, text in cell.items() if text or key == reader.field}
        if not data:
            return Record(line, "", "", name)
        return reader.value(data, line, name)
    except ValueError as error:
        return Record(line, None, shown, name, str(error))


class _Lines:
    """The lines of texts, with their ends, as the csv module takes them."""

    def __init__(self, texts: Iterable[str]):
        self._texts = iter(texts)
        self._lines: Iterator[str] = iter(())
        self._head: list[str] = []
        self._n_head = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        while True:
            for line in self._lines:
                if line.endswith("\n"):
                    line, self._head, self._n_head = "".join((*self._head, line)), [], 0
                    return line
                self._head.append(line)
                self._n_head += len(line)
                if self._n_head > MAX_RECORD:
                    raise OSError(f"a line is {TOO_LONG}")
            text = next(self._texts, None)
            if text is None:
                line, self._head = "".join(self._head), []
                if line:
                    return line
                raise StopIteration
            self._lines = io.StringIO(text, newline="\n")


# ------------------------------------------------------------------------------------------------- multi-line texts


def _joined(reader: Reader, source: Source) -> Iterator[list[Record]]:
    """Lines with those that go on from them: indented ones, those after a backslash, tracebacks of Python and Java.

    A record is out when the next begins.
    """
    held: list[str] = []
    start = n_chars = 0
    traceback = ""  # "inside" one, or "ended" by the exception's own line
    for records in reader.plain_lines(source):
        out: list[Record] = []
        for record in records:
            text = record.text
            if record.item is None:  # an encoding that is not known
                out += [*_record(held, start, source.name), record]
                held = []
                continue
            named = traceback == "inside" and _EXCEPTION.match(text) is not None
            goes_on = held and (
                held[-1].endswith("\\") or _GOES_ON.match(text) or (traceback and not text.strip()) or named
            )
            if goes_on and n_chars < MAX_JOINED:
                held.append(text)
                n_chars += len(text)
                traceback = "ended" if named and not _GOES_ON.match(text) else traceback
            else:
                out += _record(held, start, source.name)
                held, start, n_chars, traceback = [text], record.line, len(text), ""
            if "Traceback (most recent call last)" in text:
                traceback = "inside"
        yield out
    yield _record(held, start, source.name)


def _record(lines: list[str], start: int, name: str) -> list[Record]:
    text = "\n".join(lines)
    return [Record(start, text, text, name)] if lines else []
