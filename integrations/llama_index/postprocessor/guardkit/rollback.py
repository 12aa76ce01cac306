"""`RollbackLLM`: an LLM whose decoding is taken back where the guard objects (`guardkit.rollback`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index.postprocessor.guardkit.conversions import amapped, as_completion, as_messages

from guardkit.rollback import Rollback, RollbackResult
from guardkit.rollback.chat import RollbackChat


class RollbackLLM(LLM):
    """Answers with `rollback`: text comes out once it was judged and can no longer be taken back.

    model, tokenizer: of transformers; or client: an `AsyncOpenAI`, an `httpx.AsyncClient` (both for async calls) or a
    server's address. options: of each answer, such as `{"max_new_tokens": 300}`; keyword arguments of a call are added.
    A response's ``additional_kwargs["guardkit"]`` tells `refused`, `rollbacks` and `wait_tokens`. The prompt is not
    judged: `guarded(llm, guard)` around it does that.
    """

    options: dict[str, Any] = Field(default_factory=dict, description="Of each answer.")
    context_window: int = Field(default=4096, description="Tokens that the model takes, for those who lay prompts out.")
    _chat: RollbackChat = PrivateAttr()

    def __init__(
        self, rollback: Rollback, *, model: Any = None, tokenizer: Any = None, client: Any = None, **fields: Any
    ):
        super().__init__(**fields)
        self._chat = RollbackChat(rollback, model, tokenizer, client, self.options)

    @classmethod
    def class_name(cls) -> str:
        return "rollback_llm"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, context_window=self.context_window, model_name="guardkit-rollback")

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        *_, last = self._texts(messages, kwargs)
        return last.model_copy(update={"delta": None})

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        last = [response async for response in self._atexts(messages, kwargs)][-1]
        return last.model_copy(update={"delta": None})

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._texts(messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return self._atexts(messages, kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        *_, last = self._texts(as_messages(prompt), kwargs)
        return as_completion(last.model_copy(update={"delta": None}))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        last = [response async for response in self._atexts(as_messages(prompt), kwargs)][-1]
        return as_completion(last.model_copy(update={"delta": None}))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        chunks = self._texts(as_messages(prompt), kwargs)
        return (as_completion(chunk) for chunk in chunks)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        return amapped(self._atexts(as_messages(prompt), kwargs), as_completion)

    def _texts(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> ChatResponseGen:
        texts, said = self._chat.texts(_plain(messages), **kwargs), ""
        while True:
            try:
                delta = next(texts)
            except StopIteration as end:
                yield _response(said, "", end.value)
                return
            said += delta
            yield _response(said, delta)

    async def _atexts(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> ChatResponseAsyncGen:
        said = ""
        async for text in self._chat.atexts(_plain(messages), **kwargs):
            if isinstance(text, str):
                said += text
                yield _response(said, text)
            else:
                yield _response(said, "", text)


def _plain(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [{"role": message.role.value, "content": message.content or ""} for message in messages]


def _response(said: str, delta: str, result: RollbackResult | None = None) -> ChatResponse:
    told: dict[str, Any] = {}
    if result is not None:
        told["guardkit"] = {
            "refused": result.refused, "rollbacks": result.rollbacks, "wait_tokens": result.wait_tokens,
        }  # fmt: skip
    message = ChatMessage(role=MessageRole.ASSISTANT, content=said)
    return ChatResponse(message=message, delta=delta, additional_kwargs=told)
