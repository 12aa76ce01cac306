"""What Python costs above a model, in microseconds a streamed token, layer by layer.

    python benchmarks/python_overhead.py [--before COMMIT] [--tokens 2000] [--runs 7] [--layers TEXT]
        [--profile LAYER]

Nothing is computed here: the backbone is a stub whose rows say "safe", so what is left is what guardkit's own code
costs. Prose comes a word at a time, as an LLM streams it. `--before` measures an older commit in the same run: its
`guardkit` and `tests/engine` are unpacked from git into a temporary folder, and both take turns, each in a process of
its own. `--profile` shows where one layer's time goes (cProfile makes small functions look larger than they are).

Needs the repository's tests folder and dashscope (Qwen's tokenizer is rebuilt from it).
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import itertools
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # behind PYTHONPATH, where an older commit may stand

import numpy as np
import torch
from common import header, median, note, table, words

from guardkit import Guard, Stage
from guardkit.engine.cache import ContiguousCache
from guardkit.engine.config import GuardHeads, Qwen3Config
from guardkit.engine.engine import Engine, Limits
from guardkit.engine.template import ChatTemplate
from guardkit.judge import ResponseReader
from guardkit.models.base import Append, Query, QueryScores, Scores, Tokens
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.models.simple import SimpleModel, SimpleSession
from guardkit.models.stream import Frames, Qwen3GuardStream
from guardkit.testing import FakeTokenizer
from guardkit.verdict import Category

try:
    from guardkit.engine.model_runner import Launched
except ImportError:  # an older commit, whose steps give their rows at once
    Launched = None  # type: ignore[assignment, misc]

ROOT = Path(__file__).resolve().parents[1]
MANY = 64  # streams of a server that are fed together
SAFE = np.full((4096, 11), (4.0, *[0.0] * 10), np.float32)
CONFIG = Qwen3Config(8, 8, 1, 1, 1, 151936, 1e6, 32768, head_dim=8)


class Plain(SimpleModel):
    """Every token is safe, and that costs nothing."""

    name = "plain"
    query_categories = tuple(Category)
    response_categories = tuple(Category)[:8]

    def __init__(self) -> None:
        self.tokenizer = FakeTokenizer()
        self._rows: dict[int, Scores] = {}
        super().__init__()

    def rows(self, n: int) -> Scores:
        if n not in self._rows:
            severity = np.tile(np.array([[0.9, 0.05, 0.05]], np.float32), (n, 1))
            self._rows[n] = Scores(severity, np.zeros((n, 8), np.float32), np.zeros(n, np.float32))
        return self._rows[n]

    def query(self, queries: Sequence[Query]) -> list[list[QueryScores]]:
        return [[QueryScores(self.rows(1))] for _ in queries]

    def open(self, context: Any) -> SimpleSession:
        return _PlainSession(self)


class Quick(Plain):
    """The same, asked on the event loop itself."""

    quick = True


class _PlainSession(SimpleSession):
    def __init__(self, model: Plain):
        self._model = model

    def append(self, tokens: Tokens) -> Scores:
        return self._model.rows(len(tokens.ids))

    peek = append


class StubBackbone:
    """Looks like `Qwen3`, and computes nothing."""

    config, device, dtype = CONFIG, torch.device("cpu"), torch.float32

    def forward(self, ids: Any, *_: Any) -> Any:
        return torch.zeros(len(ids), 17)


class StubEngine(Engine):
    """The engine's loop and scheduler, with rows instead of a forward pass."""

    step_s = 0.0

    def _compute(self, plan: Any) -> Any:
        if self.step_s:
            time.sleep(self.step_s)
        found: list[Any] = []
        for sequence, n in plan:
            request = sequence.requests[0]
            rows = sequence.cached + n - max(request.read, sequence.cached)
            found.append(SAFE[:rows] if request.head and rows > 0 else None)
        self.counters.steps += 1
        self.counters.tokens += sum(n for _, n in plan)
        if Launched is None:
            return found
        launched = Launched(plan)
        launched.rows = lambda: found  # type: ignore[method-assign]
        return launched


class WaitingEngine(StubEngine):
    """A step that takes its time elsewhere, as on a GPU: what comes meanwhile makes the next one."""

    step_s = 0.002


def stream_model(engine_type: type[Engine]) -> Qwen3GuardStream:
    from tests.engine.checkpoints import STREAM_TEMPLATE
    from tests.engine.qwen3_tokenizer_builder import cached

    tokenizer = QwenTokenizer(cached())
    sizes = {"num_risk_level": 3, "num_category": 8, "num_query_risk_level": 3, "num_query_category": 9}
    heads = GuardHeads.from_json({"guard_inner_size": 8, **sizes}, Path("stub"))
    cache = ContiguousCache(CONFIG, torch.float32, torch.device("cpu"), 1 << 20)
    readers = {"response": lambda hidden: hidden[:, :11], "query": lambda hidden: hidden[:, :12]}
    engine = engine_type(StubBackbone(), readers, cache, Limits(512, 64))  # type: ignore[arg-type]
    frames = Frames(ChatTemplate(STREAM_TEMPLATE, tokenizer, Path("template")), tokenizer)
    return Qwen3GuardStream("stub", engine, tokenizer, frames, heads)


# ----------------------------------------------------------------------------------------------------- layers

Measure = Callable[[list[str]], int]
"""Feeds the words; gives the tokens that were judged."""


def feed(guard: Guard) -> Measure:
    def measure(pieces: list[str]) -> int:
        with guard.stream("hi") as stream:
            for piece in pieces:
                stream.feed(piece)
            stream.finish()
        return stream.n_tokens

    return measure


def afeed(guard: Guard) -> Measure:
    async def run(pieces: list[str]) -> int:
        async with guard.astream("hi") as stream:
            for piece in pieces:
                await stream.feed(piece)
            await stream.finish()
        return int(stream.n_tokens)  # type: ignore[call-overload]

    return lambda pieces: asyncio.run(run(pieces))


def feed_ids(guard: Guard) -> Measure:
    def measure(pieces: list[str]) -> int:
        ids = guard.model.tokenizer.encode("".join(pieces))[0]
        start = time.perf_counter()
        with guard.stream("hi") as stream:
            for each in ids:
                stream.feed_ids([each])
            stream.finish()
        measure.seconds = time.perf_counter() - start  # type: ignore[attr-defined]
        return stream.n_tokens

    return measure


def feed_many(guard: Guard) -> Measure:
    def measure(pieces: list[str]) -> int:
        streams = [guard.stream("hi") for _ in range(MANY)]
        for piece in pieces[: len(pieces) // 8]:
            guard.feed_many([(stream, piece) for stream in streams])
        for stream in streams:
            stream.finish()
        return sum(stream.n_tokens for stream in streams)

    return measure


def afeed_many_tasks(guard: Guard) -> Measure:
    async def run(pieces: list[str]) -> int:
        async def one() -> int:
            async with guard.astream("hi") as stream:
                for piece in pieces:
                    await stream.feed(piece)
                await stream.finish()
            return int(stream.n_tokens)  # type: ignore[call-overload]

        return sum(await asyncio.gather(*(one() for _ in range(MANY))))

    return lambda pieces: asyncio.run(run(pieces[: len(pieces) // 8]))


def only_tokens(model: Any) -> Measure:
    def measure(pieces: list[str]) -> int:
        reader = ResponseReader(model, Stage.response)
        found = sum(len(t) for piece in pieces for t in reader.push(piece)[1])
        return found + sum(len(t) for t in reader.finish()[1])

    return measure


def only_model(model: Any) -> Measure:
    """Tokens in, scores out: no text, no verdict."""

    def measure(pieces: list[str]) -> int:
        session = model.open(())
        tokens = Tokens(Stage.response, [100], [0], " word", 5)
        for _ in pieces:
            model.judge(Append(session, tokens))
        session.close()
        return len(pieces)

    return measure


def layers() -> dict[str, Measure]:
    plain, stub = Plain(), stream_model(StubEngine)
    found = {
        "stream and verdict (words are tokens, scores at hand)": feed(Guard(plain)),
        "stream and verdict, asyncio": afeed(Guard(plain)),
        "stream and verdict, asyncio, a model that is quick": afeed(Guard(Quick())),
        "Qwen's tokens alone": only_tokens(stub),
        "the Stream model alone: session, loop, scheduler, scores": only_model(stub),
        "all above the forward pass, Stream": feed(Guard(stub)),
        "all above the forward pass, Stream, asyncio": afeed(Guard(stub)),
        f"the same, asyncio, {MANY} streams, a task each": afeed_many_tasks(Guard(stub)),
        f"the same, {MANY} tasks, steps of 2 ms elsewhere": afeed_many_tasks(Guard(stream_model(WaitingEngine))),
        "all above the forward pass, with the tensors of a step": feed(Guard(stream_model(Engine))),
        "token ids, one a call": feed_ids(Guard(stub)),
    }
    if hasattr(Guard, "feed_many"):
        found[f"feed_many, {MANY} streams"] = feed_many(Guard(stub))
        found[f"feed_many, {MANY} streams, steps of 2 ms elsewhere"] = feed_many(Guard(stream_model(WaitingEngine)))
    return found


# -------------------------------------------------------------------------------------------------- processes


def serve() -> None:
    """A process that measures: reads the name of a layer and a number of words, answers with CPU seconds and tokens."""
    known = layers()
    print(json.dumps(list(known)), flush=True)
    for line in sys.stdin:
        name, n = json.loads(line)
        pieces = list(itertools.islice(words(1), n))
        gc.collect()
        gc.disable()
        start = time.process_time()
        tokens = known[name](pieces)
        print(json.dumps([time.process_time() - start, tokens]), flush=True)
        gc.enable()


class Measured:
    """A process over one version of guardkit."""

    def __init__(self, root: Path):
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        self.layers: list[str] = self._read()

    def us(self, layer: str, n_words: int) -> float:
        assert self._process.stdin is not None
        print(json.dumps([layer, n_words]), file=self._process.stdin, flush=True)
        seconds, tokens = self._read()
        return float(seconds / tokens * 1e6)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a process that measures has ended; its error stands above")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def unpack(commit: str, folder: Path) -> Path:
    """An older commit's guardkit, and what its tests make checkpoints of."""
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "guardkit", "tests/engine"], stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def profile(layer: str, n_words: int) -> None:
    known = layers()
    name = next((name for name in known if layer in name), None)
    if name is None:
        sys.exit(f"no layer's name holds '{layer}'; they are: {'; '.join(known)}")
    pieces = list(itertools.islice(words(1), n_words))
    known[name](pieces)
    profiler = cProfile.Profile()
    profiler.enable()
    tokens = known[name](pieces)
    profiler.disable()
    print(f"{name}: {tokens} tokens")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(45)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", metavar="COMMIT", help="an older commit, measured in turns with this tree")
    arguments.add_argument("--tokens", type=int, default=2000, help="words of a stream")
    arguments.add_argument("--runs", type=int, default=7)
    arguments.add_argument("--layers", metavar="TEXT", default="", help="only those whose name holds this")
    arguments.add_argument("--profile", metavar="LAYER", help="a part of a layer's name")
    arguments.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    if args.serve:
        serve()
        return
    if args.profile:
        profile(args.profile, args.tokens)
        return
    header("Python above a model", "torch", "tokenizers")
    with tempfile.TemporaryDirectory() as folder:
        versions = {"now": Measured(ROOT)}
        if args.before:
            versions = {args.before[:12]: Measured(unpack(args.before, Path(folder)))} | versions
        found: dict[tuple[str, str], list[float]] = {}
        for run in range(args.runs + 1):  # the first one warms up
            for layer in (layer for layer in versions["now"].layers if args.layers in layer):
                for name, measured in versions.items():
                    if layer in measured.layers:
                        us = measured.us(layer, args.tokens)
                        if run:
                            found.setdefault((layer, name), []).append(us)
            note(f"  round {run} of {args.runs}")
        for measured in versions.values():
            measured.close()
    print("## CPU time, microseconds a token (medians)\n")
    rows = []
    for layer in (layer for layer in measured.layers if args.layers in layer):
        cells = [f"{median(found[layer, name]):.1f}" if (layer, name) in found else "-" for name in versions]
        rows.append([layer, *cells])
    table(["layer", *versions], rows)


if __name__ == "__main__":
    main()
