"""The end of a piece of work, awaited on an event loop while another thread does it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from guardkit.ticket import Pending, after_step


class Bell:
    """Calls in the thread of an event loop, for other threads: it is woken once for all that a step of a model found,
    since waking it costs more than what it is woken for."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._calls: deque[Callable[[], object]] = deque()

    def call(self, call: Callable[[], object]) -> None:
        """Have `call` called, which should not raise. Order is kept. From any thread."""
        self._calls.append(call)
        after_step(self._ring)

    def _ring(self) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        calls = self._calls
        try:
            while calls:
                calls.popleft()()
        finally:
            if calls:  # an interrupt: the others are still waited for
                self._ring()


class Late(TimeoutError):
    """Of the waiting, and not the work's own."""


class _Here(threading.local):
    bell: Bell | None = None


_here = _Here()


def bell() -> Bell:
    """That of the event loop that runs in this thread."""
    loop, found = asyncio.get_running_loop(), _here.bell
    if found is None or found.loop is not loop:
        found = _here.bell = Bell(loop)
    return found


async def end_of(pending: Pending, until: float | None = None) -> Any:
    """The result of `pending`, or the error that it ended with; `Late` where it has none at `until`, of
    `time.monotonic`. Given up, it is cancelled."""
    if not pending.done():
        waiting = _Waiting(pending)
        alarm = None
        if until is not None:
            alarm = waiting.get_loop().call_later(until - time.monotonic(), waiting.give_up)
        try:
            await waiting
        finally:
            pending.cancel()  # nothing happens where it is done
            if alarm is not None:
                alarm.cancel()
    try:
        return pending.result(0)
    except CancelledError as error:
        raise asyncio.CancelledError from error


class _Waiting:
    """What one task awaits: a future of asyncio's kind that leads its task on at once when the bell rings, and not in
    another round of the event loop."""

    __slots__ = ("_asyncio_future_blocking", "_bell", "_context", "_ended", "_pending", "_problem", "_wake")

    def __init__(self, pending: Pending):
        self._asyncio_future_blocking = False
        self._pending, self._bell = pending, bell()
        self._problem: BaseException | None = None
        self._ended = False

    def __await__(self) -> Generator[_Waiting, None, None]:
        self._asyncio_future_blocking = True  # as asyncio's own futures say that they were awaited
        yield self
        self.result()

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: contextvars.Context) -> None:
        self._wake, self._context = fn, context
        self._pending.add_done_callback(self._tell)

    def _tell(self, _: Pending) -> None:
        self._bell.call(self._end)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._context.run(self._wake, self)

    def _fail(self, problem: BaseException) -> None:
        if self._problem is None and not self._ended:
            self._problem = problem
            self._bell.loop.call_soon(self._end)

    def give_up(self) -> None:
        self._fail(Late())

    def cancel(self, msg: Any = None) -> bool:
        """By the task, when it is cancelled."""
        if self._ended:
            return False
        self._fail(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def result(self) -> None:
        """Raises why there is nothing to wait for any more."""
        if self._problem is not None:
            raise self._problem

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._bell.loop
