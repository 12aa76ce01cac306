"""How long is waited: `asyncio.timeout` for a task that waits many times, with one timer for all of them."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Patience:
    """A context for each wait of one task, `seconds` long at most; what takes longer ends in a TimeoutError.

    The timer is not set anew each time: it looks, when it rings, whether the wait under way has begun long enough ago.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._until: float | None = None  # of the wait under way
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._is_over = False

    def __enter__(self) -> None:
        if self._loop is None or self._task is None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._is_over = False
        self._until = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._until, self._ring, self._loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._until = None
        if self._is_over:
            assert self._task is not None
            if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._until is None:
            return
        if loop.time() < self._until:
            self._timer = loop.call_at(self._until, self._ring, loop)
            return
        assert self._task is not None
        self._is_over = True
        self._task.cancel()

    def close(self) -> None:
        """No more waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._task = None
