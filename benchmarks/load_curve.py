"""What many callers at once get of one model: texts/s, latency and memory from 1 to 512 threads or asyncio tasks.

    python benchmarks/load_curve.py [--callers 1 8 64 512] [--seconds 5] [--deadline 1.0] [--tasks]

Every caller checks one text after another, all different, with the embedded model. What is wanted: throughput rises to
what the cores give and stays there, latency grows in line with the callers, memory is flat. With `--deadline` each
check may take that long: what cannot be done in time should be refused at once, and as much be judged as without one.
The last column is the throughput divided by that of the best row. On a machine that is busy with other work the
texts judged in a second of this process's CPU time say more: they should not fall where callers become many.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from common import header, median, mib, note, percentile, rss_mib, sentence, table

from guardkit import Guard, NotJudged

CALLERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass
class Found:
    """What the callers of one round saw: seconds of each text that was judged, and of each that was refused."""

    callers: int
    seconds: float = 0.0
    cpu_s: float = 0.0
    judged: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.judged) / self.seconds


def texts(callers: int, caller: int) -> Iterator[str]:
    """Of one to four sentences. No two are alike, in other rounds neither, and not by a number alone: what was judged
    before is remembered, and numbers are folded."""
    rng = random.Random(f"{callers} {caller}")
    for i in itertools.count():
        yield (
            "".join(chr(ord("a") + int(digit)) for digit in f"{callers}{caller:05d}{i}")
            + ": "
            + " ".join(sentence(rng) for _ in range(rng.randint(1, 4)))
        )


def threads(guard: Guard, found: Found, end: float) -> None:
    def work(caller: int) -> None:
        for text in texts(found.callers, caller):
            start = time.monotonic()
            if start > end:
                return
            try:
                guard.check(text, normalize=False)
                found.judged.append(time.monotonic() - start)
            except NotJudged:
                found.refused.append(time.monotonic() - start)

    callers = [threading.Thread(target=work, args=(caller,)) for caller in range(found.callers)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


async def tasks(guard: Guard, found: Found, end: float) -> None:
    async def work(caller: int) -> None:
        for text in texts(found.callers, caller):
            start = time.monotonic()
            if start > end:
                return
            try:
                await guard.acheck(text, normalize=False)
                found.judged.append(time.monotonic() - start)
            except NotJudged:
                found.refused.append(time.monotonic() - start)

    await asyncio.gather(*(work(caller) for caller in range(found.callers)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--callers", type=int, nargs="+", default=CALLERS)
    arguments.add_argument("--seconds", type=float, default=5.0, help="that each number of callers goes on for")
    arguments.add_argument("--deadline", type=float, help="seconds that a check may take")
    arguments.add_argument("--tasks", action="store_true", help="asyncio tasks in place of threads")
    args = arguments.parse_args()
    header("Load")
    guard = Guard.load(timeout=args.deadline)
    guard.check("warm")
    rounds, memory = [], []
    for callers in args.callers:
        found = Found(callers)
        start, cpu = time.monotonic(), time.process_time()
        if args.tasks:
            asyncio.run(tasks(guard, found, start + args.seconds))
        else:
            threads(guard, found, start + args.seconds)
        found.seconds, found.cpu_s = time.monotonic() - start, time.process_time() - cpu
        rounds.append(found)
        memory.append(rss_mib())
        note(f"{callers} callers: {found.rate:.0f} texts/s")
    best = max(found.rate for found in rounds)
    rows = []
    for found, taken in zip(rounds, memory, strict=True):
        latency = [
            f"{f(found.judged) * 1e3:,.1f}" if found.judged else "-" for f in (median, lambda v: percentile(v, 95))
        ]
        refused = f"{len(found.refused):,}" + (f" ({median(found.refused) * 1e3:,.1f} ms)" if found.refused else "")
        by_cpu = f"{len(found.judged) / found.cpu_s:,.0f}"
        of_best = f"{found.rate / best:.2f}"
        rows.append([f"{found.callers}", f"{found.rate:,.0f}", by_cpu, *latency, refused, mib(taken), of_best])
    kind = "asyncio tasks" if args.tasks else "threads"
    until = f", {args.deadline} s for each" if args.deadline else ""
    print(f"## Callers at once ({kind}{until})\n")
    head = ["callers", "judged/s", "in a CPU second", "median ms", "p95", "refused (median time)", "MiB after"]
    table([*head, "of the best"], rows)


if __name__ == "__main__":
    main()
