"""Microseconds per streamed token, by the length of the stream, beside judging the whole text again at every word.

    python benchmarks/stream_latency.py [--lengths 100 1000 10000] [--threads 8] [--runs 3]

Harmless prose goes through `guard.stream` with the default hold-back, word by word and character by character. Time is
that of `feed` from one judged token to the next. The policy flags and never blocks, so no stream ends early. The
reference calls `guard.check` on the text so far at every word, which is what a guard without streams has to do.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from common import header, median, mib, note, own_peak_mib, percentile, rss_mib, table, words

from guardkit import Guard

NEVER_BLOCK = {"name": "measure", "on_error": "block", "rules": [{"action": "flag"}]}
PROMPT = "Tell me what happened in your street last week."


@dataclass(frozen=True)
class Sample:
    """Tokens that one `feed` had judged: the number of the last one, how many, and the time since those before."""

    at: int
    tokens: int
    seconds: float

    @property
    def us(self) -> float:
        return self.seconds / self.tokens * 1e6


def pieces(feed: str, seed: int) -> Iterator[str]:
    return words(seed) if feed == "words" else itertools.chain.from_iterable(words(seed))


def stream(guard: Guard, feed: str, length: int, seed: int = 1) -> list[Sample]:
    """Feed one stream until it has judged `length` tokens."""
    samples, spent = [], 0.0
    with guard.stream(PROMPT) as running:
        before = 0
        for piece in pieces(feed, seed):
            start = time.perf_counter()
            running.feed(piece)
            spent += time.perf_counter() - start
            if running.n_tokens > before:
                samples.append(Sample(running.n_tokens, running.n_tokens - before, spent))
                before, spent = running.n_tokens, 0.0
            if before >= length:
                break
            if running.stopped:
                sys.exit("the stream was stopped in spite of the policy; nothing was measured")
        running.finish()
    return samples


def per_token(samples: list[Sample]) -> float:
    return sum(s.seconds for s in samples) / sum(s.tokens for s in samples) * 1e6


def cells(samples: list[Sample]) -> list[str]:
    us = [s.us for s in samples]
    return [f"{median(us):,.0f}", f"{percentile(us, 95):,.0f}", f"{per_token(samples):,.0f}", f"{max(us):,.0f}"]


def by_length(guard: Guard, lengths: list[int], feeds: list[str], runs: int) -> dict[tuple[str, int], list[Sample]]:
    found: dict[tuple[str, int], list[Sample]] = {(feed, length): [] for length in lengths for feed in feeds}
    memory: dict[tuple[str, int], float | None] = {}
    for i in range(runs):
        for key in found:
            found[key] += stream(guard, *key)
            gc.collect()
            memory[key] = rss_mib()
            note(f"run {i + 1} of {runs}: {key[1]:,} tokens by {key[0]}")
    print("## By length\n")
    table(
        ["tokens", "fed by", "median us a token", "p95", "mean", "most", "MiB after"],
        [[f"{key[1]:,}", key[0], *cells(samples), mib(memory[key])] for key, samples in found.items()],
    )
    return found


def by_decade(found: dict[tuple[str, int], list[Sample]], length: int, feeds: list[str]) -> None:
    print(f"## Inside the stream of {length:,} tokens\n")
    rows = []
    for feed in feeds:
        low, first = 0, 0.0
        while low < length:
            high = min(max(low * 10, 100), length)
            part = [s for s in found[feed, length] if low < s.at and (s.at <= high or high == length)]
            first = first or median([s.us for s in part])
            rows.append([f"{low + 1:,} to {high:,}", feed, *cells(part), f"{median([s.us for s in part]) / first:.2f}"])
            low = high
    table(["token", "fed by", "median us a token", "p95", "mean", "most", "median, of the first decade's"], rows)


def together(guard: Guard, threads: int, length: int, runs: int) -> None:
    """Several streams at once, one a thread, on one guard."""
    rows = []
    for count in (1, threads):
        samples: list[Sample] = []
        seconds = []
        for _ in range(runs):
            results: list[list[Sample]] = [[] for _ in range(count)]
            barrier = threading.Barrier(count + 1)

            def work(at: int, results: list[list[Sample]] = results, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                results[at] = stream(guard, "words", length, seed=at)

            running = [threading.Thread(target=work, args=(at,)) for at in range(count)]
            for thread in running:
                thread.start()
            barrier.wait()
            start = time.perf_counter()
            for thread in running:
                thread.join()
            seconds.append(time.perf_counter() - start)
            if not all(results):
                sys.exit("a stream failed in its thread; nothing was measured")
            samples += itertools.chain.from_iterable(results)
        rate = sum(s.tokens for s in samples) / sum(seconds)
        rows.append([str(count), f"{length:,}", *cells(samples), f"{rate:,.0f}", mib(rss_mib())])
        note(f"{count} streams at once: {rate:,.0f} tokens/s")
    print("## Streams at once, one a thread\n")
    head = ["streams", "tokens each", "median us a token", "p95", "mean", "most", "tokens/s, all", "MiB after"]
    table(head, rows)


def again_and_again(
    guard: Guard, lengths: list[int], every: int, found: dict[tuple[str, int], list[Sample]], runs: int
) -> None:
    """The reference. Long texts are judged at every `every`-th word only, and the rest counted like those."""
    rows = []
    for length in lengths:
        text, ends = "", []
        for word in words(1):
            text += word
            ends.append(len(text))
            if len(guard.model.tokenizer.encode(text)[0]) >= length:
                break
        step = 1 if length <= 100 else every
        messages = [{"role": "user", "content": PROMPT}]
        took = []
        for _ in range(runs if length <= 100 else 1):
            for end in ends[step - 1 :: step]:
                start = time.perf_counter()
                guard.check([*messages, {"role": "assistant", "content": text[:end]}], normalize=False)
                took.append(time.perf_counter() - start)
        cost = sum(took) / len(took) * len(ends) / length * 1e6
        ours = found.get(("words", length)) or stream(guard, "words", length)
        rows.append(
            [
                f"{length:,}",
                "every word" if step == 1 else f"every {step}th word of {len(ends)}",
                f"{median(took) * 1e6:,.0f}",
                f"{percentile(took, 95) * 1e6:,.0f}",
                f"{cost:,.0f}",
                f"{per_token(ours):,.0f}",
                f"{cost / per_token(ours):.1f}",
                mib(rss_mib()),
            ]
        )
        note(f"judged again at every word, {length:,} tokens")
    print("## Reference: the whole text so far, judged again at every word\n")
    table(
        ["tokens", "measured at", "median us a check", "p95", "us a token", "stream, us a token", "ratio", "MiB after"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000, 10_000], help="tokens")
    parser.add_argument("--feeds", nargs="+", choices=("words", "characters"), default=["words", "characters"])
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--thread-tokens", type=int, default=1000, help="tokens of each of the streams at once")
    parser.add_argument("--reference-lengths", type=int, nargs="*", default=[100, 1000], help="tokens")
    parser.add_argument("--reference-every", type=int, default=10, help="words between two checks of a long text")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()

    header("Stream latency")
    guard = Guard.load(policy=NEVER_BLOCK)
    stream(guard, "words", 100)  # warm
    print(f"Hold-back {guard.holdback}, debounce {guard.debounce}. Memory when loaded: {mib(rss_mib())} MiB.\n")
    found = by_length(guard, args.lengths, args.feeds, args.runs)
    by_decade(found, max(args.lengths), args.feeds)
    together(guard, args.threads, args.thread_tokens, args.runs)
    if args.reference_lengths:
        again_and_again(guard, args.reference_lengths, args.reference_every, found, args.runs)
    print(
        f"Samples of {args.runs} runs together (the reference beyond 100 tokens: of one). Times are of `feed` alone. "
        f"Memory is this process's resident memory, all of it; peak {mib(own_peak_mib())} MiB."
    )


if __name__ == "__main__":
    main()
