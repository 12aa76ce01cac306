"""What nano does next: whatever waits, in forward passes of bounded size.

Queries become windows, responses the next piece of their window; both are taken in waves of a few passes' tokens, alike
lengths together, and each step is one pass of either. So memory is bounded by a pass and short texts never wait for
more than a wave of long ones. Called by the owner of the model's loop alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from guardkit.errors import Overloaded
from guardkit.loop import Load
from guardkit.models.base import Append, Query, QueryScores, Scores, Work
from guardkit.ticket import Ticket

if TYPE_CHECKING:
    from guardkit.models.nano.model import Nano, NanoSession

BATCH_TOKENS = 512  # padded, in one forward pass: more at once are no faster a token, and the first ones wait longer
WAVE_TOKENS = 12 * BATCH_TOKENS  # sorted by length together
KNOWN_TOKENS = 2 * WAVE_TOKENS  # of windows that were judged before, drawn beside them: they only have to be tokenised
SHORT_CHARS = 4096  # a text of more is long: it takes at most half of a wave while short ones wait
MAX_WAITING = 1 << 16  # pieces of work; more are refused
SLACK = 1.5  # work is refused where what waits before it would take this many times its time
_T = TypeVar("_T")
Window = tuple[list[int], int | None, int | None]
"""Ids with their frame, and the characters they come from where a text was cut."""


@dataclass
class _Rate:
    """How fast texts are judged, as a moving mean. per_s: characters a second; 0: not known yet."""

    per_s: float = 0.0
    busy_s: float = 0.0  # since the last text ended

    def add(self, chars: int, seconds: float) -> None:
        self.busy_s += seconds
        if chars > 0 and self.busy_s > 0:
            rate, self.busy_s = chars / self.busy_s, 0.0
            self.per_s = 0.8 * self.per_s + 0.2 * rate if self.per_s else rate


@dataclass(eq=False)
class _Asked:
    """A query under way. best: of its windows' scores the worst by each measure."""

    ticket: Ticket[Work]
    query: Query
    windows: Iterator[Window]
    best: dict[object, tuple[float, QueryScores]] = field(default_factory=dict)
    open: int = 0  # windows that are drawn and not judged
    drawn: bool = False  # whether all are


@dataclass(eq=False)
class _Fed:
    """Tokens of a response under way."""

    ticket: Ticket[Work]
    session: NanoSession
    ids: list[int]  # not judged yet
    parts: list[Scores] = field(default_factory=list)


class NanoScheduler:
    def __init__(self, model: Nano):
        self._model = model
        self._clear()
        self._new_rate, self._rate = _Rate(), _Rate()  # of new texts; of all: more, while much is remembered
        self._chars = 0  # of the texts that ended in this step
        self._new_chars = 0  # that this step judged; what is remembered costs nothing, and says nothing of the speed
        self._is_new = False  # whether it judged any

    def _clear(self) -> None:
        self._short: deque[_Asked] = deque()
        self._long: deque[_Asked] = deque()
        self._fed: deque[_Fed] = deque()
        self._asked_passes: deque[list[tuple[list[int], list[tuple[_Asked, Window]]]]] = deque()
        self._fed_passes: deque[list[tuple[_Fed, list[int]]]] = deque()
        self._under_way: dict[int, Ticket[Work]] = {}
        self._waiting_chars = 0

    # -- in

    def take(self, message: Ticket[Work]) -> None:
        work, deadline = message.work, message.deadline
        if len(self._under_way) >= MAX_WAITING:
            message.fail(Overloaded(f"{len(self._under_way)} texts wait, as many as may; try again later"))
            return
        left = None if deadline is None else deadline - time.monotonic()
        # Of what waits nobody knows how much is remembered: it is refused only where it would be late either way.
        rate = max(self._new_rate.per_s, self._rate.per_s)
        if left is not None and rate and (wait := self._waiting_chars / rate) > SLACK * left:
            message.fail(Overloaded(f"what waits takes about {wait:.1f} s, more than the time of {left:.1f} s"))
            return
        if isinstance(work, Query):
            asked = _Asked(message, work, self._model.windows(work))
            (self._long if len(work.text) > SHORT_CHARS else self._short).append(asked)
        else:
            self._feed(message, work)
        if not message.done():
            self._under_way[id(message)] = message
            self._waiting_chars += _chars(work)

    def _feed(self, ticket: Ticket[Work], work: Append) -> None:
        session = self._model.own(work.session)
        if session.over is not None:
            ticket.fail(session.over)
        elif not len(work.tokens):
            ticket.give(self._model.nothing())
        else:
            self._fed.append(_Fed(ticket, session, list(work.tokens.ids)))

    # -- one step

    def step(self) -> bool:
        start = time.perf_counter()
        self._chars, self._new_chars, self._is_new = 0, 0, False
        if not self._fed_passes and self._fed:
            self._plan_fed()
        if self._fed_passes:
            self._run_fed(self._fed_passes.popleft())
        if not self._asked_passes and (self._short or self._long):
            self._plan_asked()
        if self._asked_passes:
            self._run_asked(self._asked_passes.popleft())
        took = time.perf_counter() - start
        if self._is_new:
            self._new_rate.add(self._new_chars, took)
        self._rate.add(self._chars, took)
        return self.busy

    @property
    def busy(self) -> bool:
        return bool(self._fed or self._fed_passes or self._short or self._long or self._asked_passes)

    def _end(self, ticket: Ticket[Work]) -> None:
        if self._under_way.pop(id(ticket), None) is not None:
            self._waiting_chars -= _chars(ticket.work)

    # -- queries

    def _plan_asked(self) -> None:
        """Draw the next wave's windows, and lay them out in passes."""
        drawn: dict[bytes, tuple[list[int], list[tuple[_Asked, Window]]]] = {}
        tokens = 0  # of windows that are new; a few waves' worth of others cost next to nothing
        known = 0
        first = WAVE_TOKENS // 2 if self._long else WAVE_TOKENS
        for queue, budget in ((self._short, first), (self._long, WAVE_TOKENS)):
            while queue and tokens < budget and known < KNOWN_TOKENS:
                asked = queue[0]
                window = self._draw(asked)
                if window is None:
                    queue.popleft()
                    self._settle(asked)
                    continue
                asked.open += 1
                key = self._model.key(window[0])
                if key in drawn or self._model.remembers(key):
                    known += len(window[0])
                else:
                    tokens += len(window[0])
                drawn.setdefault(key, (window[0], []))[1].append((asked, window))
        ordered = sorted(drawn.values(), key=lambda entry: len(entry[0]))
        self._asked_passes.extend(_padded([(len(ids), (ids, wanted)) for ids, wanted in ordered]))

    def _draw(self, asked: _Asked) -> Window | None:
        """The next window of a text; None at its end, and where nobody wants it any more."""
        if not asked.ticket.wanted:
            return None
        try:
            window = next(asked.windows, None)
        except Exception as error:
            asked.ticket.fail(error)
            return None
        asked.drawn = window is None
        return window

    def _run_asked(self, batch: list[tuple[list[int], list[tuple[_Asked, Window]]]]) -> None:
        wanted = [entry for entry in batch if any(asked.ticket.wanted for asked, _ in entry[1])]
        new = [entry for entry in wanted if not self._model.remembers(self._model.key(entry[0]))]
        try:
            found = self._model.judge_windows([ids for ids, _ in wanted]) if wanted else ()
            self._new_chars += sum(_span(*askers[0]) for _, askers in new)
            self._is_new = self._is_new or bool(new)
        except Exception as error:
            if len(wanted) > 1:
                for entry in wanted:
                    self._run_asked([entry])
                return
            for asked, _ in wanted[0][1]:
                asked.ticket.fail(error)
            found = ()
        for (_, askers), scores in zip(wanted, found, strict=False):
            for asked, window in askers:
                asked.ticket.asker.weigh(asked.best, asked.query, scores, window)
        for _, askers in batch:
            for asked, _ in askers:
                asked.open -= 1
                self._settle(asked)

    def _settle(self, asked: _Asked) -> None:
        """Answer a query whose windows are all judged."""
        ticket = asked.ticket
        if asked.drawn and not asked.open and not ticket.done():
            ticket.give(list({id(scores): scores for _, scores in asked.best.values()}.values()))
            self._chars += _chars(ticket.work)
        if ticket.done():
            self._end(ticket)

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
                self._fed_passes.extend(_padded(batch))
                batch = []
            batch.append((len(plan[1]), plan))
        self._fed_passes.extend(_padded(batch))

    def _is_wanted(self, fed: _Fed) -> bool:
        """A response that misses a piece is over: it could not be gone on with."""
        if fed.session.over is not None:
            fed.ticket.fail(fed.session.over)
        elif not fed.ticket.wanted and (not isinstance(fed.ticket.work, Append) or fed.ticket.work.keep):
            fed.session.over = ValueError("the response was cut off: a piece of it was given up")
        return not fed.ticket.done()

    def _run_fed(self, batch: list[tuple[_Fed, list[int]]]) -> None:
        for fed, _ in batch:
            if not self._is_wanted(fed):  # any more, since the wave was laid out
                self._end(fed.ticket)
        if not (batch := [plan for plan in batch if not plan[0].ticket.done()]):
            return
        try:
            found = self._model.judge_pieces([(fed.session, ids) for fed, ids in batch])
        except Exception as error:
            if len(batch) > 1:
                for plan in batch:
                    self._run_fed([plan])
                return
            batch[0][0].session.over = error
            batch[0][0].ticket.fail(error)
            self._end(batch[0][0].ticket)
            return
        self._is_new = True
        for (fed, _), scores in zip(batch, found, strict=True):
            fed.parts.append(scores)
            fed.ids = fed.ids[fed.session.last_taken :]
            if fed.ids:
                self._fed.appendleft(fed)  # before later pieces of its session
            else:
                fed.ticket.give(Scores.join(fed.parts))
                self._new_chars += _chars(fed.ticket.work)
                self._chars += _chars(fed.ticket.work)
                self._end(fed.ticket)

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


def _chars(work: Work) -> int:
    """About how many characters a piece of work is."""
    return len(work.text) if isinstance(work, Query) else len(work.tokens.text) or 4 * len(work.tokens)


def _span(asked: _Asked, window: Window) -> int:
    """The characters of a window."""
    _, start, end = window
    return (len(asked.query.text) if end is None else end) - (start or 0)


def _padded(ordered: Sequence[tuple[int, _T]]) -> Iterator[list[_T]]:
    """Batches of at most `BATCH_TOKENS` tokens, padding counted, of things that are sorted by length."""
    batch: list[_T] = []
    for length, item in ordered:
        if batch and (len(batch) + 1) * length > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
