"""Qwen3Guard in a process of its own judges as it does beside its guard, and its application needs no torch."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guardkit import Guard
from guardkit.process import ProcessModel
from guardkit.trace import trace
from tests.asking import assert_goes_back
from tests.engine.checkpoints import built, write_gen, write_stream

TEXT = (
    "<think>Let me see. 今日は👩‍👩‍👧 晴れ。Dr. Roe says no.\n\nHm, 3.14 café…</think>\n\nYes: `sorted(items)` 😀. "
    + "More words about tomatoes, and on. " * 12
)
ASK = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "How do I sort a list?"}]
WATCH = {"name": "watch", "rules": [{"action": "flag"}]}  # never stops a stream


@pytest.fixture(scope="module", params=["stream", "gen"])
def pair(request: pytest.FixtureRequest, root: Path) -> Iterator[tuple[Any, Any]]:
    """A model in a process of its own, and the same one here. So few positions that windows are reached; weights in 8
    bits, whose scores do not depend on what else is in a step."""
    write, positions = (write_stream, 256) if request.param == "stream" else (write_gen, 1024)
    options: dict[str, Any] = {"device": "cpu", "quantize": "int8", "threads": 1, "cache_gib": 0.05}
    folder = str(built(root, write, positions=positions))
    far, here = Guard.load(folder, process=True, **options), Guard.load(folder, **options)
    assert isinstance(far.model, ProcessModel)
    yield far.model, here.model
    far.close()


def _pieces(text: str, seed: int) -> list[str]:
    rng, out, at = random.Random(seed), [], 0
    while at < len(text):
        n = rng.choice([1, 3, 7, 40])
        out.append(text[at : at + n])
        at += n
    return out


def _play(guard: Guard, pieces: list[str]) -> Any:
    with guard.stream(ASK) as stream:
        events = [event for piece in pieces for event in stream.feed(piece)] + stream.finish()
    return "".join(e.text for e in events if e.kind == "text"), stream.verdict, stream.released, stream.n_tokens


async def _aplay(guard: Guard, pieces: list[str]) -> Any:
    async with guard.astream(ASK) as stream:
        events = [event for piece in pieces for event in await stream.feed(piece)] + await stream.finish()
        inner = stream._stream
    return "".join(e.text for e in events if e.kind == "text"), inner.verdict, inner.released, inner.n_tokens


def test_verdicts_are_the_same_to_the_last_bit(pair: tuple[Any, Any]) -> None:
    texts: list[Any] = [
        "Hello.",
        "Where is the bakery? " * 40,
        "\ud800 naïve ☕",
        [*ASK, {"role": "assistant", "content": TEXT}],
    ]
    cases: tuple[dict[str, Any], ...] = ({}, {"threshold": 0.4})
    for options in cases:
        far, here = (Guard(model, policy=WATCH, **options) for model in pair)
        for stage in (None, "document"):
            expected = here.check_batch(texts, stage=stage)
            assert far.check_batch(texts, stage=stage) == expected
            assert asyncio.run(far.acheck_batch(texts, stage=stage)) == expected
    assert len({v.severity for v in far.check_batch([f"word {i}" for i in range(20)])}) > 1  # something to tell apart


def test_streams_are_the_same_in_any_pieces(pair: tuple[Any, Any]) -> None:
    cases: tuple[dict[str, Any], ...] = ({"policy": WATCH}, {}, {"policy": "strict", "holdback": 0})
    for options in cases:
        far, here = (Guard(model, **options) for model in pair)
        for seed in (1, 2):
            pieces = _pieces(TEXT, seed)
            expected = _play(here, pieces)
            assert _play(far, pieces) == expected
            assert asyncio.run(_aplay(far, pieces)) == expected


def test_ids_traces_and_the_way_back(pair: tuple[Any, Any]) -> None:
    far, here = (Guard(model, policy=WATCH) for model in pair)
    assert_goes_back(far)
    ends: list[Any] = []
    for guard in (far, here):
        with guard.stream(ASK) as stream:
            stream.feed_ids(guard.model.tokenizer.encode("Yes, in a moment. ")[0])
            stream.finish()
            ends.append(stream.verdict)
        found = trace(guard, [*ASK, {"role": "assistant", "content": TEXT}])
        ends.append([(part.start, [(s.start, s.end, s.scores) for s in part.spans]) for part in found.parts])
    assert ends[:2] == ends[2:]


def test_an_application_without_torch(root: Path) -> None:
    folder = built(root, write_stream, positions=256)
    code = (
        "import sys; from guardkit import Guard\n"
        f"with Guard.load({str(folder)!r}, device='cpu', threads=1, cache_gib=0.05, process=True) as guard:\n"
        "    guard.check('hello'); stream = guard.stream('hi'); stream.feed('some words '); stream.finish()\n"
        "print('torch' in sys.modules, guard.model.closed if hasattr(guard.model, 'closed') else '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.split() == ["False"], done.stderr
