"""Queries on their way through nano: cut into windows, answered where they are known, laid up, judged in waves.

A query is cut as soon as its turn comes. A window that was judged before, or that the screen (`screen.py`) settles, is
answered there and then; the others are laid up and taken in waves of a few passes' tokens, alike lengths together. The
parts of a long text follow where the window that they lie in is not clearly harmless. So what costs nothing never waits
for what does, equal windows are judged once, memory is bounded by what is laid up, and short texts never wait for more
than a wave of long ones.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from guardkit.errors import Overloaded
from guardkit.models.base import Query, QueryScores, Scores, Work
from guardkit.models.nano.pace import BATCH_TOKENS, WAVE_TOKENS, Pace, padded
from guardkit.ticket import Ticket, hand_out

if TYPE_CHECKING:
    from guardkit.models.nano.model import Nano

DRAW_TOKENS = 8 * BATCH_TOKENS  # that are cut into windows between two passes
LAID_UP_TOKENS = 128 * BATCH_TOKENS  # of short texts; of long ones, as many as a wave takes
SHORT_CHARS = 4096  # a text of more is long: it takes at most half of a wave while short ones wait
AHEAD = 2  # passes under way at once, the first of which is waited for: so no core waits for what stands between them
PARTED = 96  # tokens of a text from which on its sentences are judged in parts, too: one counts for little among many
PARTS_FROM = 0.18  # probability of "not safe" of a window, from which on its parts are judged (training/nano/log.md)
Window = tuple[list[int], int | None, int | None, bool]
"""Ids with their frame, the characters they come from where a text was cut, and whether it is a part: some sentences of
a long text, which are judged in its windows, too."""
Cut = tuple[Window, list[Window]]
"""A window and the parts that lie in it."""


@dataclass(eq=False)
class _Asked:
    """A query under way. best: of its windows' scores the worst by each measure; tokens: of the windows that were cut
    off so far, up to character `end` (None: all); is_cut: whether there are no more; open: how many of them and their
    parts are laid up, of `waiting` tokens."""

    ticket: Ticket[Work]
    query: Query
    cuts: Iterator[Cut]
    best: dict[object, tuple[float, QueryScores]] = field(default_factory=dict)
    tokens: int = 0
    end: int | None = 0
    is_cut: bool = False
    open: int = 0
    waiting: int = 0

    @property
    def cost(self) -> int:
        """About how many tokens the text is."""
        return self.tokens if self.end is None else self.tokens * len(self.query.text) // max(self.end, 1)


@dataclass(eq=False)
class _LaidUp:
    """A window that is to be judged, and who asked for it."""

    key: bytes
    ids: list[int]
    askers: list[tuple[_Asked, Window, list[Window]]] = field(default_factory=list)


class Queries:
    """end: called with each ticket that came to its end."""

    def __init__(self, model: Nano, pace: Pace, end: Callable[[Ticket[Work]], None]):
        self._model, self._pace, self._end = model, pace, end
        self.clear()

    def clear(self) -> None:
        self._short: deque[_Asked] = deque()
        self._long: deque[_Asked] = deque()
        self._laid_up: dict[bytes, _LaidUp] = {}  # all that are not judged, laid out in passes or not
        self._next: tuple[deque[_LaidUp], deque[_LaidUp]] = (deque(), deque())  # of short texts, of long ones
        self._n_next = [0, 0]  # their tokens
        self._passes: deque[list[_LaidUp]] = deque()
        self._under_way: deque[tuple[list[_LaidUp], Callable[[], list[Scores]]]] = deque()  # begun in other threads
        self._is_swept = False  # whether this draw looked for what nobody wants any more

    def take(self, ticket: Ticket[Work], query: Query) -> None:
        asked = _Asked(ticket, query, _cuts(self._model.windows(query, parts=True)))
        (self._long if _is_long(query) else self._short).append(asked)

    @property
    def busy(self) -> bool:
        return bool(self._short or self._long or self._laid_up)

    def step(self) -> int:
        """Cut what came, end one pass; the tokens that it judged. Unless that is all there is, passes run in other
        threads, and the next texts are cut meanwhile."""
        if self._waits and not self._under_way:
            self._draw()
        if not self._under_way:
            if not (batch := self._next_pass()):
                return 0
            if self._model.threads == 1 or not (self._waits or self._passes or any(self._next)):
                return self._run(batch)
            self._begin(batch)
        self._go_ahead()
        if self._waits:
            self._draw()
            hand_out()  # what the pass has nothing to do with
            self._go_ahead()
        return self._finish(*self._under_way.popleft())

    @property
    def is_ahead(self) -> bool:
        """Whether passes run in other threads."""
        return bool(self._under_way)

    @property
    def _waits(self) -> bool:
        """Whether texts wait to be cut."""
        return bool(self._short or self._long)

    def _next_pass(self) -> list[_LaidUp]:
        """Of the next pass the windows that somebody still wants; none where nothing is laid up."""
        while self._passes or any(self._next):
            if not self._passes:
                self._plan()
            elif wanted := self._wanted(self._passes.popleft()):
                return wanted
        return []

    def _begin(self, batch: list[_LaidUp]) -> None:
        windows = [entry.ids for entry in batch]
        try:
            judge = self._model.begin_windows(windows)
        except Exception:  # it is tried again, each by itself, when it is its turn to fail
            judge = partial(self._model.judge_windows, windows)
        self._under_way.append((batch, judge))

    def _go_ahead(self) -> None:
        while len(self._under_way) < AHEAD and (batch := self._next_pass()):
            self._begin(batch)

    def _wanted(self, batch: list[_LaidUp]) -> list[_LaidUp]:
        """Those that somebody still wants, and could have in time, when the pass ends; it is done with the others."""
        wanted = []
        end = self._n_under_way + sum(len(entry.ids) for entry in batch)
        for entry in batch:
            if self._can_end(entry, end - len(entry.ids)):
                wanted.append(entry)
            else:
                self._done_with(entry)
        return wanted

    @property
    def _n_under_way(self) -> int:
        """Tokens of the passes that run in other threads."""
        return sum(len(entry.ids) for batch, _ in self._under_way for entry in batch)

    def _draw(self) -> None:
        """Cut the next texts into windows, answer what is known, lay the rest up."""
        self._is_swept = False
        drawn: list[tuple[_Asked, Cut, bytes]] = []
        seen: dict[_Asked, None] = {}
        keys: set[bytes] = set()
        for which, (queue, most) in enumerate(((self._short, LAID_UP_TOKENS), (self._long, WAVE_TOKENS))):
            tokens = 0
            while queue and tokens < DRAW_TOKENS and self._n_next[which] + tokens <= most:
                asked = queue[0]
                seen[asked] = None
                cut = self._cut(asked)
                if cut is None:
                    queue.popleft()
                    continue
                window, parts = cut
                key = self._model.key(window[0])
                is_new = key not in keys and key not in self._laid_up
                is_new = is_new and not self._model.knows(key, asked.query.early)
                # About what it costs, parts aside; so what repeats fills no draw.
                tokens += len(window[0]) if is_new else 1 + len(parts)
                keys.add(key)
                drawn.append((asked, cut, key))
        self._screen([(asked, window, key) for asked, (window, _), key in drawn if asked.query.early])
        for asked, (window, parts), key in drawn:
            scores = self._model.recall(key, asked.query.early)
            if scores is not None:
                self._found(asked, window, parts, scores)
            elif not asked.ticket.done() and (asked.open or not self._refuses(asked)):
                self._lay_up(asked, window, parts, key)
        for asked in seen:
            self._settle(asked)

    def _refuses(self, asked: _Asked) -> bool:
        """Whether a text could not be judged in time; what nobody wants any more does not stand before it."""
        if not self._is_swept and self._pace.is_late(asked.ticket, asked.cost):
            self._is_swept = True
            for which, waiting in enumerate(self._next):
                for _ in range(len(waiting)):  # once round: what is wanted goes back in order
                    entry = waiting.popleft()
                    if any(each.ticket.wanted for each, *_ in entry.askers):
                        waiting.append(entry)
                    else:
                        self._n_next[which] -= len(entry.ids)
                        self._done_with(entry)
        return self._pace.refuses(asked.ticket, asked.cost)

    def _screen(self, drawn: list[tuple[_Asked, Window, bytes]]) -> None:
        try:
            self._model.screen([(key, window[0], window[3]) for _, window, key in drawn])
        except Exception as error:
            for asked, _, _ in drawn:
                asked.ticket.fail(error)

    def _cut(self, asked: _Asked) -> Cut | None:
        """The next window of a text; None at its end, and where nobody wants it any more."""
        cut = None
        if asked.ticket.wanted:
            try:
                cut = next(asked.cuts, None)
            except Exception as error:
                asked.ticket.fail(error)
        if cut is None:
            asked.is_cut, asked.end = True, None
        else:
            ids, _, end, _ = cut[0]
            asked.tokens, asked.end = asked.tokens + len(ids), end  # None: it is the only one
        return cut

    def _lay_up(self, asked: _Asked, window: Window, parts: list[Window], key: bytes) -> None:
        entry = self._laid_up.get(key)
        if entry is None:
            entry = self._laid_up[key] = _LaidUp(key, window[0])
            which = int(_is_long(asked.query))
            self._next[which].append(entry)
            self._n_next[which] += len(entry.ids)
            self._pace.tokens += len(entry.ids)
        entry.askers.append((asked, window, parts))
        asked.open += 1
        asked.waiting += len(entry.ids)

    def _plan(self) -> None:
        """Lay the next wave's windows out in passes."""
        room = self._pace.wave_tokens
        wave: list[tuple[int, _LaidUp]] = []
        tokens, ahead = 0, self._n_under_way
        for which, most in ((0, room // 2 if self._next[1] else room), (1, room)):
            while self._next[which] and tokens < most:
                entry = self._next[which].popleft()
                self._n_next[which] -= len(entry.ids)
                if self._can_end(entry, ahead + tokens):
                    wave.append((len(entry.ids), entry))
                    tokens += len(entry.ids)
                else:
                    self._done_with(entry)
        wave.sort(key=lambda each: each[0])
        self._passes.extend(padded(wave, tokens=self._pace.batch_tokens))

    def _can_end(self, entry: _LaidUp, ahead: int) -> bool:
        """Whether somebody can have what he asked for in time, behind `ahead` tokens. Who cannot learns it now."""
        found = False
        for asked, *_ in entry.askers:
            ticket = asked.ticket
            if not ticket.wanted:
                continue
            # Where nothing else waits it is tried all the same: the speed may be another one by now.
            if ticket.deadline is not None and asked.open < len(self._laid_up):
                left, wait = ticket.deadline - time.monotonic(), self._pace.seconds(ahead + asked.waiting)
                if wait > left:
                    ticket.fail(Overloaded(f"it takes about {wait:.1f} s, more than the {left:.1f} s that are left"))
                    continue
            found = True
        return found

    def _run(self, batch: list[_LaidUp]) -> int:
        return self._finish(batch, partial(self._model.judge_windows, [entry.ids for entry in batch]))

    def _finish(self, batch: list[_LaidUp], judge: Callable[[], list[Scores]]) -> int:
        """Give out what `judge` finds in windows; how many tokens they are."""
        try:
            found = judge()
        except Exception as error:
            if len(batch) > 1:
                return sum(self._run([entry]) for entry in batch)
            for asked, *_ in batch[0].askers:
                asked.ticket.fail(error)
            self._done_with(batch[0])
        else:
            for entry, scores in zip(batch, found, strict=True):
                self._done_with(entry, scores)
        return sum(len(entry.ids) for entry in batch)

    def _found(self, asked: _Asked, window: Window, parts: list[Window], scores: Scores) -> None:
        if window[1] is None and len(window[0]) - 2 <= PARTED:  # the only one
            asked.best[None] = 0.0, QueryScores(scores)
            return
        asked.ticket.asker.weigh(asked.best, asked.query, scores, window)
        if not parts or asked.ticket.done() or float(scores.severity[0, 0]) > 1 - PARTS_FROM:
            return
        keyed = [(asked, part, self._model.key(part[0])) for part in parts]
        if asked.query.early:
            self._screen(keyed)
        for _, part, key in keyed:
            known = self._model.recall(key, asked.query.early, is_part=True)
            if known is not None:
                self._found(asked, part, [], known)
            elif not asked.ticket.done():
                self._lay_up(asked, part, [], key)

    def _done_with(self, entry: _LaidUp, scores: Scores | None = None) -> None:
        """A window was judged, or nobody wants it, or it failed (None)."""
        del self._laid_up[entry.key]  # before its parts are laid up, one of which could be its like
        self._pace.tokens -= len(entry.ids)
        for asked, window, parts in entry.askers:
            if scores is not None:
                self._found(asked, window, parts, scores)
            asked.open -= 1
            asked.waiting -= len(entry.ids)
            self._settle(asked)

    def _settle(self, asked: _Asked) -> None:
        """Answer a query whose windows are all judged."""
        ticket = asked.ticket
        if asked.is_cut and not asked.open and not ticket.done():
            ticket.give(list({id(scores): scores for _, scores in asked.best.values()}.values()))
        if ticket.done():
            self._end(ticket)


def _is_long(query: Query) -> bool:
    return len(query.text) > SHORT_CHARS


def _cuts(windows: Iterator[Window]) -> Iterator[Cut]:
    """Each window with the parts that come behind it."""
    cut: Cut | None = None
    for window in windows:
        is_part = window[3]
        if cut is not None and is_part:
            cut[1].append(window)
        else:
            if cut is not None:
                yield cut
            cut = window, []
    if cut is not None:
        yield cut
