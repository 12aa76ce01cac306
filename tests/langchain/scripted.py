"""A chat model that follows a script, cut into chunks of any size, and an agent around it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import BaseTool, tool
from pydantic import PrivateAttr

from tests.leaks import BAD, SAFE, Source, cut

USAGE = {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}
MARKER = {"model_name": "scripted", "system_fingerprint": "fp"}


def reply(text: str = "", *, reasoning: str = "", query: str | None = None, name: str = "look") -> AIMessage:
    """A scripted answer; `query` makes it call the tool `name`."""
    calls = [] if query is None else [{"name": name, "args": {"query": query}, "id": "call-1", "type": "tool_call"}]
    return AIMessage(
        content=text,
        id="reply-1" if query is None else "reply-0",
        additional_kwargs={"reasoning_content": reasoning} if reasoning else {},
        tool_calls=calls,
        usage_metadata=USAGE,
        response_metadata=MARKER,
    )


class ScriptedModel(BaseChatModel):
    """Gives its replies in turn, the last one for ever. `size`: characters a chunk. `sources`: what it has sent."""

    replies: list[AIMessage]
    model_name: str = "scripted"
    size: int = 7
    blocks: bool = False  # content as a list of blocks, reasoning among them, as some providers give it
    fails_after: int | None = None  # chunks
    pause: int | None = None  # see Source
    _turn: int = PrivateAttr(0)
    _source: Source | None = PrivateAttr(None)
    _asked: list[list[BaseMessage]] = PrivateAttr(default_factory=list)

    @property
    def source(self) -> Source:
        """How far the latest answer's text was sent."""
        assert self._source is not None
        return self._source

    @property
    def asked(self) -> list[list[BaseMessage]]:
        return self._asked

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[getattr(t, "name", str(t)) for t in tools], **kwargs)

    def _next(self, messages: list[BaseMessage]) -> AIMessage:
        self._asked.append(list(messages))
        message = self.replies[min(self._turn, len(self.replies) - 1)]
        self._turn += 1
        return message

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        message = self._next(messages)
        if self.blocks:
            message = message.model_copy(update={"content": _blocks(message), "additional_kwargs": {}})
        return ChatResult(generations=[ChatGeneration(message=message.model_copy())], llm_output={"raw": "x"})

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for i, chunk in enumerate(self._chunks(self._next(messages))):
            if self.fails_after is not None and i >= self.fails_after:
                raise ConnectionError("the provider hung up")
            yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._before(message := self._next(messages)):
            yield ChatGenerationChunk(message=chunk)
        async for piece in self.source:
            yield ChatGenerationChunk(message=self._text(message, piece))
        for chunk in self._after(message):
            yield ChatGenerationChunk(message=chunk)

    def _chunks(self, message: AIMessage) -> Iterator[AIMessageChunk]:
        yield from self._before(message)
        for piece in self.source:
            yield self._text(message, piece)
        yield from self._after(message)

    def _before(self, message: AIMessage) -> Iterator[AIMessageChunk]:
        text = message.content if isinstance(message.content, str) else ""
        self._source = Source(text, self.size, self.pause)
        for piece in cut(message.additional_kwargs.get("reasoning_content", ""), self.size):
            if self.blocks:
                yield self._chunk(message, content=[{"type": "reasoning", "reasoning": piece, "index": 0}])
            else:
                yield self._chunk(message, content="", additional_kwargs={"reasoning_content": piece})

    def _text(self, message: AIMessage, piece: str) -> AIMessageChunk:
        return self._chunk(message, content=[{"type": "text", "text": piece, "index": 1}] if self.blocks else piece)

    def _after(self, message: AIMessage) -> Iterator[AIMessageChunk]:
        for i, call in enumerate(message.tool_calls):
            pieces = cut(json.dumps(call["args"], ensure_ascii=False), self.size)
            for j, piece in enumerate(pieces):
                name, id_ = (call["name"], call["id"]) if j == 0 else (None, None)
                yield self._chunk(
                    message, content="", tool_call_chunks=[tool_call_chunk(name=name, args=piece, id=id_, index=i)]
                )
        yield self._chunk(message, content="", usage_metadata=USAGE, response_metadata=MARKER, chunk_position="last")

    @staticmethod
    def _chunk(message: AIMessage, **fields: Any) -> AIMessageChunk:
        return AIMessageChunk(id=message.id, **fields)


def _blocks(message: AIMessage) -> list[dict[str, Any]]:
    reasoning = message.additional_kwargs.get("reasoning_content")
    blocks: list[dict[str, Any]] = [{"type": "reasoning", "reasoning": reasoning}] if reasoning else []
    return [*blocks, {"type": "text", "text": message.content}]


def looking_tool(**outputs: str) -> BaseTool:
    """A tool that gives the scripted output for its query."""

    @tool
    def look(query: str) -> str:
        """Look something up."""
        return outputs.get(query, SAFE)

    return look


# What the model says, and what the tool gives, for each place where a bad text can come from.
STAGES = ("prompt", "answer", "reasoning", "tool_call", "tool_output")


def script_for(stage: str, text: str = BAD) -> tuple[str, list[AIMessage], dict[str, str]]:
    """(prompt, replies, tool outputs) with `text` at `stage` and harmless ones elsewhere."""
    if stage == "prompt":
        return text, [reply(SAFE)], {}
    if stage == "answer":
        return "hello", [reply(text)], {}
    if stage == "reasoning":
        return "hello", [reply(SAFE, reasoning=text)], {}
    if stage == "tool_call":
        return "hello", [reply(query=text), reply(SAFE)], {}
    return "hello", [reply(query="weather"), reply(SAFE)], {"weather": text}
