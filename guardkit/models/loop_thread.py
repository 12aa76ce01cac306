"""An event loop in a daemon thread of its own, with a resource that lives in it.

Sync and async callers from any thread share it. The thread starts with the first use and ends with `close`, or when
its owner is dropped. In a forked child it starts anew, with a resource of the child's own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar


class Closing(Protocol):
    async def aclose(self) -> None: ...


_T = TypeVar("_T")
_R = TypeVar("_R", bound=Closing)


class LoopThread(Generic[_R]):
    """make: builds the resource, called once per process. It must not refer to this object or its owner."""

    def __init__(self, name: str, make: Callable[[], _R]):
        self._name, self._make = name, make
        self._lock = threading.Lock()
        self._running: _Running[_R] | None = None
        self._closed = False

    @property
    def resource(self) -> _R:
        """Raises RuntimeError once closed."""
        return self._run().resource

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Start `work` in the loop. Raises RuntimeError once closed."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._run().loop)
        except BaseException:
            work.close()
            raise

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` to its end; what interrupts the caller cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Cancel what is under way, close the resource and end the thread. Safe to call twice."""
        self._closed = True
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def _run(self) -> _Running[_R]:
        running = self._running
        if running is not None and running.pid == os.getpid():
            return running
        if running is not None:  # a forked child: the thread, and whoever held the lock, stayed in the parent
            self._lock, self._running = threading.Lock(), None
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} was closed")
            if self._running is None:
                self._running = _Running(self._name, self._make())
                weakref.finalize(self, self._running.stop)
            return self._running


class _Running(Generic[_R]):
    def __init__(self, name: str, resource: _R):
        self.resource, self.pid = resource, os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def stop(self) -> None:
        if self.pid != os.getpid() or not self._thread.is_alive():
            return
        self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self._finish()))
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        try:
            await self.resource.aclose()
        finally:
            self.loop.stop()
