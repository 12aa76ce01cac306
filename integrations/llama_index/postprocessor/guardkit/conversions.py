"""Chat and completion, each as the other; and what of an answer may be shown beside its judged text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    CompletionResponse,
    MessageRole,
)
from llama_index.postprocessor.guardkit.streaming import numbers, usage_of

from guardkit import Decision

_T = TypeVar("_T")
_TOKEN = 64  # characters of a token at most
_AGAIN = (
    "Your answer was withheld by a safety check ({about}). Answer again without what led to that, "
    "or say that you cannot."
)


def cleaned(response: ChatResponse) -> ChatResponse:
    """Without what may hold more than was judged: of `raw` and of the extras only counts remain."""
    return response.model_copy(
        update={
            "raw": usage_of(response.raw),
            "additional_kwargs": numbers(response.additional_kwargs),
            "logprobs": response.logprobs if _fits(response) else None,
        }
    )


def _fits(response: ChatResponse) -> bool:
    """Whether log probabilities say no more than the answer does: its own tokens, each alternative a single one."""
    said = response.message.content or ""
    for ranked in response.logprobs or ():
        if ranked and ranked[0].token.strip() not in said:
            return False
        if any(len(one.token) > _TOKEN or len(one.token.split()) > 1 for one in ranked[1:]):
            return False
    return True


def as_messages(prompt: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=prompt)]


def as_prompt(messages: Sequence[ChatMessage]) -> str:
    return "\n\n".join(message.content or "" for message in messages)


def again(decision: Decision) -> ChatMessage:
    """What the model is told when it is asked again: the reason, without the text that was blocked."""
    verdict = decision.verdict
    about = ", ".join(c.label for c in verdict.categories) if verdict else ""
    reason = f"{decision.stage.value}: {about or 'not judged'}"
    return ChatMessage(role=MessageRole.USER, content=_AGAIN.format(about=reason))


def as_chat(response: CompletionResponse) -> ChatResponse:
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=response.text),
        raw=response.raw,
        delta=response.delta,
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


def as_completion(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=response.message.content or "",
        raw=response.raw,
        delta=response.delta,
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


async def amapped(source: AsyncGenerator[Any, None], change: Callable[[Any], _T]) -> AsyncGenerator[_T, None]:
    try:
        async for item in source:
            yield change(item)
    finally:
        await source.aclose()


async def alisted(items: Sequence[ChatResponse]) -> ChatResponseAsyncGen:
    for item in items:
        yield item


class Seen(list[ChatMessage]):
    """Judged messages, as callbacks see them. ready: what else is known of them."""

    def __init__(self, ready: Any):
        super().__init__(ready.messages)
        self.ready = ready


class SeenText(str):
    """A judged prompt, as callbacks see it."""

    ready: Any

    @classmethod
    def of(cls, ready: Any) -> SeenText:
        made = cls(as_prompt(ready.messages))
        made.ready = ready
        return made
