"""Tables of text, CSV and TSV: a row is kept to the byte, its label goes before its first cell."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from guardkit.errors import LabelError
from guardkit.labelling.lines import dumped
from guardkit.labelling.packed import Misread, lines_of, opened
from guardkit.labelling.rows import UNIT_BYTES, UNIT_ROWS, Reading, Row, Unit, Unread

MAX_CELL = 1 << 24  # characters: a quote that is never closed must not swallow the file


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


def csv_units(path: Path, delimiter: str | None, column: str) -> Iterator[CsvRows]:
    """The rows of a table below its heading. Raises `LabelError` for a heading that names a column twice."""
    csv.field_size_limit(MAX_CELL)
    with opened(path) as (file, read):
        seen: list[str] = []
        misread: list[str] = []

        def lines() -> Iterator[str]:
            for line in lines_of(file):
                seen.append(line.decode())
                misread.extend([line.ERROR] if isinstance(line, Misread) else ())
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
            cells = Unread(misread[0]) if misread else cells
            misread.clear()
            raw = "".join(seen).rstrip("\r\n")
            seen.clear()
            if heading is None:
                heading = _heading(path, cells, column)
                yield CsvRows(0, heading, [], delimiter)
            elif cells:
                kept.append((cells, raw))
                n_bytes += len(raw)
                if len(kept) >= UNIT_ROWS or n_bytes >= UNIT_BYTES:
                    unit = CsvRows(first, heading, kept, delimiter)
                    unit.share = read()
                    yield unit
                    first, n_bytes, kept = first + len(kept), 0, []
        if kept and heading is not None:
            unit = CsvRows(first, heading, kept, delimiter)
            unit.share = 1.0
            yield unit


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _heading(path: Path, cells: list[str] | Unread, column: str) -> list[str]:
    if isinstance(cells, Unread):
        raise LabelError(f"{path}: {cells.error}")
    twice = next((name for name, n in Counter(cells).items() if n > 1), None)
    if twice is not None:
        raise LabelError(f"{path}: the column '{twice}' is there twice")
    if column in cells:
        raise LabelError(f"{path}: there is a column '{column}' already: --column NAME puts the labels elsewhere")
    return cells
