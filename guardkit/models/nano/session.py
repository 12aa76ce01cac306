"""A response under way in nano: its frame, its window's ids, and what the graph keeps of them."""

from __future__ import annotations

import math
import mmap
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from guardkit.models.base import Session
from guardkit.models.nano.said import NOTHING, Said

if TYPE_CHECKING:
    from guardkit.models.nano.model import Nano

LEAD = 48  # tokens of a response that a new window repeats
Mark = tuple[list[int], int, NDArray[np.int8] | None, bool, Said]
_PRIVATE: Any = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
"""So that a fork's pages are its own."""


class NanoSession(Session):
    """A response under way: its frame (the prompt), the window's ids, and their keys and values."""

    def __init__(self, model: Nano, frame: list[int], windowed: bool):
        self._model, self.frame, self.windowed = model, frame, windowed
        self._ids: list[int] = []  # what is cached, frame included
        self._start = 0
        self._cache: NDArray[np.int8] | None = None  # room for a whole window, once it is used
        self.last_taken = 0
        self.said = NOTHING
        self.over: BaseException | None = None  # why it cannot go on

    @property
    def cached(self) -> int:
        return len(self._ids)

    def twin(self) -> NanoSession:
        """One that goes its own way. A window that would overflow is opened for good: what is on trial needs it."""
        twin = NanoSession(self._model, self.frame, self.windowed)
        twin._ids, twin.said = self._ids[:], self.said
        twin._room()[: self.cached] = self.cache()
        return twin

    def plan(self, ids: list[int]) -> list[int]:
        """The ids of the next forward pass: the frame and lead-in where a window starts, then of `ids` what fits."""
        room = self._model.window
        start = [] if self._ids else list(self.frame)
        if self.cached >= room:
            start = [*self.frame, *self._ids[-LEAD:]]
            self._ids, self.windowed = [], True
            self._cache = None  # the window before may be marked
        self._start = len(start)
        self.last_taken = min(len(ids), room - self.cached - len(start))
        return start + ids[: self.last_taken]

    @property
    def unjudged(self) -> int:
        """How many of the last plan's ids are not judged: the frame, and what was judged in the window before."""
        return self._start

    def cache(self) -> NDArray[np.int8]:
        return self._room()[: self.cached]

    def _room(self) -> NDArray[np.int8]:
        """Pages of its own, which take memory as they are written, and are the system's again once nobody holds them:
        in a heap, hundreds of streams that grow and end would leave gaps that never close."""
        if self._cache is None:
            shape = self._model.window, *self._model.cache_shape
            pages = mmap.mmap(-1, math.prod(shape), **_PRIVATE)
            self._cache = np.frombuffer(pages, np.int8).reshape(shape)
        return self._cache

    def keep(self, ids: list[int], new: NDArray[np.int8]) -> None:
        self._room()[self.cached : self.cached + len(ids)] = new
        self._ids += ids

    def mark(self) -> Mark:
        # Of the list and the array, what is there stays.
        return self._ids, self.cached, self._cache, self.windowed, self.said

    def rewind(self, mark: Mark) -> None:
        ids, cached, self._cache, self.windowed, self.said = mark
        self._ids = ids[:cached]

    def close(self) -> None:
        self._cache = None
        self._ids = []
