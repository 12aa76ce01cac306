"""What a model's process tells of its work, so that the metrics of its applications hold it: batches, cache.

It tells one of those that are connected, and what it counts it tells once: the applications' metrics, added up, are
true.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from guardkit import telemetry
from guardkit.loop import Load, loops
from guardkit.telemetry import names
from guardkit.telemetry.names import Metric

EVERY_S = 1.0  # at most how often
NUMBER = 0  # in the place of an answer's number


def name_of(loop: str) -> str:
    """A loop's as its metrics have it."""
    return loop.removeprefix("guardkit-")


class Telling:
    """In the model's process: a recorder of metrics, for a `with` block."""

    def __init__(self) -> None:
        self._batches: Counter[tuple[str, float]] = Counter()
        self._hits: Counter[str] = Counter()  # that were told
        self._next = 0.0
        self.is_new = False
        """Whether there may be something to tell: work came, was done, or whoever was told has left."""

    def __enter__(self) -> None:
        telemetry.record(self)

    def __exit__(self, *_: object) -> None:
        telemetry.forget(self)

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        pass

    def observe(self, metric: Metric, value: float, labels: Mapping[str, str], times: int = 1) -> None:
        if metric is names.BATCH:
            self._batches[labels["loop"], value] += times
            self.is_new = True

    @property
    def left_s(self) -> float | None:
        """Seconds until something is to be told; None: there is nothing."""
        return max(0.0, self._next - time.monotonic()) if self.is_new else None

    def news(self) -> list[Any]:
        """The row that tells it."""
        self._next, self.is_new = time.monotonic() + EVERY_S, False
        batches = [[loop, rows, times] for (loop, rows), times in self._batches.items()]
        self._batches.clear()
        found = []
        for loop in loops():
            name, load = name_of(loop.name), loop.load()
            found.append([name, load.cached, load.room, load.hits - self._hits[name]])
            self._hits[name] = load.hits
        return [NUMBER, batches, found]


class Told:
    """In an application: what the process has told it, beside what it waits for itself."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}

    def take(self, batches: list[Any], found: list[Any]) -> None:
        for loop, rows, times in batches:
            telemetry.batch(loop, rows, times)
        for name, cached, room, hits in found:
            before = self._loads.get(name, Load())
            self._loads[name] = Load(0, cached, room, before.hits + hits)

    def lost(self) -> None:
        """The process is gone, with what it held."""
        self._loads = {name: Load(0, 0, load.room, load.hits) for name, load in self._loads.items()}

    def loads(self, loop: str, waiting: int) -> Iterator[tuple[str, Load]]:
        """waiting: pieces of work that this application has there, which its loop judges."""
        found = {loop: Load(), **self._loads}
        for name, load in found.items():
            yield name, Load(waiting if name == loop else 0, load.cached, load.room, load.hits)


__all__ = ["NUMBER", "Telling", "Told", "name_of"]
