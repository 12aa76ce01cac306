"""Rows in, labels out: each text judged once, many together, a rate kept."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from guardkit.errors import LabelError
from guardkit.guard import Guard
from guardkit.labelling.labels import Label, label_of, to_json, unread_label, voted
from guardkit.labelling.rows import Item, Row
from guardkit.policy import Action, Decision
from guardkit.verdict import Stage

MAX_KNOWN = 65_536
"""Labels kept of texts seen before: at about 600 bytes each, 40 MB."""


class Limit(Protocol):
    """Waits until `n` more rows may be judged."""

    def wait(self, n: int) -> None: ...


class RateLimit:
    """At most `rate` rows a second on average, a second's worth at once; shared by threads."""

    def __init__(
        self, rate: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ):
        if rate <= 0:
            raise ValueError(f"a rate is above 0 rows a second, not {rate}")
        self.rate, self._clock, self._sleep = rate, clock, sleep
        self._lock = threading.Lock()
        self._free = clock() - 1.0  # when all that was asked for is paid; a second's worth is free at first

    def reserve(self, n: int) -> float:
        """Take `n` rows; the seconds to wait until they are due."""
        with self._lock:
            now = self._clock()
            start = max(self._free, now - 1.0)
            self._free = start + n / self.rate
            return max(0.0, self._free - now)

    def wait(self, n: int) -> None:
        seconds = self.reserve(n)
        if seconds > 0:
            self._sleep(seconds)


class Judge:
    """Labels rows with one guard, or by the vote of several (see `labels.voted`).

    names: how the guards are called in votes. stage: as for `Guard.check`. limit: a rate to keep, None for none. For
    one thread.
    """

    def __init__(
        self,
        guards: Sequence[Guard],
        names: Sequence[str] = (),
        *,
        stage: Stage | str | None = None,
        limit: Limit | None = None,
    ):
        if not guards:
            raise ValueError("at least one guard is needed")
        self.guards = list(guards)
        self.names = list(names) or [g.model.name for g in guards]
        if len(set(self.names)) < len(self.guards):
            raise LabelError(f"guards that vote need names of their own, not {', '.join(self.names)}")
        self.policy = guards[0].policy
        self._stage = Stage(stage) if isinstance(stage, str) else stage
        self.limit = limit
        self._known: OrderedDict[bytes, Label] = OrderedDict()

    def labels(self, rows: Sequence[Row]) -> list[Label]:
        """The label of each row. Rows with the same texts share theirs, which must not be changed."""
        keys = [_key(row) if row.error is None else b"" for row in rows]
        new: dict[bytes, Row] = {}
        for key, row in zip(keys, rows, strict=True):
            if key and key not in new and key not in self._known:
                new[key] = row
        found = dict(zip(new, self._judge(list(new.values())), strict=True))
        labels = []
        for key, row in zip(keys, rows, strict=True):
            if row.error is not None:
                labels.append(unread_label(row.error, self.policy.on_error, self.policy.name, self._stage))
                continue
            label = found.get(key) or self._known[key]
            if key in self._known:
                self._known.move_to_end(key)
            labels.append(label)
        for key, label in found.items():
            if "error" not in label:  # a fault may pass; the next such text is tried again
                self._known[key] = label
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return labels

    def forget(self) -> None:
        """Judge every text anew from here on."""
        self._known.clear()

    def encoded(self, rows: Sequence[Row]) -> list[tuple[Label, bytes]]:
        """The labels and their JSON, which is made once for rows with the same texts."""
        done: dict[int, bytes] = {}
        out = []
        for label in self.labels(rows):
            data = done.get(id(label))
            if data is None:
                data = done[id(label)] = to_json(label)
            out.append((label, data))
        return out

    def _judge(self, rows: Sequence[Row]) -> list[Label]:
        if not rows:
            return []
        if self.limit is not None:
            self.limit.wait(len(rows))
        items = [item for row in rows for item in row.items]
        per_guard = [self._labels_by(guard, rows, items) for guard in self.guards]
        if len(per_guard) == 1:
            return per_guard[0]
        return [voted(labels, self.names) for labels in zip(*per_guard, strict=True)]

    def _labels_by(self, guard: Guard, rows: Sequence[Row], items: Sequence[Item]) -> list[Label]:
        try:
            decisions = guard.decide_batch(items, stage=self._stage)
        except Exception as error:  # the guard promises not to raise; if it does, nothing here was found safe
            decisions = [self._failed(error)] * len(items)
        if len(decisions) != len(items):
            decisions = [self._failed(RuntimeError("the guard lost texts of a batch"))] * len(items)
        left = iter(decisions)
        return [label_of([next(left) for _ in row.items], row.paths, guard.policy.name) for row in rows]

    def _failed(self, error: Exception) -> Decision:
        action: Action = self.policy.on_error
        reason = str(error) or type(error).__name__
        return Decision(action, None, "on_error", False, self._stage or Stage.prompt, reason)


def _key(row: Row) -> bytes:
    """Of 16 bytes for a text, of 17 for all else: so a text is nobody's namesake."""
    if len(row.items) == 1 and isinstance(row.items[0], str):
        return hashlib.blake2b(row.items[0].encode("utf-8", "surrogatepass"), digest_size=16).digest()
    told: object = (row.items, row.paths) if len(row.items) > 1 else row.items
    return hashlib.blake2b(repr(told).encode("utf-8", "surrogatepass"), digest_size=17).digest()
