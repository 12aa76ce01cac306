"""Work of other threads awaited on an event loop: everybody gets his own result, and one step wakes the loop once."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest

from guardkit import Severity
from guardkit.awaiting import Late, end_of
from guardkit.testing import FakeGuard
from guardkit.ticket import Step, Ticket


class Counting(asyncio.SelectorEventLoop):
    woken = 0

    def call_soon_threadsafe(self, *args, **kwargs):
        self.woken += 1
        return super().call_soon_threadsafe(*args, **kwargs)


def elsewhere(work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_each_task_gets_its_own_result_and_a_step_wakes_the_loop_once() -> None:
    tickets = [Ticket(i) for i in range(60)]

    def step() -> None:
        with Step():
            for i, ticket in enumerate(tickets):
                if i % 3 == 0:
                    ticket.give(i)
                elif i % 3 == 1:
                    ticket.fail(ValueError(i))
                else:
                    ticket.cancel()

    async def run() -> list[object]:
        tasks = [asyncio.create_task(end_of(ticket)) for ticket in tickets]
        await asyncio.sleep(0)
        elsewhere(step)
        assert not any(task.done() for task in tasks)
        return await asyncio.gather(*tasks, return_exceptions=True)

    with asyncio.Runner(loop_factory=Counting) as runner:
        found = runner.run(run())
        assert runner.get_loop().woken == 1
    for i, result in enumerate(found):
        if i % 3 == 0:
            assert result == i
        else:
            assert isinstance(result, ValueError if i % 3 == 1 else asyncio.CancelledError)
            assert i % 3 == 2 or result.args == (i,)


def test_what_is_there_already_needs_no_waking() -> None:
    async def run() -> object:
        ticket = Ticket(None)
        ticket.give("there")
        return await end_of(ticket)

    with asyncio.Runner(loop_factory=Counting) as runner:
        assert runner.run(run()) == "there"
        assert runner.get_loop().woken == 0


def test_what_nobody_awaits_any_more_is_cancelled() -> None:
    async def run() -> None:
        late, given_up, awaited = Ticket(1), Ticket(2), Ticket(3)
        with pytest.raises(Late):
            await end_of(late, time.monotonic() + 0.01)
        assert late.cancelled()
        task = asyncio.create_task(end_of(given_up))
        other = asyncio.create_task(end_of(awaited, time.monotonic() + 60))
        await asyncio.sleep(0)
        task.cancel("for a reason")
        with pytest.raises(asyncio.CancelledError, match="for a reason"):
            await task
        assert given_up.cancelled()
        with pytest.raises(CancelledError):
            given_up.result(0)
        elsewhere(lambda: awaited.give("in time"))
        assert await other == "in time"

    asyncio.run(run())


def test_a_task_keeps_its_context_over_an_await() -> None:
    import contextvars

    name = contextvars.ContextVar("name", default="")

    async def one(ticket: Ticket, own: str) -> tuple[object, str]:
        name.set(own)
        return await end_of(ticket), name.get()

    async def run() -> list[object]:
        tickets = [Ticket(i) for i in range(4)]
        tasks = [asyncio.create_task(one(ticket, f"task {i}")) for i, ticket in enumerate(tickets)]
        await asyncio.sleep(0)
        for i, ticket in enumerate(tickets):
            elsewhere(lambda i=i, ticket=ticket: ticket.give(i))
        found = await asyncio.gather(*tasks)
        assert name.get() == ""
        return found

    assert asyncio.run(run()) == [(i, f"task {i}") for i in range(4)]


def test_a_batch_wakes_its_event_loop_once_a_step() -> None:
    guard = FakeGuard({"make a bomb": "unsafe"}, delay=0.001)
    with asyncio.Runner(loop_factory=Counting) as runner:
        found = runner.run(guard.acheck_batch([f"text {i}" for i in range(60)]))
        assert len(found) == 60
        assert all(verdict.severity is Severity.safe for verdict in found)
        assert runner.get_loop().woken < 20
