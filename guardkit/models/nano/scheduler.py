"""What nano does next: whatever waits, in forward passes of bounded size.

Queries become windows (`queries.py`), responses the next piece of their window; both are taken in waves of a few
passes' tokens, alike lengths together, and each step is one pass of either.

A deadline is held against the speed measured so far. What could not end in time behind what waits is refused at once,
and so is what turns out to be too late when its wave is laid out: nothing is begun that cannot end. Called by the owner
of the model's loop alone.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guardkit.errors import Overloaded
from guardkit.loop import Load
from guardkit.models.base import Append, Query, Scores, Work
from guardkit.models.nano.pace import WAVE_TOKENS, Pace, padded
from guardkit.models.nano.queries import Queries
from guardkit.ticket import Ticket, hand_out

if TYPE_CHECKING:
    from guardkit.models.nano.model import Nano
    from guardkit.models.nano.session import NanoSession

MAX_WAITING = 1 << 16  # pieces of work; more are refused


@dataclass(eq=False)
class _Fed:
    """Tokens of a response under way."""

    ticket: Ticket[Work]
    session: NanoSession
    ids: list[int]  # not judged yet
    parts: list[Scores] = field(default_factory=list)


class NanoScheduler:
    def __init__(self, model: Nano, threads: int = 1):
        """threads: that the model computes with."""
        self._model = model
        self._pace = Pace(threads)
        self._queries = Queries(model, self._pace, self._end)
        self._clear()

    def _clear(self) -> None:
        self._queries.clear()
        self._fed: deque[_Fed] = deque()
        self._fed_passes: deque[list[tuple[_Fed, list[int]]]] = deque()
        self._under_way: dict[int, Ticket[Work]] = {}
        self._since: float | None = None  # when the last step ended, where passes run on between steps
        self._pace.tokens = 0

    # -- in

    def take(self, message: Ticket[Work]) -> None:
        work = message.work
        if len(self._under_way) >= MAX_WAITING:
            message.fail(Overloaded(f"{len(self._under_way)} texts wait, as many as may; try again later"))
        elif isinstance(work, Query):
            self._queries.take(message, work)
        else:
            self._feed(message, work)
        if not message.done():
            self._under_way[id(message)] = message

    def _feed(self, ticket: Ticket[Work], work: Append) -> None:
        session = self._model.own(work.session)
        if session.over is not None:
            ticket.fail(session.over)
        elif not len(work.tokens):
            ticket.give(self._model.nothing())
        elif self._pace.refuses(ticket, len(work.tokens)):
            if work.keep:
                session.over = _given_up()
        else:
            self._pace.tokens += len(work.tokens)
            self._fed.append(_Fed(ticket, session, list(work.tokens.ids)))

    # -- one step

    def step(self) -> bool:
        start = self._since or time.perf_counter()
        if not self._fed_passes and self._fed:
            self._plan_fed()
        tokens = self._run_fed(self._fed_passes.popleft()) if self._fed_passes else 0
        hand_out()
        tokens += self._queries.step()
        end = time.perf_counter()
        if tokens:
            self._pace.add(tokens, end - start)
        self._since = end if self._queries.is_ahead else None
        return self.busy

    @property
    def busy(self) -> bool:
        return bool(self._fed or self._fed_passes or self._queries.busy)

    def _end(self, ticket: Ticket[Work]) -> None:
        if self._under_way.pop(id(ticket), None) is not None and isinstance(ticket.work, Append):
            self._pace.tokens -= len(ticket.work.tokens)

    # -- responses

    def _plan_fed(self) -> None:
        """Take what waits, one piece of a session at a time, and lay it out in passes."""
        plans: list[tuple[_Fed, list[int]]] = []
        busy: set[NanoSession] = set()
        rest: deque[_Fed] = deque()
        tokens = 0
        while self._fed and tokens < WAVE_TOKENS:
            fed = self._fed.popleft()
            if fed.session in busy:
                rest.append(fed)
            elif not self._is_wanted(fed):
                self._end(fed.ticket)
            else:
                busy.add(fed.session)
                work = fed.ticket.work
                if isinstance(work, Append) and not work.keep and not fed.parts:  # on trial: a copy is spoiled
                    fed.session = fed.session.twin()
                plans.append((fed, fed.session.plan(fed.ids)))
                tokens += len(plans[-1][1])
        self._fed.extendleft(reversed(rest))
        plans.sort(key=lambda plan: (plan[0].session.cached, len(plan[1])))
        batch: list[tuple[int, tuple[_Fed, list[int]]]] = []
        for plan in plans:
            if batch and plan[0].session.cached != batch[0][1][0].session.cached:
                self._fed_passes.extend(padded(batch, batch[0][1][0].session.cached, self._pace.batch_tokens))
                batch = []
            batch.append((len(plan[1]), plan))
        if batch:
            self._fed_passes.extend(padded(batch, batch[0][1][0].session.cached, self._pace.batch_tokens))

    def _is_wanted(self, fed: _Fed) -> bool:
        """A response that misses a piece is over: it could not be gone on with."""
        if fed.session.over is not None:
            fed.ticket.fail(fed.session.over)
        elif not fed.ticket.wanted and (not isinstance(fed.ticket.work, Append) or fed.ticket.work.keep):
            fed.session.over = _given_up()
        return not fed.ticket.done()

    def _run_fed(self, batch: list[tuple[_Fed, list[int]]]) -> int:
        """One pass; the tokens that it judged."""
        for fed, _ in batch:
            if not self._is_wanted(fed):  # any more, since the wave was laid out
                self._end(fed.ticket)
        if not (batch := [plan for plan in batch if not plan[0].ticket.done()]):
            return 0
        try:
            found = self._model.judge_pieces([(fed.session, ids) for fed, ids in batch])
        except Exception as error:
            if len(batch) > 1:
                return sum(self._run_fed([plan]) for plan in batch)
            batch[0][0].session.over = error
            batch[0][0].ticket.fail(error)
            self._end(batch[0][0].ticket)
            return 0
        for (fed, _), scores in zip(batch, found, strict=True):
            fed.parts.append(scores)
            fed.ids = fed.ids[fed.session.last_taken :]
            if fed.ids:
                self._fed.appendleft(fed)  # before later pieces of its session
            else:
                fed.ticket.give(Scores.join(fed.parts))
                self._end(fed.ticket)
        return sum(len(ids) for _, ids in batch)

    # -- the end

    def load(self) -> Load:
        cached, room, hits = self._model.remembered
        return Load(len(self._under_way), cached, room, hits)

    def interrupt(self) -> None:
        self._model.interrupt()

    def before_fork(self) -> None:
        self._model.before_fork()

    def forked(self) -> None:
        self._model.forked()

    def reset(self, error: BaseException) -> None:
        for fed in (*self._fed, *(fed for batch in self._fed_passes for fed, _ in batch)):
            fed.session.over = error
        for ticket in list(self._under_way.values()):
            work = ticket.work
            if isinstance(work, Append):
                self._model.own(work.session).over = error
            ticket.fail(error)
        self._clear()


def _given_up() -> Exception:
    return ValueError("the response was cut off: a piece of it was given up")
