"""Weights are moved into large pages where the kernel has them; what they hold, and how much memory is used, stays."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from guardkit.engine.host_memory import LARGE, give_back, use_large_pages

MIB = 1 << 20


def figures(name: str) -> int:
    """Bytes of this process, by their name in smaps_rollup."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells")
def test_what_is_in_use_moves_and_what_is_not_stays() -> None:
    give_back()
    numbers = np.arange(8 * MIB, dtype=np.int64)  # 64 MiB, all of it in use
    sparse = np.empty(64 * MIB, np.uint8)
    sparse[:: 2 * LARGE] = 1  # a small page of every other large one
    before, resident = figures("AnonHugePages"), figures("Rss")
    moved = use_large_pages()
    if not moved:
        pytest.skip("this kernel has no large pages to give, or no madvise to ask for them")
    assert moved >= 56 * MIB
    assert figures("AnonHugePages") - before >= 48 * MIB
    assert figures("Rss") - resident < 8 * MIB
    assert np.array_equal(numbers, np.arange(8 * MIB, dtype=np.int64))
    assert int(sparse[:: 2 * LARGE].sum()) == len(sparse[:: 2 * LARGE])


def test_where_nothing_is_told_nothing_happens(tmp_path: Path) -> None:
    assert use_large_pages(tmp_path / "there is none") == 0
    maps = tmp_path / "maps"
    page = os.sysconf("SC_PAGE_SIZE")
    maps.write_text(f"{LARGE:x}-{LARGE + page:x} rw-p 00000000 00:00 0\n{LARGE:x}-{9 * LARGE:x} r--p 0 00:00 0 \n")
    assert use_large_pages(maps) == 0  # less than a large page, and what cannot be written
