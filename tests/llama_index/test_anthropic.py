"""LlamaIndex's `Anthropic` against a local server of its shape: its blocks, whole and streamed, and an agent of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import TextBlock
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.postprocessor.guardkit import GuardMemory, guarded, guarded_tools
from pydantic import BaseModel

from guardkit import GuardViolation
from tests.anthropic_server import AnthropicServer, call_block, text_block, thinking_block
from tests.leaks import BAD, SAFE, VIOLATION, check_no_trace, make_guard
from tests.llama_index.doubles import user

pytestmark = pytest.mark.filterwarnings("ignore")  # its model names grow old

anthropic = pytest.importorskip(
    "llama_index.llms.anthropic", reason="needs the dev-openai-like extra, in an environment of its own"
)
PLACES: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "the answer": lambda text: [text_block(text)],
    "the second block": lambda text: [text_block("fine "), text_block(text)],
    "the thinking": lambda text: [thinking_block(text), text_block("fine")],
    "a call": lambda text: [text_block("fine"), call_block("look", {"query": text})],
    "a citation": lambda text: [text_block("fine", cited=text)],
}


class Answer(BaseModel):
    """An answer."""

    text: str


def client(server: AnthropicServer) -> Any:
    return anthropic.Anthropic(model="claude-3-5-haiku-latest", base_url=server.url, api_key="none", max_retries=0)


def ways(llm: Any) -> list[Callable[[], list[Any]]]:
    async def chunks() -> list[Any]:
        return [chunk async for chunk in await llm.astream_chat([user("hi")])]

    return [
        lambda: [llm.chat([user("hi")])],
        lambda: [asyncio.run(llm.achat([user("hi")]))],
        lambda: list(llm.stream_chat([user("hi")])),
        lambda: asyncio.run(chunks()),
    ]


@pytest.mark.parametrize("size", [3, 200])
@pytest.mark.parametrize("exit_behavior", ["end", "error", "replace"])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_flagged_comes_out(place: str, exit_behavior: Any, size: int) -> None:
    with AnthropicServer(PLACES[place](BAD), size=size) as server:
        llm = guarded(client(server), make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
        for way in ways(llm):
            try:
                seen = way()
            except GuardViolation as violation:
                assert exit_behavior == "error"
                check_no_trace(violation, "error")
            else:
                assert exit_behavior != "error"
                check_no_trace([seen, [getattr(each, "citations", None) for each in seen]], "the answer")
                last = seen[-1].message
                assert last.additional_kwargs["guardkit"]["action"] == "block"
                if exit_behavior == "end":
                    assert last.content == VIOLATION
        n_asked = len(server.asked)
        if exit_behavior != "replace":
            try:
                assert llm.chat([user(BAD)]).message.content == VIOLATION
            except GuardViolation:
                assert exit_behavior == "error"
            assert len(server.asked) == n_asked


@pytest.mark.parametrize("size", [3, 200])
@pytest.mark.parametrize("place", PLACES)
def test_what_passes_arrives(place: str, size: int) -> None:
    with AnthropicServer(PLACES[place](SAFE), size=size) as server:
        llm = client(server)
        for wanted, got in zip(ways(llm), ways(guarded(llm, make_guard())), strict=True):
            plain, judged = wanted(), got()
            assert "".join(c.delta or "" for c in judged) == "".join(c.delta or "" for c in plain)
            assert _said(judged[-1].message) == _said(plain[-1].message)


def _said(message: Any) -> Any:
    """Its blocks; texts of a stream may be one block or several."""
    others = [block.model_dump() for block in message.blocks if not isinstance(block, TextBlock)]
    return "".join(block.text for block in message.blocks if isinstance(block, TextBlock)), others


@pytest.mark.parametrize("text", [SAFE, BAD])
def test_a_structured_answer(text: str) -> None:
    with AnthropicServer([call_block("Answer", {"text": text})]) as server:
        llm = guarded(client(server), make_guard())
        if text == SAFE:
            assert llm.structured_predict(Answer, PromptTemplate("x")) == Answer(text=SAFE)
        else:
            with pytest.raises(GuardViolation) as caught:
                llm.structured_predict(Answer, PromptTemplate("x"))
            check_no_trace(caught.value, "error")


@pytest.mark.parametrize("place", ["the answer", "the thinking", "a call", "the tool's output"])
def test_an_agent(place: str) -> None:
    def look(query: str) -> str:
        """Look something up."""
        return BAD if place == "the tool's output" else "found"

    first = PLACES[place](BAD) if place in PLACES else [call_block("look", {"query": "x"})]
    guard = make_guard()

    async def talk(server: AnthropicServer) -> tuple[list[Any], str, Any]:
        agent = FunctionAgent(tools=guarded_tools([look], guard), llm=guarded(client(server), guard))
        memory = GuardMemory(memory=ChatMemoryBuffer.from_defaults(token_limit=10_000), guard=guard)
        handler = agent.run("hi", memory=memory)
        events = [event async for event in handler.stream_events()]
        answer = await handler
        again = await agent.run("and now?", memory=memory)
        return [events, answer], str(again), await memory.aget_all()

    with AnthropicServer(first, [text_block(SAFE)], size=5) as server:
        seen, again, kept = asyncio.run(talk(server))
    check_no_trace([seen, kept, server.asked], "events, memory and requests")
    assert again == SAFE
