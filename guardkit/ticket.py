"""A piece of work and its result."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Generic, Protocol, TypeVar

_W = TypeVar("_W")


class _Step(threading.local):
    """What waits for the end of the step that a thread is in; None: it is in none."""

    calls: dict[Callable[[], object], None] | None = None


_step = _Step()


class Step:
    """For a `with` block in which a scheduler hands out results: who is far away is told of all of them at once."""

    def __enter__(self) -> None:
        self._outer, _step.calls = _step.calls, {}

    def __exit__(self, *_: object) -> None:
        try:
            hand_out()
        except BaseException:  # interrupted: who waits is told all the same
            hand_out()
            raise
        finally:
            _step.calls = self._outer


def hand_out() -> None:
    """Tell of what the step has found so far: for a scheduler that does something else before its step ends."""
    calls = _step.calls
    while calls:
        call = next(iter(calls))
        call()
        del calls[call]


def after_step(call: Callable[[], object]) -> None:
    """Call `call` once at the end of the step that this thread is in, and at once where it is in none. It should raise
    nothing, and may come twice."""
    if _step.calls is None:
        call()
    else:
        _step.calls[call] = None


class Pending(Protocol):
    """What a submission gives: `concurrent.futures.Future`, as far as it is used here."""

    def done(self) -> bool: ...

    def cancelled(self) -> bool: ...

    def cancel(self) -> bool: ...

    def result(self, timeout: float | None = None) -> Any: ...

    def exception(self, timeout: float | None = None) -> BaseException | None: ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None: ...


class Ticket(Generic[_W]):
    """One piece of work and its result: a future without a lock, since a streamed token needs two of them.

    deadline: of `time.monotonic`; None: none. asker: the model that it was submitted to, which may be one of several
    that share a loop. It ends once, with whatever came first; appending to a list is what decides.
    """

    __slots__ = ("_callbacks", "_ends", "asker", "deadline", "work")

    def __init__(self, work: _W, deadline: float | None = None, asker: Any = None):
        self.work, self.deadline, self.asker = work, deadline, asker
        self._ends: list[tuple[Any, BaseException | None]] = []  # the first one counts
        self._callbacks: deque[Callable[[Any], object]] = deque()

    @property
    def wanted(self) -> bool:
        """Whether it should still be worked on. One whose time is up ends here."""
        if self._ends:
            return False
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.fail(TimeoutError("the model did not come to it in time"))
            return False
        return True

    def give(self, result: Any) -> None:
        self._end((result, None))

    def fail(self, error: BaseException) -> None:
        self._end((None, error))

    def _end(self, end: tuple[Any, BaseException | None]) -> None:
        self._ends.append(end)
        if self._callbacks:
            self._call_back()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                callback(self)
            except Exception:
                import logging

                logging.getLogger("guardkit").exception("what waited for a result failed")

    # -- as a future

    def done(self) -> bool:
        return bool(self._ends)

    def cancelled(self) -> bool:
        return bool(self._ends) and self._ends[0] is _CANCELLED

    def cancel(self) -> bool:
        if not self._ends:
            self._end(_CANCELLED)
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Raises TimeoutError where it is not there in `timeout` seconds, and the error that it ended with."""
        end = self._wait(timeout)
        if end is _CANCELLED:
            raise CancelledError
        if end[1] is not None:
            raise end[1]
        return end[0]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if (end := self._wait(timeout)) is _CANCELLED:
            raise CancelledError
        return end[1]

    def _wait(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        if not self._ends and timeout != 0:
            there = threading.Event()
            self.add_done_callback(lambda _: there.set())
            there.wait(timeout)
        if not self._ends:
            raise TimeoutError
        return self._ends[0]

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        self._callbacks.append(fn)
        if self._ends:
            self._call_back()


_CANCELLED: tuple[Any, BaseException | None] = (None, CancelledError())
