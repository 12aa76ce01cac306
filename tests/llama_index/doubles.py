"""Scripted LLMs, a small embedding, and real in-memory indexes: what the tests run LlamaIndex with."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.schema import BaseNode, TextNode

from tests.leaks import Source, cut

Reply = str | ChatMessage | Exception


def reply(
    text: str = "", *, thinking: str = "", calls: Sequence[tuple[str, dict[str, Any]]] = (), **kwargs: Any
) -> ChatMessage:
    """What a scripted model says: reasoning, text and tool calls."""
    blocks: list[Any] = [ThinkingBlock(content=thinking)] if thinking else []
    blocks += [TextBlock(text=text)] if text or not calls else []
    blocks += [ToolCallBlock(tool_call_id=f"c{i}", tool_name=n, tool_kwargs=a) for i, (n, a) in enumerate(calls)]
    return ChatMessage(role="assistant", blocks=blocks, additional_kwargs=provider_calls(blocks) | kwargs)


def provider_calls(blocks: Sequence[Any]) -> dict[str, Any]:
    """The tool calls a second time, as providers leave them in additional_kwargs."""
    calls = [
        {
            "id": b.tool_call_id,
            "type": "function",
            "function": {
                "name": b.tool_name,
                "arguments": b.tool_kwargs
                if isinstance(b.tool_kwargs, str)
                else json.dumps(b.tool_kwargs, ensure_ascii=False),
            },
        }
        for b in blocks
        if isinstance(b, ToolCallBlock)
    ]
    return {"tool_calls": calls} if calls else {}


class Script:
    """The replies of one model, in order (the last one again and again), what it was asked, what it has sent."""

    def __init__(self, replies: Sequence[Reply], size: int, escaped: bool = False):
        self.escaped = escaped  # whether tool calls stream as ASCII, with escapes
        self.replies, self.size = deque(replies), size
        self.asked: list[list[ChatMessage]] = []
        self.sources: list[Source] = []
        self.closed = 0

    def next(self, messages: Sequence[ChatMessage]) -> ChatMessage:
        self.asked.append(list(messages))
        said = self.replies.popleft() if len(self.replies) > 1 else self.replies[0]
        if isinstance(said, Exception):
            raise said
        return reply(said) if isinstance(said, str) else said

    def whole(self, messages: Sequence[ChatMessage]) -> ChatResponse:
        said = self.next(messages)
        return ChatResponse(
            message=said,
            raw={"choices": [{"text": said.content}], "usage": {"total_tokens": 7}},
            logprobs=[[LogProb(token=said.content or "")]],
            additional_kwargs={"prompt_tokens": 3, "echo": said.content},
        )

    def chunks(self, messages: Sequence[ChatMessage]) -> Iterator[ChatResponse]:
        said = self.next(messages)
        thinking = "".join(b.content or "" for b in said.blocks if isinstance(b, ThinkingBlock))
        calls = [b for b in said.blocks if isinstance(b, ToolCallBlock)]
        source = Source(said.content or "", self.size)
        self.sources.append(source)
        blocks: list[Any] = []
        try:
            for i in range(len(cut(thinking, self.size))):
                blocks = [ThinkingBlock(content=thinking[: (i + 1) * self.size])]
                yield self._chunk(blocks, "", thinking_delta=cut(thinking, self.size)[i])
            text = ""
            for piece in source:
                text += piece
                yield self._chunk([*blocks, TextBlock(text=text)], piece)
            blocks = [*blocks, TextBlock(text=text)] if text else blocks
            for call in calls:
                arguments = json.dumps(call.tool_kwargs, ensure_ascii=self.escaped)
                for end in range(self.size, len(arguments), self.size):
                    part = call.model_copy(update={"tool_kwargs": arguments[:end]})
                    yield self._chunk([*blocks, part], "")
                blocks = [*blocks, call]
                yield self._chunk(blocks, "")
            known = (TextBlock, ThinkingBlock, ToolCallBlock)
            others = [b for b in said.blocks if not isinstance(b, known)]
            yield self._chunk([*blocks, *others], "", message=said.additional_kwargs)
        finally:
            self.closed += 1

    def _chunk(
        self, blocks: list[Any], delta: str, message: dict[str, Any] | None = None, **kwargs: Any
    ) -> ChatResponse:
        text = "".join(b.text for b in blocks if isinstance(b, TextBlock))
        return ChatResponse(
            message=ChatMessage(
                role="assistant", blocks=list(blocks), additional_kwargs=provider_calls(blocks) | (message or {})
            ),
            delta=delta,
            raw={"choices": [{"text": text}], "usage": {"total_tokens": 7}},
            logprobs=[[LogProb(token=delta)]],
            additional_kwargs={"prompt_tokens": 3} | kwargs,
        )


class PlainLLM(LLM):
    """A chat model that calls no functions: agents use it through ReAct."""

    model: str = "scripted"
    chat_model: bool = True
    _script: Script = PrivateAttr()

    def __init__(self, *replies: Reply, size: int = 5, escaped: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self._script = Script(replies or ("Fine, thank you.",), size, escaped)

    @classmethod
    def class_name(cls) -> str:
        return "plain_scripted_llm"

    @property
    def script(self) -> Script:
        return self._script

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=self.chat_model, model_name=self.model, context_window=100_000)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._script.whole(messages)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._script.whole(messages)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return (chunk for chunk in self._script.chunks(messages))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        async def chunks() -> ChatResponseAsyncGen:
            for chunk in self._script.chunks(messages):
                yield chunk

        return chunks()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return completion(self._script.whole([user(prompt)]))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return completion(self._script.whole([user(prompt)]))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return (completion(chunk) for chunk in self._script.chunks([user(prompt)]))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        async def chunks() -> CompletionResponseAsyncGen:
            for chunk in self._script.chunks([user(prompt)]):
                yield completion(chunk)

        return chunks()


class FunctionLLM(PlainLLM, FunctionCallingLLM):
    """The same, calling functions."""

    @classmethod
    def class_name(cls) -> str:
        return "function_scripted_llm"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            is_chat_model=True, is_function_calling_model=True, model_name=self.model, context_window=100_000
        )

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[Any],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(user(user_msg) if isinstance(user_msg, str) else user_msg)
        return {"messages": messages, "tools": [t.metadata.name for t in tools]}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        blocks = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
        if error_on_no_tool_call and not blocks:
            raise ValueError("no tool call")
        return [
            ToolSelection(
                tool_id=b.tool_call_id or "",
                tool_name=b.tool_name,
                tool_kwargs=b.tool_kwargs if isinstance(b.tool_kwargs, dict) else {"partial": b.tool_kwargs},
            )
            for b in blocks
        ]


class SmallEmbedding(BaseEmbedding):
    """A vector from a hash: offline, and the same for the same text."""

    def _vector(self, text: str) -> list[float]:
        return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:16]]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def completion(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=response.message.content or "",
        raw=response.raw,
        delta=response.delta,
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


def index_of(*texts: str | BaseNode) -> VectorStoreIndex:
    nodes = [t if isinstance(t, BaseNode) else TextNode(text=t, id_=f"n{i}") for i, t in enumerate(texts)]
    return VectorStoreIndex(nodes, embed_model=SmallEmbedding())
