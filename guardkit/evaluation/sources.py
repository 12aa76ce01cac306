"""Where rows come from: files (JSON lines, JSON, CSV, TSV, Parquet), or the `datasets` library. Read as they come."""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from guardkit.errors import EvaluationError, MissingExtra
from guardkit.evaluation.rows import Row, dig, plain, row_of
from guardkit.evaluation.specs import DatasetSpec, Fields
from guardkit.reading.encodings import COMPRESSED, MAX_RECORD, TOO_LONG, NotText, text_chunks
from guardkit.reading.json_values import JsonValues
from guardkit.reading.jsontext import parse

_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
ENDINGS = (*(kind + packed for kind in _KINDS for packed in ("", *COMPRESSED)), ".parquet")
KNOWN = f"{', '.join(_KINDS)} (also {', '.join(COMPRESSED)}), .parquet"
_PARQUET_ROWS = 1024
_CELL = 1 << 24  # characters: a quote that is never closed must not swallow the file


@dataclass(frozen=True)
class Source:
    """Labelled rows under a name. path: a local file; without it the rows come from the spec's hub."""

    name: str
    spec: DatasetSpec | None = None
    path: Path | None = None
    fields: Fields = field(default_factory=Fields)
    limit: int | None = None
    """Of rows; records that the set leaves out do not count."""

    @property
    def title(self) -> str:
        return self.spec.title if self.spec else self.name

    @property
    def metric(self) -> str:
        return self.spec.metric if self.spec else "f1"

    @property
    def licence(self) -> str:
        return self.spec.licence if self.spec else ""

    def rows(self) -> Iterator[Row]:
        """The rows in order. Raises `EvaluationError` or OSError where they cannot be read."""
        n = 0
        for row in self._local() if self.path is not None else self._hub():
            yield row
            n += not row.left_out
            if n == self.limit:
                return

    def _local(self) -> Iterator[Row]:
        assert self.path is not None
        number = 0
        try:
            for record in read_records(self.path):
                number += 1
                if isinstance(record, Unread):
                    yield Row(number, None, error=record.error)
                elif self.spec is not None and self.spec.hub is not None and is_original(record, self.spec):
                    yield from _mapped(self.spec, number, record)
                else:
                    yield row_of(number, record, self.fields, self.spec.kind if self.spec else None)
        except (NotText, ValueError) as error:
            yield Row(number + 1, None, error=f"the file is damaged from here on: {error}")

    def _hub(self) -> Iterator[Row]:
        spec = self._pinned
        for number, record in enumerate(hub_records(spec), 1):
            yield from _mapped(spec, number, record)

    @functools.cached_property
    def _pinned(self) -> DatasetSpec:
        """The spec at one revision, looked up once: what is reported is what was loaded."""
        assert self.spec is not None
        assert self.spec.hub is not None
        return replace(self.spec, hub=replace(self.spec.hub, revision=hub_revision(self.spec)))

    def revision(self) -> str:
        """What was read: the file's SHA-256, or the hub's revision; how it was read, and how many rows of it."""
        table = f", table version {self.spec.version}" if self.spec else ""
        part = f", first {self.limit} rows" if self.limit else ""
        return self._revision() + table + part

    def _revision(self) -> str:
        if self.path is not None:
            digest = hashlib.sha256()
            with self.path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            return f"sha256:{digest.hexdigest()[:16]}"
        assert self._pinned.hub is not None
        return self._pinned.hub.revision


def is_original(record: object, spec: DatasetSpec) -> bool:
    """Whether a record is in the columns of the set's authors: it has their texts, and their labels or at least none
    that would be guardkit's own."""
    if not isinstance(record, Mapping) or "severity" in record or record.keys().isdisjoint(spec.text_columns):
        return False
    return not record.keys().isdisjoint(spec.label_columns) or record.keys().isdisjoint(("label", "refusal"))


def _mapped(spec: DatasetSpec, number: int, record: object) -> Iterator[Row]:
    """The rows of a record in the columns of its authors; one without an item where the spec leaves it out."""
    if any(plain(dig(record, column)) not in values for column, values in spec.where.items()):
        yield Row(number, None, left_out=True)
        return
    for fields in spec.mappings:
        yield row_of(number, record, fields, spec.kind)


def find(spec: DatasetSpec, folder: Path | None, limit: int | None = None) -> Source | None:
    """The source of a named set: its file in `folder`, else the hub where `datasets` is installed, else None."""
    if folder is not None and spec.file is not None:
        for ending in ENDINGS:
            path = folder / (spec.file + ending)
            if path.is_file():
                return Source(spec.name, spec, path, spec.local, limit)
    if spec.hub is not None and importlib.util.find_spec("datasets") is not None:
        return Source(spec.name, spec, None, Fields(), limit)
    return None


# ------------------------------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class Unread:
    """A record that could not be parsed."""

    error: str


def stem(path: Path) -> str:
    """The file's name without its known ending."""
    name = _unpacked(path.name)
    return name.rpartition(".")[0] or name


def _unpacked(name: str) -> str:
    """A file's name without the ending of its compression."""
    return next((name.removesuffix(packed) for packed in COMPRESSED if name.endswith(packed)), name)


def read_records(path: Path) -> Iterator[Mapping[str, Any] | object]:
    """The records of a file; `Unread` for one that does not parse."""
    name = _unpacked(path.name)
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith(".json"):
        return _json(path)
    if name.endswith((".jsonl", ".ndjson")):
        return _jsonl(path)
    if name.endswith((".csv", ".tsv")):
        return _table(path, "\t" if name.endswith(".tsv") else ",")
    raise EvaluationError(f"{path}: not a kind of file that is known; known: {KNOWN}")


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, whatever its compression and Unicode encoding."""
    head: list[bytes] = []
    n_head = 0
    with _open(path) as file:
        for data in text_chunks(iter(functools.partial(file.read, 1 << 16), b"")):
            first, *lines = data.split(b"\n")
            head.append(first)
            n_head += len(first)
            if n_head > MAX_RECORD:
                raise NotText(f"a line is {TOO_LONG}")
            if lines:
                for line in (b"".join(head), *lines[:-1]):
                    yield f"{line.decode('utf-8', 'replace')}\n"
                head, n_head = [lines[-1]], len(lines[-1])
    if last := b"".join(head):
        yield last.decode("utf-8", "replace")


def _jsonl(path: Path) -> Iterator[object]:
    for line in _lines(path):
        if line.strip():
            yield _parsed(line)


def _json(path: Path) -> Iterator[object]:
    values = JsonValues()
    for line in _lines(path):
        for _, text in values.feed(line):
            yield _parsed(text)
    for _, text in values.finish():
        yield _parsed(text)
    if values.is_cut_off:
        yield Unread("not valid JSON: it ends too early")


def _parsed(text: str) -> object:
    try:
        return parse(text)
    except ValueError as error:
        return Unread(str(error))


def _table(path: Path, delimiter: str) -> Iterator[object]:
    csv.field_size_limit(_CELL)
    reader = csv.DictReader(_lines(path), delimiter=delimiter)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Unread(f"not valid CSV: {error}")
            continue
        yield {k: v for k, v in record.items() if k is not None and v != ""}


def _parquet(path: Path) -> Iterator[object]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra(f"{path} (Parquet)", "eval") from error
    for batch in parquet.ParquetFile(path).iter_batches(_PARQUET_ROWS):
        yield from batch.to_pylist()


# -------------------------------------------------------------------------------------------------------------- hub


def hub_records(spec: DatasetSpec) -> Iterator[Mapping[str, Any]]:
    """A set's records by the `datasets` library. Raises `EvaluationError` with the library's reason."""
    assert spec.hub is not None
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(f"the data set '{spec.name}'", "eval") from error
    hub = spec.hub
    try:
        if hub.url is not None:
            found = datasets.load_dataset("csv", data_files={hub.split: hub.url}, split=hub.split)
        else:
            found = datasets.load_dataset(hub.path, hub.name, revision=hub.revision, split=hub.split)
    except Exception as error:  # the library raises many kinds, its own and its HTTP client's
        raise EvaluationError(
            f"the data set '{spec.name}' ({hub.path or hub.url}) did not load: {type(error).__name__}: {error}. "
            f"Put {spec.file}.jsonl into a folder and name it with --data"
        ) from error
    return iter(found)


def hub_revision(spec: DatasetSpec) -> str:
    """The commit that a branch stands for now, where the hub tells; else the revision as it is written."""
    assert spec.hub is not None
    if spec.hub.path is None or len(spec.hub.revision) == 40:
        return spec.hub.revision
    try:
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(spec.hub.path, revision=spec.hub.revision).sha
    except Exception:  # offline, or not installed: the branch's name is all that is known
        return spec.hub.revision
    return str(commit or spec.hub.revision)
