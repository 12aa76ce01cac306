"""One record of a data set: what in it is judged, and the records of an input, some at a time.

A `Unit` is some rows of an input, in order, as they were read; each format has its own. A `Row` is what the guard gets
of one of them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from guardkit.messages import Message
from guardkit.reading.records import Judged, read_record
from guardkit.verdict import Stage

Item = str | list[Message]
WHICH = ("last", "prompt", "both")
UNIT_ROWS = 1024
UNIT_BYTES = 1 << 23
CHARS_PER_TOKEN = 4
BATCH_ROWS = 1024


@dataclass(frozen=True)
class Unread:
    """A record that could not be parsed, and why."""

    error: str


@dataclass(frozen=True)
class Reading:
    """How records are read. field, shape: as for `read_record`. which: what is judged of a record with a prompt and an
    answer: the last message ("last"), what it answers ("prompt"), or "both"."""

    field: str | None = None
    shape: str | None = None
    which: str = "last"

    def row(self, index: int, record: object, form: str = "o") -> Row:
        """The row of a record, which is a parsed value or `Unread`."""
        if isinstance(record, Unread):
            return Row(index, (), error=record.error, form=form)
        try:
            found = read_record(record, shape=self.shape, field=self.field, ignored=False)
        except Exception as error:  # whatever stands in a record, it is this row that is not judged
            return Row(index, (), error=str(error) or type(error).__name__, form=form)
        chosen = [pair for judged in found.judged for pair in _chosen(judged, self.which)]
        unique = dict(chosen)
        return Row(index, tuple(unique.values()), tuple(unique), form=form)


@dataclass(frozen=True, slots=True)
class Row:
    """What is judged of one record. index: 0-based in its input. items: never empty unless `error` says why. paths:
    where each stands in the record. form: what the input's format must know to write the record again."""

    index: int
    items: tuple[Item, ...]
    paths: tuple[str, ...] = ()
    error: str | None = None
    form: str = "o"

    @property
    def n_chars(self) -> int:
        return sum(len(i) if isinstance(i, str) else sum(len(m.said) + len(m.reasoning) for m in i) for i in self.items)


def _chosen(judged: Judged, which: str) -> list[tuple[str, Item]]:
    item, path = judged.item, judged.path
    if which == "last" or isinstance(item, str):
        return [(path, item)]
    answers = item[-1].stage is Stage.response
    before = list(item[:-1]) if answers else []
    if which == "prompt":
        return [("prompt", before)] if before else [(path, item)]
    return [*([("prompt", before)] if before else []), (path, item)]


def batches(
    units: Iterable[Sequence[Row]], n_rows: Callable[[], int], n_tokens: int | None = None
) -> Iterator[list[Row]]:
    """Rows in batches: of so many rows (asked for each batch), of so many tokens, and of what a unit may hold, where a
    single row has no more."""
    most = UNIT_BYTES if n_tokens is None else min(n_tokens * CHARS_PER_TOKEN, UNIT_BYTES)
    batch: list[Row] = []
    n_chars, wanted = 0, n_rows()
    for rows in units:
        for row in rows:
            size = row.n_chars
            if batch and (len(batch) >= wanted or n_chars + size > most):
                yield batch
                batch, n_chars, wanted = [], 0, n_rows()
            batch.append(row)
            n_chars += size
    if batch:
        yield batch


class Pace:
    """How many rows a batch has: few at first, then what takes two seconds, since what is under way when a run ends is
    judged again, and nothing is told before. most: never more."""

    FIRST_ROWS, LEAST_ROWS, BATCH_S = 32, 8, 2.0

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic):
        self._most, self._clock = most, clock
        self._rows = min(self.FIRST_ROWS, most)
        self._start = clock()

    def rows(self) -> int:
        """Of the next batch, which begins now."""
        self._start = self._clock()
        return self._rows

    def judged(self, n: int) -> None:
        """The batch, of `n` rows, is done."""
        seconds = max(self._clock() - self._start, 1e-6)
        wanted = int(n * self.BATCH_S / seconds)
        self._rows = min(self._most, max(self.LEAST_ROWS, min(wanted, 4 * self._rows)))


@dataclass(frozen=True)
class Split:
    """Rows from `first` to before `stop` (None: to the end). offset: where the first of them is: the byte of a file of
    lines, the row group of a Parquet file; 0 where an input is read from its beginning."""

    first: int = 0
    stop: int | None = None
    offset: int = 0

    def __contains__(self, index: int) -> bool:
        return index >= self.first and (self.stop is None or index < self.stop)


WHOLE = Split()


class Unit(ABC):
    """Some rows of an input, in order. first: the index of the first of them; share: how much of the input was read
    when this was."""

    first: int
    share: float = 0.0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, reading: Reading, wanted: Sequence[int]) -> list[Row]:
        """What is judged in the rows at these places of the unit."""

    @abstractmethod
    def objects(self) -> list[Any]:
        """The rows as Python values; what is no object as ``{"value": ...}``."""

    @abstractmethod
    def take(self, at: Sequence[int]) -> Unit:
        """The rows at these places of the unit, as a unit."""

    @abstractmethod
    def json_lines(self, labels: Sequence[tuple[str, bytes]], column: str) -> list[bytes]:
        """Each row as a line of JSON, without its end, with its label (form and JSON) in `column`."""


def present(value: Any) -> Any:
    """A record of a table without what is null: a table has no other way to leave a field out."""
    if isinstance(value, dict):
        return {k: present(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [present(v) for v in value]
    return value


def wrapped(record: object) -> Mapping[str, Any]:
    """A record as an object."""
    return record if isinstance(record, Mapping) else {"value": record}


Format = Literal["jsonl", "json", "text", "csv", "tsv", "parquet", "arrow"]
FORMATS: tuple[Format, ...] = ("jsonl", "json", "text", "csv", "tsv", "parquet", "arrow")
