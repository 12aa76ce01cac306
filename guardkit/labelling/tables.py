"""Tables: Parquet, Arrow files and data sets of `datasets`, read some rows at a time, written with their types."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guardkit.errors import LabelError, MissingExtra
from guardkit.labelling.inputs import Input
from guardkit.labelling.labels import Label, arrow_type
from guardkit.labelling.lines import dumped
from guardkit.labelling.rows import UNIT_BYTES, UNIT_ROWS, WHOLE, Reading, Row, Split, Unit, Unread, present
from guardkit.labelling.writers import Labels, Writer, dumps_all

MAX_DEPTH = 50  # levels of a column of a type that was found out; Arrow's own readers take 64, Parquet's 100
GROUP_ROWS = 1 << 16
GROUP_BYTES = 1 << 27
"""A row group of an output has at most so many rows and bytes, whatever the input's were: memory stays flat."""


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("Parquet and Arrow files", "label") from error
    return pyarrow


_PEEK_ROWS = 8


class TableUnit(Unit):
    """Rows of a table, as a record batch."""

    def __init__(self, first: int, batch: Any):
        self.first, self.batch = first, batch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def rows(self, reading: Reading, wanted: Sequence[int]) -> list[Row]:
        part = self.batch if len(wanted) == len(self) else self.batch.take(_arrow().array(wanted, "int64"))
        try:
            records = part.to_pylist()
        except Exception as error:  # a value that Python has none for; other rows of the unit may do
            records = [_one(part, i, error) for i in range(part.num_rows)]
        pairs = zip(wanted, records, strict=True)
        return [
            reading.row(self.first + at, record if isinstance(record, Unread) else present(record))
            for at, record in pairs
        ]

    def objects(self) -> list[Any]:
        columns = [_values(column) for column in self.batch.columns]
        return [dict(zip(self.batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def take(self, at: Sequence[int]) -> Unit:
        return TableUnit(self.first, self.batch.take(_arrow().array(at, "int64")))

    def json_lines(self, labels: Labels, column: str) -> list[bytes]:
        return dumped(self.objects(), labels, column)


def _values(column: Any) -> list[Any]:
    """A column as Python values; what Python has no value for, such as a time in the year 100,000, as text."""
    try:
        return list(column.to_pylist())
    except Exception:
        return [_value(column, i) for i in range(len(column))]


def _value(column: Any, at: int) -> Any:
    try:
        return column[at].as_py()
    except Exception:
        one = column.slice(at, 1)
        try:
            return one.cast("string").to_pylist()[0]
        except Exception:  # nested: as Arrow shows it
            return one.to_string(indent=0).strip()


def _one(batch: Any, at: int, error: Exception) -> Any:
    try:
        return batch.slice(at, 1).to_pylist()[0]
    except Exception:
        return Unread(f"{type(error).__name__}: {error}")


# ---------------------------------------------------------------------------------------------------------- reading


def table_units(
    given: Input, path: Path, column: str, field: str | None, judged: bool, start: Split
) -> Iterator[TableUnit]:
    """The rows of a table. judged: only the columns that may hold text, of `field` the one that it begins with. Raises
    `LabelError`."""
    pa = _arrow()
    try:
        schema, batches, rows_at_once = _open(pa, given.format, path, given.dataset, start.offset)
        names = _columns(pa, path, schema, column, field, judged)
        rows = None if given.format == "arrow" and given.dataset is None else n_rows(given, path)
        first = start.first
        for batch in batches(names if judged else None):
            for at in range(0, batch.num_rows, rows_at_once):
                part = batch.slice(at, rows_at_once)
                if part.num_rows:
                    unit = TableUnit(first, part)
                    first += part.num_rows
                    unit.share = first / rows if rows else 0.0
                    yield unit
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise LabelError(f"{path}: cannot be read: {error}") from error


def _open(pa: Any, form: str, path: Path, dataset: Any, group: int = 0) -> tuple[Any, Any, int]:
    """A table's schema, a function from columns to its batches (of Parquet from a row group on), a unit's rows."""
    if dataset is not None:
        table = dataset.with_format("arrow")

        def of_dataset(names: Sequence[str] | None) -> Iterator[Any]:
            chosen = table if names is None else table.select_columns(list(names))
            for part in chosen.iter(UNIT_ROWS):
                yield from part.combine_chunks().to_batches()

        return dataset.features.arrow_schema, of_dataset, UNIT_ROWS
    if form == "parquet":
        # Pages are read as they are needed: a row group may be larger than memory.
        file = pa.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        at_once = _rows_at_once(file)

        def of_parquet(names: Sequence[str] | None) -> Iterator[Any]:
            groups = range(group, file.num_row_groups)
            yield from file.iter_batches(at_once, list(groups), None if names is None else list(names))

        return file.schema_arrow, of_parquet, at_once
    source = pa.memory_map(str(path)) if path.stat().st_size else pa.BufferReader(b"")
    try:
        reader = pa.ipc.open_file(source)
        stored = (reader.get_batch(i) for i in range(reader.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
        reader = pa.ipc.open_stream(source)
        stored = iter(reader)

    def of_arrow(names: Sequence[str] | None) -> Iterator[Any]:
        for batch in stored:
            yield batch if names is None else batch.select(list(names))

    return reader.schema, of_arrow, UNIT_ROWS


def _rows_at_once(file: Any) -> int:
    """How many rows of a Parquet file are a unit: by the bytes that it tells of, and by its first rows, since of texts
    that repeat themselves it tells of only one."""
    told = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
    size = told / max(file.metadata.num_rows, 1)
    first = next((batch for batch in file.iter_batches(_PEEK_ROWS) if batch.num_rows), None)
    if first is not None:
        size = max(size, first.nbytes / first.num_rows)
    return max(1, min(UNIT_ROWS, int(UNIT_BYTES / max(size, 1.0))))


def group_sizes(path: Path) -> list[int]:
    """The rows of each row group of a Parquet file. Raises `LabelError`."""
    pa = _arrow()
    try:
        found = pa.parquet.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise LabelError(f"{path}: cannot be read: {error}") from error
    return [int(found.row_group(i).num_rows) for i in range(found.num_row_groups)]


def schema_of(given: Input, path: Path) -> Any:
    return _open(_arrow(), given.format, path, given.dataset)[0]


def n_rows(given: Input, path: Path) -> int:
    """How many rows there are, without reading them where the file says it."""
    if given.dataset is not None:
        return int(given.dataset.num_rows)
    if given.format == "parquet":
        return sum(group_sizes(path))
    return sum(len(unit) for unit in table_units(given, path, "", None, False, WHOLE))


def _columns(pa: Any, path: Path, schema: Any, column: str, field: str | None, judged: bool) -> list[str]:
    names = list(schema.names)
    twice = next((name for name, n in Counter(names).items() if n > 1), None)
    if twice is not None:
        raise LabelError(f"{path}: the column '{twice}' is there twice")
    if column in names:
        raise LabelError(f"{path}: there is a column '{column}' already: --column NAME puts the labels elsewhere")
    if not judged:
        return names
    if field is not None:
        wanted = field if field in names else field.partition(".")[0]
        if wanted not in names:
            raise LabelError(f"{path}: no column '{wanted}'; the columns are {', '.join(names)}"[:500])
        return [wanted]
    kept = [name for name in names if not _is_plain(pa.types, schema.field(name).type)]
    return kept or names[:1]


def _is_plain(types: Any, kind: Any) -> bool:
    """Whether a column is of times or decimals: there is no text in them, and Python has not all their values."""
    return bool(types.is_temporal(kind) or types.is_decimal(kind))


# ---------------------------------------------------------------------------------------------------------- writing


@contextmanager
def table_writer(given: Input, form: str, path: Path, column: str, source: Path) -> Iterator[Writer]:
    """A writer of Parquet or Arrow. Rows that come from no table get the types that fit all of them."""
    pa = _arrow()
    if given.format in ("parquet", "arrow"):
        schema, mixed = schema_of(given, source), frozenset[str]()
    else:
        schema, mixed = _inferred(pa, given, source, column)
    labelled = schema.append(pa.field(column, arrow_type()))
    with _writable(pa, given, form):
        if form == "parquet":
            opened = pa.parquet.ParquetWriter(path, labelled, compression="zstd")
        else:
            opened = pa.ipc.new_stream(str(path), labelled)
    writer = _Tables(pa, opened, schema, labelled, mixed, form == "parquet")
    with _writable(pa, given, form):
        try:
            yield writer
            writer.flush()
        finally:
            opened.close()


@contextmanager
def _writable(pa: Any, given: Input, form: str) -> Iterator[None]:
    """Errors of types that a format has no place for, with the input's name."""
    try:
        yield
    except pa.ArrowException as error:
        other = "arrow or jsonl" if form == "parquet" else "jsonl"
        raise LabelError(f"{given.path}: cannot be written as {form}: {error}; take --format {other}") from error


class _Tables(Writer):
    def __init__(self, pa: Any, opened: Any, schema: Any, labelled: Any, mixed: frozenset[str], grouped: bool):
        self._pa, self._opened, self._schema, self._labelled = pa, opened, schema, labelled
        self._mixed, self._grouped = mixed, grouped
        self._waiting: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, unit: Unit, labels: Labels) -> None:
        if not len(unit):
            return
        batch = unit.batch if isinstance(unit, TableUnit) else self._batch(unit.objects())
        column = label_array([json.loads(label) for _, label in labels])
        batch = self._pa.record_batch([*batch.columns, column], schema=self._labelled)
        if not self._grouped:
            self._opened.write_batch(batch)
            return
        if self._waiting and (self._rows + batch.num_rows > GROUP_ROWS or self._bytes + batch.nbytes > GROUP_BYTES):
            self.flush()
        self._waiting.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes

    def flush(self) -> None:
        """Write what waits as a row group."""
        if self._waiting:
            table = self._pa.Table.from_batches(self._waiting, schema=self._labelled)
            self._opened.write_table(table, row_group_size=GROUP_ROWS)
        self._waiting, self._rows, self._bytes = [], 0, 0

    def _batch(self, objects: Sequence[Any]) -> Any:
        columns = []
        for at in self._schema:
            values = [o.get(at.name) for o in objects]
            columns.append(self._pa.array(dumps_all(values) if at.name in self._mixed else values, at.type))
        return self._pa.record_batch(columns, schema=self._schema)


def label_array(labels: Sequence[Label]) -> Any:
    """Labels as a column of `arrow_type`."""
    return _arrow().array([{**label, "scores": label["scores"] or None} for label in labels], arrow_type())


def _inferred(pa: Any, given: Input, source: Path, column: str) -> tuple[Any, frozenset[str]]:
    """The types that fit all rows of lines, and the columns that no type fits: they become JSON texts."""
    found: dict[str, Any] = {}
    mixed: set[str] = set()
    for unit in given.units(source, column):
        objects = unit.objects()
        for name in dict.fromkeys(name for o in objects for name in o):
            if name in mixed:
                continue
            known = found.setdefault(name, pa.null())
            try:
                kind = pa.array([o.get(name) for o in objects]).type
                merged = pa.unify_schemas(
                    [pa.schema([(name, known)]), pa.schema([(name, kind)])], promote_options="permissive"
                )
                found[name] = merged.field(0).type
                if _depth(found[name]) > MAX_DEPTH:
                    mixed.add(name)
            except (pa.ArrowException, TypeError, OverflowError, RecursionError):
                mixed.add(name)
    mixed |= {name for name, kind in found.items() if name not in mixed and _holds_nothing(pa.types, kind)}
    found = {name: pa.string() if name in mixed or pa.types.is_null(kind) else kind for name, kind in found.items()}
    return pa.schema(list(found.items())), frozenset(mixed)


def _depth(kind: Any) -> int:
    """Levels of a type, as Parquet counts them."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return 1 + max(map(_depth, inner), default=0) + (1 if hasattr(kind, "value_type") else 0)


def _holds_nothing(types: Any, kind: Any) -> bool:
    """Whether an object without a field is in a type, which Parquet cannot hold."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return bool(types.is_struct(kind) and not inner) or any(_holds_nothing(types, one) for one in inner)
