"""Everything about a GPU in one command, under nine minutes on a fresh machine; one table, with the hardware's name.

    python benchmarks/gpu.py [--size 0.6B] [--minutes 8.5] [--write] [--device cpu --small]

Parity with transformers, latency of one stream by context, streams that are held within 20 ms a step, Gen's latency and
throughput beside `generate` as the model card has it, memory, and how much of the device's bandwidth and compute a step
uses. Random weights at the published shapes: speed does not depend on their values. Parts that no longer fit into
--minutes are left out, and the table says so. `--write [FILE]` puts the table into docs/performance.md (or FILE) in
place of the one of the same hardware.

Without a CUDA device it says so and ends with status 2. `--device cpu --small` runs the same code on tiny shapes, to
try it: its figures mean nothing. Status 1: verdicts differ from the reference's where the margin is clear.

Needs the repository's tests folder, transformers and dashscope (Qwen's tokenizer is rebuilt from it).
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import header, median, note, percentile, table
from gen_latency import contenders
from gen_models import NEW_TOKENS, Ours, Theirs, talk, weights_of
from stream_concurrency import RATE, Streams, limits, measure, most_within, paced
from stream_models import (
    CLEAR,
    RandomWeights,
    Reference,
    copy_bandwidth,
    make_weights,
    matmul_peak,
    parser,
    random_ids,
    synchronize,
)
from torch import Tensor

GIB = 1 << 30
DOCS = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BUDGET_MS = 20


@dataclass
class Report:
    """Rows (what, found, goal); the parts that were left out; whether all that must hold does."""

    end: float
    rows: list[list[str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    right: bool = True

    def add(self, what: str, found: str, goal: str = "") -> None:
        note(f"{what}: {found}")
        self.rows.append([what, found, goal])

    def part(self, name: str, least_s: float, call: Callable[[], None]) -> None:
        """Run a part, where `least_s` seconds are left for it. One that fails is told and fails alone."""
        if time.monotonic() + least_s > self.end:
            self.left_out.append(name)
            return
        try:
            call()
        except Exception as error:
            self.right = False
            self.add(name, f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device}"
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, {card.total_memory / GIB:.0f} GiB"


# ------------------------------------------------------------------------------------------------------- Stream


def parity(report: Report, weights: RandomWeights, args: argparse.Namespace) -> None:
    """Rows of the engine, in pieces and token by token, beside transformers' in one pass."""
    # few tokens: room is left for the parts behind it
    reference, engine = Reference(weights), weights.engine(cache_gib=args.cache_gib or 4)
    ids = random_ids(weights, 40 if args.small else 300)
    expected = reference.logits(reference.hidden(ids))[0].float().cpu()
    ordered = expected.sort(1).values
    clear = ordered[:, -1] - ordered[:, -2] > CLEAR[weights.dtype]
    worst, wrong = 0.0, 0
    for sizes in ([len(ids)], [1], [7, 1, 64, 16, 1]):
        sequence, at, found = engine.open(), 0, []
        while at < len(ids):
            n = sizes[len(found) % len(sizes)]
            found.append(torch.tensor(engine.submit(sequence, ids[at : at + n], "response").result()))
            at += n
        engine.close(sequence)
        rows = torch.cat(found)[:, :3]
        worst = max(worst, float((rows - expected).abs().max()))
        wrong += int((rows.argmax(1) != expected.argmax(1))[clear].sum())
    report.right = report.right and not wrong
    recorded = "recorded steps" if engine.graphs is not None else "steps launched one kernel at a time"
    report.add(
        "verdicts unlike transformers' where the margin is clear",
        f"{wrong} of {3 * int(clear.sum())} (logits differ by {worst:.3f} at most; {recorded})", "0",
    )  # fmt: skip
    engine.shut("done")


def streams(report: Report, weights: RandomWeights, args: argparse.Namespace) -> None:
    """One stream by context; then how many are held within the budget."""
    engine = weights.engine(cache_gib=args.cache_gib, max_streams=args.max_streams)
    bandwidth, peak = (
        copy_bandwidth(weights.device, args.copy_mib),
        matmul_peak(weights.device, weights.dtype, args.width),
    )
    report.add("a large copy; a large matrix product", f"{bandwidth / 1e9:,.0f} GB/s; {peak / 1e12:,.1f} TFLOP/s")
    for context in args.contexts:
        opened = Streams(engine, weights, context, 1)
        found = measure(opened, 1, args)
        share = limits(found, opened, bandwidth, peak)[4]
        goal = "1.5 ms" if context <= 1024 else ""
        report.add(
            f"one stream after {context:,} tokens, a token",
            f"{median(found.steps) * 1e3:.2f} ms (p95 {found.p95 * 1e3:.2f}; {share} of the bandwidth)", goal,
        )  # fmt: skip
        opened.close()
    for context in args.held:
        opened = Streams(engine, weights, context, 1)
        known = {}

        def p95(n: int, opened: Streams = opened, known: dict[int, float] = known) -> float:
            if time.monotonic() > report.end - 30:
                return float("inf")
            known[n] = measure(opened, n, args).p95
            return known[n]

        bound = min(opened.room, args.max_streams)
        if bound >= 64:
            found = measure(opened, 64, args)
            share = limits(found, opened, bandwidth, peak)
            report.add(
                f"64 streams after {context:,} tokens, a step",
                f"{median(found.steps) * 1e3:.2f} ms (p95 {found.p95 * 1e3:.2f}; {share[4]} of the bandwidth, "
                f"{share[5]} of the compute)", "5 ms",
            )  # fmt: skip
        most = most_within(BUDGET_MS / 1e3, bound, p95)
        room = ", as many as there is room for" if most == bound else ""
        goal = "1,000" if context == 512 else ""
        report.add(f"streams after {context:,} tokens held within {BUDGET_MS} ms a step", f"{most:,}{room}", goal)
        n = min(1000, bound)
        if context == args.held[0] and time.monotonic() < report.end - 30:
            waits, kept = paced(opened, n, args.seconds)
            report.add(
                f"{n:,} streams after {context:,} tokens, each at its own pace of {RATE} tokens a second",
                f"p95 {percentile(waits, 95) * 1e3:.1f} ms from a token to its verdict, {kept:.1%} before the next one",
                f"{BUDGET_MS} ms",
            )
        opened.close()
    c = engine.counters
    report.add("steps; tokens computed; evicted", f"{c.steps:,}; {c.tokens:,}; {c.evicted}")
    memory(report, weights, engine.cache.capacity)
    engine.shut("done")


def int8(report: Report, weights: RandomWeights, args: argparse.Namespace) -> None:
    """Weights in 8 bits beside those of `weights`: time, memory, and how far scores move."""
    expected = Reference(weights)
    ids = random_ids(weights, 40 if args.small else 300)
    wanted = expected.logits(expected.hidden(ids))[0].float().cpu()
    found: list[Tensor] = []
    times: list[list[float]] = []
    counts = (1, 4) if args.small else (1, 64)
    for kind in (None, "int8"):
        engine = weights.engine(cache_gib=args.cache_gib or 8, quantize=kind)
        sequence = engine.open()
        rows = [engine.submit(sequence, ids[:-20], "response").result()]
        rows += [engine.submit(sequence, [one], "response").result() for one in ids[-20:]]
        engine.close(sequence)
        found.append(torch.cat([torch.tensor(row) for row in rows])[:, :3])
        opened = Streams(engine, weights, args.held[0], 1)
        times.append([median(measure(opened, n, args).steps) * 1e3 for n in counts])
        opened.close()
        engine.shut("done")
        del engine, opened, sequence
        gc.collect()
    ordered = wanted.sort(1).values
    clear = ordered[:, -1] - ordered[:, -2] > CLEAR[weights.dtype]
    moved = float((found[1].softmax(1) - found[0].softmax(1)).abs().max(1).values.median())
    same = float((found[1].argmax(1) == wanted.argmax(1))[clear].float().mean())
    (one, many), (one8, many8) = times
    report.add(
        f"weights in 8 bits: a token of one stream; a step of {counts[1]}",
        f"{one8:.2f} ms; {many8:.2f} ms (full precision {one:.2f} and {many:.2f}); scores move by {moved:.3f} in the "
        f"median; clear verdicts equal {same:.1%}",
    )


def memory(report: Report, weights: RandomWeights, capacity: int) -> None:
    kv = capacity * weights.kv_bytes
    if weights.device.type == "cuda":
        most = torch.cuda.max_memory_allocated(weights.device) / GIB
        report.add("memory: the cache; most that was taken", f"{capacity:,} tokens, {kv / GIB:.1f} GiB; {most:.1f} GiB")
    else:
        report.add("memory: the cache", f"{capacity:,} tokens, {kv / GIB:.2f} GiB")


# ---------------------------------------------------------------------------------------------------------- Gen


def gen(report: Report, args: argparse.Namespace) -> None:
    weights = weights_of(argparse.Namespace(**{**vars(args), "quick": args.small}))
    ours = Ours(weights)
    theirs = Theirs(weights, ours.template)
    rng = random.Random(1)
    for kind in NEW_TOKENS:
        turns = contenders(ours, theirs, kind, static=False)
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for i in range(args.warm + args.pushes // 4):
            one = talk(rng, kind == "response", 2)
            for name, run in turns.items():
                took = run(one)
                if i >= args.warm:
                    seconds[name].append(took)
        mine, others = median(seconds["guardkit, one pass"]), median(seconds["generate"])
        report.add(
            f"Gen, one {kind}",
            f"{mine * 1e3:.1f} ms, {others / mine:.1f} times as fast as generate ({others * 1e3:.0f} ms); p95 "
            f"{percentile(seconds['guardkit, one pass'], 95) * 1e3:.1f}", "8 times",
        )  # fmt: skip
    ours.answer("one pass")
    talks = [talk(rng, bool(i % 2), 1 + i % 12) for i in range(16 if args.small else 400)]
    ours.guard.check_batch(talks[:8])
    synchronize(weights.device)
    start = time.perf_counter()
    ours.guard.check_batch(talks)
    synchronize(weights.device)
    rate = len(talks) / (time.perf_counter() - start)
    sample = talks[:: max(len(talks) // 32, 1)]
    start = time.perf_counter()
    theirs.generate(sample, NEW_TOKENS["response"])
    synchronize(weights.device)
    other = len(sample) / (time.perf_counter() - start)
    report.add(
        "Gen, texts/s in one batch", f"{rate:,.1f}, {rate / other:.1f} times generate in one batch of {len(sample)}"
    )


# --------------------------------------------------------------------------------------------------------- main


def section(name: str, dtype: str, command: str, report: Report, size: str) -> str:
    """The table as a section of docs/performance.md."""
    lines = [
        f"## On a GPU: {name}, {size}", "",
        f"`{command}`, {time.strftime('%Y-%m-%d', time.gmtime())}, torch {torch.__version__}, {dtype}, random weights "
        f"at {size}'s shapes.", "",
        "| what | found | goal |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in report.rows), "",
    ]  # fmt: skip
    if report.left_out:
        lines += [f"Left out, since the time was up: {', '.join(report.left_out)}.", ""]
    return "\n".join(lines)


def put(text: str, made: str) -> str:
    """`text` with the section `made` in place of the one with the same heading, or before the last section."""
    heading = made.partition("\n")[0]
    sections = ("\n" + text).split("\n## ")
    kept = [part for part in sections if part.partition("\n")[0] != heading.removeprefix("## ")]
    at = next((i for i, part in enumerate(kept) if part.startswith("Not measured")), len(kept))
    kept.insert(at, made.removeprefix("## "))
    return "\n## ".join(kept).removeprefix("\n")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--small", action="store_true", help="tiny shapes, few steps: to try the script")
    arguments.add_argument("--minutes", type=float, default=8.5)
    arguments.add_argument("--write", nargs="?", type=Path, const=DOCS, help=f"a file; default {DOCS.name} in docs")
    args = arguments.parse_args()
    wanted = args.device or "cuda"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        note("no CUDA device here: nothing was measured. `--device cpu --small` tries the script on a CPU.")
        sys.exit(2)
    args.device = wanted
    small = args.small
    args.size = "tiny" if small else args.size
    args.contexts, args.held = ((60,), (60,)) if small else ((128, 512, 1024, 4096, 8000), (512, 2048))
    args.pushes, args.warm, args.seconds = (8, 1, 0.2) if small else (50, 3, 2.0)
    args.max_streams, args.cache_gib = (4, 0.01) if small else (4096, None)
    args.copy_mib, args.width = (4, 64) if small else (None, None)

    header("A GPU", "torch", "transformers", "triton")
    report = Report(time.monotonic() + 60 * args.minutes)
    loaded = [make_weights(args)]
    name, dtype = device_name(loaded[0].device), str(loaded[0].dtype).removeprefix("torch.")
    report.part("parity", 0, lambda: parity(report, loaded[0], args))
    if loaded[0].device.type == "cuda":  # on a CPU: int8_weights.py
        report.part("int8", 60, lambda: int8(report, loaded[0], args))
    report.part("streams", 0 if small else 60, lambda: streams(report, loaded[0], args))
    loaded.clear()  # Gen's come in their place
    report.part("Gen", 0 if small else 60, lambda: gen(report, args))
    table(["what", "found", "goal"], report.rows)
    command = f"python benchmarks/gpu.py{'' if args.size == '0.6B' else f' --size {args.size}'}"
    made = section(name, dtype, command, report, args.size)
    if report.left_out:
        note(f"left out, since the time was up: {', '.join(report.left_out)}")
    if args.write:
        args.write.write_text(put(args.write.read_text(encoding="utf-8"), made), encoding="utf-8")
        note(f"written to {args.write}")
    sys.exit(0 if report.right else 1)


if __name__ == "__main__":
    main()
