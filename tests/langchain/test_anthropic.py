"""`ChatAnthropic` against a local server of its shape: its blocks, whole and streamed, and an agent of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from guardkit import GuardViolation
from langchain_guardkit import GuardedChatModel, GuardMiddleware, guard_graph
from tests.anthropic_server import AnthropicServer, call_block, search_block, text_block, thinking_block
from tests.leaks import BAD, SAFE, VIOLATION, check_no_trace, make_guard

anthropic = pytest.importorskip("langchain_anthropic")
pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG: Any = {"configurable": {"thread_id": "1"}}
PLACES: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "the answer": lambda text: [text_block(text)],
    "the second block": lambda text: [text_block("fine "), text_block(text)],
    "the thinking": lambda text: [thinking_block(text), text_block("fine")],
    "a call": lambda text: [text_block("fine"), call_block("look", {"query": text})],
    "a citation": lambda text: [text_block("fine", cited=text)],
    "what a search found": lambda text: [*search_block(text), text_block("fine")],
}


class Answer(BaseModel):
    """An answer."""

    text: str


def client(server: AnthropicServer) -> Any:
    return anthropic.ChatAnthropic(model="m", base_url=server.url, api_key="none", max_retries=0)


def ways(model: Any) -> list[Callable[[], list[Any]]]:
    async def chunks() -> list[Any]:
        return [chunk async for chunk in model.astream("hi")]

    return [
        lambda: [model.invoke("hi")],
        lambda: [asyncio.run(model.ainvoke("hi"))],
        lambda: list(model.stream("hi")),
        lambda: asyncio.run(chunks()),
    ]


@pytest.mark.parametrize("size", [3, 200])
@pytest.mark.parametrize("behavior", ["end", "error", "replace"])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_flagged_comes_out(place: str, behavior: Any, size: int) -> None:
    with AnthropicServer(PLACES[place](BAD), size=size) as server:
        model = GuardedChatModel(client(server), make_guard(), exit_behavior=behavior, violation_message=VIOLATION)
        for way in ways(model):
            try:
                seen = way()
            except GuardViolation as violation:
                assert behavior == "error"
                check_no_trace(violation, "error")
            else:
                assert behavior != "error"
                check_no_trace(seen, "the answer")
                assert seen[-1].text.endswith(VIOLATION) or seen[-2].text.endswith(VIOLATION)
        n_asked = len(server.asked)
        for call in (model.invoke, lambda text: list(model.stream(text))):
            try:
                call(BAD)
            except GuardViolation:
                assert behavior == "error"
        check_no_trace(server.asked, "what the server was asked")
        assert (len(server.asked) == n_asked) == (behavior != "replace")


@pytest.mark.parametrize("size", [3, 200])
@pytest.mark.parametrize("place", PLACES)
def test_what_passes_arrives_as_it_was(place: str, size: int) -> None:
    with AnthropicServer(PLACES[place](SAFE), size=size) as server:
        bare = client(server)
        for wanted, got in zip(ways(bare), ways(GuardedChatModel(bare, make_guard())), strict=True):
            first, second = (_joined(way()) for way in (wanted, got))
            assert second.content == first.content
            assert second.tool_calls == first.tool_calls
            assert second.usage_metadata == first.usage_metadata
            assert second.response_metadata == first.response_metadata


def _joined(chunks: list[Any]) -> Any:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


@pytest.mark.parametrize("text", [SAFE, BAD])
def test_structured_output(text: str) -> None:
    with AnthropicServer([call_block("Answer", {"text": text})]) as server:
        structured = GuardedChatModel(client(server), make_guard(), exit_behavior="end").with_structured_output(Answer)
        for way in ways(structured):
            try:
                seen = way()
            except GuardViolation as violation:
                assert text == BAD
                check_no_trace(violation, "error")
            else:
                assert seen[-1] == Answer(text=SAFE)


@pytest.mark.parametrize("place", [*PLACES, "the tool's output"])
def test_an_agent(place: str) -> None:
    @tool
    def look(query: str) -> str:
        """Look something up."""
        return BAD if place == "the tool's output" else "found"

    first = PLACES[place](BAD) if place in PLACES else [call_block("look", {"query": "x"})]
    saver = InMemorySaver()
    with AnthropicServer(first, [text_block(SAFE)], size=3) as server:
        agent = create_agent(
            client(server),
            [look],
            middleware=[GuardMiddleware(make_guard(), violation_message=VIOLATION)],
            checkpointer=saver,
        )
        graph = guard_graph(agent)
        modes: Any = ["messages", "updates", "values"]
        seen = list(graph.stream({"messages": [("user", "hi")]}, CONFIG, stream_mode=modes))
        check_no_trace([seen, saver.storage, saver.writes, saver.blobs, server.asked], "streams and checkpoints")
        assert graph.get_state(CONFIG).values["messages"][-1].text == VIOLATION
        assert graph.invoke({"messages": [("user", "and now?")]}, CONFIG)["messages"][-1].text == SAFE
