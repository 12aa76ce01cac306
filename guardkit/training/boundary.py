"""Where an answer turns unsafe: the search over its prefixes, apart from what judges them.

A prefix is tested by whoever drives the search: a generator that yields how many units the prefix has, and is sent
whether it is unsafe. So one search can wait while others are tested in the same batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator
from dataclasses import dataclass

_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han
)
_UNIT = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]{{1,48}}")


def units(text: str) -> list[tuple[int, int]]:
    """Start and end of the units that a boundary can stand before: words, and in scripts that write no blanks between
    words each character; of a longer run 48 characters at a time."""
    return [match.span() for match in _UNIT.finditer(text)]


@dataclass(frozen=True)
class Boundary:
    """unit: the first unit that makes a prefix unsafe, counted from 0; None where not even the whole text is. tested:
    prefixes that were tested. monotone: whether all tests fit one boundary: nothing before it unsafe, nothing after it
    safe."""

    unit: int | None
    tested: int
    monotone: bool = True


Search = Generator[int, bool, Boundary]
"""Yields a number of units, is sent whether the prefix of so many is unsafe."""


def bisection(n: int, verify: int = 0, guess: int | None = None) -> Search:
    """The boundary among `n` units in about log2(n) tests, if prefixes that are unsafe stay so as they grow.

    The whole is tested first. guess: the shortest prefix that is presumably unsafe: it and the one before it are tested
    next, and if it is the boundary, nothing else is. verify: so many prefixes on each side next to the boundary are
    tested too; where a shorter one is unsafe, the search goes on below it. What no test touches can still hide an
    earlier boundary.
    """
    known: dict[int, bool] = {}

    def test(i: int) -> Generator[int, bool, bool]:
        if i not in known:
            known[i] = yield i
        return known[i]

    if not n or not (yield from test(n)):
        return Boundary(None, len(known))
    safe, unsafe = 0, n  # the empty prefix is safe
    while True:
        while unsafe - safe > 1:
            middle = (safe + unsafe) // 2
            if guess is not None:
                near = guess if guess not in known else guess - 1
                middle = near if safe < near < unsafe and near not in known else middle
            if (yield from test(middle)):
                unsafe = middle
            else:
                safe = middle
        for i in range(unsafe - 1, max(unsafe - 1 - verify, 0), -1):
            if (yield from test(i)):
                safe, unsafe = 0, i
                break
        else:
            break
    for i in range(unsafe + 1, min(unsafe + verify, n) + 1):
        yield from test(i)
    monotone = all(bad == (i >= unsafe) for i, bad in known.items())
    return Boundary(unsafe - 1, len(known), monotone)


def every_prefix(n: int) -> Search:
    """The boundary by testing the whole, and then prefix after prefix until one is unsafe."""
    if not n or not (yield n):
        return Boundary(None, min(n, 1))
    for i in range(1, n):
        if (yield i):
            return Boundary(i - 1, i + 1)
    return Boundary(n - 1, n)


def most_tests(n: int, verify: int = 0) -> int:
    """How many tests a bisection of `n` units takes without a guess, where the boundary is found at once."""
    return 0 if not n else min(n, 1 + math.ceil(math.log2(n)) + 2 * verify) if n > 1 else 1
