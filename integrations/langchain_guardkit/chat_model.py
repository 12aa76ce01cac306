"""`GuardedChatModel`: any chat model in, the same interface out, and no unjudged text on any surface behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableParallel, RunnableSequence
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, PrivateAttr

from guardkit import Guard, GuardkitError, Stage
from langchain_guardkit.enforcing import (
    VIOLATION_MESSAGE,
    Enforcement,
    ExitBehavior,
    Judged,
    summary,
)
from langchain_guardkit.messages import MessageGuard
from langchain_guardkit.streaming import OUTPUT_STAGES, ChunkFlow, aguard_chunks, guard_chunks
from langchain_guardkit.unobserved import Unobserved, asteps_unobserved, steps_unobserved, without_own_callbacks

Bound = Runnable[LanguageModelInput, Any]
_SHARED = ("callbacks", "tags", "metadata", "verbose", "output_version", "disable_streaming", "profile")


class GuardedChatModel(BaseChatModel):
    """A chat model whose prompts and output are judged; everything else about it is the wrapped model's.

    Callbacks, tracers, `astream_events`, `astream_log` and stream handlers see this model's run, so they see judged
    text alone: the wrapped model runs unobserved, and its own callbacks move here. Tools and structured output are
    bound through it. A text that the wrapped model's cache holds is judged each time it is used.

    stages: what is judged (all). holdback: tokens that a stream holds back, the guard's own by default.
    exit_behavior: "error" raises `GuardViolation`; "end" and "replace" answer with the violation message (with
    "replace", an unsafe prompt is replaced and the model is asked all the same). A blocked message's
    ``response_metadata["guardkit"]`` says why. judged: a memory of what passed, to share between models.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: BaseChatModel
    enforcement: Any
    stages: frozenset[Stage] = frozenset(Stage)
    holdback: int | None = None
    _messages: MessageGuard = PrivateAttr()

    def __init__(
        self,
        model: BaseChatModel,
        guard: Guard,
        *,
        exit_behavior: ExitBehavior = "error",
        violation_message: str = VIOLATION_MESSAGE,
        stages: frozenset[Stage] = frozenset(Stage),
        holdback: int | None = None,
        judged: Judged | None = None,
    ):
        if not isinstance(model, BaseChatModel):
            raise TypeError(
                f"GuardedChatModel wraps a chat model, not {type(model).__name__}: wrap the model first and bind tools "
                "or structured output afterwards"
            )
        enforcement = Enforcement(guard, exit_behavior, violation_message)
        # `cache` stays off here: the wrapped model keeps its own, and what comes out of it is judged like the rest.
        fields: dict[str, Any] = {
            "inner": without_own_callbacks(model),
            "enforcement": enforcement,
            "stages": stages,
            "holdback": holdback,
            "cache": False,
        }
        super().__init__(**fields, **{name: getattr(model, name) for name in _SHARED})
        self._messages = MessageGuard(enforcement, stages, judged)

    def __getattr__(self, name: str) -> Any:
        """What a chat model has beyond the common interface, such as its name, is read from the wrapped one."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("_") or "inner" not in self.__dict__:
                raise
            return getattr(self.inner, name)

    # -- generating

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        admitted, refusal = self._messages.admit(messages)
        if refusal is not None:
            return _result(self.enforcement.refusal(summary(refusal)))
        with Unobserved():
            result = self.inner._generate_with_cache(admitted, stop=stop, run_manager=None, **kwargs)
        return self._judge(admitted, result)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        admitted, refusal = await asyncio.to_thread(self._messages.admit, messages)
        if refusal is not None:
            return _result(self.enforcement.refusal(summary(refusal)))
        with Unobserved():
            result = await self.inner._agenerate_with_cache(admitted, stop=stop, run_manager=None, **kwargs)
        return await asyncio.to_thread(self._judge, admitted, result)

    def _judge(self, messages: Sequence[BaseMessage], result: ChatResult) -> ChatResult:
        """Judge every candidate; the blocked ones give way to the violation message."""
        answers = [cast(AIMessage, generation.message) for generation in result.generations]
        judged = self._messages.judge_answers(messages, answers)
        generations = []
        for generation, (answer, decision) in zip(result.generations, judged, strict=True):
            if decision is None:
                generations.append(generation)
            else:
                generations.append(ChatGeneration(message=answer))
        withheld = any(decision is not None for _, decision in judged)
        return ChatResult(generations=generations, llm_output=None if withheld else result.llm_output)

    # -- streaming

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        admitted, refusal = self._messages.admit(messages)
        if refusal is not None:
            yield ChatGenerationChunk(message=_as_chunk(self.enforcement.refusal(summary(refusal))))
            return
        if not _overrides(self.inner, "_stream"):
            with Unobserved():
                result = self.inner._generate_with_cache(admitted, stop=stop, run_manager=None, **kwargs)
            source: Iterator[ChatGenerationChunk] = iter(_as_chunks(result))
        else:
            if self.inner.rate_limiter is not None:
                self.inner.rate_limiter.acquire(blocking=True)
            source = steps_unobserved(self.inner._stream(admitted, stop=stop, **kwargs))
        yield from guard_chunks(source, self._flow(admitted))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        admitted, refusal = await asyncio.to_thread(self._messages.admit, messages)
        if refusal is not None:
            yield ChatGenerationChunk(message=_as_chunk(self.enforcement.refusal(summary(refusal))))
            return
        if not (_overrides(self.inner, "_astream") or _overrides(self.inner, "_stream")):
            with Unobserved():
                result = await self.inner._agenerate_with_cache(admitted, stop=stop, run_manager=None, **kwargs)
            source: AsyncIterator[ChatGenerationChunk] = _aiter(_as_chunks(result))
        else:
            if self.inner.rate_limiter is not None:
                await self.inner.rate_limiter.aacquire(blocking=True)
            source = asteps_unobserved(self.inner._astream(admitted, stop=stop, **kwargs))
        async for chunk in aguard_chunks(source, await asyncio.to_thread(self._flow, admitted)):
            yield chunk

    def _flow(self, messages: Sequence[BaseMessage]) -> ChunkFlow:
        context = self._messages.context(messages)
        stages = self.stages & OUTPUT_STAGES
        return ChunkFlow(self.enforcement, context, stages, self.holdback, self._messages.judged)

    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        return self.inner._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)

    def _streaming_disabled(self, **kwargs: Any) -> bool:
        return self.inner._streaming_disabled(**kwargs)

    # -- tools and structured output: bound by the wrapped model, around this one

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        return self._around(self.inner.bind_tools(tools, **kwargs))

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        return self._around(self.inner.with_structured_output(schema, include_raw=include_raw, **kwargs))

    def _around(self, bound: Bound) -> Bound:
        """The same composition with the wrapped model inside it replaced by this one."""
        found: list[BaseChatModel] = []

        def swap(part: Any) -> Any:
            if isinstance(part, BaseChatModel):
                found.append(part)
                return self.model_copy(update={"inner": without_own_callbacks(part)})
            if isinstance(part, RunnableBinding):
                return part.model_copy(update={"bound": swap(part.bound)})
            if isinstance(part, RunnableSequence):
                return RunnableSequence(*map(swap, part.steps), name=part.name)
            if isinstance(part, RunnableParallel):
                return part.model_copy(update={"steps__": {k: swap(v) for k, v in part.steps__.items()}})
            if isinstance(part, RunnableWithFallbacks):
                fallbacks = [swap(f) for f in part.fallbacks]
                return part.model_copy(update={"runnable": swap(part.runnable), "fallbacks": fallbacks})
            return part

        result = cast(Bound, swap(bound))
        if not found:
            raise GuardkitError(
                f"{type(self.inner).__name__} binds in a way that the guard cannot follow "
                f"({type(bound).__name__}): guard the bound chain with `chain | guard.as_runnable()`"
            )
        return result

    # -- what describes the model

    @property
    def _llm_type(self) -> str:
        return f"guarded-{self.inner._llm_type}"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**self.inner._identifying_params, "guard": self.enforcement.guard.model.name}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return self.inner._get_invocation_params(stop=stop, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return self.inner._get_ls_params(stop=stop, **kwargs)

    def get_num_tokens(self, text: str) -> int:
        return self.inner.get_num_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        return self.inner.get_token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        return self.inner.get_num_tokens_from_messages(messages, tools)


def _overrides(model: BaseChatModel, name: str) -> bool:
    return getattr(type(model), name) is not getattr(BaseChatModel, name)


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _as_chunks(result: ChatResult) -> list[ChatGenerationChunk]:
    generation = result.generations[0]
    message = cast(AIMessage, generation.message)
    return [ChatGenerationChunk(message=_as_chunk(message), generation_info=generation.generation_info)]


def _as_chunk(message: AIMessage) -> AIMessageChunk:
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


async def _aiter(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item
