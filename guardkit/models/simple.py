"""Models that judge on the spot: doubles, rules, anything without batches of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

from guardkit import telemetry
from guardkit.loop import Load, Loop, Turn
from guardkit.models.base import Append, Query, QueryScores, Scores, Session, StreamModel, Tokens, Work
from guardkit.ticket import Pending, Ticket


class SimpleSession(Session):
    """A response of a `SimpleModel`."""

    @abstractmethod
    def append(self, tokens: Tokens) -> Scores:
        """Judge the next tokens of the response; scores of each of them."""

    @abstractmethod
    def peek(self, tokens: Tokens) -> Scores:
        """Judge tokens as if they came next, and forget them again."""


class SimpleModel(StreamModel):
    """A model that is two functions: `query`, and `append` and `peek` of its sessions. They are called by one thread
    at a time; where a batch of queries fails, each is tried alone."""

    def __init__(self) -> None:
        self._loop = self._make_loop()

    def _make_loop(self) -> Loop:
        return Loop(f"guardkit-{self.name}", _OneByOne(self))

    @abstractmethod
    def query(self, queries: Sequence[Query]) -> Sequence[list[QueryScores] | Exception]:
        """Judge whole queries; order is kept. A query that fails alone may be given as its error."""

    @abstractmethod
    def open(self, context: Sequence[Any]) -> SimpleSession: ...

    def submit(self, works: Sequence[Work], deadline: float | None = None) -> list[Pending]:
        tickets = [Ticket(work, deadline) for work in works]
        self._loop.put([*tickets])
        return list(tickets)

    def turn(self) -> Turn:
        return self._loop.turn()

    def judge(self, work: Work, timeout: float | None = None) -> Any:
        """As every model's; a piece of a stream is judged without a ticket, where nobody else waits. A subclass that
        submits in a way of its own is asked by it."""
        if timeout is None and isinstance(work, Append) and type(self).submit is SimpleModel.submit:
            with self._loop.turn() as turn:
                if turn.owned and self._loop.is_free:
                    session: Any = work.session
                    return session.append(work.tokens) if work.keep else session.peek(work.tokens)
        return super().judge(work, timeout)

    def close(self) -> None:
        self._loop.close(f"{self.name} was closed")

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_loop", "_holders")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._loop = self._make_loop()


class _OneByOne:
    """All queries that wait, or one piece of one session, at a time."""

    def __init__(self, model: SimpleModel):
        self._model = model
        self._waiting: deque[Ticket[Work]] = deque()
        self._running: list[Ticket[Work]] = []

    def take(self, message: Ticket[Work]) -> None:
        self._waiting.append(message)

    def step(self) -> bool:
        waiting = [ticket for ticket in self._waiting if ticket.wanted]
        self._running = waiting[:1]
        if waiting and isinstance(waiting[0].work, Query):
            self._running = [ticket for ticket in waiting if isinstance(ticket.work, Query)]
        chosen = set(map(id, self._running))
        self._waiting = deque(ticket for ticket in waiting if id(ticket) not in chosen)
        for ticket, result in zip(self._running, self._results(self._running), strict=True):
            if isinstance(result, Exception):
                ticket.fail(result)
            else:
                ticket.give(result)
        self._running = []
        return self.busy

    def _results(self, tickets: Sequence[Ticket[Work]]) -> Sequence[Any]:
        if not tickets:
            return []
        try:
            work = tickets[0].work
            if isinstance(work, Append):
                session: Any = work.session
                return [session.append(work.tokens) if work.keep else session.peek(work.tokens)]
            telemetry.batch(self._model.name, len(tickets))
            found = self._model.query([t.work for t in tickets if isinstance(t.work, Query)])
            if len(found) != len(tickets) or not all(found):
                raise ValueError(f"the model judged {len(found)} of {len(tickets)} queries")
            return found
        except Exception as error:
            if len(tickets) == 1:
                return [error]
        return [result for ticket in tickets for result in self._results([ticket])]

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def load(self) -> Load:
        return Load(waiting=len(self._waiting) + len(self._running))

    def interrupt(self) -> None:
        pass

    def before_fork(self) -> None:
        pass

    def forked(self) -> None:
        pass

    def reset(self, error: BaseException) -> None:
        for ticket in (*self._running, *self._waiting):
            ticket.fail(error)
        self._running = []
        self._waiting.clear()
