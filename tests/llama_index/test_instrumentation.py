"""The handlers observe: verdicts on what events and spans report, without touching it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index.postprocessor.guardkit import GuardEventHandler, Observation, guarded
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler

from guardkit.testing import FakeGuard
from tests.leaks import BAD, FLAGGED, check_no_trace, make_guard
from tests.llama_index.doubles import FunctionLLM, PlainLLM, index_of, reply, user


@contextmanager
def observed(**settings: Any) -> Iterator[GuardEventHandler]:
    handler = GuardEventHandler(guard=settings.pop("guard", make_guard()), **settings)
    spans, root = handler.span_handler(), get_dispatcher()
    root.add_event_handler(handler)
    root.add_span_handler(spans)
    try:
        yield handler
    finally:
        root.event_handlers.remove(handler)
        root.span_handlers.remove(spans)


def found(handler: GuardEventHandler) -> set[tuple[str, str]]:
    return {(r.decision.stage.value, r.decision.action.value) for r in handler.records}


def test_llm_events():
    with observed() as handler:
        PlainLLM(BAD).chat([user(FLAGGED)])
        list(PlainLLM(f"{BAD} again").stream_chat([user("hello")]))
        PlainLLM(f"{BAD} once more").complete("hello there")
    assert {("prompt", "block"), ("prompt", "allow"), ("response", "block")} == found(handler)
    assert sum(r.decision.action.value == "block" for r in handler.records) == 4
    check_no_trace(list(handler.records), "the records")
    assert all(r.span_id for r in handler.records if "LLM" in r.source)


def test_retrieval_and_query_events():
    with observed() as handler:
        index_of("fine", BAD).as_query_engine(llm=PlainLLM("an answer"), similarity_top_k=5).query("what?")
    assert ("document", "block") in found(handler)
    assert ("document", "allow") in found(handler)
    assert ("response", "allow") in found(handler)


def test_agents_and_tools():
    def look(where: str) -> str:
        """Looks."""
        return BAD

    async def go(agent: Any) -> str:
        return str(await agent.run("look"))

    said = reply("hm", thinking="let me think", calls=[("look", {"where": "at home"})])
    with observed() as handler:
        assert asyncio.run(go(FunctionAgent(tools=[look], llm=FunctionLLM(said, "done")))) == "done"
    assert ("tool_output", "block") in found(handler)
    assert ("tool_call", "allow") in found(handler)
    with observed() as handler:
        turns = ['Thought: hm\nAction: look\nAction Input: {"where": "home"}', "Thought: ok\nAnswer: done"]
        asyncio.run(go(ReActAgent(tools=[look], llm=PlainLLM(*turns))))
    assert ("tool_output", "block") in found(handler)


def test_it_only_observes_and_a_text_is_judged_once():
    records: list[Observation] = []
    guard = FakeGuard({"bad": "unsafe"})
    with observed(guard=guard, sink=records.append):
        assert str(SimpleChatEngine.from_defaults(llm=PlainLLM("bad")).chat("bad too")) == "bad"
    assert len(records) == 2
    assert guard.model.calls == 2


def test_a_failing_sink_or_guard_does_no_harm():
    def sink(record: Observation) -> None:
        raise OSError("full")

    with observed(guard=FakeGuard({"crash": RuntimeError("boom")}), sink=sink) as handler:
        assert PlainLLM("crash").chat([user("hello")]).message.content == "crash"
    assert not all(r.decision.judged for r in handler.records)


class Everything(BaseEventHandler):
    events: list[Any] = []  # noqa: RUF012

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)


def test_instrumentation_sees_what_the_inner_llm_says():
    """An exception with a row in the docs: the dispatcher is global, and the inner LLM reports to it."""
    everything, root = Everything(), get_dispatcher()
    root.add_event_handler(everything)
    try:
        guarded(PlainLLM(BAD), make_guard()).chat([user("hello")])
    finally:
        root.event_handlers.remove(everything)
    ends = [e for e in everything.events if isinstance(e, LLMChatEndEvent)]
    assert [FLAGGED in str(e.response) for e in ends] == [True, False]  # the inner one's, the guarded one's
