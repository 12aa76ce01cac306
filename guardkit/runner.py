"""One runner for all that asks a model: checks, batches, traces and streams, sync and async.

A job is a generator: it yields a piece of work, is sent the result (or thrown the error), and returns what it found. It
calls no model and holds no clock, so each decision is written once. The runner hands over the work of many jobs
together, keeps a model's `in_flight` of them under way, and leads each on when its result is there.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from guardkit.errors import Overloaded
from guardkit.models.base import StreamModel, Work, too_late
from guardkit.ticket import Pending

if TYPE_CHECKING:
    import asyncio

_T = TypeVar("_T")
Steps = Generator[Work, Any, _T]
Job = Callable[[], Steps[_T]]
"""Starts a job; called again where the first try only came too late."""
Rounds = Generator[Sequence[Job[Any]], list[Any], _T]
"""Yields jobs that are to be run together, is sent the result or error of each."""
Landed = tuple[Pending, Exception | None]
"""A future that is done, or one that was given up, with the reason."""
QUICK = 64  # pieces of work that models which are quick do on event loops, before others have their turn
THREADS = 8  # that read, normalise and tokenise for event loops


def lead(model: StreamModel, steps: Steps[_T], timeout: float | None = None) -> _T:
    """Run one job to its end. timeout: seconds for each piece of its work."""
    try:
        work = next(steps)
        while True:
            try:
                result = model.judge(work, timeout)
            except Exception as error:
                work = steps.throw(error)
            else:
                work = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def alead(model: StreamModel, steps: Steps[_T], timeout: float | None = None) -> _T:
    """`lead` for an event loop; the job itself, which should be quick, runs in it."""
    try:
        work = next(steps)
        while True:
            try:
                if model.quick and timeout is None:
                    if next(_quick) % QUICK == 0:
                        await _let_others()
                    result = model.judge(work)
                else:
                    result = await model.ajudge(work, timeout)
            except Exception as error:
                work = steps.throw(error)
            else:
                work = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def run(model: StreamModel, jobs: Sequence[Job[_T]], timeout: float | None = None) -> list[_T | Exception]:
    """Each job's result or error, in order. timeout: seconds for each piece of work."""
    landed: SimpleQueue[Landed] = SimpleQueue()
    flight = _Flight(model, jobs, timeout, lambda future: landed.put((future, None)))
    turn = model.turn() if timeout is None else None  # who serves himself cannot leave when his time is up
    try:
        with turn or nullcontext():
            going = flight.advance(())
            while going:
                while turn is not None and turn.owned and landed.empty() and turn.step():
                    pass
                if turn is not None and landed.empty():  # what is under way waits for the work of others
                    turn.leave()
                try:
                    done = [landed.get(timeout=flight.left_s)]
                    while not landed.empty():
                        done.append(landed.get())
                except Empty:
                    done = flight.late()
                going = flight.advance(done)
    finally:
        flight.drop()
    return flight.results  # type: ignore[return-value]


def run_rounds(model: StreamModel, rounds: Rounds[_T], timeout: float | None = None) -> _T:
    """Run jobs in rounds to their end."""
    try:
        jobs = next(rounds)
        while True:
            jobs = rounds.send(run(model, jobs, timeout))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def arun(
    model: StreamModel, jobs: Sequence[Job[_T]], timeout: float | None = None, *, here: bool = False
) -> list[_T | Exception]:
    """`run` for an event loop, which is not held up: the jobs are led on in threads, and no thread waits. here: they
    are quick, and led on in the loop itself."""
    import asyncio

    from guardkit.awaiting import bell

    if here and model.quick and timeout is None:
        if next(_quick) % QUICK == 0:
            await _let_others()
        return run(model, jobs)
    own = bell()
    tell = own.call
    landed: deque[Landed] = deque()
    news = asyncio.Event()
    step: asyncio.Future[bool] | None = None

    def land(future: Pending) -> None:
        landed.append((future, None))
        tell(news.set)

    flight = _Flight(model, jobs, timeout, land)
    done: list[Landed] = []
    try:
        while True:
            if here:
                with own.round:
                    going = flight.advance(done)
            else:
                step = off_loop(functools.partial(flight.advance, done))
                going = await asyncio.shield(step)
            if not going:
                return flight.results  # type: ignore[return-value]
            try:
                await asyncio.wait_for(news.wait(), flight.left_s)
                news.clear()
                done = [landed.popleft() for _ in range(len(landed))]
            except TimeoutError:
                done = flight.late()
    finally:
        flight.dropped = True  # where a thread still leads the jobs on, it is the one to drop them
        if step is None or step.done():
            flight.drop()


class _Flight(Generic[_T]):
    """The jobs of one call. landed: called with every future that is done."""

    def __init__(
        self,
        model: StreamModel,
        jobs: Sequence[Job[_T]],
        timeout: float | None,
        landed: Callable[[Pending], object],
    ):
        self.model, self.jobs, self.timeout, self.landed = model, jobs, timeout, landed
        self.results: list[_T | Exception | None] = [None] * len(jobs)
        self.dropped = False
        self._waiting = deque(range(len(jobs)))
        self._late: deque[int] = deque()  # jobs that came too late: tried again alone
        self._under_way: dict[Pending, tuple[int, Steps[_T], float | None]] = {}

    def advance(self, done: Sequence[Landed]) -> bool:
        """Lead on the jobs of `done`, start others, and submit what they all ask for. False where all have ended."""
        wanted: list[tuple[int, Steps[_T], Work]] = []
        for future, error in done:
            if (found := self._under_way.pop(future, None)) is None:
                continue
            at, steps, _ = found
            try:
                if error is not None:
                    raise error
                result = future.result(0)
            except (Exception, CancelledError) as problem:
                self._go_on(wanted, at, steps, functools.partial(steps.throw, problem))
            else:
                self._go_on(wanted, at, steps, functools.partial(steps.send, result))
        room = self.model.in_flight - len(self._under_way)
        while len(wanted) < room and (self._waiting or (self._late and not wanted and not self._under_way)):
            at = (self._waiting or self._late).popleft()
            steps = self.jobs[at]()
            self._go_on(wanted, at, steps, functools.partial(next, steps))
        if wanted:
            self._submit(wanted)
        if self.dropped:
            self.drop()
        return bool(self._under_way)

    def _go_on(self, wanted: list[Any], at: int, steps: Steps[_T], go: Callable[[], Work]) -> None:
        try:
            wanted.append((at, steps, go()))
        except StopIteration as end:
            self.results[at] = end.value
        except Exception as error:
            tried = self.results[at] is not None
            self.results[at] = error
            if isinstance(error, TimeoutError | Overloaded) and len(self.jobs) > 1:
                if tried:  # alone, too: the model is stuck or busy with others
                    self._late.clear()
                else:
                    self._late.append(at)

    def _submit(self, wanted: list[tuple[int, Steps[_T], Work]]) -> None:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        try:
            futures = self.model.submit([work for _, _, work in wanted], deadline)
        except Exception as error:  # a model that was closed: every job learns of it
            for at, steps, _ in wanted:
                self._go_on([], at, steps, functools.partial(steps.throw, error))
                steps.close()
            return
        for future, (at, steps, _) in zip(futures, wanted, strict=True):
            self._under_way[future] = at, steps, deadline
        for future in futures:
            future.add_done_callback(self.landed)

    @property
    def left_s(self) -> float | None:
        """Seconds until the oldest work is late; None without a timeout."""
        deadline = next(iter(self._under_way.values()))[2]
        return None if deadline is None else max(deadline - time.monotonic(), 0.0)

    def late(self) -> list[Landed]:
        """The work whose time is up; it is given up."""
        now = time.monotonic()
        late = [f for f, (_, _, deadline) in self._under_way.items() if deadline is not None and deadline <= now]
        return [(future, too_late(self.timeout)) for future in late if future.cancel() or not future.done()]

    def drop(self) -> None:
        """Nobody waits any more."""
        under_way, self._under_way = self._under_way, {}
        for future, (_, steps, _) in under_way.items():
            future.cancel()
            steps.close()


_quick = itertools.count(1)  # pieces of such work, of all event loops


async def _let_others() -> None:
    """A task that awaits only what is there at once would keep the others, and its own cancellation, waiting."""
    import asyncio

    await asyncio.sleep(0)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "guardkit-read")


@functools.cache
def desk(is_long: bool) -> AbstractContextManager[Any]:
    """Where threads read their texts: one short and one long at a time. The interpreter runs one thread at a time, in
    turns: of two hundred that read at once, the loop's own, which judges them, would get a two-hundredth."""
    return threading.RLock()  # a signal handler may judge in the middle of its own thread's reading


if hasattr(os, "register_at_fork"):  # threads, and whoever was at a desk, stayed in the parent
    os.register_at_fork(after_in_child=_pool.cache_clear)
    os.register_at_fork(after_in_child=desk.cache_clear)


def off_loop(call: Callable[[], _T]) -> asyncio.Future[_T]:
    """Run `call` in a thread, for the event loop that asks."""
    import asyncio

    context, loop = contextvars.copy_context(), asyncio.get_running_loop()
    try:
        return loop.run_in_executor(_pool(), lambda: context.run(call))
    except RuntimeError:  # the program is ending, and what it still asks is asked here
        done = loop.create_future()
        done.set_result(call())
        return done
