"""The local engine: a thread reads ahead, the guard judges in batches, labels are kept in blocks, outputs are written.

Each input is read twice: its rows are judged and their labels kept; then each row is written with its label, in order,
to a file that is there whole or not at all. So an output is a function of the input and the labels, however often the
run was killed. What an input holds is known by its SHA-256, before and after.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from guardkit.errors import LabelError
from guardkit.labelling.choosing import Chosen, Sample, Where
from guardkit.labelling.inputs import KEPT, Input, sha256_of
from guardkit.labelling.judging import Judge
from guardkit.labelling.labels import COLUMN, Label, Tally
from guardkit.labelling.progress import Block, Kept, LabelFile, Progress, Ranges
from guardkit.labelling.rows import Reading, Row, Unit
from guardkit.labelling.store import Folder, Store, is_url, store_at
from guardkit.labelling.writers import OUTPUTS, Writer, open_writer, output_format, output_name

BATCH_ROWS = 1024
CHARS_PER_TOKEN = 4
BLOCK_ROWS = 4096
BLOCK_S = 10.0  # what a kill can cost
AHEAD = 4  # units that wait for the guard
_T = TypeVar("_T")
_END = object()


@dataclass(frozen=True)
class Settings:
    """How a data set is labelled, besides the guard. column: of the labels. format: of outputs, None keeps the
    input's. where, dropped: which rows stay in the output, and the store for the others. sample: only these rows.
    retry_errors: judge again what was not judged. batch_rows, batch_tokens: of one batch, at most (a token counts as 4
    characters)."""

    reading: Reading = field(default_factory=Reading)
    column: str = COLUMN
    format: str | None = None
    where: Where | None = None
    sample: Sample | None = None
    retry_errors: bool = False
    batch_rows: int = BATCH_ROWS
    batch_tokens: int | None = None


@dataclass(frozen=True)
class Place:
    """Where outputs go: a store, the folder in it where progress is kept, and for a single file its name."""

    store: Store
    kept: str
    file: str | None = None

    @classmethod
    def of(cls, out: str, inputs: Sequence[Input]) -> Place:
        """`out` is a file where there is one input and its name ends as a file of data does; else a folder."""
        from guardkit.labelling.inputs import format_of

        base = out.rstrip("/").rpartition("/")[2]
        is_folder = out.endswith("/") or (not is_url(out) and Path(out).is_dir())
        if is_folder or format_of(base)[0] is None:
            return cls(store_at(out.rstrip("/") or "/"), KEPT)
        if len(inputs) != 1:
            raise LabelError(f"--out {out}: {len(inputs)} inputs need a folder, not one file")
        head = out[: -len(base)].rstrip("/") or ("/" if out.startswith("/") else ".")
        return cls(store_at(head), f"{base}{KEPT}", base)

    @property
    def format(self) -> str | None:
        """What the name of a single output file says."""
        from guardkit.labelling.inputs import format_of

        kind = format_of(self.file)[0] if self.file else None
        if kind is None:
            return None
        kind_: str = {"json": "jsonl", "tsv": "csv"}.get(kind, kind)
        if kind_ not in OUTPUTS:
            raise LabelError(f"--out {self.file}: outputs are {', '.join(OUTPUTS)}")
        return kind_


@dataclass(frozen=True)
class Job:
    """One input with its output. name: of the output."""

    given: Input
    name: str
    format: str
    progress: Progress


def jobs_of(inputs: Sequence[Input], place: Place, wanted: str | None) -> list[Job]:
    """Raises `LabelError` for an output that two inputs would have, or that is an input."""
    wanted = wanted or place.format
    found: dict[str, Job] = {}
    for given in inputs:
        form = output_format(given, wanted)
        name = place.file or output_name(given, form)
        if name in found:
            name = f"{given.name}.{form}"  # a.jsonl and a.csv, both as Parquet
        if name in found:
            raise LabelError(f"{given.path} and {found[name].given.path} would both be written to {name}")
        if isinstance(place.store, Folder) and not is_url(given.path) and given.dataset is None:
            target = place.store.root / name
            if target.exists() and Path(given.path).exists() and target.samefile(given.path):
                raise LabelError(f"--out {place.store}: {given.path} would be written over; take another folder")
        found[name] = Job(given, name, form, Progress(place.store, place.kept, name))
    return list(found.values())


def counted(sample: Sample, jobs: Sequence[Job], column: str) -> Sample:
    """A sample with the counts that a number of rows is drawn from."""
    if sample.number is None:
        return sample
    return replace(sample, counts={job.name: n_rows(job, column) for job in jobs})


def n_rows(job: Job, column: str) -> int:
    """How many rows an input has."""
    with job.given.local() as path:
        if job.given.format in ("parquet", "arrow"):
            from guardkit.labelling.tables import n_rows as n_table_rows

            return n_table_rows(job.given, path)
        return sum(len(unit) for unit in job.given.units(path, column))


Told = Callable[[Job, Sequence[Label]], None]


class Run:
    """Labels inputs with a judge. told: hears of the labels of each batch; problem: of an input that could not be read
    or written (the others go on)."""

    def __init__(
        self,
        jobs: Sequence[Job],
        place: Place,
        judge: Judge,
        settings: Settings,
        *,
        dropped: Place | None = None,
        told: Told | None = None,
        problem: Callable[[Job, Exception], None] | None = None,
    ):
        self.jobs, self.place, self.judge, self.settings = jobs, place, judge, settings
        self._dropped, self._told, self._problem = dropped, told, problem

    def run(self) -> Tally:
        """Label what is not labelled yet. What was found in all inputs, those that were done before included."""
        total = Tally()
        for job in self.jobs:
            try:
                total.update(self._label(job))
            except LabelError as error:
                if self._problem is None:
                    raise
                self._problem(job, error)
        return total

    def _label(self, job: Job) -> Tally:
        done = job.progress.done
        if done is not None and not self.settings.retry_errors and _is_as_written(job, done):
            return Tally.of(done["counts"])
        with _named(job.given), job.given.local() as path:
            about = job.given.about(path)
            job.progress.begin(about)
            self.judge_rows(job, path)
            if self.settings.retry_errors and self._retry(job, path):
                job.progress.reopen()
            return write_output(job, path, about, self.place, self._dropped, self.settings)

    # -- judging

    def judge_rows(self, job: Job, path: Path, first: int = 0, stop: int | None = None) -> None:
        """Judge the rows from `first` to before `stop` that have no label yet."""
        chosen = self.settings.sample.of(job.name) if self.settings.sample else None
        rows = _missing(job, path, self.settings, job.progress.ranges(), chosen, first, stop)
        self._keep(job, rows, 0)

    def _retry(self, job: Job, path: Path) -> bool:
        """Judge again the rows whose label is an error; whether there were any."""
        blocks = job.progress.blocks()
        round_ = max((b.round for b in blocks), default=0) + 1
        rows = _failed(job, path, self.settings)
        return self._keep(job, rows, round_) > 0

    def _keep(self, job: Job, rows: Iterator[list[Row]], round_: int) -> int:
        """Judge rows and keep their labels, a block at a time. How many there were."""
        pending: list[Kept] = []
        first, n, since = -1, 0, time.monotonic()

        def flush() -> None:
            nonlocal pending, first, since
            if pending:
                stop = pending[-1][0] + 1
                kept, pending = pending, []
                job.progress.add(Block(first, stop, round_), kept)
                first = stop
            since = time.monotonic()

        try:
            with _ahead(rows, AHEAD) as units:
                for batch in batches(units, self.settings.batch_rows, self.settings.batch_tokens):
                    found = self.judge.encoded(batch)
                    if first < 0:
                        first = batch[0].index
                    pending += [(row.index, row.form, data) for row, (_, data) in zip(batch, found, strict=True)]
                    n += len(batch)
                    if self._told is not None:
                        self._told(job, [label for label, _ in found])
                    if len(pending) >= BLOCK_ROWS or time.monotonic() - since >= BLOCK_S:
                        flush()
        except BaseException:
            with suppress(OSError):  # what was judged is kept, where that works; the reason is what is told
                flush()
            raise
        flush()
        return n


def _is_as_written(job: Job, done: dict[str, Any]) -> bool:
    """Whether a finished output is still there, and its input is what it was."""
    if job.progress.store.size(job.name) != done["output"]["size"]:
        return False
    known = job.progress.input
    if known is None:
        return False
    if job.given.dataset is not None or is_url(job.given.path):
        with job.given.local() as path:
            return bool(job.given.about(path)["sha256"] == known["sha256"])
    path = Path(job.given.path)
    stat = path.stat()
    same = (stat.st_size, stat.st_mtime_ns) == (known["size"], done.get("mtime_ns"))
    return bool(same or sha256_of(path) == known["sha256"])


class _named:
    """Errors of reading, with the input's name."""

    def __init__(self, given: Input):
        self._given = given

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and getattr(error, "filename", None) == self._given.path:
            raise LabelError(f"{self._given.path}: {error.strerror or error}") from error


def _missing(
    job: Job, path: Path, settings: Settings, known: Ranges, chosen: Chosen | None, first: int, stop: int | None
) -> Iterator[list[Row]]:
    """The rows without a label, some at a time."""
    reading = settings.reading
    for unit in job.given.units(path, settings.column, judged=True, field=reading.field):
        end = unit.first + len(unit)
        if end <= first or known.covers(unit.first, end):
            continue
        if stop is not None and unit.first >= stop:
            return
        at = [
            i
            for i in range(len(unit))
            if (index := unit.first + i) >= first
            and (stop is None or index < stop)
            and index not in known
            and (chosen is None or chosen(index))
        ]
        if at:
            yield unit.rows(reading, at)


def _failed(job: Job, path: Path, settings: Settings) -> Iterator[list[Row]]:
    """The rows whose label is an error."""
    labels = job.progress.labels()
    kept = next(labels, None)
    for unit in job.given.units(path, settings.column, judged=True, field=settings.reading.field):
        at = []
        while kept is not None and kept[0] < unit.first + len(unit):
            if b'"error"' in kept[2] and "error" in json.loads(kept[2]):
                at.append(kept[0] - unit.first)
            kept = next(labels, None)
        if at:
            yield unit.rows(settings.reading, at)


def batches(units: Iterable[Sequence[Row]], n_rows: int, n_tokens: int | None) -> Iterator[list[Row]]:
    """Rows in batches: of so many rows, and of so many tokens where a single row has no more."""
    most = None if n_tokens is None else n_tokens * CHARS_PER_TOKEN
    batch: list[Row] = []
    n_chars = 0
    for rows in units:
        for row in rows:
            size = 0 if most is None else row.n_chars
            if batch and (len(batch) >= n_rows or (most is not None and n_chars + size > most)):
                yield batch
                batch, n_chars = [], 0
            batch.append(row)
            n_chars += size
    if batch:
        yield batch


class _ahead:
    """A context that reads items in a thread, a few ahead."""

    def __init__(self, items: Iterator[_T], size: int):
        self._items, self._queue = items, queue.Queue[Any](size)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._read, name="guardkit-label-reader", daemon=True)

    def _read(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(_END)
        except BaseException as error:
            self._put(error)

    def _put(self, item: object) -> bool:
        while not self._left.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def __enter__(self) -> Iterator[Any]:
        self._thread.start()
        return self._take()

    def _take(self) -> Iterator[Any]:
        while (item := self._queue.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()


# ---------------------------------------------------------------------------------------------------------- writing


def write_output(
    job: Job, path: Path, about: dict[str, Any], place: Place, dropped: Place | None, settings: Settings
) -> Tally:
    """Write each row of an input with its label. Raises `LabelError` where the input changed meanwhile."""
    tally = Tally()
    chosen = settings.sample.of(job.name) if settings.sample else None
    labels = job.progress.labels()
    output: dict[str, Any] = {}
    with ExitStack() as whole, ExitStack() as files:
        target: Path = whole.enter_context(place.store.writing(job.name))
        kept_path: Path = whole.enter_context(job.progress.writing_all())
        kept = LabelFile(files.enter_context(kept_path.open("wb")))
        files.callback(kept.close)
        writer = _writer(files, job, target, job.name, settings, path)
        others: Writer | None = None
        if dropped is not None:
            name = dropped.file or job.name
            others = _writer(files, job, whole.enter_context(dropped.store.writing(name)), name, settings, path)
        for unit in job.given.units(path, settings.column):
            _write(unit, _labels_of(job, unit, labels, chosen), writer, others, kept, settings.where, tally)
        files.close()
        if job.given.about(path)["sha256"] != about["sha256"]:
            raise LabelError(f"{job.given.path}: changed while it was labelled; nothing of it was written")
        output = {"name": job.name, "size": target.stat().st_size, "sha256": sha256_of(target)}
    mtime = path.stat().st_mtime_ns if job.given.dataset is None else 0
    job.progress.finish({"counts": tally.to_dict(), "output": output, "mtime_ns": mtime})
    return tally


def _writer(files: ExitStack, job: Job, target: Path, name: str, settings: Settings, path: Path) -> Writer:
    return files.enter_context(open_writer(job.given, job.format, target, name, settings.column, path))


def _labels_of(job: Job, unit: Unit, labels: Iterator[Kept], chosen: Chosen | None) -> list[Kept]:
    """The labels of a unit's rows. Raises `LabelError` where one is missing."""
    found = []
    for index in range(unit.first, unit.first + len(unit)):
        if chosen is not None and not chosen(index):
            continue
        kept = next(labels, None)
        if kept is None or kept[0] != index:
            raise LabelError(f"{job.given.path}: row {index} has no label: run the same command again")
        found.append(kept)
    return found


def _write(
    unit: Unit,
    labels: list[Kept],
    writer: Writer,
    others: Writer | None,
    kept: LabelFile,
    where: Where | None,
    tally: Tally,
) -> None:
    kept.add(labels)
    here: list[Kept] = []
    there: list[Kept] = []
    for one in labels:
        label = json.loads(one[2])
        tally.add(label)
        (here if where is None or where.keeps(label) else there).append(one)
    for target, rows in ((writer, here), (others, there)):
        if target is not None:
            part = unit if len(rows) == len(unit) else unit.take([index - unit.first for index, _, _ in rows])
            target.write(part, [(form, data) for _, form, data in rows])
