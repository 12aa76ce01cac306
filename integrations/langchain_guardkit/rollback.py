"""`RollbackChatModel`: a chat model whose decoding is taken back where the guard objects (`guardkit.rollback`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NoReturn

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr

from guardkit.errors import GuardkitError
from guardkit.rollback import Rollback, RollbackResult
from guardkit.rollback.chat import RollbackChat
from langchain_guardkit.results import result_of


class RollbackChatModel(BaseChatModel):
    """Answers with `rollback`: text comes out once it was judged and can no longer be taken back.

    llm, tokenizer: a transformers model; or client: an `AsyncOpenAI`, an `httpx.AsyncClient` (both for async calls) or
    a server's address. options: of each answer, such as `{"max_new_tokens": 300}`; keyword arguments of a call are
    added. A message's ``response_metadata["guardkit"]`` tells `refused`, `rollbacks` and `wait_tokens`. The prompt is
    not judged: put a `GuardRunnable` before it. Tools cannot be bound: calls cannot be taken back.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    rollback: Any
    llm: Any = None
    tokenizer: Any = None
    client: Any = None
    options: dict[str, Any] = Field(default_factory=dict)
    _chat: RollbackChat = PrivateAttr()

    def __init__(self, rollback: Rollback | None = None, **fields: Any):
        super().__init__(**{**fields, "rollback": rollback})

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self._chat = RollbackChat(self.rollback, self.llm, self.tokenizer, self.client, self.options)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> NoReturn:
        """Raises `GuardkitError`: a tool call cannot be taken back."""
        raise GuardkitError(
            "RollbackChatModel binds no tools: a call cannot be taken back; GuardedChatModel guards a model with tools"
        )

    @property
    def _llm_type(self) -> str:
        return "guardkit-rollback"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _whole(list(self._stream(messages, stop, **kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _whole([chunk async for chunk in self._astream(messages, stop, **kwargs)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        texts = self._chat.texts(_plain(messages), stop, **kwargs)
        while True:
            try:
                yield ChatGenerationChunk(message=AIMessageChunk(content=next(texts)))
            except StopIteration as end:
                yield _last(end.value)
                return

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for text in self._chat.atexts(_plain(messages), stop, **kwargs):
            if isinstance(text, str):
                yield ChatGenerationChunk(message=AIMessageChunk(content=text))
            else:
                yield _last(text)


def _plain(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    return convert_to_openai_messages(list(messages))


def _last(result: RollbackResult) -> ChatGenerationChunk:
    told = {"refused": result.refused, "rollbacks": result.rollbacks, "wait_tokens": result.wait_tokens}
    metadata = {"finish_reason": "content_filter" if result.refused else result.finish_reason, "guardkit": told}
    message = AIMessageChunk(content="", response_metadata=metadata, chunk_position="last")
    return ChatGenerationChunk(message=message)


def _whole(chunks: Sequence[ChatGenerationChunk]) -> ChatResult:
    text = "".join(str(chunk.message.content) for chunk in chunks)
    return result_of(AIMessage(content=text, response_metadata=chunks[-1].message.response_metadata))
