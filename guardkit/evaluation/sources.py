"""Where rows come from: JSONL, CSV and Parquet files (also gzipped), or the `datasets` library. Read as they come."""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import importlib.util
import io
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

from guardkit.errors import EvaluationError, MissingExtra
from guardkit.evaluation.rows import Row, dig, plain, row_of
from guardkit.evaluation.specs import DatasetSpec, Fields
from guardkit.reading.jsontext import parse

ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
_PARQUET_ROWS = 1024


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
        except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
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
    name = path.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name


def read_records(path: Path) -> Iterator[Mapping[str, Any] | object]:
    """The records of a file; `Unread` for one that does not parse."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return _jsonl(path)
    if name.endswith(".csv"):
        return _csv(path)
    raise EvaluationError(f"{path}: not a kind of file that is known; known: {', '.join(ENDINGS)}")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb"))


def _jsonl(path: Path) -> Iterator[object]:
    with _open(path) as file:
        for line in file:
            text = line.decode("utf-8", "replace")
            if not text.strip():
                continue
            try:
                yield parse(text)
            except ValueError as error:
                yield Unread(str(error))


def _csv(path: Path) -> Iterator[object]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open(path) as file:
        reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", "replace", newline=""))
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
