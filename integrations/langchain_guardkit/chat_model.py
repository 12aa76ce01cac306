"""`GuardedChatModel`: any chat model in, the same interface out, and no unjudged text on any surface behind it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, Field, PrivateAttr

from guardkit import Decision, Guard, Stage
from langchain_guardkit.binding import SHARED, BoundParts, is_dynamic, repair_request, resolved
from langchain_guardkit.caching import Answers, holding, uses_cache, with_held_cache
from langchain_guardkit.enforcing import VIOLATION_MESSAGE, Enforcement, ExitBehavior, Judged, counts
from langchain_guardkit.messages import Agent, MessageGuard
from langchain_guardkit.results import aiter_of, as_chunk, as_chunks, result_of
from langchain_guardkit.streaming import OUTPUT_STAGES, ChunkFlow, aguard_chunks, guard_chunks
from langchain_guardkit.unobserved import Unobserved, asteps_unobserved, steps_unobserved, without_own_callbacks


class GuardedChatModel(BoundParts, BaseChatModel):
    """A chat model whose prompts and output are judged; everything else about it is the wrapped model's.

    Callbacks, tracers, `astream_events`, `astream_log` and stream handlers see this model's run, so they see judged
    text alone: prompts are judged before the run begins, the wrapped model runs unobserved, and its own callbacks move
    here. Tools and structured output are bound through it. The wrapped model's cache keeps only answers that passed,
    and what it holds is judged each time it is used. Models that are made by each run's config
    (`init_chat_model(configurable_fields=...)`, `model.configurable_fields(...)`) are guarded as they are made.

    stages: what is judged (all). holdback: tokens that a stream holds back, the guard's own by default.
    exit_behavior: "error" raises `GuardViolation`; "end" and "replace" answer with the violation message (with
    "replace", an unsafe prompt is replaced and the model is asked all the same). Offending messages of earlier turns
    are replaced in each case. A blocked message's ``response_metadata["guardkit"]`` says why. violation_message,
    on_violation, policies: see `Enforcement`. repair: how often the model is asked again, with the reason, after a
    blocked answer, before that is refused; a stream is repaired while none of it was shown. check_system: whether
    system messages are judged. judged: a memory of what passed, to share between models; agent: of its middleware.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: Any
    guard: Any
    exit_behavior: ExitBehavior = "error"
    violation_message: Any = VIOLATION_MESSAGE
    stages: frozenset[Stage] = frozenset(Stage)
    holdback: int | None = None
    on_violation: Any = None
    policies: Any = None
    repair: int = Field(default=0, ge=0)
    enforcement: Any = None
    judged: Any = None
    check_system: bool = True
    agent: Agent = Agent()
    operations: tuple[Any, ...] = ()
    _messages: MessageGuard = PrivateAttr()
    _runs: dict[str, GuardedChatModel] = PrivateAttr(default_factory=dict)
    _caching: BaseChatModel | None = PrivateAttr(default=None)

    def __init__(self, model: Any = None, guard: Guard | None = None, **settings: Any):
        inner = settings.pop("inner", None) if model is None else model
        if not (isinstance(inner, BaseChatModel) or is_dynamic(inner)):
            raise TypeError(
                f"GuardedChatModel wraps a chat model, not {type(inner).__name__}: wrap the model first and bind tools "
                "or structured output afterwards"
            )
        # `cache` stays off here: the wrapped model keeps its own, and what comes out of it is judged like the rest.
        given: dict[str, Any] = {"cache": False}
        if isinstance(inner, BaseChatModel):
            given |= {name: getattr(inner, name) for name in SHARED}
            inner = without_own_callbacks(inner)
        super().__init__(**{**given, **settings, "inner": inner, "guard": guard})

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if self.enforcement is None or not self.enforcement.chosen:
            self.enforcement = Enforcement(
                self.guard, self.exit_behavior, self.violation_message, self.on_violation, self.policies or {}
            )
        self._messages = MessageGuard(
            self.enforcement, self.stages, self.judged, agent=self.agent, system=self.check_system
        )
        self._messages.again = Judged(256)

    def __getattr__(self, name: str) -> Any:
        """What a chat model has beyond the common interface, such as its name, is read from the wrapped one."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("_") or "inner" not in self.__dict__:
                raise
            return getattr(self.inner, name)

    def __deepcopy__(self, memo: Any = None) -> GuardedChatModel:
        return self.model_copy(update={"inner": copy.deepcopy(self.inner, memo)})  # a guard is there to be shared

    # -- each run: its policy, and its model where a config makes it

    def _of_run(self, config: RunnableConfig | None = None) -> Any:
        """This model as a run's config asks for it: itself, where that says nothing about the guard or the model."""
        enforcement = self.enforcement.for_run(config)
        dynamic = not isinstance(self.inner, BaseChatModel)
        if enforcement is self.enforcement and not dynamic:
            return self
        found: Any = self
        if enforcement is not self.enforcement:
            if enforcement.key not in self._runs or dynamic:
                found = GuardedChatModel(**{**self._own_fields(), "enforcement": enforcement, "policies": None})
                self._runs[enforcement.key] = found
            found = self._runs[enforcement.key]
        if dynamic:
            found = found._around(resolved(self.inner, config))
            for name, args, kwargs in self.operations:
                found = getattr(found, name)(*args, **kwargs)
        return found

    def _own_fields(self) -> dict[str, Any]:
        fields = {name: self.__dict__[name] for name in type(self).model_fields if name in self.__dict__}
        return {**fields, "judged": self._messages.judged}

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> Any:
        run = self._of_run(config)
        if run is not self:
            return run.invoke(input, config, stop=stop, **kwargs)
        return super().invoke(input, config, stop=stop, **kwargs)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> Any:
        run = self._of_run(config)
        if run is not self:
            return await run.ainvoke(input, config, stop=stop, **kwargs)
        return await super().ainvoke(input, config, stop=stop, **kwargs)

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> Iterator[Any]:
        run = self._of_run(config)
        if run is not self:
            yield from run.stream(input, config, stop=stop, **kwargs)
        else:
            yield from super().stream(self._seen(input), config, stop=stop, **kwargs)

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        run = self._of_run(config)
        if run is not self:
            source = run.astream(input, config, stop=stop, **kwargs)
        else:
            seen = await asyncio.to_thread(self._seen, input)
            source = super().astream(seen, config, stop=stop, **kwargs)
        async for chunk in source:
            yield chunk

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        run = self._of_run(config)
        if run is not self:
            return run.stream_events(input, config, **kwargs)
        return super().stream_events(self._seen(input), config, **kwargs)

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        run = self._of_run(config)
        if run is not self:
            return run.astream_events(input, config, **kwargs)
        return super().astream_events(self._seen(input), config, **kwargs)

    def astream_log(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream_log(self._seen(input), config, **kwargs)

    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        run = self._of_run()
        if run is not self:
            return cast(LLMResult, run.generate(messages, *args, **kwargs))
        return super().generate([self._messages.admit(m) for m in messages], *args, **kwargs)

    async def agenerate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        run = self._of_run()
        if run is not self:
            return cast(LLMResult, await run.agenerate(messages, *args, **kwargs))
        admitted = [await asyncio.to_thread(self._messages.admit, m) for m in messages]
        return await super().agenerate(cast(Any, admitted), *args, **kwargs)

    def _seen(self, input: LanguageModelInput) -> Any:
        """The input as a run may show it."""
        return self._messages.admit(self._convert_input(input).to_messages())

    def shown(self, input: LanguageModelInput, config: RunnableConfig | None) -> Any:
        """The same for a run under a config of its own."""
        messages = self._messages.under(self.enforcement.for_run(config))
        return messages.admit(self._convert_input(input).to_messages())

    # -- generating

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        admitted = self._messages.admit(messages)
        if admitted.refusal is not None:
            return result_of(self._refused(admitted.refusal))
        asked: list[BaseMessage] = admitted
        for tries_left in range(self.repair, -1, -1):
            with Unobserved(), holding() as answers:
                result = self._asked._generate_with_cache(asked, stop=stop, run_manager=None, **kwargs)
            judged, stop_ = self._judge(admitted, result, final=not tries_left)
            if stop_ is None:
                if _same(judged, result):
                    answers.keep()
                break
            asked = [*admitted, repair_request(stop_)]
        return judged

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        admitted = await asyncio.to_thread(self._messages.admit, messages)
        if admitted.refusal is not None:
            return result_of(self._refused(admitted.refusal))
        asked: list[BaseMessage] = admitted
        for tries_left in range(self.repair, -1, -1):
            with Unobserved(), holding() as answers:
                result = await self._asked._agenerate_with_cache(asked, stop=stop, run_manager=None, **kwargs)
            judged, stop_ = await asyncio.to_thread(self._judge, admitted, result, not tries_left)
            if stop_ is None:
                if _same(judged, result):
                    await answers.akeep()
                break
            asked = [*admitted, repair_request(stop_)]
        return judged

    @property
    def _asked(self) -> BaseChatModel:
        """The wrapped model, such that a cache keeps no answer of it before that has passed."""
        if not uses_cache(self.inner):
            return cast(BaseChatModel, self.inner)
        if self._caching is None:
            self._caching = with_held_cache(self.inner)
        return self._caching

    def _judge(
        self, messages: Sequence[BaseMessage], result: ChatResult, final: bool
    ) -> tuple[ChatResult, Decision | None]:
        """Judge every candidate; the blocked ones give way to the violation message. The decision that asks for a
        repair, where there is a try left for one."""
        answers = [cast(AIMessage, generation.message) for generation in result.generations]
        judged = self._messages.judge_answers(messages, answers, final=final)
        generations = []
        for generation, (answer, decision) in zip(result.generations, judged, strict=True):
            if decision is None and answer is generation.message:
                generations.append(generation)
            elif not final and decision is not None:
                return result, decision
            else:
                generations.append(ChatGeneration(message=answer))
        withheld = any(answer is not given for (answer, _), given in zip(judged, answers, strict=True))
        withheld = withheld or not self._messages.passes_beside(result.llm_output)
        return ChatResult(
            generations=generations, llm_output=counts(result.llm_output) if withheld else result.llm_output
        ), None

    def _refused(self, mark: Mapping[str, Any]) -> AIMessage:
        """The answer to a prompt that is withheld; raises it where that is the exit behaviour."""
        violation = self.enforcement.violation(mark)
        if self.enforcement.behavior(violation.decision) == "error":
            raise violation
        return cast(AIMessage, self.enforcement.refusal(mark))

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        found = [output for output in llm_outputs if output is not None]
        return cast("dict[str, Any]", self.inner._combine_llm_outputs(found)) if found else {}

    # -- streaming

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        admitted = self._messages.admit(messages)
        if admitted.refusal is not None:
            yield ChatGenerationChunk(message=as_chunk(self._refused(admitted.refusal)))
            return
        asked: list[BaseMessage] = admitted
        for tries_left in range(self.repair, -1, -1):
            flow, answers = self._flow(admitted), Answers()
            if not _overrides(self.inner, "_stream"):
                with Unobserved(), holding() as answers:
                    result = self._asked._generate_with_cache(asked, stop=stop, run_manager=None, **kwargs)
                source: Iterator[ChatGenerationChunk] = iter(as_chunks(result))
            else:
                if self.inner.rate_limiter is not None:
                    self.inner.rate_limiter.acquire(blocking=True)
                source = steps_unobserved(self.inner._stream(asked, stop=stop, **kwargs))
            stopped = yield from guard_chunks(source, flow, tries_left)
            if stopped is None:
                if flow.decision is None:
                    answers.keep()
                return
            self.enforcement.report(stopped)
            asked = [*admitted, repair_request(stopped)]

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        admitted = await asyncio.to_thread(self._messages.admit, messages)
        if admitted.refusal is not None:
            yield ChatGenerationChunk(message=as_chunk(self._refused(admitted.refusal)))
            return
        asked: list[BaseMessage] = admitted
        for tries_left in range(self.repair, -1, -1):
            flow, answers = await asyncio.to_thread(self._flow, admitted), Answers()
            if not (_overrides(self.inner, "_astream") or _overrides(self.inner, "_stream")):
                with Unobserved(), holding() as answers:
                    result = await self._asked._agenerate_with_cache(asked, stop=stop, run_manager=None, **kwargs)
                source: AsyncIterator[ChatGenerationChunk] = aiter_of(as_chunks(result))
            else:
                if self.inner.rate_limiter is not None:
                    await self.inner.rate_limiter.aacquire(blocking=True)
                source = asteps_unobserved(self.inner._astream(asked, stop=stop, **kwargs))
            stopped: Decision | None = None
            async for item in aguard_chunks(source, flow, tries_left):
                if isinstance(item, Decision):
                    stopped = item
                else:
                    yield item
            if stopped is None:
                if flow.decision is None:
                    await answers.akeep()
                return
            self.enforcement.report(stopped)
            asked = [*admitted, repair_request(stopped)]

    def _flow(self, messages: Sequence[BaseMessage]) -> ChunkFlow:
        stages, judged = self.stages & OUTPUT_STAGES, self._messages.judged
        conversation = judged.conversations.of(messages)
        return ChunkFlow(self.enforcement, conversation, stages, self.holdback, judged, len(messages))

    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        return bool(self.inner._should_stream(async_api=async_api, run_manager=run_manager, **kwargs))

    def _streaming_disabled(self, **kwargs: Any) -> bool:
        return bool(self.inner._streaming_disabled(**kwargs))

    # -- what describes the model

    @property
    def _llm_type(self) -> str:
        return f"guarded-{getattr(self.inner, '_llm_type', 'configurable')}"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**getattr(self.inner, "_identifying_params", {}), "guard": self.enforcement.guard.model.name}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", self.inner._get_invocation_params(stop=stop, **kwargs))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return self.inner._get_ls_params(stop=stop, **kwargs)

    def get_num_tokens(self, text: str) -> int:
        return int(self.inner.get_num_tokens(text))

    def get_token_ids(self, text: str) -> list[int]:
        return list(self.inner.get_token_ids(text))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        return int(self.inner.get_num_tokens_from_messages(messages, tools))


def _same(judged: ChatResult, given: ChatResult) -> bool:
    """Whether all answers passed as they were."""
    return all(a is b for a, b in zip(judged.generations, given.generations, strict=True))


def _overrides(model: BaseChatModel, name: str) -> bool:
    return getattr(type(model), name) is not getattr(BaseChatModel, name)
