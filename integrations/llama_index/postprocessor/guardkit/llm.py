"""`guarded(llm, guard)`: any LLM in, the same interface out, with nothing unsafe going in or coming out.

Agents, workflows, engines and programs that use the result are guarded at prompts, reasoning, answers and tool calls.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

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
from llama_index.core.bridge.pydantic import Field, PrivateAttr, SerializeAsAny, field_validator
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.llms.loading import load_llm
from llama_index.core.tools.types import BaseTool
from llama_index.postprocessor.guardkit.answers import passable_answer, refusal
from llama_index.postprocessor.guardkit.conversions import (
    Seen,
    SeenText,
    again,
    alisted,
    amapped,
    as_chat,
    as_completion,
    as_messages,
    as_prompt,
    cleaned,
)
from llama_index.postprocessor.guardkit.guards import GuardComponent, Source, resolve
from llama_index.postprocessor.guardkit.inputs import Inputs
from llama_index.postprocessor.guardkit.marks import withheld_in
from llama_index.postprocessor.guardkit.messages import question, read
from llama_index.postprocessor.guardkit.rules import (
    VIOLATION_MESSAGE,
    ExitBehavior,
    OnViolation,
    Rules,
    ViolationMessage,
)
from llama_index.postprocessor.guardkit.runs import Policies
from llama_index.postprocessor.guardkit.steps import Steps, arun, run
from llama_index.postprocessor.guardkit.streaming import ChatStream
from llama_index.postprocessor.guardkit.structured import StructuredCalls, asked_by_program

from guardkit import Decision, Guard, GuardViolation

_T = TypeVar("_T")


def guarded(
    llm: LLM,
    guard: Guard | Source,
    *,
    exit_behavior: ExitBehavior = "end",
    violation_message: ViolationMessage = VIOLATION_MESSAGE,
    on_violation: OnViolation | None = None,
    policies: Policies | None = None,
    max_repairs: int = 0,
    check_input: bool = True,
    check_output: bool = True,
    check_tool_results: bool = True,
    check_system: bool = False,
) -> GuardedLLM:
    """An LLM like `llm` whose prompts, reasoning, answers and tool calls are judged; a `FunctionCallingLLM` stays one.

    exit_behavior: "error" raises `GuardViolation`; "end" answers with `violation_message`, without tool calls;
    "replace" puts it in the place of the blocked part alone. Structured output (`structured_predict`, structured LLMs,
    programs, output parsers, required tool calls) always raises it: half an object is none. Streams leave with the
    guard's hold-back. check_system: system messages are the application's own unless it says that they are not.
    policies: what a run may choose from by name, see `guard_policy`. max_repairs: how often the model is asked again
    after a whole answer of it was blocked, with the reason; streams are not repaired.
    """
    if not isinstance(llm, LLM):
        raise TypeError(f"guarded takes a llama_index LLM, not {type(llm).__name__}")
    kind = GuardedFunctionCallingLLM if isinstance(llm, FunctionCallingLLM) else GuardedLLM
    return kind(
        llm=llm,
        guard=resolve(guard),
        exit_behavior=exit_behavior,
        violation_message=violation_message,
        on_violation=on_violation,
        policies=policies or {},
        max_repairs=max_repairs,
        check_input=check_input,
        check_output=check_output,
        check_tool_results=check_tool_results,
        check_system=check_system,
        callback_manager=llm.callback_manager,
        system_prompt=llm.system_prompt,
        messages_to_prompt=llm.messages_to_prompt,
        completion_to_prompt=llm.completion_to_prompt,
        output_parser=llm.output_parser,
        pydantic_program_mode=llm.pydantic_program_mode,
        query_wrapper_prompt=llm.query_wrapper_prompt,
    )


@dataclass(frozen=True)
class _Ready:
    """Judged input: what may be sent to the LLM, or the answer to give without asking it; and this run's rules."""

    rules: Rules
    messages: list[ChatMessage]
    refusal: ChatResponse | None = None
    structured: bool = False  # whether an object is wanted


class GuardedLLM(GuardComponent, StructuredCalls, LLM):
    """Made by `guarded`."""

    llm: SerializeAsAny[LLM]
    exit_behavior: ExitBehavior = "end"
    violation_message: ViolationMessage = VIOLATION_MESSAGE
    on_violation: OnViolation | None = Field(default=None, exclude=True)
    policies: Policies = Field(default_factory=dict, exclude=True, description="What a run may choose from by name.")
    max_repairs: int = Field(default=0, ge=0, description="How often a blocked whole answer is asked for again.")
    check_input: bool = Field(default=True, description="Judge prompts and earlier answers.")
    check_output: bool = Field(default=True, description="Judge reasoning, answers and tool calls.")
    check_tool_results: bool = Field(default=True, description="Judge tool messages.")
    check_system: bool = Field(default=False, description="Judge system messages.")

    _inner: Any = PrivateAttr()  # an LLM; Any, since only a FunctionCallingLLM has the tool methods
    _inputs: Inputs = PrivateAttr(default_factory=Inputs)

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        # The inner LLM's callbacks would see what was not judged; those of this one see what was.
        self._inner = self.llm.model_copy(update={"callback_manager": CallbackManager([])})

    @field_validator("llm", mode="before")
    @classmethod
    def _load(cls, given: Any) -> Any:
        return load_llm(given) if isinstance(given, dict) else given

    @classmethod
    def class_name(cls) -> str:
        return "guarded_llm"

    @property
    def metadata(self) -> LLMMetadata:
        return self.llm.metadata

    def __getattr__(self, name: str) -> Any:
        """Settings of the inner LLM (model, temperature, ...) can be read; its methods would go past the guard."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if not name.startswith("_") and name != "llm":
                value = getattr(self.llm, name, None)
                if value is not None and not callable(value):
                    return value
            raise

    # -- the four calls, sync and async: input judged, the inner LLM asked, output judged. Callbacks see the call of a
    # `..._seen` method, whose messages were judged; where nothing is asked they see none.

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        ready = run(self._input(messages))
        return cast(ChatResponse, ready.refusal or self._chat_seen(Seen(ready), **kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        ready = await arun(self._input(messages))
        return cast(ChatResponse, ready.refusal or await self._achat_seen(Seen(ready), **kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        ready = run(self._input(messages))
        if ready.refusal:
            return (refusal for refusal in [ready.refusal])
        return cast(ChatResponseGen, self._stream_chat_seen(Seen(ready), **kwargs))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        ready = await arun(self._input(messages))
        if ready.refusal:
            return alisted([ready.refusal])
        return cast(ChatResponseAsyncGen, await self._astream_chat_seen(Seen(ready), **kwargs))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        ready = run(self._input(as_messages(prompt)))
        if ready.refusal:
            return as_completion(ready.refusal)
        return cast(CompletionResponse, self._complete_seen(SeenText.of(ready), formatted=formatted, **kwargs))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        ready = await arun(self._input(as_messages(prompt)))
        if ready.refusal:
            return as_completion(ready.refusal)
        answer = await self._acomplete_seen(SeenText.of(ready), formatted=formatted, **kwargs)
        return cast(CompletionResponse, answer)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        ready = run(self._input(as_messages(prompt)))
        if ready.refusal:
            return (as_completion(refusal) for refusal in [ready.refusal])
        chunks = self._stream_complete_seen(SeenText.of(ready), formatted=formatted, **kwargs)
        return cast(CompletionResponseGen, chunks)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        ready = await arun(self._input(as_messages(prompt)))
        if ready.refusal:
            return amapped(alisted([ready.refusal]), as_completion)
        source = await self._astream_complete_seen(SeenText.of(ready), formatted=formatted, **kwargs)
        return cast(CompletionResponseAsyncGen, source)

    @llm_chat_callback()
    def _chat_seen(self, messages: Seen, **kwargs: Any) -> ChatResponse:
        return self._ask(messages.ready, partial(self._inner.chat, **kwargs))

    @llm_chat_callback()
    async def _achat_seen(self, messages: Seen, **kwargs: Any) -> ChatResponse:
        return await self._aask(messages.ready, partial(self._inner.achat, **kwargs))

    @llm_chat_callback()
    def _stream_chat_seen(self, messages: Seen, **kwargs: Any) -> ChatResponseGen:
        return self._released(messages.ready, self._inner.stream_chat(messages.ready.messages, **kwargs))

    @llm_chat_callback()
    async def _astream_chat_seen(self, messages: Seen, **kwargs: Any) -> ChatResponseAsyncGen:
        return self._areleased(messages.ready, await self._inner.astream_chat(messages.ready.messages, **kwargs))

    @llm_completion_callback()
    def _complete_seen(self, prompt: SeenText, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        def ask(messages: Sequence[ChatMessage]) -> ChatResponse:
            return as_chat(self._inner.complete(as_prompt(messages), formatted=formatted, **kwargs))

        return as_completion(self._ask(prompt.ready, ask))

    @llm_completion_callback()
    async def _acomplete_seen(self, prompt: SeenText, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        async def ask(messages: Sequence[ChatMessage]) -> ChatResponse:
            return as_chat(await self._inner.acomplete(as_prompt(messages), formatted=formatted, **kwargs))

        return as_completion(await self._aask(prompt.ready, ask))

    @llm_completion_callback()
    def _stream_complete_seen(self, prompt: SeenText, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        source = self._inner.stream_complete(str(prompt), formatted=formatted, **kwargs)
        chunks = self._released(prompt.ready, (as_chat(chunk) for chunk in source))
        return (as_completion(chunk) for chunk in chunks)

    @llm_completion_callback()
    async def _astream_complete_seen(
        self, prompt: SeenText, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        source = await self._inner.astream_complete(str(prompt), formatted=formatted, **kwargs)
        return amapped(self._areleased(prompt.ready, amapped(source, as_chat)), as_completion)

    # -- asking

    def _ask(self, ready: _Ready, ask: Callable[[Sequence[ChatMessage]], ChatResponse]) -> ChatResponse:
        asked = ready.messages
        for left in range(self.max_repairs, -1, -1):
            answer = run(self._output(ready, ask(asked), left))
            if isinstance(answer, ChatResponse):
                break
            asked = [*ready.messages, again(answer)]
        return answer  # type: ignore[return-value]  # with none left it is one

    async def _aask(
        self, ready: _Ready, ask: Callable[[Sequence[ChatMessage]], Awaitable[ChatResponse]]
    ) -> ChatResponse:
        asked = ready.messages
        for left in range(self.max_repairs, -1, -1):
            answer = await arun(self._output(ready, await ask(asked), left))
            if isinstance(answer, ChatResponse):
                break
            asked = [*ready.messages, again(answer)]
        return answer  # type: ignore[return-value]

    def _released(self, ready: _Ready, source: ChatResponseGen) -> ChatResponseGen:
        if not self.check_output:
            yield from (cleaned(chunk) for chunk in source)
            return
        stream, last = ChatStream(ready.rules, question(ready.messages)), None
        try:
            for chunk in source:
                for last in run(stream.take(chunk)):
                    yield last
                if stream.stopped:
                    break
            else:
                for last in run(stream.end()):
                    yield last
            stream.conclude()
            if last is not None and stream.stopped is None:
                self._inputs.remember(ready.rules, last.message)
        finally:
            stream.close()
            if isinstance(source, Generator):
                source.close()

    async def _areleased(self, ready: _Ready, source: ChatResponseAsyncGen) -> ChatResponseAsyncGen:
        if not self.check_output:
            async for chunk in source:
                yield cleaned(chunk)
            return
        stream, last = ChatStream(ready.rules, question(ready.messages)), None
        try:
            async for chunk in source:
                for last in await arun(stream.take(chunk)):
                    yield last
                if stream.stopped:
                    break
            else:
                for last in await arun(stream.end()):
                    yield last
            stream.conclude()
            if last is not None and stream.stopped is None:
                self._inputs.remember(ready.rules, last.message)
        finally:
            stream.close()
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    # -- decisions

    @property
    def _rules(self) -> Rules:
        return Rules(self.guard, self.exit_behavior, self.violation_message, self.on_violation, self.policies)

    def _input(self, messages: Sequence[ChatMessage]) -> Steps[_Ready]:
        structured = self._structured or asked_by_program()
        rules = replace(self._rules, exit_behavior="error") if structured else self._rules
        rules = rules.of_run()
        out, refused = yield from self._inputs.judge(rules, messages, self._wants)
        return _Ready(rules, out, refusal(rules, refused) if refused else None, structured)

    def _wants(self, message: ChatMessage) -> bool:
        if message.role in (MessageRole.SYSTEM, MessageRole.DEVELOPER):
            return self.check_system
        if message.role in (MessageRole.TOOL, MessageRole.FUNCTION):
            return self.check_tool_results
        return self.check_input

    def _output(self, ready: _Ready, response: ChatResponse, repairs: int) -> Steps[ChatResponse | Decision]:
        """The answer as it may be shown; or the decision for which to ask again, if that is left to do."""
        if not self.check_output:
            return cleaned(response)
        answer = yield from passable_answer(
            ready.rules, question(ready.messages), response, repairs=repairs, structured=ready.structured
        )
        if isinstance(answer, ChatResponse) and withheld_in(answer.message) is None:
            self._inputs.remember(ready.rules, answer.message)
        return answer


class GuardedFunctionCallingLLM(GuardedLLM, FunctionCallingLLM):
    """Made by `guarded` from a `FunctionCallingLLM`."""

    @classmethod
    def class_name(cls) -> str:
        return "guarded_function_calling_llm"

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        prepared: dict[str, Any] = self._inner._prepare_chat_with_tools_compat(
            tools,
            user_msg=user_msg,
            chat_history=chat_history,
            verbose=verbose,
            allow_parallel_tool_calls=allow_parallel_tool_calls,
            tool_required=tool_required,
            **kwargs,
        )
        return prepared

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, tools: Sequence[BaseTool], allow_parallel_tool_calls: bool = False, **kwargs: Any
    ) -> ChatResponse:
        checked: ChatResponse = self._inner._validate_chat_with_tools_response(
            response, tools, allow_parallel_tool_calls=allow_parallel_tool_calls, **kwargs
        )
        return checked

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        refused = withheld_in(response.message)
        if refused is not None and error_on_no_tool_call and not read(response.message).tool_calls:
            raise GuardViolation(refused, f"structured output: {refused}")
        found: list[ToolSelection] = self._inner.get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )
        return found
