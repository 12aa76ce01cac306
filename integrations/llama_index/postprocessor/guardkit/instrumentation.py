"""Observation without enforcement: verdicts on what LlamaIndex's instrumentation reports.

handler = GuardEventHandler(guard=guard, sink=print)
dispatcher = get_dispatcher()
dispatcher.add_event_handler(handler)
dispatcher.add_span_handler(handler.span_handler())
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llama_index.core.agent.workflow import AgentInput, AgentOutput, ToolCall, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.instrumentation.events import agent, llm, query, rerank, retrieval, synthesis
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.tools import ToolOutput
from llama_index.postprocessor.guardkit.guards import GuardField, Source
from llama_index.postprocessor.guardkit.messages import call_text, read
from llama_index.postprocessor.guardkit.rules import GuardEvent, bare
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.span import SimpleSpan
from llama_index_instrumentation.span_handlers.base import BaseSpanHandler

from guardkit import Decision, Guard, Message, Stage

_REMEMBERED = 4096
_log = logging.getLogger("guardkit.llama_index")
_Found = tuple[Message, Stage | None]


@dataclass(frozen=True)
class Observation:
    """A decision on a text that went by. source: the event's or the span's name; the text itself is not kept."""

    source: str
    span_id: str | None
    decision: Decision


class GuardEventHandler(BaseEventHandler):
    """Records a decision for every prompt, answer, tool call, tool output and node that events report.

    It observes: events are dispatched when things have happened, and the dispatcher swallows what a handler raises.
    sink: called with each `Observation`; records: the newest ones. A text that comes by in several events is judged
    once and recorded once. It judges in the thread that dispatches, and so takes the time of a `decide`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    guard: GuardField
    sink: Callable[[Observation], object] | None = Field(default=None, exclude=True)
    records: deque[Observation] = Field(default_factory=lambda: deque(maxlen=10_000), exclude=True)

    _seen: OrderedDict[int, None] = PrivateAttr(default_factory=OrderedDict)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, guard: Guard | Source, **fields: Any) -> None:
        super().__init__(guard=guard, **fields)  # type: ignore[call-arg]

    @classmethod
    def class_name(cls) -> str:
        return "GuardEventHandler"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if not isinstance(event, GuardEvent):
            self.observe(type(event).__name__, event.span_id, list(_of_event(event)))

    async def ahandle(self, event: BaseEvent, **kwargs: Any) -> None:
        import asyncio

        await asyncio.to_thread(self.handle, event)

    def span_handler(self) -> GuardSpanHandler:
        """A handler for spans that records here: tool outputs and agents' steps are no events, but spans."""
        return GuardSpanHandler(self)

    def observe(self, source: str, span_id: str | None, found: list[_Found]) -> None:
        for stage in {stage for _, stage in found}:
            items = [[m] for m, s in found if s is stage and self._is_new(m, s)]
            try:
                decisions = self.guard.decide_batch(items, stage=stage) if items else []
                for decision in decisions:
                    record = Observation(source, span_id, bare(decision))
                    self.records.append(record)
                    if self.sink is not None:
                        self.sink(record)
            except Exception:  # the dispatcher would swallow it without a word
                _log.exception("%s was not observed", source)

    def _is_new(self, message: Message, stage: Stage | None) -> bool:
        key = hash((message, stage))
        with self._lock:
            known = key in self._seen
            self._seen[key] = None
            self._seen.move_to_end(key)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return not known


class GuardSpanHandler(BaseSpanHandler[SimpleSpan]):
    """Made by `GuardEventHandler.span_handler`."""

    _handler: GuardEventHandler = PrivateAttr()

    def __init__(self, handler: GuardEventHandler):
        super().__init__()
        self._handler = handler

    @classmethod
    def class_name(cls) -> str:
        return "GuardSpanHandler"

    def new_span(self, *args: Any, **kwargs: Any) -> SimpleSpan | None:
        return None

    def prepare_to_exit_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        result: Any | None = None,
        **kwargs: Any,
    ) -> SimpleSpan | None:
        self._handler.observe(id_.rpartition("-")[0].split("-")[0], id_, list(_of_result(result)))
        return None

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> SimpleSpan | None:
        return None


def _of_event(event: BaseEvent) -> Iterator[_Found]:
    """What is to be judged in an event, each part at its stage."""
    if isinstance(event, llm.LLMChatStartEvent):
        yield from (_message(m) for m in event.messages if m.role.value not in ("system", "developer"))
    elif isinstance(event, llm.LLMChatEndEvent | llm.LLMCompletionEndEvent):
        yield from _of_result(event.response)
    elif isinstance(event, llm.LLMCompletionStartEvent):
        yield _text(event.prompt, Stage.prompt)
    elif isinstance(event, llm.LLMStructuredPredictEndEvent):
        yield _text(str(event.output), Stage.response)
    elif isinstance(event, retrieval.RetrievalEndEvent | rerank.ReRankEndEvent):
        yield from _of_result(event.nodes)
    elif isinstance(event, query.QueryStartEvent):
        asked = event.query
        yield _text(asked.query_str if isinstance(asked, QueryBundle) else asked, Stage.prompt)
    elif isinstance(event, query.QueryEndEvent | synthesis.SynthesizeEndEvent):
        yield from _of_result(event.response)
    elif isinstance(event, agent.AgentToolCallEvent):
        call = call_text(event.tool.name or "", event.arguments)
        yield Message("assistant", tool_calls=(call,)), None
    elif isinstance(event, agent.AgentRunStepStartEvent):
        if event.input:
            yield _text(event.input, Stage.prompt)
    elif isinstance(event, agent.AgentChatWithStepStartEvent):
        yield _text(event.user_msg, Stage.prompt)
    elif isinstance(event, agent.AgentRunStepEndEvent):
        yield from _of_result(event.step_output)
    elif isinstance(event, agent.AgentChatWithStepEndEvent):
        yield from _of_result(event.response)


def _of_result(result: Any) -> Iterator[_Found]:
    """What is to be judged in what a step, a tool or an engine gave."""
    if isinstance(result, ToolCallResult):
        result = result.tool_output
    if isinstance(result, ToolOutput):
        yield read(ChatMessage(role="tool", blocks=result.blocks)), None
    elif isinstance(result, ToolCall):
        yield Message("assistant", tool_calls=(call_text(result.tool_name, result.tool_kwargs),)), None
    elif isinstance(result, AgentInput):
        yield from (_message(m) for m in result.input if m.role.value not in ("system", "developer"))
    elif isinstance(result, AgentOutput):
        yield _message(result.response)
        for call in result.tool_calls:
            yield Message("assistant", tool_calls=(call_text(call.tool_name, call.tool_kwargs),)), None
    elif isinstance(result, ChatResponse):
        yield _message(result.message)
    elif isinstance(result, AgentChatResponse | Response | PydanticResponse):
        yield _text(str(result), Stage.response)
    elif isinstance(result, list):
        for node in result:
            if isinstance(node, NodeWithScore):
                yield _text(node.get_content(MetadataMode.LLM), Stage.document)
    elif hasattr(result, "text") and isinstance(result.text, str):  # a completion
        yield _text(result.text, Stage.response)


def _message(message: ChatMessage) -> _Found:
    return read(message), None


def _text(text: str, stage: Stage) -> _Found:
    if stage is Stage.response:
        return Message("assistant", text), None
    return Message("user", text), stage
