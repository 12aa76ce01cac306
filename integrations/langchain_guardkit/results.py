"""A model's answers in the shapes that LangChain hands on: results, chunks, and what a blocked answer keeps."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult


def result_of(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def as_chunks(result: ChatResult) -> list[ChatGenerationChunk]:
    generation = result.generations[0]
    message = cast(AIMessage, generation.message)
    return [ChatGenerationChunk(message=as_chunk(message), generation_info=generation.generation_info)]


def as_chunk(message: AIMessage) -> AIMessageChunk:
    """A whole answer as the one chunk of a stream."""
    if isinstance(message, AIMessageChunk):
        return message
    calls = [
        tool_call_chunk(name=call["name"], args=_arguments(call["args"]), id=call["id"], index=i)
        for i, call in enumerate([*message.tool_calls, *message.invalid_tool_calls])
    ]
    return AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        id=message.id,
        name=message.name,
        tool_call_chunks=calls,
        chunk_position="last",
    )


def _arguments(args: Any) -> str | None:
    return args if args is None or isinstance(args, str) else json.dumps(args, ensure_ascii=False)


async def aiter_of(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def chunk_of(chunk: ChatGenerationChunk) -> AIMessageChunk:
    message = chunk.message
    if not isinstance(message, AIMessageChunk):
        raise TypeError(f"expected AIMessageChunk from the model's stream, got {type(message).__name__}")
    return message
