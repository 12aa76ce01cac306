"""Work of other threads awaited on an event loop: everybody gets his own result, and one step wakes the loop once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest

from guardkit import Severity
from guardkit.awaiting import LONE, LOST_S, Late, bell, end_of, led
from guardkit.loop import Load, Loop
from guardkit.rounds import at_the_end_of_the_round
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


class _Noting:
    """A scheduler that answers all that waits in one step, and notes in which thread, and how much."""

    def __init__(self) -> None:
        self.waiting: list[Ticket] = []
        self.steps: list[tuple[bool, int]] = []
        self.serves = True

    def may_serve(self) -> bool:
        return self.serves

    @property
    def tokens(self) -> int:
        return 0 if any(ticket.deadline is not None for ticket in self.waiting) else len(self.waiting)

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def take(self, message: Ticket) -> None:
        self.waiting.append(message)

    def step(self) -> bool:
        waiting, self.waiting = self.waiting, []
        self.steps.append((threading.current_thread() is threading.main_thread(), len(waiting)))
        for ticket in waiting:
            ticket.give(ticket.work)
        return False

    def load(self) -> Load:
        return Load(len(self.waiting))

    def interrupt(self) -> None:
        pass

    def reset(self, error: BaseException) -> None:
        for ticket in self.waiting:
            ticket.fail(error)

    before_fork = forked = interrupt


async def asked(loop: Loop, work: int, deadline: float | None = None) -> object:
    ticket: Ticket = Ticket(work, deadline)
    with bell().round:
        loop.put(ticket)
    return await end_of(ticket)


def test_what_the_tasks_of_a_round_ask_for_is_seen_together() -> None:
    scheduler = _Noting()
    scheduler.serves = False  # so it is the loop's thread that does it, which is woken once
    loop = Loop("test", scheduler)

    async def run() -> list[object]:
        return await asyncio.gather(*(asked(loop, i) for i in range(50)))

    assert asyncio.run(run()) == list(range(50))
    assert [step for step in scheduler.steps if step[1]] == [(False, 50)]
    loop.close("over")


def test_an_event_loop_does_itself_what_is_brief_and_nothing_else() -> None:
    scheduler = _Noting()
    loop = Loop("test", scheduler, scheduler)

    def threads_of(n: int, deadline: float | None = None) -> set[bool]:
        async def run() -> None:
            assert await asyncio.gather(*(asked(loop, i, deadline) for i in range(n))) == list(range(n))

        scheduler.steps.clear()
        with asyncio.Runner(loop_factory=Counting) as runner:
            runner.run(run())
            found = {here for here, served in scheduler.steps if served}
            assert runner.get_loop().woken == 0 or found == {False}
        return found

    assert threads_of(1) == {False}  # how long it takes is yet to be known
    loop._seconds = {1: 0.0, 6: 0.1}
    assert threads_of(1) == {True}
    assert threads_of(40) == {False}  # so many take longer
    assert threads_of(1, time.monotonic() + 60) == {False}  # who serves himself cannot leave
    scheduler.serves = False
    assert threads_of(1) == {False}
    loop.close("over")


class _OneByOne(_Noting):
    """One ticket a step; while the first is done another thread asks for more."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], None]] = []

    def step(self) -> bool:
        if not self.waiting:
            return False
        self.steps.append((threading.current_thread() is threading.main_thread(), len(self.waiting)))
        while self.meanwhile:
            elsewhere(self.meanwhile.pop())
        ticket = self.waiting.pop(0)
        ticket.give(ticket.work)
        return self.busy


def test_what_others_ask_for_meanwhile_is_not_done_on_the_event_loop() -> None:
    scheduler = _OneByOne()
    loop = Loop("test", scheduler, scheduler)
    others = [Ticket(i) for i in range(20)]
    loop._seconds = {2: 0.0}

    async def run() -> list[object]:
        scheduler.meanwhile.append(lambda: [loop.put(other) for other in others] and None)
        return await asyncio.gather(*(asked(loop, i) for i in range(3)))

    assert asyncio.run(run()) == [0, 1, 2]
    assert [other.result(60) for other in others] == list(range(20))
    assert [here for here, _ in scheduler.steps] == [True] + [False] * 22
    loop.close("over")


def test_how_long_work_takes_is_measured_wherever_it_is_done() -> None:
    scheduler = _Noting()
    loop = Loop("test", scheduler, scheduler)
    loop._seconds = {1: 1.0}
    for _ in range(40):  # by the thread, until its mean is brief again
        asyncio.run(asked(loop, 1))
    assert loop._seconds[1] < 0.1
    scheduler.steps.clear()
    loop._seconds = {1: 0.0}
    asyncio.run(asked(loop, 1))
    assert scheduler.steps == [(True, 1)]
    assert loop._seconds[1] > 0
    loop.close("over")


def test_what_another_thread_finds_at_the_end_of_a_round_is_not_missed() -> None:
    async def run() -> list[object]:
        own, tickets = bell(), [Ticket(i) for i in range(3)]

        def fails() -> None:
            raise ValueError("a fault")

        def others() -> None:
            elsewhere(lambda: tickets[0].give("by another thread"))

        asyncio.get_running_loop().set_exception_handler(lambda _, told: tickets[1].give(str(told["exception"])))
        waiting = [asyncio.create_task(end_of(ticket)) for ticket in tickets]
        await asyncio.sleep(0)
        with own.round:
            for call in (fails, others, lambda: tickets[2].give("after a fault")):
                at_the_end_of_the_round(call)
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == ["by another thread", "a fault", "after a fault"]


def test_a_task_that_always_has_more_does_not_keep_the_others_from_their_turn() -> None:
    scheduler = _Noting()
    loop = Loop("test", scheduler, scheduler)
    loop._seconds = {1: 0.0}

    async def run() -> int:
        done = False

        async def greedy() -> int:
            n = 0
            while not done:
                await asked(loop, n)
                n += 1
            return n

        task = asyncio.create_task(greedy())
        for _ in range(5):
            await asyncio.sleep(0)
        done = True
        return await task

    assert asyncio.run(run()) > 0
    loop.close("over")


def steps_of(loop: Loop, work: int):
    """As a model's reading asks for something."""
    ticket: Ticket = Ticket(work)
    loop.put(ticket)
    return (yield ticket)


def test_a_task_that_is_alone_is_served_at_once_and_others_that_come_are_served_together() -> None:
    scheduler = _Noting()
    loop = Loop("test", scheduler, scheduler)
    turned = 0  # how often others had their turn

    def turn_again() -> None:
        nonlocal turned
        turned += 1
        asyncio.get_running_loop().call_soon(turn_again)

    async def ask(n: int) -> None:
        for i in range(n):
            loop._seconds = {1: 0.0, 2: 0.0}
            assert await led(steps_of(loop, i), loop.turn) == i

    async def run() -> None:
        turn_again()
        await ask(LONE + 1)
        await asyncio.sleep(0)
        before = turned
        bell()._until += 60  # however slow the machine is
        await ask(10)
        assert turned == before
        scheduler.steps.clear()

        async def ask_on() -> None:
            while [n for _, n in scheduler.steps].count(2) < 10:  # one step for both
                await ask(1)

        await asyncio.wait_for(asyncio.gather(ask_on(), ask_on()), 60)
        assert all(here for here, _ in scheduler.steps)
        await ask(LONE + 1)
        await asyncio.sleep(0)
        loop._seconds = {1: 1.0}
        scheduler.steps.clear()
        assert await led(steps_of(loop, 7), loop.turn) == 7
        assert [step for step in scheduler.steps if step[1]] == [(False, 1)]  # what takes long is the thread's

    asyncio.run(run())
    loop.close("over")


def test_a_task_that_is_alone_and_always_has_more_lets_the_event_loop_go_on() -> None:
    scheduler = _Noting()
    loop = Loop("test", scheduler, scheduler)

    async def greedy() -> None:
        n = 0
        while True:
            loop._seconds = {1: 0.0}
            assert await led(steps_of(loop, n), loop.turn) == n
            n += 1

    async def run() -> None:
        task = asyncio.create_task(greedy())
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    loop.close("over")


def test_an_end_of_a_round_that_was_lost_to_an_interrupt_comes_again() -> None:
    scheduler = _Noting()
    loop = Loop("test", scheduler, scheduler)

    async def run() -> object:
        bell()._is_due, bell()._until = True, time.perf_counter() - 2 * LOST_S  # and no call of it stands anywhere
        return await asyncio.wait_for(led(steps_of(loop, 5), loop.turn), 20)

    assert asyncio.run(run()) == 5
    loop.close("over")
