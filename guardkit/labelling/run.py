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
from guardkit.labelling.labels import Tally
from guardkit.labelling.output import dropped_name, write_output
from guardkit.labelling.progress import Block, Kept, Ranges
from guardkit.labelling.rows import WHOLE, Pace, Reading, Row, Split, Unit, batches
from guardkit.labelling.store import is_url

BLOCK_ROWS = 16_384  # about 8 MB of labels
BLOCK_S = 10.0  # what a kill can cost
AHEAD = 4  # units that wait for the guard
_T = TypeVar("_T")
_END = object()

Told = Callable[[Job, Tally], None]


class Run:
    """Labels inputs with a judge. told: hears what was found in each batch; problem: of an input that could not be read
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
        self.shares: dict[str, float] = {}
        """How much of each input is done, by its output's name."""

    def run(self) -> Tally:
        """Label what is not labelled yet. What was found in all inputs, those that were done before included."""
        total = Tally()
        for job in self.jobs:
            try:
                total.update(self._label(job))
                self.shares[job.name] = 1.0
            except LabelError as error:
                if self._problem is None:
                    raise
                self._problem(job, error)
        return total

    def _label(self, job: Job) -> Tally:
        done = job.progress.done
        if done is not None and not self.settings.retry_errors and is_as_written(job, done, self._dropped):
            return Tally.of(done["counts"])
        with naming(job.given), job.given.local() as path:
            about = job.given.about(path)
            job.progress.begin(about)
            self.judge_rows(job, path)
            if self.settings.retry_errors and self.retry_rows(job, path):
                job.progress.reopen()
            return write_output(job, path, about, self.place, self._dropped, self.settings)

    # -- judging

    def judge_rows(self, job: Job, path: Path, split: Split = WHOLE) -> None:
        """Judge the rows of a range that have no label yet."""
        chosen = self.settings.sample.of(job.name) if self.settings.sample else None
        units = self._units(job, path, split)
        self._keep(job, _missing(units, self.settings.reading, job.progress.ranges(), chosen, split), 0)

    def retry_rows(self, job: Job, path: Path, split: Split = WHOLE) -> int:
        """Judge again the rows of a range whose label is an error. How many there were."""
        round_ = max((block.round for block in job.progress.blocks()), default=0) + 1
        units = self._units(job, path, split)
        return self._keep(job, _failed(units, self.settings.reading, job.progress.labels(), split), round_)

    def _units(self, job: Job, path: Path, split: Split) -> Iterator[Unit]:
        """The units that have rows of a range in them."""
        field = self.settings.reading.field
        for unit in job.given.units(path, self.settings.column, judged=True, field=field, start=split):
            if split.stop is not None and unit.first >= split.stop:
                return
            self.shares[job.name] = unit.share
            if unit.first + len(unit) > split.first:
                yield unit

    def _keep(self, job: Job, rows: Iterator[list[Row]], round_: int) -> int:
        """Judge rows and keep their labels, a block at a time. How many there were."""
        pending: list[Kept] = []
        first, n, since = -1, 0, time.monotonic()
        pace = Pace(self.settings.batch_rows)

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
                for batch in batches(units, pace.rows, self.settings.batch_tokens):
                    found = self.judge.encoded(batch)
                    if first < 0:
                        first = batch[0].index
                    pending += [(row.index, row.form, data) for row, (_, data) in zip(batch, found, strict=True)]
                    n += len(batch)
                    pace.judged(len(batch))
                    if self._told is not None:
                        self._told(job, Tally.over(label for label, _ in found))
                    if len(pending) >= BLOCK_ROWS or time.monotonic() - since >= BLOCK_S:
                        flush()
        except BaseException:
            with suppress(OSError):  # what was judged is kept, where that works; the reason is what is told
                flush()
            raise
        flush()
        return n


def is_as_written(job: Job, done: dict[str, Any], dropped: Place | None) -> bool:
    """Whether a finished output is still there, with the dropped rows where they are asked for, and its input is what
    it was."""
    if job.progress.store.size(job.name) != done["output"]["size"]:
        return False
    if dropped is not None:
        side, name = done.get("dropped") or {}, dropped_name(job, dropped)
        if (side.get("place"), side.get("name")) != (str(dropped.store), name):
            return False
        if dropped.store.size(name) != side["size"]:
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


class naming:
    """Errors of reading, with the input's name."""

    def __init__(self, given: Input):
        self._given = given

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and getattr(error, "filename", None) == self._given.path:
            raise LabelError(f"{self._given.path}: {error.strerror or error}") from error


def _missing(
    units: Iterator[Unit], reading: Reading, known: Ranges, chosen: Chosen | None, split: Split
) -> Iterator[list[Row]]:
    """The rows without a label, some at a time."""
    for unit in units:
        if known.covers(unit.first, unit.first + len(unit)):
            continue
        indexes = range(unit.first, unit.first + len(unit))
        at = [
            i
            for i, index in enumerate(indexes)
            if index in split and index not in known and (chosen is None or chosen(index))
        ]
        if at:
            yield unit.rows(reading, at)


def _failed(units: Iterator[Unit], reading: Reading, labels: Iterator[Kept], split: Split) -> Iterator[list[Row]]:
    """The rows whose label is an error."""
    kept = next(labels, None)
    for unit in units:
        at = []
        while kept is not None and kept[0] < unit.first + len(unit):
            index, _, label = kept
            if index >= unit.first and index in split and b'"error"' in label and "error" in json.loads(label):
                at.append(index - unit.first)
            kept = next(labels, None)
        if at:
            yield unit.rows(reading, at)


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
