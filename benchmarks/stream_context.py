"""Milliseconds a token against the length of the context: guardkit's engine, a bare forward, and the published loop.

    python benchmarks/stream_context.py [--contexts 128 512 1024 2048 4096 8000] [--device cuda] [--dtype bfloat16]

Side by side on the same random weights, one stream, taking turns:

* guardkit: `Engine.submit(...).result()`, one token at a time, response heads and the way to the host included;
* bare forward: transformers' `Qwen3Model` with a `DynamicCache`, without heads;
* published loop: transformers' `Qwen3Model` over the whole sequence again for every token, all heads at all positions,
  the verdicts of all positions turned into Python strings.

The first two also take chunks of tokens, which are rolled back after each turn. What the contenders find is compared:
where a verdict's margin is clear they must agree, or the run ends with an error.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import header, median, mib, note, own_peak_mib, percentile, rss_mib, table
from stream_models import (
    CLEAR,
    MIB,
    RISKS,
    RandomWeights,
    Reference,
    make_weights,
    memory_mib,
    memory_name,
    parser,
    random_ids,
    synchronize,
)
from torch import Tensor

from guardkit.engine.setup import GIB

PREFILL = 512  # tokens of a context that the bare forward takes in at a time
REST_S = 0.005  # between turns: threads of one contender that still spin would slow the next
Found = dict[int, dict[str, Tensor]]  # position -> contender -> response logits [3 + c]


class Ours:
    """One stream in guardkit's engine."""

    name = "guardkit"

    def __init__(self, weights: RandomWeights, max_tokens: int, threads: int | None):
        room = 2 * max_tokens + 256  # a buffer that grows is there twice
        self.engine = weights.engine(room * weights.kv_bytes / GIB, threads=threads)
        self.sequence = self.engine.open()
        self._kv_bytes = weights.kv_bytes

    def extend(self, ids: Sequence[int]) -> None:
        self.engine.submit(self.sequence, ids).result()

    def step(self, ids: Sequence[int], keep: bool) -> tuple[float, Tensor]:
        """Seconds, and the response logits [n, 3 + c]."""
        start = time.perf_counter()
        rows = self.engine.submit(self.sequence, ids, "response", keep=keep).result()
        return time.perf_counter() - start, torch.from_numpy(rows)

    def cache_bytes(self) -> int:
        return self.sequence.slot.held * self._kv_bytes


class Bare:
    """One stream in transformers' model."""

    name = "bare"

    def __init__(self, reference: Reference):
        self.reference, self.cache = reference, reference.new_cache()

    def extend(self, ids: Sequence[int]) -> None:
        for at in range(0, len(ids), PREFILL):
            self.reference.hidden(ids[at : at + PREFILL], self.cache)
        synchronize(self.reference.device)

    def step(self, ids: Sequence[int], keep: bool) -> tuple[float, Tensor]:
        start = time.perf_counter()
        hidden = self.reference.hidden(ids, self.cache)
        synchronize(self.reference.device)
        seconds = time.perf_counter() - start
        if not keep:
            self.cache.crop(-len(ids))
        return seconds, torch.cat(self.reference.logits(hidden), dim=-1).float().cpu()

    def cache_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self.cache.layers for t in (layer.keys, layer.values))


class Loop:
    def __init__(self, reference: Reference):
        self.reference = reference

    def step(self, ids: Sequence[int]) -> tuple[float, Tensor]:
        start = time.perf_counter()
        verdicts, last = self.reference.published(ids)
        seconds = time.perf_counter() - start
        if any(len(labels) != len(ids) for labels in verdicts.values()):
            sys.exit("the published loop did not judge every position")
        return seconds, last.float().cpu()


def rested(step: Callable[..., tuple[float, Tensor]], *args: Any) -> tuple[float, Tensor]:
    time.sleep(REST_S)
    return step(*args)


def at_context(
    args: Any, ids: Sequence[int], context: int, ours: Ours, bare: Bare, loop: Loop, found: Found
) -> dict[tuple[str, int], list[float]]:
    """Seconds of each turn, by contender and tokens. Both streams hold `context` tokens before, some more after."""
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    loops = args.loop_runs if context <= args.loop_limit else 0
    loops = min(loops, 1) if context > args.loop_once else loops
    for turn in range(-args.warm, args.runs):
        at = context + args.warm + turn
        pair = (ours, bare) if turn % 2 else (bare, ours)
        for n in (*args.chunks, 1):  # chunks are rolled back; the single token stays
            for one in pair:
                took, rows = rested(one.step, ids[at : at + n], n == 1)
                if turn >= 0:
                    seconds[one.name, n].append(took)
                for i, row in enumerate(rows):
                    found[at + i].setdefault(one.name if n == 1 else f"{one.name}, {n} at a time", row)
        if turn < 0 and loops and bare.reference.device.type == "cuda":
            loop.step(ids[: at + 1])  # warm
        if 0 <= turn < loops:
            took, row = rested(loop.step, ids[: at + 1])
            seconds["loop", 1].append(took)
            found[at]["loop"] = row
    return seconds


def by_context(args: Any, weights: RandomWeights) -> Found:
    before = memory_mib(weights.device)
    most = max(args.contexts) + args.warm + args.runs + max(args.chunks, default=1)
    if most > weights.config.max_position_embeddings:
        sys.exit(f"{most} tokens are needed, the model has {weights.config.max_position_embeddings} positions")
    ids = random_ids(weights, most)
    ours = Ours(weights, most, args.threads)
    with_engine = memory_mib(weights.device)
    reference = Reference(weights)
    bare, loop = Bare(reference), Loop(reference)
    loop.step(ids[:16])  # what is made at the first call
    found: Found = defaultdict(dict)
    single, chunked, memory = [], [], []
    first = at = 0.0
    for context in sorted(args.contexts):
        grown = int(at)
        ours.extend(ids[grown:context])
        bare.extend(ids[grown:context])
        took = at_context(args, ids, context, ours, bare, loop, found)
        at = context + args.warm + args.runs
        one, other = median(took["guardkit", 1]), median(took["bare", 1])
        first = first or one
        again = median(took["loop", 1]) if took["loop", 1] else None
        single.append(
            [
                f"{context:,}",
                f"{one * 1e3:.2f}",
                f"{percentile(took['guardkit', 1], 95) * 1e3:.2f}",
                f"{one / first:.2f}",
                f"{other * 1e3:.2f}",
                f"{percentile(took['bare', 1], 95) * 1e3:.2f}",
                f"{one / other:.2f}",
                "-" if again is None else f"{again * 1e3:,.1f} ({len(took['loop', 1])})",
                "-" if again is None else f"{again / one:.1f}",
            ]
        )
        for n in args.chunks:
            a, b = (median(took[name, n]) for name in ("guardkit", "bare"))
            cells = [f"{a / n * 1e3:.2f}", f"{a * 1e3:.2f}", f"{b / n * 1e3:.2f}", f"{a / b:.2f}"]
            chunked.append([f"{context:,}", str(n), *cells])
        held = [mib(bytes_ / MIB) for bytes_ in (ours.cache_bytes(), bare.cache_bytes())]
        memory.append([f"{context:,}", mib(context * weights.kv_bytes / MIB), *held, mib(memory_mib(weights.device))])
        note(f"context {context:,}: guardkit {one * 1e3:.1f} ms, bare {other * 1e3:.1f} ms, loop {again or '-'} s")

    print(f"## One token at a time\n\n{args.runs} tokens at each context; of the loop, as many as in brackets.\n")
    head = ["context", "guardkit ms a token", "p95", "of the shortest", "bare forward ms", "p95", "guardkit / bare"]
    table([*head, "published loop ms a token (runs)", "loop / guardkit"], single)
    print("## Several tokens at a time\n")
    head = ["context", "tokens", "guardkit ms a token", "ms a push", "bare forward ms a token", "guardkit / bare"]
    table(head, chunked)
    print("## Memory of the one stream\n")
    kv = ["keys and values MiB", "held by guardkit's cache", "held by DynamicCache"]
    table(["context", *kv, f"{memory_name(weights.device)}, all contenders"], memory)
    print(
        f"{memory_name(weights.device)} with the weights alone: {mib(before)}; with guardkit's engine beside them: "
        f"{mib(with_engine)}. Peak RSS of this process: {mib(own_peak_mib())} MiB, now {mib(rss_mib())} MiB.\n"
    )
    ours.engine.close(ours.sequence)
    return found


def agreement(found: Found, clear: float) -> bool:
    """Compare everyone's verdicts with the bare forward's; print the table. Whether all clear ones are the same."""
    counts: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])
    for rows in found.values():
        base = rows.get("bare")
        for name, row in rows.items() if base is not None else ():
            if name == "bare":
                continue
            count = counts[name]
            for part in (slice(0, RISKS), slice(RISKS, None)):
                best = base[part].topk(2)
                is_clear = bool(best.values[0] - best.values[1] > clear)
                count[0] += 1
                count[1] += is_clear
                count[2] += is_clear and int(row[part].argmax()) != int(best.indices[0])
            count[3] = max(count[3], float((row - base).abs().nan_to_num(float("inf")).max()))
    print(f"## Agreement\n\nVerdicts beside those of the bare forward; clear where the margin exceeds {clear:g}.\n")
    cells = [[n, f"{c[0]:,.0f}", f"{c[1]:,.0f}", f"{c[2]:,.0f}", f"{c[3]:.2g}"] for n, c in sorted(counts.items())]
    table(["contender", "verdicts", "clear", "clear and different", "widest difference of a logit"], cells)
    clears = sum(c[1] for c in counts.values())
    return bool(clears) and not any(c[2] or c[3] == float("inf") for c in counts.values())


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096, 8000], help="tokens")
    options.add_argument("--chunks", type=int, nargs="*", default=[4, 16], help="tokens pushed at once")
    options.add_argument("--runs", type=int, default=20, help="tokens at each context")
    options.add_argument("--warm", type=int, default=3, help="tokens before those, not timed")
    options.add_argument("--loop-runs", type=int, default=3)
    options.add_argument("--loop-once", type=int, default=512, help="above this context the loop runs once")
    options.add_argument("--loop-limit", type=int, default=4096, help="above this context the loop is left out")
    options.add_argument("--quick", action="store_true", help="contexts to 1,024 and few runs")
    args = options.parse_args(arguments)
    if args.quick:
        args.contexts = [c for c in args.contexts if c <= 1024] or [128]
        args.runs, args.warm, args.loop_runs = min(args.runs, 5), 1, 1

    header("Stream engine: latency and context", "torch", "transformers")
    weights = make_weights(args)
    if not agreement(by_context(args, weights), CLEAR[weights.dtype]):
        sys.exit("the contenders disagree where the margin is clear: the figures above compare different things")


if __name__ == "__main__":
    main()
