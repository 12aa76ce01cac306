"""Ranges of an input's rows that can be read from their beginning, for workers that share an input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from guardkit.labelling.inputs import Input
from guardkit.labelling.packed import BOM, is_packed, opened
from guardkit.labelling.rows import Split

SPLIT_ROWS = 32_768


def splits_of(given: Input, path: Path, column: str, size: int = SPLIT_ROWS) -> list[Split]:
    """An input in ranges of about `size` rows; in one where it can only be read from its beginning."""
    if given.dataset is not None or given.is_remote:
        return [Split()]  # each range would copy the whole file
    if given.format in ("jsonl", "text") and not is_packed(path):
        return list(_of_lines(path, given.format == "text", size))
    if given.format == "parquet":
        return list(_of_parquet(path, size))
    return [Split()]


def _of_lines(path: Path, text: bool, size: int) -> Iterator[Split]:
    n, first, start, at = 0, 0, 0, 0
    with opened(path) as (file, _):
        for line in file:
            if n - first == size:
                yield Split(first, n, start)
                first, start = n, at
            told = line if at else line.removeprefix(BOM)
            at += len(line)
            n += bool(told if text else told.strip())
    yield Split(first, None, start)


def _of_parquet(path: Path, size: int) -> Iterator[Split]:
    from guardkit.labelling.tables import group_sizes

    n, first, start = 0, 0, 0
    for group, rows in enumerate(group_sizes(path)):
        if n - first >= size:
            yield Split(first, n, start)
            first, start = n, group
        n += rows
    yield Split(first, None, start)
