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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from guardkit.errors import LabelError
from guardkit.labelling.choosing import Chosen
from guardkit.labelling.inputs import Input, sha256_of
from guardkit.labelling.jobs import Job, Place, Settings
from guardkit.labelling.judging import Judge
from guardkit.labelling.labels import Label, Tally
from guardkit.labelling.output import write_output
from guardkit.labelling.progress import Block, Kept, Ranges
from guardkit.labelling.rows import Row, batches
from guardkit.labelling.store import is_url

BLOCK_ROWS = 4096
BLOCK_S = 10.0  # what a kill can cost
AHEAD = 4  # units that wait for the guard
_T = TypeVar("_T")
_END = object()

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
