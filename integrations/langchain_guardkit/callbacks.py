"""Callback handlers that observe every run and judge what they see. They cannot enforce: see the docs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from guardkit import Decision, Guard, Message, Stage
from langchain_guardkit.enforcing import (
    Enforcement,
    MessageViolation,
    worst,
)
from langchain_guardkit.growing import StringFlow, drive
from langchain_guardkit.marks import METADATA_KEY, summary
from langchain_guardkit.messages import INPUT_STAGES, MessageGuard
from langchain_guardkit.reading import call_text, read
from langchain_guardkit.streaming import OUTPUT_STAGES, ChunkFlow
from langchain_guardkit.values import decide_leaves, leaves_of


@dataclass(frozen=True)
class Observation:
    """One decision about one run. event: the callback that saw the text, such as "on_tool_end"."""

    run_id: UUID
    event: str
    decision: Decision


class _Observer:
    """What both handlers do, synchronously."""

    def __init__(self, guard: Guard, sink: Callable[[Observation], object] | None, raise_on_violation: bool, keep: int):
        self._enforcement = Enforcement(guard)
        self._sink, self._raises, self._keep = sink, raise_on_violation, keep
        self._input = MessageGuard(self._enforcement, INPUT_STAGES)
        self._output = MessageGuard(self._enforcement, OUTPUT_STAGES)
        self._flows: dict[UUID, ChunkFlow | StringFlow] = {}
        self._metadata: dict[UUID, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self.observations: list[Observation] = []

    def start(self, run_id: UUID, metadata: dict[str, Any] | None) -> None:
        if metadata is not None:
            self._metadata[run_id] = metadata

    def messages(self, run_id: UUID, event: str, messages: Sequence[Sequence[BaseMessage]]) -> None:
        for batch in messages:
            for found in self._input.decide_input(batch):
                self.record(run_id, event, found.decision, found.index)

    def text(self, run_id: UUID, event: str, text: str, stage: Stage) -> None:
        self.record(run_id, event, self._enforcement.guard.decide(text, stage=stage))

    def token(self, run_id: UUID, token: Any, chunk: Any) -> None:
        message = getattr(chunk, "message", None)
        flow = self._flows.get(run_id)
        if isinstance(message, AIMessageChunk):
            if flow is None:
                flow = self._flows[run_id] = ChunkFlow(self._enforcement, judged=self._output.judged)
            if isinstance(flow, ChunkFlow) and flow.decision is None:
                drive(flow.push(message))
        elif isinstance(token, str):
            if flow is None:
                flow = self._flows[run_id] = StringFlow(self._enforcement, Stage.response)
            if isinstance(flow, StringFlow) and flow.decision is None:
                drive(flow.push(token))
        if flow is not None and flow.decision is not None and self._flows.pop(run_id, None) is not None:
            flow.close()
            self.record(run_id, "on_llm_new_token", flow.decision)

    def answers(self, run_id: UUID, response: LLMResult) -> None:
        flow = self._flows.pop(run_id, None)
        if flow is not None:
            _finished(flow)
            decision = flow.decision_so_far
            flow.close()
            if decision is not None:
                self.record(run_id, "on_llm_end", decision)
            return
        items: list[list[Message]] = []
        for generation in (g for candidates in response.generations for g in candidates):
            message = getattr(generation, "message", None) if isinstance(generation, ChatGeneration) else None
            items.append([read(message) if isinstance(message, AIMessage) else Message("assistant", generation.text)])
        for decision in self._enforcement.guard.decide_batch(items):
            self.record(run_id, "on_llm_end", decision)

    def tool_call(self, run_id: UUID, serialized: Any, input_str: str, inputs: Any) -> None:
        name = str((serialized or {}).get("name", ""))
        call = Message("assistant", tool_calls=(call_text(name, inputs if inputs is not None else input_str),))
        self.record(run_id, "on_tool_start", self._enforcement.guard.decide([call]))

    def tool_output(self, run_id: UUID, output: Any) -> None:
        leaves = leaves_of(output, None if isinstance(output, ToolMessage) else Stage.tool_output)
        for decision in decide_leaves(self._enforcement, [leaves])[0]:
            self.record(run_id, "on_tool_end", decision)

    def documents(self, run_id: UUID, documents: Sequence[Document]) -> None:
        leaves = leaves_of(list(documents), Stage.document)
        decisions = decide_leaves(self._enforcement, [leaves])[0]
        if decisions:
            self.record(run_id, "on_retriever_end", worst(decisions), decisions.index(worst(decisions)))

    def forget(self, run_id: UUID) -> None:
        flow = self._flows.pop(run_id, None)
        if flow is not None:
            flow.close()
        self._metadata.pop(run_id, None)

    def record(self, run_id: UUID, event: str, decision: Decision, index: int | None = None) -> None:
        observation = Observation(run_id, event, decision)
        with self._lock:
            self.observations.append(observation)
            del self.observations[: -self._keep]
        metadata = self._metadata.get(run_id)
        if metadata is not None:
            before = metadata.get(METADATA_KEY)
            if not isinstance(before, dict) or before["action"] not in ("block", "redact"):
                metadata[METADATA_KEY] = summary(decision)
        if self._sink is not None:
            self._sink(observation)
        if self._raises and decision.action.stops:
            raise MessageViolation(decision, index)


def _finished(flow: ChunkFlow | StringFlow) -> None:
    if isinstance(flow, ChunkFlow):
        drive(flow.finish())
    else:
        drive(flow.finish())


class GuardCallbackHandler(BaseCallbackHandler):
    """Observes prompts, tokens, reasoning, tool calls, tool outputs and retrieved documents, and judges them.

    sink: a callable that gets each `Observation`; the newest `keep` are also in `observations`, and the run's metadata
    carries the worst ("guardkit"). Nothing is withheld: when a callback runs, others may have seen the text, and
    LangChain swallows what a handler raises unless it asks otherwise. With `raise_on_violation` it does, which ends the
    run late. To keep text from being seen, use `GuardedChatModel`, `GuardMiddleware` or `GuardRunnable`.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        sink: Callable[[Observation], object] | None = None,
        raise_on_violation: bool = False,
        keep: int = 1000,
    ):
        self._observer = _Observer(guard, sink, raise_on_violation, keep)
        self.raise_error = raise_on_violation

    @property
    def observations(self) -> list[Observation]:
        return self._observer.observations

    def on_chat_model_start(
        self, serialized: Any, messages: list[list[BaseMessage]], *, run_id: UUID, metadata: Any = None, **_: Any
    ) -> None:
        self._observer.start(run_id, metadata)
        self._observer.messages(run_id, "on_chat_model_start", messages)

    def on_llm_start(
        self, serialized: Any, prompts: list[str], *, run_id: UUID, metadata: Any = None, **_: Any
    ) -> None:
        self._observer.start(run_id, metadata)
        for prompt in prompts:
            self._observer.text(run_id, "on_llm_start", prompt, Stage.prompt)

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **_: Any) -> None:
        self._observer.token(run_id, token, chunk)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        try:
            self._observer.answers(run_id, response)
        finally:
            self._observer.forget(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self._observer.forget(run_id)

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, metadata: Any = None, inputs: Any = None, **_: Any
    ) -> None:
        self._observer.start(run_id, metadata)
        self._observer.tool_call(run_id, serialized, input_str, inputs)

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        try:
            self._observer.tool_output(run_id, output)
        finally:
            self._observer.forget(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self._observer.forget(run_id)

    def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, metadata: Any = None, **_: Any) -> None:
        self._observer.start(run_id, metadata)
        self._observer.text(run_id, "on_retriever_start", query, Stage.prompt)

    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **_: Any) -> None:
        try:
            self._observer.documents(run_id, documents)
        finally:
            self._observer.forget(run_id)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self._observer.forget(run_id)


class AsyncGuardCallbackHandler(AsyncCallbackHandler):
    """The async twin of `GuardCallbackHandler`; the guard runs off the event loop."""

    def __init__(
        self,
        guard: Guard,
        *,
        sink: Callable[[Observation], object] | None = None,
        raise_on_violation: bool = False,
        keep: int = 1000,
    ):
        self._handler = GuardCallbackHandler(guard, sink=sink, raise_on_violation=raise_on_violation, keep=keep)
        self.raise_error = raise_on_violation

    @property
    def observations(self) -> list[Observation]:
        return self._handler.observations

    async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._handler.on_chat_model_start, *args, **kwargs)

    async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._handler.on_llm_start, *args, **kwargs)

    async def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._handler.on_llm_new_token, *args, **kwargs)

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._handler.on_llm_end, *args, **kwargs)

    async def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
        self._handler.on_llm_error(*args, **kwargs)

    async def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._handler.on_tool_start, *args, **kwargs)

    async def on_tool_end(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._handler.on_tool_end, *args, **kwargs)

    async def on_tool_error(self, *args: Any, **kwargs: Any) -> None:
        self._handler.on_tool_error(*args, **kwargs)

    async def on_retriever_start(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._handler.on_retriever_start, *args, **kwargs)

    async def on_retriever_end(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._handler.on_retriever_end, *args, **kwargs)

    async def on_retriever_error(self, *args: Any, **kwargs: Any) -> None:
        self._handler.on_retriever_error(*args, **kwargs)
