"""Which tokens are computed next, and whose keys and values are in the cache meanwhile.

Short pieces go first, long texts are prefilled in chunks beside them. When the cache is full, the sequences that were
idle longest lose their place in it: their keys and values move to host memory, or are computed again from the token
ids. Nothing is dropped in silence. Called by the owner of the engine's loop alone, but for what is marked.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

import numpy as np
import torch

from guardkit import telemetry
from guardkit.engine.cache import GROW, Cache
from guardkit.engine.graphs import Graphs
from guardkit.engine.limits import Counters, Limits
from guardkit.engine.model_runner import Head, Launched, Plan, Threads, launch
from guardkit.engine.prefixes import WAIT, Prefixes, common
from guardkit.engine.qwen3 import Qwen3
from guardkit.engine.sequence import Close, Request, Rows, Sequence, Truncate
from guardkit.engine.staging import Results, Staging
from guardkit.engine.waiting import SHORT, Waiting
from guardkit.loop import Load, Loop

NOTHING = np.zeros((0, 0), np.float32)
FIRST = 256  # sequences of the first of several steps in a row, where a device computes beside the host


class Scheduler:
    """The state of one engine. heads: by name, what may be read at a token."""

    _loop: Loop

    def __init__(self, model: Qwen3, heads: Mapping[str, Head], cache: Cache, limits: Limits):
        self.model, self.heads, self.cache, self.limits = model, heads, cache, limits
        self.counters = Counters()
        self.room = cache.capacity // GROW * GROW  # tokens of all sequences but the pinned ones
        self.max_tokens = min(model.config.max_position_embeddings, self.room)  # of one sequence
        self._desk = threading.Lock()  # guards the two counts of open sequences, which callers change; nothing else
        self._open = 0
        self._counted = 0
        self._saved_tokens = 0
        self._staging, self._results = Staging(cache.device), Results(cache.device)
        self.graphs: Graphs | None = None
        self._prefixes = Prefixes(cache, limits.kept_tokens)
        self._waiting = Waiting(self._prefixes)
        self._ready: deque[Sequence] = deque()  # those with requests that no step is under way for, as they arrived
        self._ahead = cache.device.type == "cuda"  # whether steps run beside what the host does
        self._flying: Launched | None = None  # the step that is under way on the device
        self._plans: list[Plan] = []  # of the steps that are not booked yet
        self._holding: set[Sequence] = set()  # those with a place in the cache, or a copy of one
        self._thread = 0  # the one that is set up for steps

    @property
    def busy(self) -> bool:
        return bool(self._ready or self._plans)

    def take(self, message: Request | Truncate | Close) -> None:
        sequence = message.sequence
        if isinstance(message, Close):
            for request in sequence.requests:
                request.future.cancel()
            self._free(sequence, keep=True)
        elif isinstance(message, Truncate):
            while sequence.requests:  # all of them given up
                self._drop(sequence)
            self._ready = deque(s for s in self._ready if s is not sequence)
            self._cut(sequence, message.n_tokens)
        elif sequence.broken is not None:
            message.future.fail(sequence.broken)
        elif not sequence.closed:
            self._waiting.add(message)
            if not sequence.requests:
                self._ready.append(sequence)
            sequence.requests.append(message)
        else:
            message.future.cancel()

    def step(self) -> bool:
        """Begin a step of what waits; then book the one before. So the host does its part while a GPU does its own."""
        self._set_up()
        plan: Plan = []
        try:
            self._schedule(plan)
        except Exception as error:  # while making room
            for sequence in [s for s, _ in plan] or list(self._ready):
                self._break(sequence, error)
            return self.busy
        before, self._flying = self._flying, None
        launched = self._launch(plan) if plan else None
        if self._ahead:
            self._flying, launched = launched, before
        if launched is not None:
            self._land(launched)
        return self.busy

    def _launch(self, plan: Plan) -> Launched | None:
        if len(plan) < len(self._ready):
            taken = {sequence for sequence, _ in plan}
            self._ready = deque([s for s in self._ready if s not in taken])
        else:
            self._ready.clear()
        self._plans.append(plan)
        try:
            return self._compute(plan)
        except Exception as error:
            self._failed(plan, [sequence.requests[0] for sequence, _ in plan], error)
            return None

    def _land(self, launched: Launched) -> None:
        plan = launched.plan
        try:
            found = launched.rows()
        except Exception as error:
            self._failed(plan, launched.requests, error)
            return
        self._waiting.landed(launched.requests, [n for _, n in plan], launched.begun)
        try:
            self._settle(launched, found)
        except Exception as error:  # a fault here must fail its requests too, not leave them waiting
            for sequence, _ in plan:
                self._break(sequence, error)
        self._plans.remove(plan)

    def _failed(self, plan: Plan, requests: list[Request], error: Exception) -> None:
        """Each sequence of a step that failed is tried alone: the fault of one stays with one."""
        self._check_device()
        self._plans.remove(plan)
        if len(plan) == 1:
            self._break(plan[0][0], error)
            return
        for entry, request in zip(plan, requests, strict=True):
            if entry[0].requests and entry[0].requests[0] is request:
                launched = self._launch([entry])
                if launched is not None:
                    self._land(launched)

    def _check_device(self) -> None:
        """Whether the device is still there; a dead one fails all that waits, at once and in words."""
        if self.model.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.model.device)
            except Exception as error:
                self._loop.close(f"the GPU failed ({str(error).splitlines()[0]}): load the model again")

    def _set_up(self) -> None:
        if self._thread != threading.get_ident():
            self._thread = threading.get_ident()
            if self.model.device.type == "cuda":  # a thread starts on the first device, whatever its creator chose
                torch.cuda.set_device(self.model.device)

    def _cut(self, sequence: Sequence, n_tokens: int) -> None:
        self._prefixes.cut(sequence, n_tokens)
        del sequence.ids[n_tokens:]
        sequence.cached = min(sequence.cached, n_tokens)
        if sequence.saved is not None and sequence.saved[1] > n_tokens:
            put_back, n = sequence.saved
            sequence.saved = (put_back, n_tokens)
            self._saved_tokens -= n - n_tokens

    def _drop(self, sequence: Sequence) -> None:
        """Take the oldest request, which nobody wants any more, off a sequence. Its tokens stay where they are to be
        kept, and are computed when something behind them is asked for."""
        request = sequence.requests.popleft()
        self._waiting.remove(request)
        if request.keep:
            sequence.ids += request.ids if request.base < 0 else []
        elif request.base >= 0:
            self._cut(sequence, request.base)

    def _schedule(self, plan: list[tuple[Sequence, int]]) -> None:
        """Fill `plan` with (sequence, number of tokens): short pieces first, then long ones, as they came."""
        if len(self._ready) == 1:
            self._schedule_one(plan)
            return
        short: list[Sequence] = []
        long: list[Sequence] = []
        for sequence in self._ready:
            requests = sequence.requests
            while requests and not requests[0].future.wanted:
                self._drop(sequence)
            if requests:
                self._start(sequence, requests[0])
                (short if len(sequence.ids) - sequence.cached <= SHORT else long).append(sequence)
        if len(short) + len(long) < len(self._ready):
            self._ready = deque(sequence for sequence in self._ready if sequence.requests)
        limits = self.limits
        flying = self._in_flight()
        taken = set(flying)
        under_way = [*flying, *(sequence for sequence in self._ready if sequence.slot.held)]
        most = len(self._ready)
        if self._ahead and most > FIRST:  # the first part is small, so that the device starts; then it has work
            most = limits.step_sequences if flying else FIRST
        room = limits.step_tokens - (limits.mixed_tokens if long else 0)
        left = limits.mixed_tokens if short else limits.step_tokens
        for group, budget in ((short, room), (self._waiting.in_turns(long), left)):
            for sequence in group:
                if budget <= 0 or len(plan) >= most:
                    break
                is_new = not (sequence.cached or sequence.slot.held) and self.limits.kept_tokens
                if is_new and self._is_worth_waiting(sequence, under_way):
                    continue
                taken.add(sequence)
                if not self._make_room(sequence, budget, taken):
                    taken.discard(sequence)
                    continue
                n = min(len(sequence.ids) - sequence.cached, budget)
                plan.append((sequence, n))
                under_way.append(sequence)
                budget -= n

    def _schedule_one(self, plan: list[tuple[Sequence, int]]) -> None:
        """The same where one sequence has the step to itself."""
        sequence = self._ready[0]
        requests = sequence.requests
        while requests and not requests[0].future.wanted:
            self._drop(sequence)
        if not requests:
            self._ready.clear()
            return
        self._start(sequence, requests[0])
        budget = self.limits.step_tokens
        if self._make_room(sequence, budget, {sequence, *self._in_flight()}):
            plan.append((sequence, min(len(sequence.ids) - sequence.cached, budget)))

    def _start(self, sequence: Sequence, request: Request) -> None:
        if request.base < 0:
            request.base = len(sequence.ids)
            request.read += request.base
            sequence.ids += request.ids

    def _make_room(self, sequence: Sequence, budget: int, taken: set[Sequence]) -> bool:
        """Reserve the cache for the next tokens, evicting others if need be; bring back what was evicted."""
        if sequence.cached and self.cache.is_reserved(
            sequence.slot, sequence.cached, min(sequence.cached + budget, len(sequence.ids))
        ):
            return True
        if sequence.saved is not None:
            put_back, n = sequence.saved
            if not self._reserve(sequence, n, taken):
                return False
            sequence.saved = None
            self._saved_tokens -= n
            if put_back():
                sequence.cached = n
                self.counters.restored += 1
            else:
                self.counters.recomputed_tokens += n
        if not sequence.cached and not sequence.slot.held:
            self._begin_with_others(sequence)
        return self._reserve(sequence, min(sequence.cached + budget, len(sequence.ids)), taken)

    def _begin_with_others(self, sequence: Sequence) -> None:
        """Start with the longest beginning that another sequence has in the cache, up to what is to be read."""
        prefix = sequence.prefix
        found = self._prefixes.find(sequence.ids, self._unread(sequence))
        if prefix is not None and prefix.cached > (found[1] if found else 0):
            found = prefix, prefix.cached
        if found is not None:
            source, n = found
            sequence.cached = self.cache.share(source.slot, sequence.slot, n)
            self._prefixes.took(source)
            sequence.source = source
            self.counters.shared += sequence.cached

    def _is_worth_waiting(self, sequence: Sequence, under_way: list[Sequence]) -> bool:
        """Whether one of those that are under way is yet to compute what this one begins with."""
        start, most = sequence.ids[:WAIT], self._unread(sequence)
        known = None
        for other in under_way if most >= WAIT else ():
            if other.ids[:WAIT] == start:
                if known is None:
                    found = self._prefixes.find(sequence.ids, most)
                    known = found[1] if found else 0
                if min(common(sequence.ids, other.ids), most) - known >= WAIT:
                    return True
        return False

    @staticmethod
    def _unread(sequence: Sequence) -> int:
        """How many of a sequence's first tokens nothing is to be read at."""
        request = sequence.requests[0]
        return len(sequence.ids) if request.head is None else min(request.read, len(sequence.ids))

    def _reserve(self, sequence: Sequence, n_tokens: int, taken: set[Sequence]) -> bool:
        # At the expense of idle ones, and of those that came later: two that take turns at evicting each other in the
        # middle of their texts would never end.
        number = sequence.requests[0].number
        self._holding.add(sequence)
        while not self.cache.reserve(sequence.slot, n_tokens, sequence.cached):
            if self._prefixes.drop_oldest():
                continue
            idle = [
                s
                for s in self._holding
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
            put_back = self.cache.saved(sequence.slot, n)
            if put_back is not None:
                sequence.saved = (put_back, n)
                self._saved_tokens += n
        if sequence.saved is None:
            self.counters.recomputed_tokens += n
        self.cache.release(sequence.slot)
        self._prefixes.cut(sequence, 0)
        sequence.cached = 0
        self.counters.evicted += 1

    def _in_flight(self) -> list[Sequence]:
        return [sequence for plan in self._plans for sequence, _ in plan]

    def _compute(self, plan: Plan) -> Launched:
        with Threads(self.limits.threads):
            launched = launch(self.model, self.heads, self.cache, plan, self._staging, self._results, self.graphs)
        if tokens := sum(n for _, n in plan):
            self.counters.steps += 1
            telemetry.batch("engine", len(plan))
            self.counters.tokens += tokens
        return launched

    def _settle(self, launched: Launched, found: list[Rows | None]) -> None:
        """Book a step's results. Sequences that want more go to the end of the queue."""
        finished: list[tuple[Request, Rows]] = []
        for (sequence, n), request, rows in zip(launched.plan, launched.requests, found, strict=True):
            if not sequence.requests or sequence.requests[0] is not request:
                continue  # closed or cut back while the step was under way
            sequence.cached += n
            self._waiting.computed(request, n)
            sequence.last_step = self.counters.steps
            if rows is not None:
                request.found.append(rows)
                request.read = sequence.cached
            if request.keep:
                self._prefixes.add(sequence)
            if sequence.cached < len(sequence.ids):
                self._ready.append(sequence)
                continue
            self._waiting.remove(sequence.requests.popleft())
            if not request.keep:
                del sequence.ids[request.base :]
                sequence.cached = request.base
            if sequence.requests:
                self._ready.append(sequence)
            parts = request.found
            finished.append((request, parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else NOTHING))
        for request, result in finished:  # last, since it runs the callers' callbacks
            if request.sequence.closed:
                request.future.cancel()
            request.future.give(result)

    def _break(self, sequence: Sequence, error: BaseException) -> None:
        sequence.broken = error
        requests = list(sequence.requests)
        self._free(sequence)
        with self._desk:
            if not sequence.closed:
                sequence.closed = True
                self._open -= 1
                self._counted -= sequence.counted
        for request in requests:  # last, since it runs the callers' callbacks
            request.future.fail(error)

    def _free(self, sequence: Sequence, keep: bool = False) -> None:
        """keep: whether what it has in the cache may be of use to others."""
        for request in sequence.requests:
            self._waiting.remove(request)
        sequence.requests.clear()
        self._ready = deque(s for s in self._ready if s is not sequence)
        self._holding.discard(sequence)
        if sequence.saved is not None:
            self._saved_tokens -= sequence.saved[1]
            sequence.saved = None
        if not (keep and sequence.broken is None and self._prefixes.keep(sequence)):
            self._prefixes.cut(sequence, 0)
            self.cache.release(sequence.slot)
            sequence.ids, sequence.cached, sequence.source = [], 0, None

    # -- its end

    def load(self) -> Load:
        waiting = sum(len(sequence.requests) for sequence in (*self._ready.copy(), *self._in_flight()))
        return Load(waiting, self.cache.used, self.cache.capacity)

    def interrupt(self) -> None:
        pass

    def before_fork(self) -> None:
        pass

    def forked(self) -> None:
        self._desk = threading.Lock()
        if self.model.device.type == "cuda":
            self._loop.close("a forked process cannot use its parent's GPU: load the model in it, or spawn it")

    def reset(self, error: BaseException) -> None:
        flying = self._in_flight()
        self._plans, self._flying = [], None
        for sequence in {*self._ready, *flying, *(s for s in self._holding if self._loop.closed)}:
            self._break(sequence, error)
        if self._loop.closed:
            self._prefixes.clear()
