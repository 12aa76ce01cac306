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
from typing import Any, TypeVar

from guardkit.loop import Turn
from guardkit.rounds import BRIEF_S, InRound
from guardkit.ticket import Pending, after_step

_T = TypeVar("_T")
LONE = 4  # rounds of one task in a row, behind which no other is waited for
LOST_S = 1.0  # an end of a round that has not come by then was lost to an interrupt


class Bell:
    """Calls in the thread of an event loop, for other threads: it is woken once for all that a step of a model found,
    since waking it costs more than what it is woken for."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._later: dict[Callable[[], None], None] = {}  # what is done at the end of the round
        self._is_due = self._is_answering = False  # due: the end of the round will come
        self._until = 0.0  # of `time.perf_counter`: how long this round may go on before the event loop looks around
        self._asker: object = None  # the task that asked last, and how many have in this round
        self._n_askers = 0
        self._n_lone = 0  # rounds in a row with one asker
        self.round = InRound(self._at_the_end)

    def call(self, call: Callable[[], object]) -> None:
        """Have `call` called, which should not raise. Order is kept. From any thread."""
        self._calls.append(call)
        after_step(self._ring)

    def is_alone(self) -> bool:
        """Called by each task that is about to ask for something. Whether to do it at once: rounds have had no second
        task for a while, so that nothing is gained by waiting for others, and this one has not gone on for long."""
        now = time.perf_counter()
        if not self._is_due or now > self._until + LOST_S:
            self._until = now + BRIEF_S
            self._end_soon()
        task = asyncio.current_task(self.loop)
        if task is not self._asker:
            self._asker = task
            self._n_askers += 1
        return self._n_lone >= LONE and self._n_askers == 1 and now < self._until

    def _at_the_end(self, call: Callable[[], None]) -> None:
        if not self._is_due:
            self._end_soon()
        self._later[call] = None

    def _end_soon(self) -> None:
        self.loop.call_soon(self._end_round)
        self._is_due = True

    def _end_round(self) -> None:
        """Have done what the tasks of this round asked for, and lead them on. What they ask for then is done likewise
        for a little while: each time that the event loop looks for what else there is costs as much as a token."""
        self._until = time.perf_counter() + BRIEF_S
        try:
            self._count()
            while self._later and time.perf_counter() < self._until:
                later, self._later = deque(self._later), {}
                self._is_answering = True
                try:
                    while later:
                        later.popleft()()
                finally:
                    self._later |= dict.fromkeys(later)  # after a fault or an interrupt the others are still to be done
                    self._is_answering = False  # before the answer: what another thread adds from here on rings
                    self._answer()
                self._count()
        finally:
            self._is_due = False
            if self._later:
                self._end_soon()

    def _count(self) -> None:
        if self._n_askers:
            self._n_lone = self._n_lone + 1 if self._n_askers == 1 else 0
            self._n_askers, self._asker = 0, None

    def _ring(self) -> None:
        if self._is_answering:
            return
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


async def end_of(pending: Pending, until: float | None = None, own: Bell | None = None) -> Any:
    """The result of `pending`, or the error that it ended with; `Late` where it has none at `until`, of
    `time.monotonic`. Given up, it is cancelled. own: this event loop's, where it is at hand."""
    if not pending.done():
        waiting = _Waiting(pending, own or bell())
        alarm = None
        if until is not None:
            alarm = waiting.get_loop().call_later(until - time.monotonic(), waiting.give_up)
        try:
            await waiting
        finally:
            if alarm is not None:
                alarm.cancel()
            if not pending.done():
                pending.cancel()
    return _result(pending)


async def led(steps: Generator[Pending, Any, _T], turn: Callable[[], Turn | None], until: float | None = None) -> _T:
    """What `steps` returns: futures of a model whose results they are sent, for an event loop, which a long step may
    not hold up. turn: at the model, for a task that is alone and whose step is brief."""
    own = bell()
    together = own.round
    try:
        mine = turn() if own.is_alone() and until is None else None
        with mine or together:
            wanted = next(steps)
            if mine is not None:
                mine.serve_brief()
        while True:
            try:
                result = _result(wanted) if wanted.done() else await end_of(wanted, until, own)
            except Late:
                raise
            except Exception as error:
                with together:
                    wanted = steps.throw(error)
            else:
                with together:
                    wanted = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        steps.close()


def _result(pending: Pending) -> Any:
    try:
        return pending.result(0)
    except CancelledError as error:
        raise asyncio.CancelledError from error


class _Waiting:
    """What one task awaits: a future of asyncio's kind that leads its task on at once when the bell rings, and not in
    another round of the event loop."""

    __slots__ = ("_asyncio_future_blocking", "_bell", "_context", "_ended", "_pending", "_problem", "_wake")

    def __init__(self, pending: Pending, own: Bell):
        self._asyncio_future_blocking = False
        self._pending, self._bell = pending, own
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
