"""An input's output: each row with its label, in order, in a file that is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

from guardkit.errors import LabelError
from guardkit.labelling.choosing import Chosen, Where
from guardkit.labelling.inputs import sha256_of
from guardkit.labelling.jobs import Job, Place, Settings
from guardkit.labelling.labels import Tally
from guardkit.labelling.progress import Kept, LabelFile
from guardkit.labelling.rows import Unit
from guardkit.labelling.writers import Writer, open_writer


def write_output(
    job: Job, path: Path, about: dict[str, Any], place: Place, dropped: Place | None, settings: Settings
) -> Tally:
    """Write each row of an input with its label. Raises `LabelError` where the input changed meanwhile."""
    tally = Tally()
    chosen = settings.sample.of(job.name) if settings.sample else None
    labels = job.progress.labels()
    output: dict[str, Any] = {}
    side: dict[str, Any] | None = None
    if dropped is not None:
        side = {"place": str(dropped.store), "name": dropped_name(job, dropped)}
        job.progress.claim(side, dropped.store)
        dropped.store.tidy(side["name"])
    with ExitStack() as whole, ExitStack() as files:
        target: Path = whole.enter_context(place.store.writing(job.name))
        kept_path: Path = whole.enter_context(job.progress.writing_all())
        kept = LabelFile(files.enter_context(kept_path.open("wb")))
        files.callback(kept.close)
        writer = _writer(files, job, target, job.name, settings, path)
        others: Writer | None = None
        others_path: Path | None = None
        if dropped is not None and side is not None:
            others_path = whole.enter_context(dropped.store.writing(side["name"]))
            others = _writer(files, job, others_path, side["name"], settings, path)
        try:
            for unit in job.given.units(path, settings.column):
                _write(unit, _labels_of(job, unit, labels, chosen), writer, others, kept, settings.where, tally)
            files.close()
        except LabelError:  # where it changed, rows that were not there before, or a line that broke off
            _check_unchanged(job, path, about)
            raise
        _check_unchanged(job, path, about)
        output = {"name": job.name, "size": target.stat().st_size, "sha256": sha256_of(target)}
        if side is not None and others_path is not None:
            side |= {"size": others_path.stat().st_size, "sha256": sha256_of(others_path)}
    mtime = path.stat().st_mtime_ns if job.given.dataset is None else 0
    job.progress.finish({"counts": tally.to_dict(), "output": output, "dropped": side, "mtime_ns": mtime})
    return tally


def dropped_name(job: Job, dropped: Place) -> str:
    return dropped.file or job.name


def _check_unchanged(job: Job, path: Path, about: Mapping[str, Any]) -> None:
    if job.given.about(path)["sha256"] != about["sha256"]:
        job.progress.forget()
        raise LabelError(
            f"{job.given.path}: changed while it was labelled; none of its labels is kept. Run it again when nothing "
            "writes to it"
        )


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
        label = _label(one[2])
        tally.add(label)
        (here if where is None or where.keeps(label) else there).append(one)
    for target, rows in ((writer, here), (others, there)):
        if target is not None:
            part = unit if len(rows) == len(unit) else unit.take([index - unit.first for index, _, _ in rows])
            target.write(part, [(form, data) for _, form, data in rows])


@lru_cache(4096)
def _label(data: bytes) -> Mapping[str, Any]:
    """Equal texts have equal labels, and are often near each other."""
    return json.loads(data)  # type: ignore[no-any-return]
