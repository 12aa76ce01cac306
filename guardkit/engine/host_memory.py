"""A host's memory once a model is loaded: what is free is handed back, and weights lie in large pages.

A streamed token reads every weight once. In pages of 4 KiB that is a hundred thousand of them, each to be looked up, on
a virtual machine in two tables: about a tenth of its time. So what of this process's memory lies wholly in use is moved
into pages of 2 MiB, where the kernel has them. Weights do not grow by it: stretches that are used in part stay.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

LARGE = 1 << 21
HUGEPAGE, COLLAPSE = 14, 25  # of madvise(2); the second, which moves at once, since Linux 6.1


def give_back() -> None:
    """Hand freed memory back to the system: what a model is made in can be as large as its weights."""
    with suppress(AttributeError, OSError, TypeError):  # another C library keeps its own house
        ctypes.CDLL(None).malloc_trim(0)


def use_large_pages(maps: Path = Path("/proc/self/maps")) -> int:
    """Ask for large pages; how many bytes were moved. 0 where there are none, as elsewhere than on Linux."""
    moved = 0
    with suppress(OSError, AttributeError, TypeError):  # another system
        libc = ctypes.CDLL(None)
        for begin, end in _private(maps.read_text()):
            for start, stop in _in_use(libc, begin, end):
                at, size = ctypes.c_void_p(start), ctypes.c_size_t(stop - start)
                # What is refused, or was freed meanwhile, is left as it is.
                if libc.madvise(at, size, HUGEPAGE) == 0 and libc.madvise(at, size, COLLAPSE) == 0:
                    moved += stop - start
    return moved


def _private(maps: str) -> Iterator[tuple[int, int]]:
    """Memory without a file, as far as it is made of whole large pages: where each stretch begins and ends."""
    for line in maps.splitlines():
        span, rights, *rest = line.split(maxsplit=5)
        name = rest[3] if len(rest) > 3 else ""
        if rights == "rw-p" and name in ("", "[heap]"):
            begin, end = (int(number, 16) for number in span.split("-"))
            begin, end = -(-begin // LARGE) * LARGE, end // LARGE * LARGE
            if begin < end:
                yield begin, end


def _in_use(libc: ctypes.CDLL, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The large pages' worths in a stretch of which every small page is in memory."""
    pages = np.zeros((end - begin) // mmap.PAGESIZE, np.uint8)
    if libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_void_p(pages.ctypes.data)):
        return
    whole = (pages & 1).reshape(-1, LARGE // mmap.PAGESIZE).all(1)
    edges = np.flatnonzero(np.diff(whole, prepend=False, append=False))
    for first, last in edges.reshape(-1, 2).tolist():
        yield begin + first * LARGE, begin + last * LARGE
