"""What the commands of training share: records in, records out, and what a run that was killed had found.

Inputs are read as `guard label` reads them. Beside the output stands `OUT.guardkit/` with a manifest of the settings
and logs of JSON lines: a line for each row that is done, appended as it is done, so that a killed run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guardkit.errors import LabelError
from guardkit.evaluation.specs import Fields, Labels
from guardkit.labelling.inputs import KEPT, find, format_of
from guardkit.labelling.lines import as_json
from guardkit.labelling.manifest import agree
from guardkit.labelling.packed import COMPRESSED, compressing
from guardkit.labelling.store import Folder, is_url
from guardkit.verdict import SEVERITIES

NO_COLUMN = "\0"  # labels of `guard label` go nowhere here


class Records:
    """The records of files, folders, patterns, stores and data sets of a hub, in order, read anew each time; what is
    no object comes as ``{"value": …}``."""

    def __init__(self, given: Sequence[str]):
        self.inputs = find(given).inputs

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for given in self.inputs:
            with given.local() as path:
                for unit in given.units(path, NO_COLUMN):
                    yield from unit.objects()

    def about(self) -> list[dict[str, Any]]:
        """Place, size and SHA-256 of each input."""
        found = []
        for given in self.inputs:
            with given.local() as path:
                found.append(given.about(path))
        return found


class Work:
    """One output file of JSON lines (compressed where its name says so), and the logs beside it. Raises `LabelError`
    for an output that is an input, or that has another format."""

    def __init__(self, out: str | Path, records: Records):
        path = Path(out)
        if is_url(str(out)) or format_of(path.name)[0] != "jsonl":
            raise LabelError(f"{out}: the output is a file here whose name ends in .jsonl, .jsonl.gz or .jsonl.zst")
        for given in records.inputs:
            if path.exists() and not given.is_remote and given.dataset is None and path.samefile(given.path):
                raise LabelError(f"{out} would be written over: it is an input")
        self.path, self._records = path, records
        self._store, self._folder = Folder(path.parent), f"{path.name}{KEPT}"

    @contextmanager
    def begun(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """For one run at a time, with these settings. Raises `LabelError` that names what differs from a run before."""
        with self._store.locked(f"{self._folder}/lock"):
            agree(self._store, self._folder, {"inputs": self._records.about(), **settings})
            yield

    def log(self, name: str) -> Log:
        return self.log_of(self.path, name)

    @staticmethod
    def log_of(out: str | Path, name: str) -> Log:
        """A log beside an output, whether a run is under way or not."""
        return Log(Path(out).parent / f"{Path(out).name}{KEPT}" / f"{name}.jsonl")

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the output, there whole or not at all."""
        kind = next((k for ending, k in COMPRESSED.items() if self.path.name.lower().endswith(ending)), None)
        with self._store.writing(self.path.name) as path, path.open("wb") as raw, compressing(kind, raw) as file:
            for record in records:
                line = json.dumps(record, ensure_ascii=False, default=as_json)
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")


class Log:
    """Entries by the row's index, appended as they are made; of several about one row the last counts."""

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> dict[int, dict[str, Any]]:
        """What was logged whole; the rest of a line that was being written is cut off."""
        found: dict[int, dict[str, Any]] = {}
        if not self._path.exists():
            return found
        whole = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                found[entry.pop("row")] = entry
                whole += len(line)
        if whole < self._path.stat().st_size:
            os.truncate(self._path, whole)
        return found

    def append(self, entries: Mapping[int, Mapping[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"row": row, **entry}) + "\n" for row, entry in entries.items()]
        with self._path.open("a", encoding="ascii") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())


def fields_of(columns: Sequence[str], label: str | None, words: str | None) -> Fields:
    """How a record is read. columns: "prompt=question" and the like; label: the column of the severity; words: what
    stands in it, "toxic=unsafe,fine=safe". Raises `LabelError`."""
    named = dict(_pair(text, "--column") for text in columns)
    unknown = next((name for name in named if name not in ("prompt", "response", "messages", "language")), None)
    if unknown is not None:
        raise LabelError(f"--column {unknown}=…: the fields are prompt, response, messages and language")
    if label is None and words is None:
        return Fields(named)
    known = dict(_pair(text, "--map") for text in (words or "").split(",") if text)
    severities = [s.value for s in SEVERITIES]
    wrong = next((value for value in known.values() if value not in severities), None)
    if wrong is not None:
        raise LabelError(f"--map: '{wrong}' is no severity; they are {', '.join(severities)}")
    return Fields(named, severity=Labels(column=label or "severity", map={k.lower(): v for k, v in known.items()}))


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise LabelError(f"{option} {text}: expected NAME=VALUE")
    return name.strip(), value.strip()


def reserve(record: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises `LabelError` where a record has one of the columns that are about to be added."""
    there = next((name for name in names if name in record), None)
    if there is not None:
        raise LabelError(f"the records have a column '{there}' already: --suffix _2 gives the new ones another name")
