"""What there is to do: how a data set is labelled, where its outputs go, and which input gives which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from guardkit.errors import LabelError
from guardkit.labelling.choosing import Sample, Where
from guardkit.labelling.inputs import KEPT, Input, format_of
from guardkit.labelling.labels import COLUMN
from guardkit.labelling.progress import Progress
from guardkit.labelling.rows import BATCH_ROWS, Reading
from guardkit.labelling.store import Folder, Store, is_url, store_at
from guardkit.labelling.writers import OUTPUTS, output_format, output_name


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
        if out == "-":
            raise LabelError("--out -: outputs are files that are there whole or not at all; give a file or a folder")
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
    own = {given.name for given in inputs if output_name(given, output_format(given, wanted)) == given.name}
    for given in inputs:
        form = output_format(given, wanted)
        name = place.file or output_name(given, form)
        if name in found or (name in own and name != given.name):
            name = f"{given.name}.{form}"  # a.csv beside an a.jsonl, both as JSONL
        if name in found or (name in own and name != given.name):
            raise LabelError(f"{given.path} would be written to {name}, which is the output of another input")
        if isinstance(place.store, Folder) and not is_url(given.path) and given.dataset is None:
            target = place.store.root / name
            if target.exists() and Path(given.path).exists() and target.samefile(given.path):
                raise LabelError(f"--out {place.store}: {given.path} would be written over; take another folder")
        found[name] = Job(given, name, form, Progress(place.store, place.kept, name))
    return list(found.values())


def check_apart(jobs: Sequence[Job], place: Place, dropped: Place | None) -> None:
    """Raises `LabelError` for an output that is an input, or that another output is, whatever its name."""
    inputs = {_at(job.given.path): job.given.path for job in jobs if job.given.dataset is None}
    taken: dict[str, str] = {}
    sides = [("--dropped", dropped, dropped.file or job.name) for job in jobs] if dropped is not None else []
    for option, at, name in [*(("--out", place, job.name) for job in jobs), *sides]:
        target = _at(f"{at.store}/{name}")
        if target in inputs:
            raise LabelError(f"{option} {at.store}: {inputs[target]} would be written over; take another folder")
        if target in taken:
            raise LabelError(f"{option} {at.store}: {name} is where {taken[target]} goes; take another place")
        taken[target] = f"{option} {at.store}/{name}"


def _at(path: str) -> str:
    return path if is_url(path) else os.path.realpath(path)


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
