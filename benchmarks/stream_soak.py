"""A soak of the Stream engine: thousands of streams that come, go, are cancelled, fail and are evicted; nothing stays.

    python benchmarks/stream_soak.py [--streams 10000] [--device cuda]

Streams of random length go through `guard.stream` (threads) and `guard.astream` (tasks of one event loop) at once, on a
small seeded checkpoint with a cache that is too small for them. Some leave half-way, some are cancelled, some send
token ids that do not exist, and now and then a head fails or gives NaN for a step. Between the parts of the run the
engine's thread is left to end. At the end no sequence, cache, thread or memory may be left, and what was judged must
equal a run of one stream at a time. Ends with status 1 and says what is wrong if any of this does not hold.

What malloc keeps free for later rises by tens of MiB at the first step that needs more at once, and would hide a leak:
so after each part what is free is handed back to the system, and what is then left may not grow from the second part
on. The first part is the warm-up.

Needs the repository's tests folder (it writes the checkpoint) and dashscope (Qwen's tokenizer is rebuilt from it).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests folder

import numpy as np
import torch
from common import header, median, note, rss_mib, table, words
from stream_models import MIB
from torch import Tensor

from guardkit import Guard, NotJudged, Verdict
from guardkit import loop as loop_module
from guardkit.engine.cache import Cache
from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.engine import Engine, Head
from guardkit.engine.engine import Sequence as EngineSequence
from guardkit.engine.prefixes import Prefixes
from guardkit.engine.setup import DTYPES, GIB, pick_device
from guardkit.errors import Overloaded
from guardkit.models.base import Scores
from guardkit.models.stream import Qwen3GuardStream

RETRY_S = 0.01  # a stream that is refused tries again
POSITIONS = 512  # of the checkpoint; longer streams are windowed
NEVER_BLOCK = {"name": "soak", "on_error": "block", "rules": [{"action": "flag"}]}
NEAR = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}  # probabilities this close may change places
# Fate -> weight, of the streams of tasks and of threads. "fail" and "nan" strike every stream of their step.
OF_TASKS = {"finish": 660, "leave": 120, "cancel task": 130, "unknown ids": 80, "fail": 5, "nan": 5}
OF_THREADS = {"finish": 600, "leave": 120, "cancel future": 130, "unknown ids": 80, "check": 60, "fail": 5, "nan": 5}


class InjectedFault(RuntimeError):
    pass


@dataclass(frozen=True)
class Plan:
    """What stream `number` does. turn: the piece at which its fate comes about."""

    number: int
    fate: str
    in_thread: bool
    blocks: bool  # under a policy that may stop it
    context: str
    pieces: list[str]
    turn: int
    delay_s: float


def plan(number: int) -> Plan:
    rng = random.Random(number)
    in_thread = number % 5 == 0
    fates = OF_THREADS if in_thread else OF_TASKS
    fate = rng.choices(list(fates), list(fates.values()))[0]
    long = rng.random() < 0.02
    length = rng.randrange(POSITIONS, 2 * POSITIONS) if long else int(rng.expovariate(1 / 35)) + 1
    text = "".join(islice(words(number), length))
    pieces, at = [], 0
    while at < len(text):
        n = rng.randrange(40, 200) if long else rng.randrange(1, 24)
        pieces.append(text[at : at + n])
        at += n
    context = "".join(islice(words(-number - 1), rng.randrange(1, 40)))
    turn, delay = rng.randrange(len(pieces)), rng.random() * 0.05
    return Plan(number, fate, in_thread, rng.random() < 0.25, context, pieces, turn, delay)


class Faults:
    """Stands in for a head: passes it through until it is told to fail the next step."""

    def __init__(self, head: Head):
        self._head, self._armed = head, deque[str]()
        self.struck = 0

    def arm(self, kind: str) -> None:
        self._armed.append(kind)

    def __call__(self, hidden: Tensor) -> Tensor:
        found = self._head(hidden)
        if self._armed:
            self.struck += 1
            if self._armed.popleft() == "fail":
                raise InjectedFault("injected")
            return torch.full_like(found, math.nan)
        return found


@dataclass
class Soak:
    """The run: what became of the streams, and what went wrong."""

    guard: Guard
    blocking: Guard
    faults: Faults
    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    kept: Collection[int] = ()  # the streams whose verdicts are kept, to be compared with those of a quiet run
    tokens: int = 0
    refused: int = 0  # times that a stream had to wait for others to close

    @property
    def model(self) -> Qwen3GuardStream:
        return cast(Qwen3GuardStream, self.guard.model)

    def guard_of(self, what: Plan) -> Guard:
        return self.blocking if what.blocks else self.guard

    def script(self, what: Plan, stream: Any) -> Generator[Any, None, str]:
        """One stream's life, for both kinds: yields what a task has to await. Returns the outcome."""
        for turn, piece in enumerate(what.pieces):
            if turn == what.turn:
                if what.fate == "leave":
                    return "left"
                if what.fate in ("fail", "nan"):
                    self.faults.arm(what.fate)
                if what.fate == "unknown ids":
                    yield from self.unknown_ids(what, stream)
            yield stream.feed(piece)
            if stream.stopped:
                self.tokens += stream.n_tokens
                return "stopped"
        yield stream.finish()
        self.tokens += stream.n_tokens
        if what.number in self.kept:
            self.verdicts[what.number] = stream.verdict
        return "stopped" if stream.stopped else "finished"

    def unknown_ids(self, what: Plan, stream: Any) -> Generator[Any, None, None]:
        """Token ids beyond the vocabulary are refused, and the stream goes on as if they had not come."""
        vocabulary = self.model.engine.model.config.vocab_size
        try:
            yield stream.feed_ids([vocabulary + what.number])
        except ValueError:
            pass
        else:
            self.problems.append(f"stream {what.number}: an id outside the vocabulary was accepted")
        sequence = self.model.engine.open(counted=False)
        try:
            self.model.engine.submit(sequence, [vocabulary], "response")
        except ValueError:
            pass
        else:
            self.problems.append(f"stream {what.number}: the engine accepted an id outside the vocabulary")
        self.model.engine.close(sequence)

    def in_thread(self, what: Plan) -> str:
        if what.fate == "check":
            self.guard.check(what.context)
            return "checked"
        if what.fate == "cancel future":
            return self.cancel_future(what)
        with self.guard_of(what).stream(what.context) as stream:
            script = self.script(what, stream)
            try:
                while True:
                    next(script)
            except StopIteration as end:
                return str(end.value)

    def cancel_future(self, what: Plan) -> str:
        """Straight to the engine: of three requests one is cancelled; the others are served as if it had not been."""
        engine = self.model.engine
        sequence = engine.open()
        try:
            ids = [what.number % 997 + i for i in range(5)]
            futures = [engine.submit(sequence, ids, "response") for _ in range(3)]
            futures[what.turn % 3].cancel()
            for future in futures:
                if not future.cancelled() and len(future.result()) != len(ids):
                    self.problems.append(f"stream {what.number}: {len(future.result())} verdicts for {len(ids)} tokens")
        finally:
            engine.close(sequence)
        return "cancelled"

    async def in_task(self, what: Plan) -> str:
        async with self.guard_of(what).astream(what.context) as stream:
            script = self.script(what, stream)
            try:
                step: Awaitable[object] = next(script)
                while True:
                    try:
                        await step
                    except Exception as error:
                        step = script.throw(error)
                    else:
                        step = next(script)
            except StopIteration as end:
                return str(end.value)

    async def cancelled(self, what: Plan) -> str:
        task = asyncio.create_task(self.in_task(what))
        await asyncio.sleep(what.delay_s)
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return "cancelled"

    def failed(self, what: Plan, error: BaseException) -> str | None:
        """The outcome of an error that was to be expected, None where the stream is to try again; any other error is a
        problem."""
        causes = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)
        if any(isinstance(c, Overloaded) for c in causes):
            self.refused += 1
            return None
        injected = any(isinstance(c, InjectedFault) for c in causes)
        if injected or (isinstance(error, NotJudged) and "not finite" in str(error)):
            return "struck"
        told = f"stream {what.number} ({what.fate}): {type(error).__name__}: {error}"
        self.problems.append(told)
        note(told)
        return "failed"

    def threads(self, plans: Sequence[Plan], count: int) -> list[threading.Thread]:
        waiting = deque(plans)

        def work() -> None:
            while True:
                try:
                    what = waiting.popleft()
                except IndexError:
                    return
                outcome = None
                while outcome is None:
                    try:
                        outcome = self.in_thread(what)
                    except Exception as error:
                        outcome = self.failed(what, error)
                        time.sleep(RETRY_S)
                self.outcomes[outcome] += 1

        made = [threading.Thread(target=work, name=f"soak-{i}") for i in range(count)]
        for thread in made:
            thread.start()
        return made

    async def tasks(self, plans: Sequence[Plan], count: int) -> None:
        waiting = deque(plans)

        async def work() -> None:
            while waiting:
                what, outcome = waiting.popleft(), None
                while outcome is None:
                    try:
                        outcome = await (self.cancelled if what.fate == "cancel task" else self.in_task)(what)
                    except Exception as error:
                        outcome = self.failed(what, error)
                        await asyncio.sleep(RETRY_S)
                self.outcomes[outcome] += 1

        await asyncio.gather(*(work() for _ in range(count)))

    def run(self, plans: Sequence[Plan], tasks: int, threads: int) -> None:
        running = self.threads([p for p in plans if p.in_thread], threads)
        asyncio.run(self.tasks([p for p in plans if not p.in_thread], tasks))
        for thread in running:
            thread.join()


class Monitor:
    """Samples memory by the number of streams that ended; ends the process if none ends for too long."""

    def __init__(self, soak: Soak, device: torch.device, stall_s: float):
        self._soak, self._device, self._stall_s = soak, device, stall_s
        self.samples: list[tuple[int, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="soak-monitor", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        last, since = -1, time.monotonic()
        while not self._over.wait(0.1):
            ended = self._soak.outcomes.total()
            self.samples.append((ended, memory_mib(self._device)))
            if ended != last:
                last, since = ended, time.monotonic()
            elif time.monotonic() - since > self._stall_s:
                note(f"no stream ended for {self._stall_s:g} s, {ended} had: deadlock?")
                faulthandler.dump_traceback(all_threads=True)
                os._exit(1)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def halves(self, total: int) -> tuple[list[float], list[float]]:
        """Memory while the first half of the streams ended (after a tenth), and while the second did; ascending."""
        first = [m for ended, m in self.samples if total / 10 <= ended < total / 2]
        return sorted(first), sorted(m for ended, m in self.samples if ended >= total / 2)


def show_leaks() -> None:
    """Keep out of the way what grows for a long time up to a bound of its own, and would hide a leak: oneDNN's store of
    compiled products, one for each shape, and what lies free in the arenas that glibc's malloc gives to threads."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # read at the first product
    with contextlib.suppress(OSError, AttributeError):  # other systems
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX


def system_threads() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:"))


def settle(known: Collection[threading.Thread] = ()) -> list[str]:
    """Wait until the engine's idle thread has ended; the names of those that have not, but for `known` ones."""
    until = time.monotonic() + loop_module.IDLE_S + 10
    while True:
        left = [t.name for t in threading.enumerate() if t not in known and t.name.startswith(("guardkit", "soak-"))]
        left = [name for name in left if name != "soak-monitor"]
        if not left or time.monotonic() > until:
            time.sleep(0.2)  # for the system to take its threads back
            return left
        time.sleep(0.05)


def quiet(soak: Soak, plans: Sequence[Plan], near: float) -> tuple[int, int, list[str]]:
    """Judge streams again one at a time: how many, how many near ties fell the other way, and what differs."""
    ties, wrong = 0, []
    model = soak.model
    for what in plans:
        margins: list[float] = []

        def margin(logits: Any, windowed: bool, margins: list[float] = margins) -> Scores:
            scores = Qwen3GuardStream.response_scores(model, logits, windowed)
            for part in (scores.severity, scores.category):
                best = np.sort(part, axis=1)[:, -2:]
                margins.extend(best[:, 1] - best[:, 0])
            return scores

        model.response_scores = margin  # type: ignore[method-assign]
        try:
            with soak.guard_of(what).stream(what.context) as stream:
                stream.feed("".join(what.pieces))
                if not stream.stopped:
                    stream.finish()
                verdict = stream.verdict
        except NotJudged as error:
            wrong.append(f"stream {what.number}, alone: {error}")
            continue
        finally:
            del model.response_scores
        before = soak.verdicts[what.number]
        same = _key(before) == _key(verdict)
        apart = max(abs(before.scores[name] - value) for name, value in verdict.scores.items())
        if same and apart <= near:
            continue
        if not same and min(margins) <= near:
            ties += 1
        else:
            wrong.append(f"stream {what.number}: {_key(before)}, alone {_key(verdict)}; scores {apart:.2g} apart")
    return len(plans), ties, wrong


def _key(verdict: Verdict) -> tuple[object, ...]:
    return verdict.severity, verdict.categories, verdict.token_index, verdict.char_index


def leaks(soak: Soak) -> list[str]:
    """What the engine still holds."""
    engine: Engine = soak.model.engine
    gc.collect()
    # Closed ones that stay for what begins alike are meant to.
    sequences = sum(type(o) is EngineSequence for o in gc.get_objects())
    sequences -= sum(len(o._kept) for o in gc.get_objects() if type(o) is Prefixes)
    held = {
        "open sequences": engine.open_sequences,
        "streams that count as open": engine._counted,
        "tokens of the cache in use": engine.cache.used,
        "evicted tokens in host memory": engine._saved_tokens,
        "sequences in the queue": len(engine._ready),
        "sequences that are still referenced": sequences,
    }
    return [f"{n} {name}" for name, n in held.items() if n]


def warm_up(guard: Guard, rows: int) -> None:
    """A stream, and steps of 1 to `rows` rows: what is made once for each number of rows is made before the run."""
    with guard.stream("warm") as stream:
        stream.feed("".join(islice(words(1), 50)))
        stream.finish()
    engine = cast(Qwen3GuardStream, guard.model).engine
    sequence = engine.open()
    for n in range(1, rows + 1):
        engine.submit(sequence, range(n), "response", keep=False).result()
    engine.close(sequence)


def hand_back() -> None:
    """Give the system what malloc keeps free. Elsewhere than with glibc nothing happens."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_mib(device: torch.device) -> float:
    """Of this process, and of the CUDA device."""
    return (rss_mib() or 0.0) + (torch.cuda.memory_allocated(device) / MIB if device.type == "cuda" else 0.0)


def soak_run(args: argparse.Namespace, folder: Path) -> list[str]:
    """Run it and print the tables; what is wrong."""
    checkpoint, device = Checkpoint.open(folder), pick_device(args.device)
    gib = args.cache_tokens * Cache.bytes_per_token(checkpoint.config, DTYPES[args.dtype]) / GIB
    # The last bits of the division must not cost a page.
    options: dict[str, Any] = {"device": str(device), "dtype": args.dtype, "cache_gib": gib * (1 + 1e-9)}
    most = max(1, (args.tasks + args.threads) * 19 // 20)  # so that some are refused
    guard = Guard.load(str(folder), policy=NEVER_BLOCK, max_streams=most, **options)
    model = cast(Qwen3GuardStream, guard.model)
    heads = cast(dict[str, Head], model.engine.heads)
    faults = heads["response"] = Faults(heads["response"])
    soak = Soak(guard, Guard(model), faults)

    loaded = memory_mib(device)
    warm_up(guard, 0 if args.quick else POSITIONS - 64)
    settle()
    warm = memory_mib(device)
    threads_before, system_before = set(threading.enumerate()), system_threads()
    plans = [plan(i) for i in range(args.streams)]
    candidates = random.Random(0).sample(range(args.streams), min(3 * args.sample, args.streams))
    soak.kept = frozenset(candidates)
    monitor = Monitor(soak, device, args.stall_s)
    wrong: list[str] = []
    system, resting_mib = [], []
    start = time.perf_counter()
    resting = 0.0
    for part in range(args.parts):
        soak.run(
            plans[part * len(plans) // args.parts : (part + 1) * len(plans) // args.parts], args.tasks, args.threads
        )
        note(f"part {part + 1} of {args.parts}: {dict(soak.outcomes)}")
        pause = time.perf_counter()
        wrong += [f"thread {name} did not end" for name in settle(threads_before)]
        system.append(system_threads())
        wrong += [f"after part {part + 1}: {what}" for what in leaks(soak)]
        hand_back()
        resting_mib.append(memory_mib(device))
        resting += time.perf_counter() - pause
    seconds = time.perf_counter() - start - resting
    monitor.stop()
    left = [t.name for t in threading.enumerate() if t not in threads_before]
    wrong += [f"threads left: {', '.join(left)}"] if left else []
    # The first part may start threads that stay (pools); parts after it may not add any.
    if system_before is not None and system[-1] > system[0]:
        wrong.append(f"{system[-1]} threads of the system, {system[0]} after the first part")
    first, second = monitor.halves(args.streams)
    if not args.quick and (grown := max(resting_mib[1:]) - resting_mib[1]) > args.memory_bound_mib:
        wrong.append(f"memory at rest grew by {grown:,.1f} MiB after the second part")
    faults._armed.clear()  # what no step came to meet
    if soak.outcomes.total() != args.streams:
        wrong.append(f"{soak.outcomes.total()} of {args.streams} streams came to an end")
    counters = model.engine.counters
    if not counters.evicted:
        wrong.append("nothing was evicted: the cache is too large for this test")

    python_threads, rest = len(threading.enumerate()), memory_mib(device)
    sample = [plans[number] for number in candidates if number in soak.verdicts][: args.sample]
    compared, ties, differ = quiet(soak, sample, NEAR[args.dtype])
    wrong += differ
    settle()
    wrong += [f"after the quiet run: {what}" for what in leaks(soak)]

    print("## What became of the streams\n")
    table(["outcome", "streams"], [[name, f"{n:,}"] for name, n in soak.outcomes.most_common()])
    rows = [
        ["streams", f"{args.streams:,} in {seconds:,.1f} s, {args.streams / seconds:,.0f} a second"],
        ["at once", f"{args.tasks} tasks of one event loop and {args.threads} threads; at most {most} open"],
        ["cache", f"{model.engine.cache.capacity:,} tokens"],
        ["times that a stream was refused, and tried again", f"{soak.refused:,}"],
        ["oneDNN's products kept at most", os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]],
        ["tokens judged in finished streams", f"{soak.tokens:,}"],
        ["steps, tokens computed", f"{counters.steps:,}, {counters.tokens:,}"],
        ["evicted; restored; tokens computed again", _evicted(model.engine)],
        ["steps that were made to fail", f"{faults.struck:,}"],
        ["verdicts compared with a quiet run", f"{compared:,}: {len(differ):,} differ, {ties:,} near ties"],
        ["MiB loaded; warm", f"{loaded:,.0f}; {warm:,.0f}"],
        ["MiB at rest, what is free handed back, after each part", ", ".join(f"{mib:,.0f}" for mib in resting_mib)],
        ["MiB in the first half (after a tenth): median, most", _median_and_most(first)],
        ["MiB in the second half: median, most", _median_and_most(second)],
        ["threads of Python before; after", f"{len(threads_before)}; {python_threads}"],
        ["threads of the system before; after each part", f"{system_before}; {', '.join(map(str, system))}"],
        ["MiB at rest after the run; after the quiet run", f"{rest:,.0f}; {memory_mib(device):,.0f}"],
    ]
    print("## The run\n")
    table(["what", "measured"], rows)
    return soak.problems + wrong


def _median_and_most(values: list[float]) -> str:
    return f"{median(values):,.0f}, {values[-1]:,.0f}" if values else "-"


def _evicted(engine: Engine) -> str:
    c = engine.counters
    return f"{c.evicted:,}; {c.restored:,}; {c.recomputed_tokens:,}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--tasks", type=int, default=56, help="streams of the event loop at once")
    parser.add_argument("--threads", type=int, default=8, help="threads with a stream each")
    parser.add_argument("--parts", type=int, default=6, help="at least two; between them the engine comes to rest")
    parser.add_argument("--cache-tokens", type=int, default=2048, help="room for keys and values")
    parser.add_argument("--sample", type=int, default=500, help="streams that are judged again one at a time")
    parser.add_argument(
        "--memory-bound-mib",
        type=float,
        default=8.0,
        help="by how much memory at rest may grow after the second part",
    )
    parser.add_argument("--stall-s", type=float, default=60.0, help="without an end of a stream: a deadlock")
    parser.add_argument("--idle-s", type=float, help="until the engine's idle thread ends; default: the engine's own")
    parser.add_argument("--device", help="default: CUDA where there is one, else the CPU")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--quick", action="store_true", help="500 streams; memory is not judged, as it takes longer to settle"
    )
    args = parser.parse_args(arguments)
    if args.parts < 2:
        parser.error("--parts: at least 2, since the first one is the warm-up")
    if args.quick:
        args.streams = min(args.streams, 500)

    if args.idle_s is not None:
        loop_module.IDLE_S = args.idle_s

    show_leaks()
    header("Stream engine: soak", "torch")
    from tests.engine.checkpoints import write_stream

    with tempfile.TemporaryDirectory() as folder:
        wrong = soak_run(args, write_stream(Path(folder) / "stream", positions=POSITIONS))
    if wrong:
        more = [f"and {len(wrong) - 20} more"] if len(wrong) > 20 else []
        sys.exit("\n".join(["wrong:", *wrong[:20], *more]))
    print("Nothing is left: no sequence, cache, thread or memory.")


if __name__ == "__main__":
    main()
