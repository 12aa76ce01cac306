"""What a model reads off an engine: steps that wait for rows, led on as the rows come.

A reading is a generator: it yields futures of the engine, is sent their rows, and returns what it found. Its first
stretch runs where it is begun, the others where the engine hands its results out; so no thread waits for it.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from guardkit.awaiting import Late, led
from guardkit.engine.engine import Engine, Rows
from guardkit.engine.engine import Sequence as Sequence_
from guardkit.loop import Turn
from guardkit.models.base import Append, Query, QueryScores, Scores, Session, StreamModel, Work, too_late
from guardkit.ticket import Pending, Ticket

_T = TypeVar("_T")
Reading = Generator[Pending, Rows, _T]


class EngineModel(StreamModel):
    """A model that an engine serves: each piece of work is a reading."""

    engine: Engine

    def submit(self, works: Sequence[Work], deadline: float | None = None) -> list[Pending]:
        return [begin(self._reading(work, deadline)) for work in works]

    @property
    def max_streams(self) -> int:
        return self.engine.limits.max_sequences

    def turn(self) -> Turn | None:
        return self.engine.turn()

    def judge(self, work: Work, timeout: float | None = None) -> Any:
        turn = None if timeout is not None else self.turn()
        if turn is not None:
            with turn:
                if turn.owned:  # on this thread from end to end: nothing else has to be told of the result
                    return _led(self._reading(work, None), turn)
        return super().judge(work, timeout)

    def ajudge(self, work: Work, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        if timeout is None:
            return led(self._reading(work, None), self.turn)
        return self._in_time(work, timeout)

    async def _in_time(self, work: Work, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        try:
            return await led(self._reading(work, deadline), self.turn, deadline)
        except Late as error:
            raise too_late(timeout) from error

    def _reading(self, work: Work, deadline: float | None) -> Reading[Any]:
        return self._query(work, deadline) if isinstance(work, Query) else self._append(work, deadline)

    def close(self) -> None:
        self.engine.shut(f"{self.name} was closed; load it again")

    @abstractmethod
    def _query(self, query: Query, deadline: float | None) -> Reading[list[QueryScores]]: ...

    @abstractmethod
    def _append(self, work: Append, deadline: float | None) -> Reading[Scores]: ...


class EngineSession(Session):
    """A response that an engine serves. Dropped without `close`, it makes room for another one all the same."""

    def __init__(self, engine: Engine, sequence: Sequence_):
        self._engine, self._sequence = engine, sequence

    def close(self) -> None:
        self._engine.close(self._sequence)

    def __del__(self) -> None:
        try:  # no name of this module: at the interpreter's end it has none any more
            self._engine.drop(self._sequence)
        except AttributeError:  # it could not be opened
            pass


def _led(steps: Reading[_T], turn: Turn) -> _T:
    """What `steps` returns, led on by whoever has the turn."""
    wanted: Pending | None = None
    try:
        wanted = next(steps)
        while True:
            while turn.owned and not wanted.done() and turn.step():
                pass
            if not wanted.done():  # it waits for the work of others
                turn.leave()
            try:
                rows = wanted.result()
            except (Exception, CancelledError) as error:
                wanted = steps.throw(error)
            else:
                wanted = steps.send(rows)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        if wanted is not None and not wanted.done():
            wanted.cancel()
        steps.close()


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
