"""Halves of a flagged text in chunks that LangChain adds up to one: in metadata, blocks, names, side by side or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from langchain_guardkit import GuardedChatModel
from langchain_guardkit.adding_up import Sum
from tests.langchain.test_hidden_places import Model
from tests.leaks import FLAGGED, VIOLATION, make_guard

FIRST, SECOND = FLAGGED[:3], FLAGGED[3:]


def block(text: str, index: int = 0) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text, "index": index}]}


def call(name: str, args: str, id_: str | None) -> dict[str, Any]:
    return {"tool_call_chunks": [{"name": name, "args": args, "id": id_, "index": 0, "type": "tool_call_chunk"}]}


def unknown(text: str) -> dict[str, Any]:
    return {"content": [{"type": "non_standard", "value": {"thing": text}, "index": 0}]}


def opaque(text: str) -> dict[str, Any]:
    return {"content": [{"type": "compaction", "encrypted_content": f"so {text} it is", "index": 0}]}


PLACES: dict[str, Callable[[str, str], list[dict[str, Any]]]] = {
    "nested metadata": lambda a, b: [{"response_metadata": {"search": {"q": half}}} for half in (a, b)],
    "a refusal": lambda a, b: [{"additional_kwargs": {"refusal": half}} for half in (a, b)],
    "items of a list": lambda a, b: [{"additional_kwargs": {"x": [{"index": 0, "note": half}]}} for half in (a, b)],
    "a block that nobody knows": lambda a, b: [unknown(a), unknown(b)],
    "a tool's name": lambda a, b: [call(a, "", "1"), call(b, "{}", None)],
    "blocks in turns": lambda a, b: [block(a), block("so ", 1), block(b)],
    "opaque content that is none": lambda a, b: [opaque(a + b)],
}


def chunks_of(fields: list[dict[str, Any]]) -> list[AIMessageChunk]:
    last = AIMessageChunk(content="", id="1", chunk_position="last")
    return [*(AIMessageChunk(**{"content": "", "id": "1", **one}) for one in fields), last]


class Streaming(Model):
    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        for chunk in self.messages:
            yield ChatGenerationChunk(message=chunk.model_copy(deep=True))


@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_no_sum_of_chunks_holds_what_was_flagged(place: str, run_async: bool) -> None:
    def model(chunks: list[Any]) -> GuardedChatModel:
        inner = Streaming(messages=chunks)
        return GuardedChatModel(inner, make_guard(), exit_behavior="end", violation_message=VIOLATION)

    async def collect(guarded: Any) -> list[Any]:
        return [chunk async for chunk in guarded.astream("hi")]

    def total(fields: list[dict[str, Any]]) -> Any:
        guarded = model(chunks_of(fields))
        seen = asyncio.run(collect(guarded)) if run_async else list(guarded.stream("hi"))
        whole = seen[0]
        for chunk in seen[1:]:
            whole += chunk
        return whole

    found = total(PLACES[place](FIRST, SECOND))
    assert FLAGGED not in repr(found)
    assert VIOLATION in repr(found)
    assert VIOLATION not in repr(total(PLACES[place]("fi", "ne")))


def test_what_repeats_or_grows_elsewhere_is_not_read_again() -> None:
    summed = Sum()
    for _ in range(3):
        text = AIMessageChunk(**block("one "), additional_kwargs={"thinking": "hm"})
        assert summed.add(text, {}) == []
    assert summed.add(AIMessageChunk(content=""), {"model": "a"}) == []
    assert summed.add(AIMessageChunk(content=""), {"model": "b"}) == ["ab"]
