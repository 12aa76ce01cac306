"""A round of an event loop: its tasks ask models for much, and whoever is to do it is told once, at the round's end."""

from __future__ import annotations

import threading
from collections.abc import Callable

BRIEF_S = 0.0015  # an event loop itself does what takes less: it waits longer for the interpreter where a thread runs
Call = Callable[[], None]


class _Round(threading.local):
    later: Callable[[Call], None] | None = None


_round = _Round()


class InRound:
    """For a `with` block in which a task of an event loop hands work over, and waits for nothing: `later` has done at
    the end of the round what is asked for in it, each call once for all tasks."""

    __slots__ = ("_before", "_later")

    def __init__(self, later: Callable[[Call], None]):
        self._later = later

    def __enter__(self) -> None:
        self._before, _round.later = _round.later, self._later

    def __exit__(self, *_: object) -> None:
        _round.later = self._before


def at_the_end_of_the_round(now: Call, then: Call | None = None) -> None:
    """In such a block have `then` called at its round's end (None: `now`); elsewhere call `now`."""
    if _round.later is None:
        now()
    else:
        _round.later(then or now)
