"""What a model in a process of its own costs, in microseconds a streamed token, on both sides of the socket.

    python benchmarks/process_overhead.py [--tokens 400] [--runs 5]

The model is `python_overhead.py`'s stub: Qwen3Guard-Stream's own path over rows that say "safe", so nothing is
computed. Each line is measured beside the same without a process, in turns; CPU time of all threads of each side, and
the wall's time, both a token. Needs what `python_overhead.py` needs, and /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from common import header, median, note, table, words
from python_overhead import StubEngine, stream_model

from guardkit import Guard
from guardkit.models.base import StreamModel
from guardkit.process import ProcessModel, load
from guardkit.process.server import Server
from guardkit.process.start import SOCKET, folder_of


def serve(base: Path) -> None:
    """The other side, in a process that `main` starts."""
    folder = folder_of(base, "stub", {})
    folder.mkdir(mode=0o700)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / SOCKET))
    listening.listen(4)
    server = Server(stream_model(StubEngine), listening, folder)
    print("ready", flush=True)
    listening.setblocking(True)
    first, _ = listening.accept()  # before it has a peer it would end
    listening.setblocking(False)
    server.run(first)


def cpu_s(pid: int) -> float:
    """CPU seconds that the threads of a process have had."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += int((task / "schedstat").read_text().split()[0])
    return found / 1e9


def one_by_one(guard: Guard, n: int) -> int:
    with guard.stream("hi") as stream:
        for word in islice(words(7), n):
            stream.feed(word)
        return stream.n_tokens


def together(guard: Guard, n: int, n_streams: int) -> int:
    streams = [guard.stream("hi") for _ in range(n_streams)]
    for word in islice(words(7), n):
        guard.feed_many([(stream, word) for stream in streams])
    total = sum(stream.n_tokens for stream in streams)
    for stream in streams:
        stream.close()
    return total


def in_tasks(guard: Guard, n: int, n_streams: int) -> int:
    async def one() -> int:
        async with guard.astream("hi") as stream:
            for word in islice(words(7), n):
                await stream.feed(word)
            return stream._stream.n_tokens

    async def every() -> int:
        return sum(await asyncio.gather(*(one() for _ in range(n_streams))))

    return asyncio.run(every())


Case = Callable[[Guard, int], int]
CASES: dict[str, tuple[Case, int]] = {  # and what part of --tokens each stream has
    "one stream, `feed`": (one_by_one, 1),
    "64 streams, `feed_many`": (lambda guard, n: together(guard, n, 64), 4),
    "1,000 streams, `feed_many`": (lambda guard, n: together(guard, n, 1000), 40),
    "64 tasks, `astream`": (lambda guard, n: in_tasks(guard, n, 64), 4),
    "1,000 tasks, `astream`": (lambda guard, n: in_tasks(guard, n, 1000), 40),
}


def measured(case: Case, model: StreamModel, n: int) -> tuple[float, float, float]:
    """Microseconds a token: of the wall, of CPU here, of CPU there."""
    guard, pid = Guard(model), model.pid if isinstance(model, ProcessModel) else 0
    there, here, start = cpu_s(pid) if pid else 0.0, time.process_time(), time.perf_counter()
    tokens = case(guard, n)
    wall, here = time.perf_counter() - start, time.process_time() - here
    there = (cpu_s(pid) if pid else 0.0) - there
    return wall / tokens * 1e6, here / tokens * 1e6, there / tokens * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400, help="words of the one stream; the others take parts of it")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--serve", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    header("A model in a process of its own: us a streamed token", "torch")
    with tempfile.TemporaryDirectory(prefix="guardkit-") as base:
        command = [sys.executable, __file__, "--serve", base]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            models = (stream_model(StubEngine), load("stub", {}, Path(base)))
            rows = []
            for name, (case, part) in CASES.items():
                n = max(args.tokens // part, 4)
                found: list[list[tuple[float, float, float]]] = [[], []]
                for run in range(args.runs + 1):
                    for model, kept in zip(models, found, strict=True):
                        figures = measured(case, model, n)
                        if run:  # the first warms up
                            kept.append(figures)
                beside, across = ([median(column) for column in zip(*kept, strict=True)] for kept in found)
                added = across[1] + across[2] - beside[1]
                cells = (beside[0], beside[1], across[0], across[1], across[2], added)
                rows.append((name, *(f"{cell:.1f}" for cell in cells)))
            models[1].close()
    table(("", "beside, wall", "CPU", "across, wall", "CPU here", "CPU there", "added CPU"), rows)
    note("Medians of the runs; a word is a token or two. CPU of all threads.")


if __name__ == "__main__":
    main()
