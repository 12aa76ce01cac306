"""How fast nano judges, what waits for it, and the size of its forward passes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from guardkit.errors import Overloaded
from guardkit.models.base import Work
from guardkit.ticket import Ticket

BATCH_TOKENS = 512  # padded, in a pass of one thread: more at once are no faster a token, the first ones wait longer
BATCH_POSITIONS = 4096  # in the caches of a pass: what is laid out for it is some 25 MB
WAVE_TOKENS = 12 * BATCH_TOKENS  # sorted by length together, at most
PASS_S = 0.1  # how long a pass should take where the machine is slow, or busy with other work
LEAST_TOKENS = 96  # of a pass all the same
WAVE_S = 0.25  # how long a wave should take: what is in it is late together
SLACK = 1.25  # work is refused where what waits before it, and itself, would take this many times its time
_T = TypeVar("_T")


class Pace:
    """threads: that compute. tokens: that are known to wait. per_s: tokens that are judged a second, as a moving mean;
    0: not known yet."""

    def __init__(self, threads: int = 1) -> None:
        self._threads, self._most = threads, threads * BATCH_TOKENS
        self.tokens = 0
        self.per_s = 0.0
        self._is_guess = True  # no full pass was seen yet

    def add(self, tokens: int, seconds: float) -> None:
        """So many tokens took so long. A pass that is hardly filled takes longer a token than a full one: it counts
        only where it was faster, or where nothing better is known, as if each thread had had such a one."""
        rate = tokens / seconds if seconds > 0 else 0.0
        if tokens >= self.batch_tokens // 2:
            self._is_guess = False
        elif self._is_guess and tokens >= LEAST_TOKENS:
            rate *= self._threads
        elif not 0 < self.per_s < rate:
            return
        self.per_s = 0.7 * self.per_s + 0.3 * rate if self.per_s else rate

    def seconds(self, tokens: int) -> float:
        """About how long so many tokens take."""
        return tokens / self.per_s if self.per_s else 0.0

    @property
    def batch_tokens(self) -> int:
        """How many tokens are judged at once, padding counted."""
        return min(self._most, max(int(PASS_S * self.per_s), LEAST_TOKENS)) if self.per_s else self._most

    @property
    def wave_tokens(self) -> int:
        """How many tokens a wave has room for."""
        return min(WAVE_TOKENS, max(int(WAVE_S * self.per_s), self.batch_tokens)) if self.per_s else WAVE_TOKENS

    def is_late(self, ticket: Ticket[Work], tokens: int) -> bool:
        """Whether work of so many tokens could not be done in time behind what waits."""
        if ticket.deadline is None or not self.tokens:
            return False
        return self.seconds(self.tokens + tokens) > SLACK * (ticket.deadline - time.monotonic())

    def refuses(self, ticket: Ticket[Work], tokens: int) -> bool:
        """The same; it is refused then."""
        if ticket.deadline is not None and self.is_late(ticket, tokens):
            left, wait = ticket.deadline - time.monotonic(), self.seconds(self.tokens + tokens)
            ticket.fail(Overloaded(f"what waits takes about {wait:.1f} s, more than the time of {left:.1f} s"))
        return ticket.done()


def padded(ordered: Sequence[tuple[int, _T]], cached: int = 0, tokens: int = BATCH_TOKENS) -> Iterator[list[_T]]:
    """Batches of at most `tokens`, padding counted, of things that are sorted by length. cached: positions before each,
    of which a batch has at most `BATCH_POSITIONS`."""
    batch: list[_T] = []
    most = max(1, BATCH_POSITIONS // max(cached, 1))
    for length, item in ordered:
        if batch and ((len(batch) + 1) * length > tokens or len(batch) == most):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
