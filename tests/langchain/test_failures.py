"""A guard that raises, hangs or is cancelled: nothing goes through, nothing hangs, errors say what and where."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from guardkit import Guard, GuardViolation, Message
from guardkit.models.base import Query, QueryScores, Session, Tokens
from guardkit.testing import FakeGuard, FakeModel
from langchain_guardkit import GuardDocumentTransformer, GuardedChatModel, GuardMiddleware, GuardRunnable
from tests.langchain.scripted import STAGES, ScriptedModel, looking_tool, reply, script_for
from tests.leaks import BAD, SAFE, SIZES, check_no_trace, make_guard

CONFIG: Any = {"configurable": {"thread_id": "1"}}
BROKEN = {"¶¶¶¶ ¶¶¶": RuntimeError("the guard broke")}


def surfaces(guard: Guard, stage: str, behavior: Any, size: int) -> Any:
    prompt, replies, outputs = script_for(stage)
    saver = InMemorySaver()
    graph = create_agent(
        ScriptedModel(replies=replies, size=size),
        [looking_tool(**outputs)],
        middleware=[GuardMiddleware(guard, exit_behavior=behavior)],
        checkpointer=saver,
    )
    return graph, {"messages": [HumanMessage(prompt)]}, saver


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_guard_that_raises_lets_nothing_through(stage: str, behavior: str) -> None:
    for size in SIZES:
        graph, value, _ = surfaces(FakeGuard(BROKEN), stage, behavior, size)
        seen: list[Any] = []
        if behavior == "error":
            with pytest.raises(GuardViolation, match=f"{_named(stage)} was not judged.*the guard broke") as caught:
                seen += graph.stream(value, CONFIG, stream_mode=["messages", "updates"])
            assert not caught.value.decision.judged
        else:
            seen += graph.stream(value, CONFIG, stream_mode=["messages", "updates"])
            check_no_trace(graph.get_state(CONFIG).values, "state")
        check_no_trace(seen, "streams")


def _named(stage: str) -> str:
    return "response" if stage == "answer" else stage


def test_a_guard_set_to_allow_lets_it_through() -> None:
    graph, value, _ = surfaces(FakeGuard(BROKEN, on_error="allow"), "answer", "error", 7)
    assert graph.invoke(value, CONFIG)["messages"][-1].content == BAD
    chunks = list(
        GuardedChatModel(ScriptedModel(replies=[reply(BAD)]), FakeGuard(BROKEN, on_error="allow")).stream("x")
    )
    assert "".join(str(c.content) for c in chunks) == BAD


class Hanging(FakeModel):
    """Hangs for ever once it meets the flagged words."""

    def __init__(self) -> None:
        super().__init__({})
        self.never = threading.Event()

    def query(self, queries: Sequence[Query]) -> list[list[QueryScores]]:
        if any("¶" in q.text for q in queries):
            self.never.wait()
        return super().query(queries)

    def open(self, context: Sequence[Message]) -> Session:
        session, append, never = super().open(context), None, self.never
        append = session.append

        def hang(tokens: Tokens) -> Any:
            if any("¶" in self.tokenizer.words[i] for i in tokens.ids):
                never.wait()
            return append(tokens)

        session.append, session.native_async = hang, False  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("run_async", [False, True])
def test_a_guard_that_hangs_is_left_after_its_timeout(stage: str, run_async: bool) -> None:
    model = Hanging()
    graph, value, _ = surfaces(Guard(model, timeout=0.2), stage, "error", 7)
    seen: list[Any] = []

    async def arun() -> None:
        async for item in graph.astream(value, CONFIG, stream_mode=["messages", "updates"]):
            seen.append(item)

    def run() -> None:
        if run_async:
            asyncio.run(arun())
        else:
            seen.extend(graph.stream(value, CONFIG, stream_mode=["messages", "updates"]))

    try:
        with pytest.raises(GuardViolation, match="not judged"):
            run()
    finally:
        model.never.set()  # its thread would stay, and count as work that waits
    check_no_trace(seen, "streams")


@pytest.mark.parametrize("kind", ["model", "guard after model", "guard after text"])
def test_a_stream_that_is_cancelled_lets_nothing_more_through(kind: str) -> None:
    guard = Guard(Hanging())  # no timeout: only the cancellation ends it
    inner = ScriptedModel(replies=[reply(BAD)], size=3)
    chain: Any = {
        "model": GuardedChatModel(inner, guard),
        "guard after model": inner | GuardRunnable(guard),
        "guard after text": inner | (lambda m: m.content) | GuardRunnable(guard, stage="response"),
    }[kind]
    seen: list[Any] = []

    async def consume() -> None:
        async for chunk in chain.astream("hello"):
            seen.append(chunk)

    async def cancel() -> None:
        task = asyncio.create_task(consume())
        for _ in range(2000):
            await asyncio.sleep(0.005)
            if seen or kind == "guard after text":
                break
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        guard.model.never.set()  # type: ignore[attr-defined]

    asyncio.run(cancel())
    check_no_trace(seen, "what came before the cancellation")


def test_a_consumer_that_leaves_closes_the_source() -> None:
    closed = []

    class Closing(ScriptedModel):
        def _stream(self, *args: Any, **kwargs: Any) -> Any:
            try:
                yield from super()._stream(*args, **kwargs)
            finally:
                closed.append(True)

    stream = GuardedChatModel(Closing(replies=[reply(SAFE)], size=3), make_guard(holdback=0)).stream("x")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert closed
    del closed[:]
    list(GuardedChatModel(Closing(replies=[reply(BAD)], size=1), make_guard(), exit_behavior="end").stream("x"))
    assert closed  # the model stops generating at the violation


def test_a_source_that_fails_keeps_what_was_held_back() -> None:
    for size in (1, 3):
        inner = ScriptedModel(replies=[reply(BAD)], size=size, fails_after=len(BAD) // size - 2)
        seen: list[Any] = []
        with pytest.raises((ConnectionError, GuardViolation)):
            seen.extend(GuardedChatModel(inner, make_guard()).stream("x"))
        check_no_trace(seen, "chunks")


def test_errors_name_stage_and_index() -> None:
    messages = [HumanMessage("fine"), reply("fine"), HumanMessage(BAD)]
    with pytest.raises(GuardViolation, match="message 2: block: prompt is unsafe") as caught:
        GuardRunnable(make_guard()).invoke(messages)
    assert caught.value.message_index == 2  # type: ignore[attr-defined]
    image = {"type": "image", "url": "x"}
    with pytest.raises(GuardViolation, match=r"message 1: block: prompt was not judged.*image"):
        GuardRunnable(make_guard()).invoke([HumanMessage("fine"), HumanMessage([image])])  # type: ignore[list-item]
    with pytest.raises(GuardViolation, match="message 1: block: document"):
        GuardDocumentTransformer(make_guard(), on_unsafe="error").transform_documents([Document(SAFE), Document(BAD)])
    with pytest.raises(GuardViolation, match="a object cannot be judged"):
        GuardRunnable(make_guard()).invoke(object())


def test_images_in_an_answer_follow_on_error() -> None:
    class Painting(ScriptedModel):
        def _text(self, message: Any, piece: str) -> Any:
            return self._chunk(message, content=[{"type": "image", "url": "x"}])

    with pytest.raises(GuardViolation, match="image"):
        list(GuardedChatModel(Painting(replies=[reply("x")]), make_guard()).stream("hello"))
    assert list(GuardedChatModel(Painting(replies=[reply("x")]), make_guard(on_error="allow")).stream("hello"))
