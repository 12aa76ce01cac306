"""A guard's life: closed, forked, pickled, interrupted, cancelled, overloaded, ended with the program."""

from __future__ import annotations

import asyncio
import copy
import functools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

from guardkit import Guard, GuardkitError, GuardViolation, NotJudged, Overloaded, Severity, Stage
from guardkit.errors import MissingExtra
from guardkit.loop import Load, Loop
from guardkit.models.base import Append, Query, Tokens
from guardkit.models.gen_grammar import Unparsable
from guardkit.models.nano.pace import Pace
from guardkit.models.nano.scheduler import NanoScheduler
from guardkit.policy import Action
from guardkit.testing import FakeGuard, FakeModel
from guardkit.ticket import Ticket
from tests.asking import ask, eventually

SCRIPT = {"bad": "unsafe"}
TEXT = "Where is the nearest bakery, and when does it open on Sundays? "
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# -- closing


def test_a_closed_guard_says_so_and_its_twin_lives_on() -> None:
    first = Guard.load(threads=3)  # an instance that no other test holds
    second = Guard(first.model, policy="strict")
    with first:
        stream = first.stream("hi")
        assert stream.feed(TEXT)
    for call in (
        lambda: first.check("hi"), lambda: first.decide("hi"), lambda: first.enforce("hi"), lambda: first.stream("hi"),
        lambda: first.check_batch(["hi"]), lambda: asyncio.run(first.acheck("hi")),
    ):  # fmt: skip
        with pytest.raises(GuardkitError, match="closed"):
            call()
    assert second.check("hi").severity is Severity.safe
    second.close()
    second.close()
    with pytest.raises(NotJudged, match="closed"):
        stream.feed(TEXT)
    assert Guard.load(threads=3).check("hi").severity is Severity.safe  # another one


def test_closing_frees_the_model_and_fails_what_waits() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(FakeModel):
        def query(self, queries: Any) -> Any:
            begun.set()
            assert go_on.wait(60)
            return super().query(queries)

    model = Slow(SCRIPT)
    guard = Guard(model)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(guard.decide("hi"))) for _ in range(5)]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    assert eventually(lambda: len(model._loop._inbox) == 4)
    guard.close()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(decision.judged for decision in found) <= 1  # the one that was under way
    assert all(d.action is Action.block for d in found if not d.judged)


# -- pickling


def errors() -> list[GuardkitError]:
    with pytest.raises(GuardViolation) as caught:
        FakeGuard(SCRIPT).enforce("bad")
    known: dict[type[GuardkitError], GuardkitError] = {
        GuardViolation: caught.value,
        MissingExtra: MissingExtra("x", "remote"),
        Unparsable: Unparsable("so so", "no line"),
    }
    kinds = [GuardkitError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return [known[kind] if kind in known else kind.__new__(kind, "what happened") for kind in kinds]


def test_every_error_crosses_processes() -> None:
    for error in errors():
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
        assert str(copy.deepcopy(error)) == str(error)


@pytest.mark.parametrize("copied", [lambda g: pickle.loads(pickle.dumps(g)), copy.deepcopy, copy.copy])
def test_a_guard_can_be_copied_with_its_settings(copied: Callable[[Guard], Guard], tmp_path: Any) -> None:
    for guard in (Guard.load(policy="strict", timeout=30, threshold=0.3, audit=tmp_path / "log"), FakeGuard(SCRIPT)):
        again = copied(guard)
        assert (again.policy.name, again.timeout, again.debounce) == (guard.policy.name, guard.timeout, guard.debounce)
        assert again.model.threshold == guard.model.threshold
        assert again.check("bad") == guard.check("bad")
        assert again.decide("bad", stage="response") == guard.decide("bad", stage="response")


def _judge(guard: Guard) -> str:
    with guard.stream("hi") as stream:
        stream.feed("some words")
        stream.finish()
    return guard.check(TEXT).severity.value


def _violate(guard: Guard) -> None:
    guard.enforce("bad")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_process_judges_and_its_violation_arrives(method: str) -> None:
    guard = Guard.load()
    assert _judge(guard) == "safe"
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(_judge, (guard,)).get(60) == "safe"
        with pytest.raises(GuardViolation) as caught:
            pool.apply_async(_violate, (FakeGuard(SCRIPT),)).get(60)
    assert caught.value.verdict is not None


# -- forking


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_in_the_middle_of_the_work_has_a_loop_of_its_own() -> None:
    guard = Guard.load()
    stream = guard.stream("hi")
    stream.feed(TEXT)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            guard.check(TEXT * 4)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(2):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    asyncio.run(guard.acheck_batch([TEXT, "hello"]))
                    stream.feed("and then")  # idle when the fork happened: it goes on
                    stream.finish()
                    code = 0
                finally:
                    os._exit(code)
            status: list[int] = []
            assert eventually(functools.partial(_ended, child, status), 60)
            assert status == [0]
    finally:
        stop.set()
        thread.join()


def _ended(child: int, status: list[int]) -> bool:
    pid, code = os.waitpid(child, os.WNOHANG)
    if pid:
        status.append(code)
    return bool(pid)


# -- the end of the program

PROGRAM = """
import sys, threading, time, asyncio, os, signal
from guardkit import Guard
text = "Where is bakery {}, and when does it open on Sundays? "
long = "".join(text.format(i) for i in range(60))
guard = Guard.load()
def background(call):
    threading.Thread(target=call, daemon=True).start(); time.sleep(0.05)
"""
ENDS = {
    "a check under way": "background(lambda: guard.check(long, stage='document'))",
    "inside a timeout": "g = Guard(guard.model, timeout=0.02, exact=True); new = ' '.join(f'bakery{chr(97 + i % 26)}"
    "{chr(97 + i // 26)}' for i in range(676)); assert not g.decide(new * 3, stage='document').judged",
    "a stream under way": "s = guard.stream('hi'); background(lambda: s.feed(long))",
    "an open stream": "s = guard.stream('hi'); s.feed('some words')",
    "a batch under way": "background(lambda: guard.check_batch([long[i:] for i in range(9)], stage='document'))",
    "an error": "background(lambda: guard.check(long, stage='document')); sys.excepthook = lambda *a: None; 1 / 0",
    "tasks left": "l = asyncio.new_event_loop(); t = l.create_task(guard.acheck(long)); "
    "l.run_until_complete(asyncio.sleep(0.05)); t.cancel(); l.run_until_complete(asyncio.wait([t])); l.close()",
    "a stream in a task": "async def go():\n    async with guard.astream('hi') as s:\n        await s.feed(long)\n"
    "l = asyncio.new_event_loop(); t = l.create_task(go()); l.run_until_complete(asyncio.sleep(0.05))",
    "a worker that was forked before it judged": "pid = os.fork()\nif pid: os.waitpid(pid, 0)\n"
    "guard.check(text); s = guard.stream('hi'); s.feed(text); s.finish()",
    "an interrupt while streaming": "signal.signal(signal.SIGALRM, signal.default_int_handler); "
    "signal.setitimer(signal.ITIMER_REAL, 0.05); s = guard.stream('hi')"
    "\ntry:\n    while True: s.feed(text)\nexcept KeyboardInterrupt: guard.check('still there')",
    "a fork": "guard.check(text); pid = os.fork(); guard.check(text); pid and os.waitpid(pid, 0)",
    "an interrupt": "signal.signal(signal.SIGALRM, signal.default_int_handler); "
    "signal.setitimer(signal.ITIMER_REAL, 0.05)"
    "\ntry:\n    while True: guard.check(long, stage='document')\nexcept KeyboardInterrupt: guard.check('still there')",
}


@pytest.mark.parametrize("case", ENDS)
def test_a_program_ends_with_its_own_status(case: str) -> None:
    code = f"{PROGRAM}\n{ENDS[case]}\nprint('done')\nsys.exit(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (1 if case == "an error" else 0), done.stderr[-500:]
    assert "terminate" not in done.stderr


# -- interrupts


def test_an_interrupt_anywhere_leaves_a_guard_that_works() -> None:
    """A signal in the middle of a caller's own turn, at many places: nothing hangs."""
    guard, whole = Guard.load(), Guard.load().check(TEXT)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    stopped = 0
    try:
        for i in range(12):
            stream = guard.stream("hi")
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.003 * (i + 1))
                for _ in range(50):
                    stream.feed("some words ")
                    guard.check_batch([TEXT, "hello", "words"])
            except KeyboardInterrupt:
                stopped += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            stream.close()
            assert guard.check(TEXT) == whole
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stopped > 4


# -- deadlines, cancellation, overload


def test_work_that_nobody_wants_is_not_done() -> None:
    guard = FakeGuard(delay=0.1)
    model = guard.model
    assert isinstance(model, FakeModel)

    async def storm() -> float:
        tasks = [asyncio.create_task(guard.acheck(f"text {i}")) for i in range(50)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        before = model.calls
        await guard.acheck("after the storm")
        return model.calls - before

    assert asyncio.run(storm()) <= 2  # its own, and what was under way
    late = Guard(model, timeout=0.05)
    calls = model.calls
    assert not any(d.judged for d in (late.decide(f"text {i}", stage="response") for i in range(5)))
    time.sleep(0.3)
    assert model.calls - calls <= 5


def test_nano_drops_what_is_cancelled_or_late_and_keeps_the_rest() -> None:
    model = Guard.load().model
    expected = ask(model, [Query(TEXT)])
    futures = model.submit([Query(TEXT * 15 + str(i)) for i in range(20)])
    futures += model.submit([Query(TEXT * 15)], time.monotonic() - 1)
    for future in futures[1:20]:
        future.cancel()
    assert ask(model, [Query(TEXT)])[0][0].scores.severity.tolist() == expected[0][0].scores.severity.tolist()
    assert futures[0].result(60)
    assert isinstance(futures[20].exception(60), TimeoutError | Overloaded)


def test_many_threads_are_judged_as_one_by_one_in_bounded_memory() -> None:
    guard = Guard.load()
    texts = [f"{TEXT}{i} " * (1 + i % 5) for i in range(40)]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        found[i] = guard.check(texts[i], stage="response" if i % 3 == 0 else "prompt")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(0, 40, 7):
        assert found[i] == guard.check(texts[i], stage="response" if i % 3 == 0 else "prompt")


class _Watched(dict[str, str]):
    """A message that knows how many like it are read at once."""

    reading, most = 0, 0

    def get(self, key: str, default: Any = None) -> Any:
        _Watched.reading += 1
        _Watched.most = max(_Watched.most, _Watched.reading)
        time.sleep(0.002)
        _Watched.reading -= 1
        return super().get(key, default)


def test_of_many_threads_one_reads_a_text_at_a_time_and_who_waits_too_long_is_not_judged() -> None:
    """Else the thread that judges what was read would hardly ever have its turn at the interpreter."""
    for timeout, n_judged in ((60.0, range(20, 21)), (0.02, range(1, 15))):
        guard = Guard(FakeModel(SCRIPT), timeout=timeout)
        found: list[Any] = []
        message = _Watched(role="user", content="hello")
        start = threading.Barrier(20)

        def work(guard: Guard = guard, found: Any = found, message: Any = message, start: Any = start) -> None:
            start.wait()
            found.append(guard.decide([message]))

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert _Watched.most == 1
        judged = [decision for decision in found if decision.judged]
        assert len(judged) in n_judged
        assert all("longer than" in d.error and d.action is Action.block for d in found if not d.judged)


def test_a_response_that_is_given_up_in_the_middle_of_a_wave_is_not_computed() -> None:
    model: Any = Guard.load(threads=3).model
    scheduler = NanoScheduler(model)
    tokens = [Tokens(Stage.response, model.tokenizer.encode(TEXT * 8)[0]) for _ in range(9)]
    tickets = [Ticket[Any](Append(model.open(()), each), None, model) for each in tokens]
    for ticket in tickets:
        scheduler.take(ticket)
    pieces: list[int] = []
    forward = model.judge_pieces

    def counted(work: Any) -> Any:
        pieces.append(len(work))
        return forward(work)

    model.judge_pieces = counted
    try:
        assert scheduler.step()
        for ticket in tickets:
            ticket.cancel()
        while scheduler.step():
            pass
    finally:
        del model.judge_pieces
    assert 0 < sum(pieces) < 9
    assert scheduler.load().waiting == 0


@pytest.fixture
def paced() -> tuple[Any, NanoScheduler]:
    """The embedded model, and a scheduler of its own for it that has yet to measure its speed."""
    model: Any = Guard.load(threads=3).model
    model._seen.clear()
    return model, NanoScheduler(model)


def _asked(model: Any, scheduler: NanoScheduler, text: str, left_s: float | None) -> Ticket[Any]:
    ticket: Ticket[Any] = Ticket(Query(text), None if left_s is None else time.monotonic() + left_s, model)
    scheduler.take(ticket)
    return ticket


def test_what_could_not_be_done_in_time_is_refused_at_once(paced: tuple[Any, NanoScheduler]) -> None:
    model, scheduler = paced
    scheduler._pace.per_s = 10.0  # as if measured
    first = _asked(model, scheduler, TEXT * 9, 1)
    second = _asked(model, scheduler, TEXT * 9 + "Two.", 1)
    patient = _asked(model, scheduler, TEXT * 9 + "Three.", None)
    scheduler._queries._draw()
    response = Ticket[Any](Append(model.open(()), Tokens(Stage.response, [5] * 9)), time.monotonic() + 1, model)
    scheduler.take(response)
    assert not first.done()  # nothing waited before it
    with pytest.raises(Overloaded, match="what waits takes about"):
        second.result(0)
    while scheduler.step():
        pass
    assert patient.result(0)
    assert isinstance(response.exception(0), Overloaded)
    assert scheduler._pace.tokens == 0


def test_what_is_known_never_waits_for_what_is_not(paced: tuple[Any, NanoScheduler]) -> None:
    """A burst in which most texts were judged before, or differ from one another in numbers only."""
    model, scheduler = paced
    known = f"{TEXT}Room 17 {TEXT}"
    first = _asked(model, scheduler, known, None)
    while scheduler.step():
        pass
    scheduler._pace.per_s = 50.0
    new = [_asked(model, scheduler, TEXT * 4 + "x" * i, None) for i in range(1, 20)]
    again = [_asked(model, scheduler, known.replace("17", str(i)), 0.5) for i in range(20, 60)]
    scheduler.step()
    assert [t.result(0)[0].scores.severity.tolist() for t in again] == [
        first.result(0)[0].scores.severity.tolist()
    ] * len(again)
    assert not all(t.done() for t in new)


def test_what_was_cancelled_does_not_stand_before_others(paced: tuple[Any, NanoScheduler]) -> None:
    model, scheduler = paced
    given_up = [_asked(model, scheduler, TEXT * 4 + "y" * i, None) for i in range(1, 30)]
    scheduler._queries._draw()
    assert scheduler._pace.tokens > 1500
    for ticket in given_up:
        ticket.cancel()
    scheduler._pace.per_s = 100.0
    last = _asked(model, scheduler, TEXT + "Where?", 10)
    while scheduler.step():
        pass
    assert last.result(0)
    assert scheduler._pace.tokens == 0


def test_equal_windows_that_wait_are_judged_once(paced: tuple[Any, NanoScheduler]) -> None:
    model, scheduler = paced
    passes: list[int] = []
    forward = model.judge_windows

    def counted(windows: Any) -> Any:
        passes.append(len(windows))
        return forward(windows)

    model.judge_windows = counted
    try:
        tickets = [_asked(model, scheduler, f"{TEXT}It has {i} shelves.", 60) for i in range(10, 40)]
        while scheduler.step():
            pass
    finally:
        del model.judge_windows
    assert passes == [1]
    assert all(ticket.result(0) for ticket in tickets)


def test_nothing_is_begun_that_cannot_end_in_time(paced: tuple[Any, NanoScheduler]) -> None:
    model, scheduler = paced
    words = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "lmnrst"]  # so no two windows are equal
    texts = ["".join(TEXT.replace("bakery", word) for word in words[6 * i : 6 * i + 6]) for i in range(12)]
    tickets = [_asked(model, scheduler, text, 60) for text in texts]
    while scheduler._queries._short:
        scheduler._queries._draw()  # all are admitted: no speed is known
    assert not any(ticket.done() for ticket in tickets)
    scheduler._pace.per_s = 0.1
    scheduler._queries._plan()
    assert all(isinstance(ticket.exception(0), Overloaded) for ticket in tickets[:-1])
    assert not tickets[-1].done()  # alone: it is tried, since the speed may be another one by now


def test_a_ticket_ends_once_however_many_end_it() -> None:
    for _ in range(200):
        ticket: Ticket[None] = Ticket(None)
        told: list[Any] = []
        ticket.add_done_callback(told.append)
        start = threading.Barrier(4)

        def race(end: Callable[[], object], ticket: Ticket[None] = ticket, start: Any = start) -> None:
            start.wait()
            end()

        ends = (lambda t=ticket: t.give(1), lambda t=ticket: t.fail(ValueError()), ticket.cancel)
        threads = [threading.Thread(target=race, args=(end,)) for end in ends]
        for thread in threads:
            thread.start()
        start.wait()
        for thread in threads:
            thread.join()
        ticket.add_done_callback(told.append)
        assert told == [ticket, ticket]
        first = _end_of(ticket)
        ticket.give(2)
        assert _end_of(ticket) == first == (_end_of(ticket) if ticket.done() else None)
        assert ticket.cancelled() is ticket.cancel()
    with pytest.raises(TimeoutError):
        Ticket(None).result(0.01)


def _end_of(ticket: Ticket[None]) -> Any:
    try:
        return ticket.result(1)
    except (CancelledError, ValueError) as error:
        return type(error)


def test_texts_that_repeat_each_other_stand_in_one_draw(paced: tuple[Any, NanoScheduler]) -> None:
    model, scheduler = paced
    unlike = [_asked(model, scheduler, f"{'q' * i} {TEXT * 90}", None) for i in range(1, 4)]  # their beginnings differ
    alike = [_asked(model, scheduler, TEXT * 90, None) for _ in range(50)]
    scheduler._queries._draw()
    assert not scheduler._queries._short
    assert not scheduler._queries._long
    assert sum(len(entry.ids) for entry in scheduler._queries._laid_up.values()) < 4096
    while scheduler.step():
        pass
    assert all(ticket.result(0) for ticket in (*unlike, *alike))


def test_on_a_slow_machine_passes_are_small_so_that_not_all_are_late_together(paced: tuple[Any, NanoScheduler]) -> None:
    model, scheduler = paced
    for per_s, most in ((0.0, 512), (20_000.0, 512), (2_000.0, 200), (10.0, 96)):
        scheduler._pace.per_s = per_s
        assert scheduler._pace.batch_tokens == most
    scheduler._pace.per_s = 10.0
    tickets = [_asked(model, scheduler, f"{TEXT}{'z' * i}", None) for i in range(1, 30)]
    scheduler.step()
    assert 0 < sum(ticket.done() for ticket in tickets) < 10
    while scheduler.step():
        pass
    assert all(ticket.result(0) for ticket in tickets)


def test_the_speed_is_known_from_single_texts_until_a_full_pass_tells_better() -> None:
    """A burst that comes after one text at a time is held against something."""
    pace = Pace(2)
    pace.add(8, 0.1)
    assert pace.per_s == 0  # so few tell nothing
    for _ in range(2):
        pace.add(150, 0.075)
        assert pace.per_s == pytest.approx(4000)  # two threads at once
    ticket: Ticket[Any] = Ticket(Query("text"), time.monotonic() + 1)
    pace.tokens = 50_000
    assert pace.refuses(ticket, 200)
    assert isinstance(ticket.exception(0), Overloaded)
    pace.add(400, 0.2)  # a full one
    assert pace.per_s == pytest.approx(3400)
    pace.add(100, 0.1)
    assert pace.per_s == pytest.approx(3400)


def test_what_is_remembered_says_nothing_of_the_speed(paced: tuple[Any, NanoScheduler]) -> None:
    model, scheduler = paced

    def judge(text: str) -> float:
        ticket = _asked(model, scheduler, text, None)
        while scheduler.step():
            pass
        assert ticket.result(0)
        return scheduler._pace.per_s

    text = TEXT * 80  # enough for a full pass
    speed = judge(text)
    assert speed > 0
    assert [judge(text) for _ in range(5)] == [speed] * 5
    assert judge(text.replace("bakery", "library")) != speed


def test_after_a_storm_of_cancellations_the_first_check_waits_for_one_step_at_most() -> None:
    """Counted in passes of the embedded model: what was under way, and its own."""
    guard = Guard.load(threads=3, exact=True)
    model: Any = guard.model
    passes: list[int] = []
    forward = model.judge_windows

    def counted(windows: Any) -> Any:
        passes.append(len(windows))
        return forward(windows)

    async def storm() -> int:
        texts = [f"{TEXT}{i} " * 12 for i in range(300)]
        tasks = [asyncio.create_task(guard.acheck(text, stage="document", normalize=False)) for text in texts]
        while not passes:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        before = len(passes)
        await guard.acheck("after the storm", normalize=False)
        return len(passes) - before

    model.judge_windows = counted
    try:
        assert asyncio.run(storm()) <= 3  # the pass under way, one whose texts ended while it was laid out, its own
    finally:
        del model.judge_windows


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_threads_and_tasks_by_the_hundred_leave_nothing_behind() -> None:
    guard = Guard.load(threads=3)

    def check(i: int) -> None:
        assert guard.check(f"{i} {TEXT}", normalize=False).severity is Severity.safe

    def threads(n: int) -> None:
        started = [threading.Thread(target=check, args=(i,)) for i in range(n)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    async def tasks(n: int) -> None:
        found = await asyncio.gather(*(guard.acheck(f"{i} {TEXT}", normalize=False) for i in range(n)))
        assert all(verdict.severity is Severity.safe for verdict in found)

    threads(200)
    asyncio.run(tasks(1000))
    before = resident_mib()
    threads(200)
    asyncio.run(tasks(1000))
    assert resident_mib() - before < 50
    assert threading.active_count() < 40
    assert guard.model._loop._scheduler.load().waiting == 0  # type: ignore[attr-defined]


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class _Stuck:
    """A scheduler that keeps what it takes."""

    busy = False

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def take(self, message: Any) -> None:
        self.taken.append(message)

    def step(self) -> bool:
        return False

    def load(self) -> Load:
        return Load()

    def interrupt(self) -> None: ...

    def before_fork(self) -> None: ...

    def forked(self) -> None: ...

    def reset(self, error: BaseException) -> None:
        for ticket in self.taken:
            ticket.fail(error)


def test_a_turn_that_an_interrupt_left_behind_is_taken_over() -> None:
    scheduler = _Stuck()
    loop = Loop("test", scheduler)
    loop.turn().__enter__()  # as if struck down before the block began
    ticket: Ticket[None] = Ticket(None)
    loop.put(ticket)
    with loop.turn() as turn:
        assert turn.owned
        turn.step()
        with pytest.raises(GuardkitError, match="within"), loop.turn():
            pass
    assert scheduler.taken == [ticket]
    with pytest.raises(KeyboardInterrupt), loop.turn():
        raise KeyboardInterrupt
    assert isinstance(ticket.exception(1), GuardkitError)
    loop.close("over")
    with pytest.raises(GuardkitError, match="over"):
        loop.put(ticket)


class _Faulty(_Stuck):
    """Its first step fails, by a fault of its own; later ones answer."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    @property
    def busy(self) -> bool:  # type: ignore[override]
        return bool(self.taken)

    def step(self) -> bool:
        if not self.taken:
            return False
        self.steps += 1
        if self.steps == 1:
            raise IndexError("a fault of the scheduler")
        for ticket in self.taken:
            ticket.give("answered")
        self.taken.clear()
        return False

    def reset(self, error: BaseException) -> None:
        super().reset(error)
        self.taken.clear()


def test_a_step_that_fails_leaves_nobody_waiting_and_the_loop_goes_on() -> None:
    loop = Loop("test", _Faulty())
    first: Ticket[None] = Ticket(None)
    loop.put(first)
    assert "a fault of the scheduler" in str(first.exception(60))
    assert isinstance(first.exception(0), GuardkitError)
    second: Ticket[None] = Ticket(None)
    loop.put(second)
    assert second.result(60) == "answered"
    loop.close("over")


def test_work_whose_booking_was_interrupted_is_not_lost() -> None:
    """A caller that serves itself books the work of others, too: they would wait for ever."""

    class Interrupted(_Faulty):
        n = 0

        def take(self, message: Ticket[None]) -> None:
            self.n += 1
            if self.n in (2, 5):
                raise KeyboardInterrupt
            super().take(message)

    scheduler = Interrupted()
    scheduler.steps = 1
    loop = Loop("test", scheduler)
    tickets: list[Ticket[None]] = [Ticket(None) for _ in range(4)]

    def books(message: Any) -> None:
        with loop.turn() as turn:
            loop.put(message)
            turn.take()

    with pytest.raises(KeyboardInterrupt):
        books(tickets[:3])
    with pytest.raises(GuardkitError, match="interrupted"):  # what was booked already is failed
        tickets[0].result(60)
    assert [ticket.result(60) for ticket in tickets[1:3]] == ["answered"] * 2
    with pytest.raises(KeyboardInterrupt):
        books(tickets[3])
    assert tickets[3].result(60) == "answered"
    assert scheduler.n == 6
    loop.close("over")
