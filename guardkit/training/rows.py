"""Labelled rows for training: JSON lines in, checked rows out. A bad row is named by file and line.

| field | is |
|---|---|
| `prompt` | the request; of a row with a `response` its context |
| `response` | with it, the labels are about the response; with ``kind: "prompt"`` it is not read |
| `severity` | `safe`, `controversial`, `unsafe`; null: not labelled, the row is counted and left out |
| `categories` | names, the main one first; of rows that are not safe |
| `refusal` | true, false, or null where it is not known |
| `unsafe_from` | where the response stops being safe: a character's index; null where it is not known |
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardkit.errors import TrainingError
from guardkit.training.categories import CategorySet
from guardkit.verdict import SEVERITIES, Category

_SEVERITIES = {s.value: i for i, s in enumerate(SEVERITIES)}
_SHOWN = 5


@dataclass(frozen=True)
class Row:
    """A text with its labels. severity: index into `SEVERITIES`. response: None where the prompt is labelled."""

    prompt: str
    response: str | None
    severity: int
    categories: tuple[Category, ...] = ()
    refusal: bool | None = None
    unsafe_from: int | None = None
    where: str = ""

    @property
    def key(self) -> bytes:
        """The same for rows of one text."""
        return hashlib.blake2b(repr((self.prompt, self.response)).encode("utf-8", "replace"), digest_size=8).digest()


@dataclass
class Tally:
    """What was read: files by their SHA-256, rows, and what was left out."""

    files: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    unlabelled: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        out = f"{self.rows:,} rows of {len(self.files)} files"
        if self.unlabelled:
            out += f"; {self.unlabelled:,} without a severity left out"
        if self.bad:
            out += f"; {self.bad:,} bad ones left out, first: " + "; ".join(self.first_bad)
        return out


def read_rows(
    paths: Sequence[Path], categories: CategorySet, *, skip_bad: bool = False, most: int | None = None
) -> tuple[list[Row], Tally]:
    """The labelled rows of `.jsonl` and `.jsonl.gz` files. most: rows of each file, the first ones.

    Raises `TrainingError` for a file that cannot be read and, unless `skip_bad`, for the first bad row.
    """
    rows: list[Row] = []
    tally = Tally()
    for path in paths:
        taken = 0
        for where, record in _records(path, tally):
            if most is not None and taken >= most:
                break
            try:
                row = row_of(record, categories, where)
            except ValueError as error:
                if not skip_bad:
                    raise TrainingError(f"{where}: {error} (--skip-bad leaves such rows out)") from error
                tally.bad += 1
                if len(tally.first_bad) < _SHOWN:
                    tally.first_bad.append(f"{where}: {error}")
                continue
            if row is None:
                tally.unlabelled += 1
                continue
            taken += 1
            rows.append(row)
    tally.rows = len(rows)
    return rows, tally


def _records(path: Path, tally: Tally) -> Iterator[tuple[str, Any]]:
    digest = hashlib.sha256()
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                digest.update(line)
                if line.strip():
                    yield f"{path}:{number}", line
    except (OSError, EOFError) as error:
        raise TrainingError(f"{path}: cannot be read ({error})") from error
    finally:
        tally.files[str(path)] = digest.hexdigest()


def row_of(record: Any, categories: CategorySet, where: str = "") -> Row | None:
    """The row of a record, given as an object or as its JSON; None without a severity. Raises ValueError."""
    if isinstance(record, bytes | str):
        try:
            record = json.loads(record)
        except ValueError as error:
            raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"an object is needed, not {type(record).__name__}")
    prompt, response = _text(record, "prompt"), _text(record, "response")
    kind = record.get("kind")
    if kind not in (None, "prompt", "response"):
        raise ValueError(f"'kind' must be prompt or response, not {kind!r}")
    if kind == "prompt":
        response = None
    if not (prompt if response is None else response):
        raise ValueError("no text to learn from: 'prompt', or 'response', is needed")
    if kind == "response" and response is None:
        raise ValueError("'response' is missing")
    severity, refusal, start = record.get("severity"), record.get("refusal"), record.get("unsafe_from")
    if severity is None:
        return None
    if not isinstance(severity, str) or severity not in _SEVERITIES:
        raise ValueError(f"unknown severity {severity!r}; known: {', '.join(_SEVERITIES)}")
    if refusal is not None and not isinstance(refusal, bool):
        raise ValueError(f"'refusal' must be true, false or null, not {refusal!r}")
    level = _SEVERITIES[severity]
    if start is not None:
        if type(start) is not int or response is None or not 0 <= start < len(response):
            raise ValueError(f"'unsafe_from' must be the index of a character of 'response', not {start!r}")
        if not level:
            raise ValueError("'unsafe_from' is of responses that are not safe")
    named = _categories(record.get("categories"), categories) if level else ()
    if response is not None:
        named = tuple(c for c in named if c in categories.response)
    return Row(prompt or "", response, level, named, None if response is None else refusal, start, where)


def _text(record: dict[str, Any], key: str) -> str | None:
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"'{key}' must be a string, not {type(value).__name__}")
    return value


def _categories(value: Any, known: CategorySet) -> tuple[Category, ...]:
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("'categories' must be a list of names")
    return tuple(dict.fromkeys(known.find(name) for name in names))


def split(rows: Iterable[Row], share: float, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Rows for training and the dev split: `share` of the texts, the same ones each time, no text in both."""
    parts: tuple[list[Row], list[Row]] = [], []
    for row in rows:
        drawn = hashlib.blake2b(row.key, key=str(seed).encode()[:64], digest_size=8).digest()
        parts[int.from_bytes(drawn) < share * 2**64].append(row)
    return parts
