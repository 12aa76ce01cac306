"""Outputs: an input's rows with their labels, in the input's own format or another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from guardkit.errors import LabelError
from guardkit.labelling.csv_rows import CsvRows
from guardkit.labelling.inputs import Input
from guardkit.labelling.packed import COMPRESSED, compressing
from guardkit.labelling.rows import Unit

OUTPUTS = ("jsonl", "csv", "parquet", "arrow")
Labels = Sequence[tuple[str, bytes]]
"""Of each row its form and its label's JSON."""


class Writer(ABC):
    """Takes units with their labels, in order."""

    @abstractmethod
    def write(self, unit: Unit, labels: Labels) -> None: ...


def output_format(given: Input, wanted: str | None) -> str:
    """The format of an input's output. Raises `LabelError` for one that the input cannot be written in."""
    own = {"json": "jsonl", "text": "jsonl", "tsv": "csv"}.get(given.format, given.format)
    if wanted == "csv" and own != "csv":
        raise LabelError(f"{given.path}: only CSV is written as CSV; take jsonl or parquet")
    return wanted or own


def output_name(given: Input, form: str) -> str:
    """The name of an input's output: its own where the format stays."""
    kept = form == given.format or (form == "csv" and given.format == "tsv")
    if kept:
        return given.name
    name = given.name.removesuffix(given.compression or "")
    head, dot, _ = name.rpartition(".")
    packed = given.compression if form == "jsonl" and given.compression else ""
    return f"{head if dot and '/' not in _ else name}.{form}{packed}"


@contextmanager
def open_writer(given: Input, form: str, path: Path, name: str, column: str, source: Path) -> Iterator[Writer]:
    """A writer of an input's rows to `path`. name: of the output, which tells the compression; source: the input as a
    file of this machine, for the types of columns."""
    if form in ("jsonl", "csv"):
        kind = next((k for ending, k in COMPRESSED.items() if name.lower().endswith(ending)), None)
        with path.open("wb") as raw, compressing(kind, raw) as file:
            yield _Csv(file, column) if form == "csv" else _JsonLines(file, column)
        return
    from guardkit.labelling.tables import table_writer

    with table_writer(given, form, path, column, source) as tables:
        yield tables


class _JsonLines(Writer):
    def __init__(self, file: IO[bytes], column: str):
        self._file, self._column = file, column

    def write(self, unit: Unit, labels: Labels) -> None:
        if labels:
            self._file.write(b"\n".join(unit.json_lines(labels, self._column)) + b"\n")


class _Csv(Writer):
    def __init__(self, file: IO[bytes], column: str):
        self._file, self._column = file, column
        self._has_heading = False

    def write(self, unit: Unit, labels: Labels) -> None:
        assert isinstance(unit, CsvRows)
        if not self._has_heading:
            self._has_heading = True
            self._file.write(_csv_line([self._column, *unit.heading], unit.delimiter))
        if labels:
            self._file.write(b"\n".join(unit.csv_lines(labels)) + b"\n")


def _csv_line(cells: Sequence[str], delimiter: str) -> bytes:
    import csv
    import io

    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerow(cells)
    return out.getvalue().encode()


def dumps_all(values: Sequence[Any]) -> list[str | None]:
    """Values as JSON texts, for a column of mixed types."""
    import json

    return [None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in values]
