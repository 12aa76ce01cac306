"""What waits for an engine, in tokens and seconds: a long text that could not be done in time is refused at once; which
of them come first.

What a text begins with like another one, which is at hand or waits before it, is not computed again and does not count.
Estimates err on the side of taking it: who is taken in vain is told at the deadline, who is refused in vain would have
been served. Short pieces go before long texts and are not refused. Called by the owner of the engine's loop alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from guardkit.engine.prefixes import BLOCK, Prefixes
from guardkit.engine.sequence import Request
from guardkit.engine.sequence import Sequence as Text
from guardkit.errors import Overloaded

SHORT = 16  # a piece of at most this many tokens goes before longer ones
TURNS = 3  # long texts that are computed by turns; more would end later, all of them
FULL = 64  # tokens of a step that says how fast tokens are computed; of fewer, each takes longer
SLACK = 1.25  # a text is refused where it, and what waits before it, would take this many times its time
FORGET = 0.05  # of the speed seen so far, for each slower step: the fastest steps count, the last ones most


class Waiting:
    """tokens: of long texts that are yet to be computed. per_s: tokens computed a second; 0: not known yet."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self._coming: set[int] = set()  # hashed blocks that what waits is about to compute
        self.tokens = 0
        self.per_s = 0.0
        self._landed = 0.0  # when the last step ended
        self._is_new_first = False  # whether the last step with long texts began with one that was new

    def add(self, request: Request) -> None:
        """Count a request that came; its ticket fails with `Overloaded` where it could not be done in time."""
        if len(request.ids) <= SHORT:
            return
        sequence, ticket, n = request.sequence, request.future, len(request.ids)
        begins_with = sequence.prefix.ids if sequence.prefix is not None else []
        is_new = not sequence.requests and len(sequence.ids) <= len(begins_with)
        if is_new and self._prefixes.room:
            text = [*sequence.ids, *request.ids]
            request.blocks = [key for key in self._prefixes.unknown(text) if key not in self._coming]
            n = min(n, len(text) - (len(text) // BLOCK - len(request.blocks)) * BLOCK)
        # Where nothing else waits it is tried all the same: the speed may be another one by now.
        if is_new and ticket.deadline is not None and self.per_s and self.tokens:
            wait, left = (self.tokens + n) / self.per_s, ticket.deadline - time.monotonic()
            if 0 < left * SLACK < wait:
                request.blocks = []
                ticket.fail(
                    Overloaded(f"what waits takes about {wait:.1f} s, more than the {left:.1f} s that are left")
                )
                return
        self._coming.update(request.blocks)
        request.to_do = n
        self.tokens += n

    def computed(self, request: Request, n: int) -> None:
        """So many of its tokens are done."""
        n = min(n, request.to_do)
        request.to_do -= n
        self.tokens -= n

    def remove(self, request: Request) -> None:
        """It is served, or nobody wants it any more."""
        self.computed(request, request.to_do)
        self._coming.difference_update(request.blocks)
        request.blocks = []

    def landed(self, requests: Sequence[Request], tokens: Sequence[int], begun: float) -> None:
        """A step has ended in which so many tokens of these requests were computed. begun: when it was handed over; the
        device may have had the one before to do."""
        now = time.monotonic()
        long = sum(n for request, n in zip(requests, tokens, strict=True) if len(request.ids) > SHORT)
        self.took(long, now - max(begun, self._landed))
        self._landed = now

    def took(self, tokens: int, seconds: float) -> None:
        """A step with so many tokens of long texts took so long."""
        if tokens >= FULL and seconds > 0:
            rate = tokens / seconds
            self.per_s = max(rate, self.per_s + FORGET * (rate - self.per_s))

    def in_turns(self, long: list[Text]) -> list[Text]:
        """Those that were begun first, but every second time for one new where few were: so a very long text stops no
        others and is stopped by none, and of many that come at once the first are done when the last are only begun."""
        begun = [s for s in long if s.cached > s.requests[0].base]
        new = [s for s in long if s.cached <= s.requests[0].base]
        self._is_new_first = 0 < len(begun) < TURNS and not self._is_new_first
        return new[:1] + begun + new[1:] if self._is_new_first else begun + new
