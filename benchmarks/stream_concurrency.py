"""How many streams of 50 tokens/s each guardkit's engine holds within a time budget, and where the time goes.

    python benchmarks/stream_concurrency.py [--contexts 512 2048 8000] [--tokens 1 4] [--budget-ms 20] [--device cuda]

All streams push 1 (or 4) tokens together; a step is the time from the push to the last verdict on the host. The number
of streams is doubled and then bisected until the 95th percentile of the steps leaves the budget, the cache is full, or
--max-streams is reached. At the number that holds, every stream then pushes at a pace of its own for a few seconds.
The limits come from a large copy (memory bandwidth) and a large matrix product (compute) in the same run.

Contexts are filled with noise instead of being computed, and what is pushed is rolled back, so each stays as long as
it is: neither changes a step's cost.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from common import header, median, mib, note, percentile, rss_mib, table
from stream_models import (
    MIB,
    RandomWeights,
    copy_bandwidth,
    make_weights,
    matmul_peak,
    memory_mib,
    memory_name,
    parser,
    random_ids,
    synchronize,
)

from guardkit.engine.cache import GROW, ContiguousCache
from guardkit.engine.engine import Engine
from guardkit.engine.engine import Sequence as EngineSequence
from guardkit.engine.paged_cache import PagedCache

RATE = 50  # tokens a second of each stream
STEPS = (1, 2, 4, 8, 16)  # numbers of streams that are always measured


class Streams:
    """Open streams of one context in an engine."""

    def __init__(self, engine: Engine, weights: RandomWeights, context: int, tokens: int):
        self.engine, self.weights, self.context, self.tokens = engine, weights, context, tokens
        self._ids = random_ids(weights, context + tokens)
        self._open: list[EngineSequence] = []
        generator = torch.Generator(weights.device).manual_seed(2)
        c = weights.config
        shape = (c.num_key_value_heads, 1, c.head_dim)
        self._noise = torch.empty(shape, dtype=weights.dtype, device=weights.device).normal_(generator=generator)
        if isinstance(engine.cache, PagedCache):
            engine.cache.pool.copy_(self._noise.transpose(0, 1).expand_as(engine.cache.pool))

    @property
    def room(self) -> int:
        """Streams for which there is room."""
        each = -(-(self.context + self.tokens) // GROW) * GROW
        return self.engine.cache.capacity // each

    def set(self, n: int) -> list[EngineSequence]:
        """`n` open streams that hold their context."""
        while len(self._open) > n:
            self.engine.close(self._open.pop())
        while len(self._open) < n:
            sequence = self.engine.open()
            if not self.engine.cache.reserve(sequence.slot, self.context + self.tokens):
                sys.exit("the cache is full though it should have had room")
            if sequence.slot.buffer is not None:
                sequence.slot.buffer.copy_(self._noise.expand_as(sequence.slot.buffer))
            sequence.ids = self._ids[: self.context]
            sequence.cached = sequence.length = self.context
            self._open.append(sequence)
        return self._open

    def push(self, n: int) -> tuple[float, float]:
        """All streams push at once: seconds until everything is handed over, and until the last verdict is there."""
        streams, ids = self.set(n), self._ids[-self.tokens :]
        start = time.perf_counter()
        with self.engine._loop.turn() as turn:  # so that no step takes a few of them; and as who waits for a token does
            futures = [self.engine.submit(s, ids, "response", keep=False) for s in streams]
            handed = time.perf_counter() - start
            while turn.owned and not futures[-1].done() and turn.step():
                pass
        for future in futures:
            rows = future.result()
        took = time.perf_counter() - start
        if rows.shape[0] != self.tokens:
            sys.exit(f"{rows.shape[0]} verdicts came back for {self.tokens} tokens")
        return handed, took

    def close(self) -> None:
        self.set(0)


@dataclass
class Measured:
    """The steps of `n` streams, in seconds."""

    n: int
    steps: list[float]

    @property
    def p95(self) -> float:
        return percentile(self.steps, 95)


def measure(streams: Streams, n: int, args: argparse.Namespace) -> Measured:
    """Enough pushes for a percentile, but none beyond `--seconds` once five are there."""
    for _ in range(args.warm):
        streams.push(n)
    steps: list[float] = []
    start = time.perf_counter()
    while len(steps) < args.pushes and (len(steps) < 5 or time.perf_counter() - start < args.seconds):
        steps.append(streams.push(n)[1])
    found = Measured(n, steps)
    note(f"  {n} streams: {median(steps) * 1e3:.1f} ms, p95 {found.p95 * 1e3:.1f} ms ({len(steps)} pushes)")
    return found


def most_within(budget: float, bound: int, p95: Callable[[int], float]) -> int:
    """The largest number up to `bound` whose p95 is within `budget`: by doubling, then bisection to 2%."""
    good, n = 0, 1
    while n <= bound and p95(n) <= budget:
        good, n = n, (n * 2 if n == bound else min(n * 2, bound))
    bad = n
    while bad <= bound and bad - good > max(1, good // 50):
        middle = (good + bad) // 2
        if p95(middle) <= budget:
            good = middle
        else:
            bad = middle
    return good


# -------------------------------------------------------------------------------------------- where the time goes


@dataclass
class Part:
    """Calls of one function: host seconds, and on a CUDA device the time between two events around each."""

    host: float = 0.0
    events: list[tuple[Any, Any]] = field(default_factory=list)

    def device_s(self) -> float | None:
        return sum(a.elapsed_time(b) for a, b in self.events) / 1e3 if self.events else None


@contextmanager
def parts_of(engine: Engine) -> Iterator[dict[str, Part]]:
    """Times the parts of the engine while open. On a CUDA device nothing waits for it, so the cost stays as it is."""
    found: dict[str, Part] = {}
    on_gpu = engine.model.device.type == "cuda"
    wrapped: list[tuple[Any, str]] = []

    def timed(name: str, call: Callable[..., Any], device: bool) -> Callable[..., Any]:
        part = found.setdefault(name, Part())

        def run(*args: Any) -> Any:
            start = time.perf_counter()
            if device and on_gpu:
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
            result = call(*args)
            if device and on_gpu:
                after.record()
                part.events.append((before, after))
            part.host += time.perf_counter() - start
            return result

        return run

    for owner, name, device in (
        (engine, "_schedule", False),
        (engine, "_compute", False),
        (engine, "_settle", False),
        (engine.cache, "begin", False),
        (engine.cache, "attend", True),
        (engine.model, "forward", True),
    ):
        setattr(owner, name, timed(name, getattr(owner, name), device))
        wrapped.append((owner, name))
    try:
        yield found
    finally:
        for owner, name in wrapped:
            delattr(owner, name)  # the class's own again


def breakdown(streams: Streams, n: int, pushes: int) -> list[tuple[str, float, float | None]]:
    """(part, seconds a push on the host, on the device) of `n` streams; the parts on the host add up to the whole."""
    streams.push(n)
    handed = total = 0.0
    with parts_of(streams.engine) as parts:
        for _ in range(pushes):
            one, took = streams.push(n)
            handed, total = handed + one, total + took
        synchronize(streams.weights.device)
        with streams.engine._loop.turn():  # the last push is booked
            pass
        time.sleep(0.01)

    def host(name: str) -> float:
        return parts[name].host if name in parts else 0.0

    def device(name: str) -> float | None:
        found = parts[name].device_s() if name in parts else None
        return None if found is None else found / pushes

    forward, attend = device("forward"), device("attend")
    rows = [
        ("handing over (Python)", handed, None),
        ("scheduling (Python)", host("_schedule"), None),
        ("page tables, masks", host("begin"), None),
        ("forward: attention", host("attend"), attend),
        (
            "forward: the rest",
            host("forward") - host("attend"),
            None if forward is None else forward - (attend or 0.0),
        ),
        ("inputs, heads, waiting for the device", host("_compute") - host("begin") - host("forward"), None),
        ("booking results (Python)", host("_settle"), None),
    ]
    spent = sum(row[1] for row in rows)
    rows += [("waking up, the rest", total - spent, None), ("together", total, None)]
    return [(name, seconds / pushes, on_device) for name, seconds, on_device in rows]


# ---------------------------------------------------------------------------------------------- at their own pace


def paced(streams: Streams, n: int, seconds: float) -> tuple[list[float], float]:
    """Every stream pushes at `RATE` tokens a second, each at its own beat: seconds from when each push was due to its
    verdict, and the share of all that were judged before the stream's next one was due."""
    opened, ids, period = streams.set(n), streams._ids[-streams.tokens :], streams.tokens / RATE
    rng = random.Random(3)
    beats = sorted((rng.random() * period, i) for i in range(n))
    waits: list[float] = []
    landed = threading.Semaphore(0)
    pushed, rounds = 0, max(1, round(seconds / period))
    start = time.perf_counter()
    for turn in range(rounds):
        for offset, i in beats:
            due = start + turn * period + offset
            while (early := due - time.perf_counter()) > 0:
                time.sleep(early)

            def land(_: object, due: float = due) -> None:
                waits.append(time.perf_counter() - due)
                landed.release()

            streams.engine.submit(opened[i], ids, "response", keep=False).add_done_callback(land)
            pushed += 1
        if time.perf_counter() - start > 2 * seconds:
            break  # it cannot keep up
    for _ in range(pushed):
        landed.acquire()
    return waits, sum(wait <= period for wait in waits) / (rounds * n)


# -------------------------------------------------------------------------------------------------------- tables


def compare(args: argparse.Namespace, weights: RandomWeights, bandwidth: float, peak: float) -> None:
    held_rows, step_rows, part_rows = [], [], []
    start = memory_mib(weights.device) or 0.0
    engine = weights.engine(args.cache_gib, args.max_streams, args.threads)
    weights.tensors.clear()  # the engine has what it needs
    loaded = memory_mib(weights.device) or 0.0
    print(
        f"Cache: {engine.cache.capacity:,} tokens of {weights.kv_bytes / 1024:,.0f} KiB; {memory_name(weights.device)} "
        f"before the engine {start:,.0f}, with it {loaded:,.0f}.\n"
    )
    for context in args.contexts:
        for tokens in args.tokens:
            if context + tokens > engine.max_tokens:
                note(f"context {context:,}: the engine takes {engine.max_tokens:,} tokens")
                continue
            streams = Streams(engine, weights, context, tokens)
            bound = min(streams.room, args.max_streams)
            note(f"context {context:,}, {tokens} a push; room for {bound}")
            measured: dict[int, Measured] = {}

            def at(n: int, streams: Streams = streams, measured: dict[int, Measured] = measured) -> Measured:
                if n not in measured:
                    measured[n] = measure(streams, n, args)
                return measured[n]

            what = [f"{context:,}", str(tokens)]
            most, own_pace = 0, dict[int, list[str]]()
            for budget in args.budget_ms:
                n = most_within(budget / 1e3, bound, lambda n, at=at: at(n).p95)  # type: ignore[misc]
                most = max(most, n)
                cells = ["-"] * 5
                if n:
                    cells = [f"{median(at(n).steps) * 1e3:.1f}", f"{at(n).p95 * 1e3:.1f}", f"{n * RATE:,}"]
                    if args.paced_seconds and n not in own_pace:
                        waits, kept = paced(streams, n, args.paced_seconds)
                        own_pace[n] = [f"{percentile(waits, 95) * 1e3:.1f}", f"{kept:.1%}"]
                    cells += own_pace.get(n, ["-", "-"])
                limit = "time" if n < bound else "cache" if bound == streams.room else "--max-streams"
                held_rows.append([*what, f"{budget:g}", f"{n:,}", limit, *cells])
            for n in sorted({*STEPS, most}):
                if 0 < n <= bound:
                    step_rows.append([*what, f"{n:,}", *limits(at(n), streams, bandwidth, peak)])
            shown = most or min(max(measured), bound)
            for name, host, device in breakdown(streams, shown, args.part_pushes):
                whole = f"{host * 1e3:.2f}", "-" if device is None else f"{device * 1e3:.2f}"
                part_rows.append([*what, f"{shown:,}", name, *whole])
            streams.close()
            gc.collect()
            if isinstance(engine.cache, ContiguousCache) and engine.cache.used:
                sys.exit(f"{engine.cache.used} tokens of the cache are still taken after all streams were closed")

    print("## Streams held\n")
    head = ["context", "tokens a push", "budget ms", "streams", "bound by", "median ms a step", "p95", "tokens/s, all"]
    table([*head, "p95 ms when each keeps its own pace", "judged before the next"], held_rows)
    print("## Steps\n")
    head = ["context", "tokens a push", "streams", "median ms a step", "p95", "ms a stream", "keys and values MiB"]
    table([*head, "of the memory bandwidth", "of the compute peak", "of the limit that binds"], step_rows)
    print("## Where a step's time goes\n")
    head = ["context", "tokens a push", "streams", "part", "ms on the host"]
    table([*head, "ms on the device" if weights.device.type == "cuda" else "ms on a device"], part_rows)
    print(f"Memory at the end: RSS {mib(rss_mib())} MiB", end="")
    if weights.device.type == "cuda":
        print(f", CUDA peak {torch.cuda.max_memory_allocated(weights.device) / MIB:,.0f} MiB", end="")
    print(".")


def limits(found: Measured, streams: Streams, bandwidth: float, peak: float) -> list[str]:
    weights, n, took = streams.weights, found.n, median(found.steps)
    per_stream = (streams.context + streams.tokens) * weights.kv_bytes
    # A step is bound by reading the weights, and each stream's keys and values, once; more steps read more often.
    by_memory = (weights.step_bytes + n * per_stream) / bandwidth
    by_compute = weights.flops(n * streams.tokens, streams.context + streams.tokens) / peak
    return [
        f"{took * 1e3:.2f}",
        f"{found.p95 * 1e3:.2f}",
        f"{took / n * 1e3:.3f}",
        f"{n * per_stream / MIB:,.0f}",
        f"{by_memory / took:.0%}",
        f"{by_compute / took:.0%}",
        f"{max(by_memory, by_compute) / took:.0%}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8000], help="tokens")
    options.add_argument("--tokens", type=int, nargs="+", default=[1, 4], help="tokens a push")
    options.add_argument("--budget-ms", type=float, nargs="+", help="default: 20; on a CPU 20 50 100 200")
    options.add_argument("--max-streams", type=int, default=4096)
    options.add_argument("--cache-gib", type=float, help="default: as guardkit chooses")
    options.add_argument("--pushes", type=int, default=60, help="steps of each number of streams")
    options.add_argument("--seconds", type=float, default=10.0, help="the most for each number of streams")
    options.add_argument("--warm", type=int, default=3, help="steps before those, not timed")
    options.add_argument("--part-pushes", type=int, default=10, help="steps for the parts")
    options.add_argument("--paced-seconds", type=float, default=3.0, help="0: without that test")
    options.add_argument("--quick", action="store_true", help="the shortest context, few steps")
    args = options.parse_args(arguments)
    if args.quick:
        args.contexts, args.pushes, args.seconds = args.contexts[:1], 8, 1.0
        args.warm, args.part_pushes, args.paced_seconds = 1, 3, min(args.paced_seconds, 0.5)

    header("Stream engine: streams at once", "torch")
    weights = make_weights(args)
    args.budget_ms = args.budget_ms or ([20] if weights.device.type == "cuda" else [20, 50, 100, 200])
    bandwidth, peak = copy_bandwidth(weights.device), matmul_peak(weights.device, weights.dtype)
    print(
        f"Limits measured here: {bandwidth / 1e9:,.1f} GB/s by a large copy, {peak / 1e12:,.2f} TFLOP/s by a large "
        f"matrix product. A step reads {weights.step_bytes / 1e6:,.0f} MB of weights.\n"
    )
    compare(args, weights, bandwidth, peak)


if __name__ == "__main__":
    main()
