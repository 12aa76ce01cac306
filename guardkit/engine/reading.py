"""What a model reads off an engine: steps that wait for rows, led on as the rows come.

A reading is a generator: it yields futures of the engine, is sent their rows, and returns what it found. Its first
stretch runs where it is begun, the others where the engine hands its results out; so no thread waits for it.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from guardkit.engine.engine import Rows
from guardkit.ticket import Pending, Ticket

_T = TypeVar("_T")
Reading = Generator[Pending, Rows, _T]


def begin(steps: Reading[Any]) -> Pending:
    """The future of what `steps` returns or raises. Cancelled, it gives up what it waits for."""
    reader = _Reader(steps)
    reader.outer.add_done_callback(reader.stop)
    reader.go_on(None)
    return reader.outer


class _Reader:
    def __init__(self, steps: Reading[Any]):
        self._steps = steps
        self._inner: Pending | None = None
        self.outer: Ticket[None] = Ticket(None)

    def stop(self, outer: Pending) -> None:
        if outer.cancelled() and self._inner is not None:
            self._inner.cancel()

    def go_on(self, done: Pending | None) -> None:
        while True:
            try:
                if done is None:
                    wanted = next(self._steps)
                elif self.outer.cancelled():
                    self._steps.close()
                    return
                elif done.cancelled():
                    wanted = self._steps.throw(CancelledError())
                elif (error := done.exception()) is not None:
                    wanted = self._steps.throw(error)
                else:
                    wanted = self._steps.send(done.result())
            except StopIteration as end:
                self.outer.give(end.value)
                return
            except CancelledError:  # its sequence was closed
                self.outer.cancel()
                return
            except Exception as error:
                self.outer.fail(error)
                return
            self._inner = done = wanted
            if self.outer.cancelled():
                wanted.cancel()
            if not wanted.done():
                wanted.add_done_callback(self.go_on)
                return
