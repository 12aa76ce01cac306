"""Texts of many requests in common batches: each request gets its own answer, and waits for no more than its share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from guardkit import Decision, GuardkitError
from guardkit.batch import Item
from guardkit.testing import FakeGuard
from guardkit_serve.joining import AT_ONCE, MAX_CHARS, MAX_TEXTS, decide_joined
from guardkit_serve.patience import Patience
from tests.serve.scripted import Script, ask, make_app, run

SCRIPT: Any = {"bad": "unsafe", "hmm": "controversial", "crash": RuntimeError("broken")}


class Noting(FakeGuard):
    """Notes the batches that it is asked for; `gate` holds them up, `dropped` counts those that were given up."""

    def __init__(self) -> None:
        super().__init__(SCRIPT, timeout=60)  # with a time to keep: not judged on the spot
        self.batches: list[int] = []
        self.gate: asyncio.Event | None = None
        self.dropped = 0

    async def adecide_batch(self, items: Sequence[Item], **settings: Any) -> list[Decision]:
        self.batches.append(len(items))
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        return await super().adecide_batch(items, **settings)


def test_requests_that_come_together_are_judged_together() -> None:
    guard = Noting()
    app = make_app(guard, Script([]))
    texts = ["fine", "bad", "hmm", "crash", ["fine", "bad"]] * 8

    async def go() -> list[Any]:
        return await asyncio.gather(*(ask(app, "/v1/moderations", {"input": text}) for text in texts))

    for text, reply in zip(texts, run(go()), strict=True):
        found = [result["guardkit"]["action"] for result in reply.json["results"]]
        wanted = {"fine": "allow", "bad": "block", "hmm": "flag", "crash": "block"}
        assert found == [wanted[one] for one in (text if isinstance(text, list) else [text])]
        assert [r["guardkit"]["judged"] for r in reply.json["results"]] == [t != "crash" for t in _listed(text)]
    assert sum(guard.batches) == 48
    assert len(guard.batches) <= 8, guard.batches


def _listed(text: str | list[str]) -> list[str]:
    return text if isinstance(text, list) else [text]


async def _settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_comes_while_batches_are_under_way_makes_the_next_one() -> None:
    async def go() -> None:
        guard = Noting()
        guard.gate = asyncio.Event()
        tasks = []
        for _ in range(AT_ONCE + 10):
            tasks.append(asyncio.create_task(decide_joined(guard, ["fine"])))
            await _settled()
        assert guard.batches == [1] * AT_ONCE
        guard.gate.set()
        await asyncio.gather(*tasks)
        assert guard.batches == [1] * AT_ONCE + [10]

    run(go())


def test_a_batch_has_a_size_and_long_texts_are_judged_alone() -> None:
    async def go() -> None:
        guard = Noting()
        await asyncio.gather(*(decide_joined(guard, ["fine"] * 40) for _ in range(3)))
        assert guard.batches == [40, 40, 40]
        await asyncio.gather(
            decide_joined(guard, ["fine"]), decide_joined(guard, ["fine " * MAX_CHARS]), decide_joined(guard, ["fine"])
        )
        assert sorted(guard.batches[3:]) == [1, 2]
        await decide_joined(guard, ["fine"] * (MAX_TEXTS + 1))
        assert guard.batches[-1] == MAX_TEXTS + 1

    run(go())


def test_who_leaves_disturbs_nobody_and_a_batch_without_anybody_is_dropped() -> None:
    async def go() -> None:
        guard = Noting()
        guard.gate = asyncio.Event()
        leaving, staying = (asyncio.create_task(decide_joined(guard, [text])) for text in ("fine", "bad"))
        await _settled()
        leaving.cancel()
        await _settled()
        guard.gate.set()
        assert [d.action.value for d in await staying] == ["block"]
        assert leaving.cancelled()
        guard.gate = asyncio.Event()
        both = [asyncio.create_task(decide_joined(guard, ["fine"])) for _ in range(2)]
        await _settled()
        for task in both:
            task.cancel()
        await _settled()
        assert guard.dropped == 1
        guard.gate.set()
        assert len(await decide_joined(guard, ["fine"])) == 1

    run(go())


def test_a_guard_that_was_closed_says_so_to_all() -> None:
    async def go() -> list[Any]:
        guard = Noting()
        guard.close()
        return await asyncio.gather(*(decide_joined(guard, ["fine"]) for _ in range(3)), return_exceptions=True)

    assert all(isinstance(found, GuardkitError) for found in run(go()))


def test_patience_ends_a_wait_and_not_many_short_ones() -> None:
    async def go() -> None:
        long, patience = Patience(2.0), Patience(0.01)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() < begun + 2.1:  # longer than the patience, in all
            with long:
                await asyncio.sleep(0.05)
        long.close()
        with pytest.raises(TimeoutError), patience:
            await asyncio.sleep(3600)
        with pytest.raises(TimeoutError), patience:  # it can be used again
            await asyncio.sleep(3600)
        patience.close()

    run(go())


def test_patience_leaves_a_cancellation_alone() -> None:
    async def wait() -> None:
        with Patience(3600):
            await asyncio.sleep(3600)

    async def go() -> None:
        task = asyncio.create_task(wait())
        await _settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(go())


def test_the_times_of_pieces_are_all_told() -> None:
    from tests.serve import scripted

    events = scripted.chat_events(["word "] * 300)
    app = make_app(FakeGuard(SCRIPT), Script(events))

    async def go() -> str:
        await ask(app, "/v1/chat/completions", {**scripted.ASKS["chat"], "stream": True})
        return (await ask(app, "/metrics", b"", method="GET")).body.decode()

    (line,) = (row for row in run(go()).splitlines() if row.startswith("guardkit_serve_added_next_seconds_count"))
    assert float(line.split()[1]) == len(events) - 1
