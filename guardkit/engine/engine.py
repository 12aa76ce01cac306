"""The engine: many sequences, one model, one step after another.

`submit` hands over a sequence's next tokens and returns a future of what a head reads at them. The engine's loop
(`loop.py`), which alone touches the cache and what is known of it, packs whatever waits into one ragged forward pass
within a token budget (`scheduler.py`, `model_runner.py`), and hands the results out; what arrives meanwhile makes the
next step. So streams join and leave at any time.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from weakref import WeakSet

from guardkit.engine.cache import Cache
from guardkit.engine.limits import Counters, Limits
from guardkit.engine.model_runner import Head
from guardkit.engine.qwen3 import Qwen3
from guardkit.engine.scheduler import Scheduler
from guardkit.engine.sequence import Close, Request, Rows, Sequence, Truncate
from guardkit.errors import Overloaded
from guardkit.loop import Loop, Turn
from guardkit.ticket import Pending, Ticket

SERVERS = 2  # threads of callers that may run steps


class _Server:
    """Lives as long as its thread."""


class Engine(Scheduler):
    """Runs one model for many threads and tasks: what callers may use of it."""

    def __init__(self, model: Qwen3, heads: Mapping[str, Head], cache: Cache, limits: Limits):
        super().__init__(model, heads, cache, limits)
        self._numbers = itertools.count()
        self._is_forked = False
        self._dropped: deque[Sequence] = deque()
        self._served = threading.local()
        self._servers: WeakSet[_Server] = WeakSet()  # one of each thread that may run steps, while it lives
        self._loop = Loop("guardkit-engine", self, self)

    @property
    def open_sequences(self) -> int:
        return self._open - len(self._dropped)

    def turn(self) -> Turn | None:
        """For a caller that waits for what it submits: its turn at the steps; for a few threads only, since each that
        runs steps costs torch a pool of threads of its own, or a GPU's libraries a workspace."""
        return self._loop.turn() if self.may_serve() else None

    def may_serve(self) -> bool:
        if self._is_forked:  # torch's threads stayed in the parent: who had some there would wait for them
            return False
        if getattr(self._served, "mine", None) is None:
            if len(self._servers) >= SERVERS:
                return False
            mine = self._served.mine = _Server()
            self._servers.add(mine)
        return True

    @property
    def tokens(self) -> int:
        total = 0
        for sequence in self._ready:
            if not sequence.cached or self._plans:  # it is new, or was evicted; or a step is under way
                return 0
            for request in sequence.requests:
                if request.future.deadline is not None:  # who serves himself cannot leave when his time is up
                    return 0
                if request.base < 0:
                    total += len(request.ids)
            total += len(sequence.ids) - sequence.cached
        return total

    def forked(self) -> None:
        self._is_forked = True
        super().forked()

    def open(self, counted: bool = True, prefix: Sequence | None = None) -> Sequence:
        """A new sequence, empty or with the tokens of `prefix`. Raises `Overloaded` where as many are open as may be.

        counted: whether it counts against `max_sequences`; not for short-lived ones whose number the caller bounds.
        """
        while self._dropped:
            with contextlib.suppress(IndexError):  # another thread was faster
                self.close(self._dropped.popleft())
        with self._desk:
            if counted and self._counted >= self.limits.max_sequences:
                raise Overloaded(
                    f"{self._counted} streams are open, as many as may be; close some, or raise max_streams"
                )
            self._open += 1
            self._counted += counted
        sequence = Sequence(counted, prefix)
        if prefix is not None:
            sequence.ids, sequence.length = list(prefix.ids), len(prefix.ids)
        return sequence

    def submit(
        self,
        sequence: Sequence,
        ids: Iterable[int],
        head: str | None = None,
        read_from: int = 0,
        keep: bool = True,
        deadline: float | None = None,
    ) -> Pending:
        """Append `ids`; the future gives what `head` reads at each token from index `read_from` on: [n, c].

        keep=False: the tokens are forgotten again, which costs nothing. deadline: of `time.monotonic`; what is not
        begun by then, or cancelled, is not computed (tokens that are kept belong to the sequence all the same).
        Requests of one sequence are served in order. Raises ValueError for ids outside the vocabulary, and for more
        tokens than fit.
        """
        own = list(ids)
        vocabulary = self.model.config.vocab_size
        if own and not (min(own) >= 0 and max(own) < vocabulary):
            raise ValueError(f"token ids must be in [0, {vocabulary}), got {min(own)} to {max(own)}")
        if sequence.closed or sequence.broken:
            raise ValueError("the sequence is over") from sequence.broken
        if sequence.length + len(own) > self.max_tokens:
            raise ValueError(f"{sequence.length} + {len(own)} tokens do not fit into {self.max_tokens}")
        ticket: Ticket[None] = Ticket(None, deadline)
        request = Request(sequence, own, head, read_from, keep, next(self._numbers), ticket)
        self._loop.put(request)
        sequence.length += len(own) if keep else 0
        sequence.last = ticket
        return ticket

    def replace(self, old: Sequence) -> Sequence:
        """A new, empty sequence in the place of `old`, which is closed when what is under way in it is served."""
        sequence = self.open(counted=False)
        sequence.counted, old.counted = old.counted, False
        self.submit(old, ()).add_done_callback(lambda _: self.close(old))
        return sequence

    def pin(self, ids: Iterable[int]) -> Sequence:
        """A sequence that others start with: computed once, never evicted."""
        sequence = self.open(counted=False)
        sequence.pinned = True
        self.submit(sequence, ids).result()
        self.room -= sequence.slot.held
        self.max_tokens = min(self.max_tokens, self.room)
        return sequence

    def truncate(self, sequence: Sequence, n_tokens: int) -> None:
        """Forget all tokens but the first `n_tokens`. Raises ValueError while requests of the sequence wait."""
        if sequence.last is not None and not sequence.last.done():
            raise ValueError("the sequence has requests under way")
        if n_tokens < sequence.length:
            sequence.length = n_tokens
            self._loop.tell(Truncate(sequence, n_tokens))

    def close(self, sequence: Sequence) -> None:
        """Free what a sequence holds: at once, or after the step that it is in. Safe to call twice."""
        with self._desk:
            if sequence.closed:
                return
            sequence.closed = True
            self._open -= 1
            self._counted -= sequence.counted
        self._loop.tell(Close(sequence))

    def drop(self, sequence: Sequence) -> None:
        """`close` for a finalizer, which may run in the middle of anything: it is done with the next `open`."""
        if not sequence.closed:
            self._dropped.append(sequence)

    def shut(self, why: str) -> None:
        """Take no more work, fail what waits, free the cache. Safe to call twice."""
        self._loop.close(why)


__all__ = ["Counters", "Engine", "Head", "Limits", "Rows", "Sequence"]
