"""The engine: many sequences, one model, one step after another.

`submit` hands over a sequence's next tokens and returns a future of what a head reads at them. A worker thread takes
whatever waits, packs it into one ragged forward pass within a token budget, and hands the results out; what arrives
meanwhile makes the next step. So streams join and leave at any time, short pieces go first, and long texts are
prefilled in chunks beside them.

When the cache is full, the sequences that were idle longest lose their place in it: their keys and values move to host
memory, or are computed again from the token ids. Nothing is dropped in silence.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guardkit.engine.cache import GROW, Cache, Run, Slot
from guardkit.engine.qwen3 import Qwen3
from guardkit.errors import Overloaded

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, hidden_size] -> what is read off them, [n, c]."""
Rows = NDArray[np.float32]

SHORT = 16  # a piece of at most this many tokens goes before longer ones
IDLE_S = 5.0  # an idle worker thread ends after this time; the next submit starts another


@dataclass(frozen=True)
class Limits:
    """step_tokens: the most tokens of one step. mixed_tokens: the most tokens of long texts in a step that has short
    pieces too, which would otherwise wait for them. max_sequences: open at a time. host_tokens: evicted tokens whose
    keys and values are kept in host memory. threads: CPU threads, None for torch's own choice."""

    step_tokens: int
    mixed_tokens: int
    max_sequences: int = 4096
    host_tokens: int = 0
    threads: int | None = None


@dataclass(eq=False)
class Sequence:
    """The tokens of one text and what the cache holds of them. Made by `Engine.open`; opaque to others."""

    counted: bool
    prefix: Sequence | None = None  # what it starts with; its keys and values are shared where they are at hand
    pinned: bool = False  # never evicted
    ids: list[int] = field(default_factory=list)
    cached: int = 0  # of `ids`, in the cache now
    slot: Slot = field(default_factory=Slot)
    saved: tuple[Callable[[], None], int] | None = None  # while evicted: what puts a copy back, and its tokens
    requests: deque[Request] = field(default_factory=deque)
    length: int = 0  # tokens once every request is served
    last_step: int = 0
    closed: bool = False
    broken: BaseException | None = None  # the error of the step that left the cache in doubt


@dataclass(eq=False)
class Request:
    ids: list[int]
    head: str | None
    read: int  # the next token to be read: an index into `ids`, then (once started) into the sequence
    keep: bool
    number: int  # in the order of arrival
    base: int = -1  # the sequence's length before this request; -1 until it is started
    found: list[Rows] = field(default_factory=list)
    future: Future[Rows] = field(default_factory=Future)


@dataclass
class Counters:
    """What was done so far, for benchmarks and tests."""

    steps: int = 0
    tokens: int = 0
    evicted: int = 0
    restored: int = 0
    recomputed_tokens: int = 0


class Engine:
    """Runs one model for many threads and tasks. heads: by name, what may be read at a token."""

    def __init__(self, model: Qwen3, heads: Mapping[str, Head], cache: Cache, limits: Limits):
        self.model, self.heads, self.cache, self.limits = model, heads, cache, limits
        self.counters = Counters()
        self.room = cache.capacity // GROW * GROW  # tokens of all sequences but the pinned ones
        self.max_tokens = min(model.config.max_position_embeddings, self.room)  # of one sequence
        self._sequences: set[Sequence] = set()
        self._counted = 0
        self._saved_tokens = 0
        self._numbers = itertools.count()
        self._ready: deque[Sequence] = deque()  # those with requests, in the order of arrival
        self._stepping: set[Sequence] = set()
        self._state = threading.Condition()
        self._worker: threading.Thread | None = None

    # -- for callers

    @property
    def open_sequences(self) -> int:
        return len(self._sequences)

    def open(self, counted: bool = True, prefix: Sequence | None = None) -> Sequence:
        """A new sequence, empty or with the tokens of `prefix`. Raises `Overloaded` where as many are open as may be.

        counted: whether it counts against `max_sequences`; not for short-lived ones whose number the caller bounds.
        """
        with self._state:
            if counted and self._counted >= self.limits.max_sequences:
                raise Overloaded(
                    f"{self._counted} streams are open, as many as may be; close some, or raise max_streams"
                )
            sequence = Sequence(counted, prefix)
            if prefix is not None:
                sequence.ids, sequence.length = list(prefix.ids), len(prefix.ids)
            self._sequences.add(sequence)
            self._counted += counted
            return sequence

    def submit(
        self, sequence: Sequence, ids: Iterable[int], head: str | None = None, read_from: int = 0, keep: bool = True
    ) -> Future[Rows]:
        """Append `ids`; the future gives what `head` reads at each token from index `read_from` on: [n, c].

        keep=False: the tokens are forgotten again, which costs nothing. Requests of one sequence are served in order.
        Raises ValueError for ids outside the vocabulary, and for more tokens than fit.
        """
        request = Request(list(ids), head, read_from, keep, next(self._numbers))
        own = request.ids
        vocabulary = self.model.config.vocab_size
        if own and not (min(own) >= 0 and max(own) < vocabulary):
            raise ValueError(f"token ids must be in [0, {vocabulary}), got {min(own)} to {max(own)}")
        with self._state:
            if sequence.closed or sequence.broken:
                raise ValueError("the sequence is over") from sequence.broken
            if sequence.length + len(own) > self.max_tokens:
                raise ValueError(f"{sequence.length} + {len(own)} tokens do not fit into {self.max_tokens}")
            sequence.length += len(own) if keep else 0
            if not sequence.requests:
                self._ready.append(sequence)
            sequence.requests.append(request)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="guardkit-engine", daemon=True)
                self._worker.start()
            self._state.notify_all()
        return request.future

    def replace(self, old: Sequence) -> Sequence:
        """A new, empty sequence in the place of `old`, which is closed when what is under way in it is served."""
        with self._state:
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
        with self._state:
            if sequence.requests:
                raise ValueError("the sequence has requests under way")
            del sequence.ids[n_tokens:]
            sequence.length = len(sequence.ids)
            sequence.cached = min(sequence.cached, n_tokens)
            if sequence.saved is not None and sequence.saved[1] > n_tokens:
                put_back, n = sequence.saved
                sequence.saved = (put_back, n_tokens)
                self._saved_tokens -= n - n_tokens

    def close(self, sequence: Sequence) -> None:
        """Free what a sequence holds: at once, or after the step that it is in. Safe to call twice."""
        with self._state:
            sequence.closed = True
            if sequence not in self._stepping:
                self._free(sequence)

    # -- the worker

    def _work(self) -> None:
        if self.limits.threads:
            torch.set_num_threads(self.limits.threads)
        if self.model.device.type == "cuda":  # a thread starts on the first device, whatever its creator chose
            torch.cuda.set_device(self.model.device)
        while True:
            with self._state:
                while not self._ready:
                    if not self._state.wait(IDLE_S) and not self._ready:
                        self._worker = None
                        return
                plan: list[tuple[Sequence, int]] = []
                error: BaseException | None = None
                try:
                    self._schedule(plan)
                except BaseException as problem:  # while making room
                    error = problem
                self._stepping = {sequence for sequence, _ in plan}
            found: list[Rows | None] = []
            if error is None:
                try:
                    found = self._step(plan)
                except BaseException as problem:
                    error = problem
            with self._state:
                self._stepping = set()
                if error is None:
                    try:
                        self._settle(plan, found)
                    except BaseException as problem:  # a fault here must fail its requests too, not leave them waiting
                        error = problem
                if error is not None:
                    for sequence in [s for s, _ in plan] or list(self._ready):
                        self._break(sequence, error)

    def _schedule(self, plan: list[tuple[Sequence, int]]) -> None:
        """Fill `plan` with (sequence, number of tokens): short pieces first, then long ones, as they came."""
        short: list[Sequence] = []
        long: list[Sequence] = []
        for sequence in self._ready:
            self._start(sequence)
            (short if len(sequence.ids) - sequence.cached <= SHORT else long).append(sequence)
        limits = self.limits
        taken: set[Sequence] = set()
        room = limits.step_tokens - (limits.mixed_tokens if long else 0)
        for group, budget in ((short, room), (long, limits.mixed_tokens if short else limits.step_tokens)):
            for sequence in group:
                if budget <= 0:
                    break
                taken.add(sequence)
                if not self._make_room(sequence, budget, taken):
                    taken.discard(sequence)
                    continue
                n = min(len(sequence.ids) - sequence.cached, budget)
                plan.append((sequence, n))
                budget -= n

    def _start(self, sequence: Sequence) -> None:
        request = sequence.requests[0]
        if request.base < 0:
            request.base = len(sequence.ids)
            request.read += request.base
            sequence.ids += request.ids

    def _make_room(self, sequence: Sequence, budget: int, taken: set[Sequence]) -> bool:
        """Reserve the cache for the next tokens, evicting others if need be; bring back what was evicted."""
        if sequence.saved is not None:
            put_back, n = sequence.saved
            if not self._reserve(sequence, n, taken):
                return False
            put_back()
            sequence.cached, sequence.saved = n, None
            self._saved_tokens -= n
            self.counters.restored += 1
        prefix = sequence.prefix
        if prefix is not None and not sequence.cached and prefix.cached:
            sequence.cached = self.cache.share(prefix.slot, sequence.slot, prefix.cached)
        return self._reserve(sequence, min(sequence.cached + budget, len(sequence.ids)), taken)

    def _reserve(self, sequence: Sequence, n_tokens: int, taken: set[Sequence]) -> bool:
        # At the expense of idle ones, and of those that came later: two that take turns at evicting each other in the
        # middle of their texts would never end.
        number = sequence.requests[0].number
        while not self.cache.reserve(sequence.slot, n_tokens):
            idle = [
                s
                for s in self._sequences
                if s.slot.held
                and s not in taken
                and not s.pinned
                and not (s.requests and s.requests[0].number < number)
            ]
            if not idle:
                return False
            self._evict(min(idle, key=lambda s: (bool(s.requests), s.last_step)))
        return True

    def _evict(self, sequence: Sequence) -> None:
        n = sequence.cached
        if n and self._saved_tokens + n <= self.limits.host_tokens:
            put_back = self.cache.save(sequence.slot, n)
            if put_back is not None:
                sequence.saved = (put_back, n)
                self._saved_tokens += n
        if sequence.saved is None:
            self.counters.recomputed_tokens += n
        self.cache.release(sequence.slot)
        sequence.cached = 0
        self.counters.evicted += 1

    def _step(self, plan: list[tuple[Sequence, int]]) -> list[Rows | None]:
        """One forward pass; for each sequence of the plan what was read at its tokens."""
        runs: list[Run] = []
        ids: list[int] = []
        positions: list[int] = []
        reads: dict[str, list[tuple[int, range]]] = {}  # head -> (index into the plan, rows)
        for at, (sequence, n) in enumerate(plan):
            if not n:  # a request without tokens: only its turn in the queue counts
                continue
            start, row = sequence.cached, len(ids)
            runs.append(Run(sequence.slot, row, start, n))
            ids += sequence.ids[start : start + n]
            positions += range(start, start + n)
            request = sequence.requests[0]
            first = max(request.read - start, 0)
            if request.head is not None and first < n:
                reads.setdefault(request.head, []).append((at, range(row + first, row + n)))
        found: list[Rows | None] = [None] * len(plan)
        if not ids:
            return found
        device = self.model.device
        with torch.inference_mode():
            self.cache.begin(runs)
            hidden = self.model.forward(
                torch.tensor(ids, device=device), torch.tensor(positions, device=device), self.cache.attend
            )
            outputs = []
            for head, items in reads.items():
                rows = [row for _, span in items for row in span]
                chosen = hidden if len(rows) == len(ids) else hidden[torch.tensor(rows, device=device)]
                outputs.append(self.heads[head](chosen).float())
            # One transfer for all heads: it waits for the device.
            flat = torch.cat([o.flatten() for o in outputs]).cpu().numpy() if outputs else np.zeros(0, np.float32)
        begin = 0
        for output, items in zip(outputs, reads.values(), strict=True):
            width = output.shape[1]
            for at, span in items:
                end = begin + len(span) * width
                found[at] = flat[begin:end].reshape(-1, width)
                begin = end
        self.counters.steps += 1
        self.counters.tokens += len(ids)
        return found

    def _settle(self, plan: list[tuple[Sequence, int]], found: list[Rows | None]) -> None:
        """Book a step's results. Sequences that want more go to the end of the queue."""
        for (sequence, n), rows in zip(plan, found, strict=True):
            sequence.cached += n
            sequence.last_step = self.counters.steps
            if sequence.closed:
                self._free(sequence)
                continue
            request = sequence.requests[0]
            if rows is not None:
                request.found.append(rows)
                request.read = sequence.cached
            if sequence.cached < len(sequence.ids):
                continue
            sequence.requests.popleft()
            if not request.keep:
                del sequence.ids[request.base :]
                sequence.cached = request.base
            if request.future.set_running_or_notify_cancel():
                result = np.concatenate(request.found) if request.found else np.zeros((0, 0), np.float32)
                request.future.set_result(result)
        done = {sequence for sequence, _ in plan}
        self._ready = deque([s for s in self._ready if s.requests and s not in done])
        self._ready.extend(s for s, _ in plan if s.requests)

    def _break(self, sequence: Sequence, error: BaseException) -> None:
        sequence.broken = error
        requests, sequence.requests = list(sequence.requests), deque()
        self._ready = deque(s for s in self._ready if s is not sequence)
        self._free(sequence)
        for request in requests:  # last, since it runs the callers' callbacks
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)

    def _free(self, sequence: Sequence) -> None:
        if sequence not in self._sequences:
            return
        self._sequences.discard(sequence)
        self._counted -= sequence.counted
        if sequence.requests:
            for request in sequence.requests:
                request.future.cancel()
            sequence.requests.clear()
            self._ready = deque(s for s in self._ready if s is not sequence)
        if sequence.saved is not None:
            self._saved_tokens -= sequence.saved[1]
            sequence.saved = None
        self.cache.release(sequence.slot)
        sequence.ids, sequence.cached = [], 0
