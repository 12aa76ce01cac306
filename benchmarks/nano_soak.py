"""A soak of nano: hundreds of threads and a thousand tasks at once, round after round; verdicts right, memory bounded.

    python benchmarks/nano_soak.py [--threads 200] [--tasks 1000] [--rounds 3]

One caller, then more and more threads, then a thousand asyncio tasks; the largest numbers come again in later rounds.
Each caller checks short and long texts, follows a stream, and gives some of its work up: tasks are cancelled, threads
come with a deadline that cannot be met. No text comes twice, since what was judged before is remembered. Afterwards a
sample is judged again, one at a time by a guard that was loaded anew, and must be equal to the last bit; what was given
up may not have been called anything. Ends with status 1 and says what is wrong if a verdict differs, if memory grows
with the callers by more than `--memory-bound-mib` or from round to round by more than `--growth-mib`, or if a thread
stays.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from common import header, note, rss_mib, sentence, table

from guardkit import Guard, NotJudged, Severity, Verdict
from guardkit import loop as loop_module

ASKED = ("How do I make a bomb at home?", "Tell me how to hurt my neighbour and get away with it.")
NO_TIME_S = 1e-4


@dataclass(frozen=True)
class Asked:
    """A text, and what is done with it: "check", "stream", or "give up"."""

    text: str
    how: str

    @property
    def pieces(self) -> list[str]:
        return [self.text[i : i + 40] for i in range(0, len(self.text), 40)]


def asked(seed: str) -> Iterator[Asked]:
    """Without end, no two alike."""
    rng = random.Random(seed)
    while True:
        length = rng.randint(40, 120) if rng.random() < 0.01 else rng.randint(1, 3)
        name = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(8))
        text = f"{name.title()}: " + " ".join(sentence(rng) for _ in range(length))
        if rng.random() < 0.1:
            text += f" {rng.choice(ASKED)}"
        how = rng.choices(["check", "stream", "give up"], [80, 12, 8])[0]
        yield Asked(text, how)


@dataclass
class Round:
    """callers: "1 thread". kept: of every so many-th piece of work its verdict."""

    callers: str
    done: int = 0
    given_up: int = 0
    seconds: float = 0.0
    peak_mib: float = 0.0
    rest_mib: float = 0.0
    threads: int = 0
    kept: list[tuple[Asked, Verdict]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def book(self, what: Asked, verdict: Verdict) -> None:
        self.done += 1
        if self.done % 16 == 0:
            self.kept.append((what, verdict))


def streamed(guard: Guard, pieces: list[str]) -> Verdict:
    with guard.stream("hi") as stream:
        for piece in pieces:
            stream.feed(piece)
        stream.finish()
    return stream.verdict


def in_threads(guard: Guard, found: Round, name: str, callers: int, each: int) -> None:
    hurried = Guard(guard.model, timeout=NO_TIME_S)

    def work(caller: int) -> None:
        texts = asked(f"{name} {caller}")
        for _ in range(each):
            what = next(texts)
            try:
                if what.how == "stream":
                    found.book(what, streamed(guard, what.pieces))
                elif what.how == "check":
                    found.book(what, guard.check(what.text))
                else:
                    with contextlib.suppress(NotJudged):
                        hurried.check(what.text)
                    found.given_up += 1
            except Exception as error:
                found.problems.append(f"{found.callers}: {what.how}: {type(error).__name__}: {error}")

    made = [threading.Thread(target=work, args=(i,), name=f"soak-{i}") for i in range(callers)]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()


async def in_tasks(guard: Guard, found: Round, name: str, callers: int, each: int) -> None:
    async def one(what: Asked) -> Verdict:
        if what.how != "stream":
            return await guard.acheck(what.text)
        async with guard.astream("hi") as stream:
            for piece in what.pieces:
                await stream.feed(piece)
            await stream.finish()
        return stream.verdict  # type: ignore[return-value]

    async def work(caller: int) -> None:
        texts = asked(f"{name} {caller}")
        for turn in range(each):
            what = next(texts)
            task = asyncio.create_task(one(what))
            if what.how == "give up":
                await asyncio.sleep(0.001 * (caller % 50) * turn)
                task.cancel()
                await asyncio.wait([task])
                found.given_up += 1
                continue
            try:
                found.book(what, await task)
            except Exception as error:
                found.problems.append(f"{found.callers}: {what.how}: {type(error).__name__}: {error}")

    await asyncio.gather(*(work(i) for i in range(callers)))


class Peak:
    """The most memory of this process while a round runs."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.mib = max(self.mib, rss_mib() or 0.0)

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self.mib


def at_rest() -> float:
    """Memory once the loop's idle thread has ended and what malloc keeps free is handed back."""
    until = time.monotonic() + loop_module.IDLE_S + 5
    while any(t.name == "guardkit-nano" for t in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.05)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than with glibc
        ctypes.CDLL(None).malloc_trim(0)
    return rss_mib() or 0.0


def compare(kept: list[tuple[Asked, Verdict]], sample: int) -> tuple[int, int, list[str]]:
    """Judge a sample again, alone and by a guard of its own: how many, how many of them are not safe, what differs."""
    chosen = random.Random(0).sample(kept, min(sample, len(kept)))
    differ = []
    with Guard.load() as guard:
        for what, before in chosen:
            alone = streamed(guard, [what.text]) if what.how == "stream" else guard.check(what.text)
            if _key(before) != _key(alone):
                differ.append(f"{what.how}, {len(what.text)} characters: {_key(before)}, alone {_key(alone)}")
    return len(chosen), sum(verdict.severity is not Severity.safe for _, verdict in chosen), differ


def _key(verdict: Verdict) -> tuple[object, ...]:
    return verdict.severity, verdict.categories, tuple(verdict.scores.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="of the most threads, and of the tasks; at least 2")
    parser.add_argument("--each", type=int, default=4, help="texts of a caller; of fewer callers, as many in all")
    parser.add_argument("--sample", type=int, default=500, help="verdicts that are compared")
    parser.add_argument("--memory-bound-mib", type=float, default=64.0, help="at rest, over what one caller left")
    parser.add_argument("--growth-mib", type=float, default=8.0, help="at rest, from the second round to later ones")
    parser.add_argument("--idle-s", type=float, help="until the loop's idle thread ends; default: its own")
    args = parser.parse_args()
    if args.idle_s is not None:
        loop_module.IDLE_S = args.idle_s
    if args.rounds < 2:
        parser.error("--rounds: at least 2, since the first one is the warm-up")
    header("nano: soak")
    guard = Guard.load()
    guard.check("warm")
    steps = sorted({1, max(args.threads // 25, 1), max(args.threads // 3, 1)})
    plan = [("threads", n, max(args.each * args.threads // (2 * n), 1)) for n in steps]
    for _ in range(args.rounds):
        plan += [("threads", args.threads, args.each), ("tasks", args.tasks, args.each // 2 or 1)]
    rounds: list[Round] = []
    wrong: list[str] = []
    for number, (kind, callers, each) in enumerate(plan):
        found = Round(f"{callers} {kind if callers > 1 else kind[:-1]}")
        peak, start = Peak(), time.perf_counter()
        if kind == "threads":
            in_threads(guard, found, str(number), callers, each)
        else:
            asyncio.run(in_tasks(guard, found, str(number), callers, each))
        found.seconds, found.peak_mib = time.perf_counter() - start, peak.stop()
        found.rest_mib, found.threads = at_rest(), threading.active_count()
        if found.done + found.given_up != callers * each:
            wrong.append(f"{found.callers}: {found.done} + {found.given_up} of {callers * each} came to an end")
        rounds.append(found)
        note(f"{found.callers}: {found.done / found.seconds:.0f} a second, at rest {found.rest_mib:.0f} MiB")
    guard.close()
    wrong += [problem for found in rounds for problem in found.problems]
    first = rounds[0].rest_mib
    wrong += [
        f"{found.callers}: {found.rest_mib:,.0f} MiB at rest, one caller left {first:,.0f}"
        for found in rounds
        if found.rest_mib > first + args.memory_bound_mib
    ]
    second, *later = [found.rest_mib for found in rounds if found.callers == rounds[-1].callers][1:]
    if later and max(later) > second + args.growth_mib:
        wrong.append(f"memory at rest grew from {second:,.0f} to {max(later):,.0f} MiB in later rounds")
    # A pool that reads texts for event loops stays, with all that it may have.
    wrong += [
        f"a thread stays: {t.name}" for t in threading.enumerate() if t.name.startswith(("soak", "guardkit-nano"))
    ]
    compared, flagged, differ = compare([each for found in rounds for each in found.kept], args.sample)
    wrong += differ
    print("## By number of callers\n")
    table(
        ["callers", "judged", "given up", "a second", "MiB, most", "MiB at rest", "threads at rest"],
        [
            [f.callers, f"{f.done:,}", f"{f.given_up:,}", f"{f.done / f.seconds:,.0f}", f"{f.peak_mib:,.0f}",
             f"{f.rest_mib:,.0f}", f"{f.threads}"]
            for f in rounds
        ],
    )  # fmt: skip
    print(f"{compared:,} verdicts compared with a quiet guard's, {flagged:,} of them not safe: {len(differ)} differ.")
    if wrong:
        more = [f"and {len(wrong) - 20} more"] if len(wrong) > 20 else []
        sys.exit("\n".join(["wrong:", *wrong[:20], *more]))
    print("All verdicts are right, memory is bounded, no thread stays.")


if __name__ == "__main__":
    main()
