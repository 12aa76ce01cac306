"""The texts of many requests, judged in common batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from guardkit import Decision, Guard, GuardkitError
from guardkit.batch import Item, size_of

AT_ONCE = 8
"""Batches of a guard under way; what comes meanwhile makes the next one."""
MAX_TEXTS = 64  # in a batch
MAX_CHARS = 4096
"""Of a request that is judged with others, as they wait for it; a longer one is judged alone."""


async def decide_joined(guard: Guard, items: Sequence[Item]) -> list[Decision]:
    """As `guard.adecide_batch`, together with what other tasks ask of the guard at this time."""
    if (guard.model.quick and guard.timeout is None) or len(items) > MAX_TEXTS or size_of(items, MAX_CHARS) > MAX_CHARS:
        return await guard.adecide_batch(items)
    joined = _joined.get(guard)
    if joined is None or joined.loop is not asyncio.get_running_loop():
        joined = _joined[guard] = _Joined()
    return await joined.decide(guard, items)


class _Asked:
    """What one request wants judged. batch: once it is under way."""

    __slots__ = ("batch", "decisions", "guard", "items")

    def __init__(self, guard: Guard, items: Sequence[Item], loop: asyncio.AbstractEventLoop):
        self.guard, self.items = guard, items
        self.decisions: asyncio.Future[list[Decision]] = loop.create_future()
        self.batch: _Batch | None = None


class _Batch:
    """Requests whose texts are judged together."""

    def __init__(self, joined: _Joined, asked: list[_Asked]):
        self._joined, self._asked = joined, asked
        for each in asked:
            each.batch = self
        self._task = joined.loop.create_task(self._judge())

    def drop(self) -> None:
        """End it, if nobody waits for it any more."""
        if all(asked.decisions.done() for asked in self._asked):
            self._task.cancel()

    async def _judge(self) -> None:
        asked = self._asked
        try:
            items = [item for each in asked for item in each.items]
            decisions = await asked[0].guard.adecide_batch(items)
        except BaseException as error:
            told = error if isinstance(error, Exception) else GuardkitError("the batch was given up")
            for each in asked:
                if not each.decisions.done():
                    each.decisions.set_exception(told)
            if told is not error:
                raise
        else:
            at = 0
            for each in asked:
                if not each.decisions.done():
                    each.decisions.set_result(decisions[at : at + len(each.items)])
                at += len(each.items)
        finally:
            self._joined.ended()


class _Joined:
    """What waits for one guard, on one event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._waiting: deque[_Asked] = deque()
        self._n_running = 0
        self._is_due = False

    async def decide(self, guard: Guard, items: Sequence[Item]) -> list[Decision]:
        asked = _Asked(guard, items, self.loop)
        self._waiting.append(asked)
        if not self._is_due:  # what else comes in this turn of the loop goes with it
            self._is_due = True
            self.loop.call_soon(self._start)
        try:
            return await asked.decisions
        finally:
            if asked.batch is not None:
                asked.batch.drop()

    def ended(self) -> None:
        self._n_running -= 1
        self._start()

    def _start(self) -> None:
        self._is_due = False
        while self._waiting and self._n_running < AT_ONCE:
            taken: list[_Asked] = []
            n_texts = 0
            while self._waiting and (not taken or n_texts + len(self._waiting[0].items) <= MAX_TEXTS):
                asked = self._waiting.popleft()
                if not asked.decisions.done():
                    taken.append(asked)
                    n_texts += len(asked.items)
            if taken:
                self._n_running += 1
                _Batch(self, taken)


_joined: WeakKeyDictionary[Guard, _Joined] = WeakKeyDictionary()
