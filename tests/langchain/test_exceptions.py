"""Where LangChain shows text before any hook runs: each exception of the leak test, and what closes it.

The first half of each test shows that the exception is real, so that it leaves the documentation when it ends.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, SummarizationMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer

from guardkit import GuardViolation
from langchain_guardkit import GuardedChatModel, GuardMiddleware, GuardRunnable, guarded_writer
from tests.langchain.scripted import ScriptedModel, looking_tool, reply
from tests.langchain.surfaces import AGENT_SURFACES, WATCHED_SURFACES
from tests.leaks import BAD, SAFE, VIOLATION, check_no_trace, make_guard

CONFIG: Any = {"configurable": {"thread_id": "1"}}
PROMPT = ChatPromptTemplate.from_messages([("human", "{question}")])


def leaks(value: Any) -> bool:
    try:
        check_no_trace(value, "value")
    except AssertionError:
        return True
    return False


def guarded_agent(saver: Any = None, tools: Any = (), model: Any = None, more: Any = ()) -> Any:
    return create_agent(
        model or ScriptedModel(replies=[reply(SAFE)]),
        list(tools),
        middleware=[*more, GuardMiddleware(make_guard(), violation_message=VIOLATION)],
        checkpointer=saver,
    )


def stored(saver: InMemorySaver) -> list[Any]:
    return [saver.storage, saver.writes, saver.blobs]


def test_the_input_checkpoint_holds_the_prompt_unless_the_guard_comes_before_the_graph() -> None:
    saver = InMemorySaver()
    graph = guarded_agent(saver)
    graph.invoke({"messages": [HumanMessage(BAD)]}, CONFIG)
    assert leaks(stored(saver))
    assert not leaks(graph.get_state(CONFIG).values)
    for behavior in ("error", "end", "replace"):
        saver = InMemorySaver()
        chain = GuardRunnable(make_guard(), exit_behavior=behavior) | guarded_agent(saver)  # type: ignore[arg-type]
        try:
            for value in ({"messages": [HumanMessage(BAD)]}, {"messages": [("user", BAD)]}):
                chain.invoke(value, CONFIG)
        except GuardViolation:
            assert behavior == "error"
        assert not leaks(stored(saver))


@pytest.mark.parametrize(
    "surface", ["stream values", "astream values", "astream_events v1", "astream_events v2", "stream_events v3"]
)
def test_raw_input_events_show_the_prompt_unless_it_is_judged_before_the_run(surface: str) -> None:
    value = {"messages": [HumanMessage(BAD)]}
    assert leaks(list(AGENT_SURFACES[surface](guarded_agent(), value, {})))
    # `guard | agent` keeps it from the agent's events, and a judged value is what the run should be started with.
    judged = GuardRunnable(make_guard(), exit_behavior="replace").invoke(value)
    assert not leaks(list(AGENT_SURFACES[surface](guarded_agent(), judged, {})))


@pytest.mark.parametrize("run_async", [False, True])
def test_a_tools_own_stream_writer_goes_past_the_guard_unless_it_is_wrapped(run_async: bool) -> None:
    guard = make_guard()

    def writing(wrapped: bool) -> Any:
        @tool
        def look(query: str) -> str:
            """Write to the custom stream."""
            writer = get_stream_writer()
            if wrapped:
                writer = guarded_writer(writer, guard, violation_message=VIOLATION)
            writer({"progress": BAD})
            writer({"progress": "half"})
            return "ok"

        return look

    surface = AGENT_SURFACES["astream custom" if run_async else "stream custom"]
    for wrapped in (False, True):
        model = ScriptedModel(replies=[reply(query="x"), reply(SAFE)])
        graph = guarded_agent(tools=[writing(wrapped)], model=model)
        seen = [item for _, item in surface(graph, {"messages": [("user", "hello")]}, {})]
        assert leaks(seen) != wrapped
        assert seen[1] == {"progress": "half"}
        if wrapped:
            assert seen[0] == {"progress": VIOLATION}


@pytest.mark.parametrize("surface", WATCHED_SURFACES)
def test_a_bare_model_before_a_guard_shows_under_events_unless_it_is_wrapped(surface: str) -> None:
    guard = make_guard()
    for size in (1, 7, 500):
        model = ScriptedModel(replies=[reply(BAD)], size=size)
        bare = PROMPT | model | GuardRunnable(guard, exit_behavior="end")
        assert leaks(list(WATCHED_SURFACES[surface](bare, {"question": "hello"}, {})))
        wrapped = PROMPT | GuardedChatModel(model, guard, exit_behavior="end")
        assert not leaks(list(WATCHED_SURFACES[surface](wrapped, {"question": "hello"}, {})))


def test_a_model_that_another_middleware_owns_shows_unless_it_is_wrapped() -> None:
    guard = make_guard()
    history = [HumanMessage("a question"), AIMessage("an answer")] * 3 + [HumanMessage("hello")]
    for wrapped in (False, True):
        own: Any = ScriptedModel(replies=[reply(BAD)], size=3)
        if wrapped:
            own = GuardedChatModel(own, guard, exit_behavior="end")
        summing = SummarizationMiddleware(model=own, trigger=("messages", 3), keep=("messages", 1))
        graph = guarded_agent(more=[summing])
        seen = list(graph.stream({"messages": history}, stream_mode=["messages", "updates"]))
        assert leaks(seen) != wrapped


def test_the_third_version_of_events_is_not_offered_by_plain_chains() -> None:
    """LangChain has it for models and graphs alone: see the next test, and the agents' leak test."""
    chain = PROMPT | GuardedChatModel(ScriptedModel(replies=[reply(BAD)]), make_guard())

    async def events() -> Any:
        return await chain.astream_events({"question": "hello"}, version="v3")  # type: ignore[misc]

    with pytest.raises(NotImplementedError, match="v3"):
        asyncio.run(events())


@pytest.mark.parametrize("run_async", [False, True])
def test_the_third_version_of_events_on_a_model(run_async: bool) -> None:
    async def aevents(model: Any) -> list[Any]:
        stream = model.astream_events("hello", version="v3")
        if asyncio.iscoroutine(stream):
            stream = await stream
        return [event async for event in stream]

    def events(model: Any) -> list[Any]:
        return list(model.stream_events("hello", version="v3"))

    for size in (1, 7, 500):
        for text in (SAFE, BAD):
            bare = ScriptedModel(replies=[reply(text)], size=size)
            model = GuardedChatModel(bare, make_guard(), exit_behavior="end")
            seen = asyncio.run(aevents(model)) if run_async else events(model)
            assert not leaks(seen)
            shown = "".join(e["delta"]["text"] for e in seen if e.get("event") == "content-block-delta")
            assert shown == SAFE if text == SAFE else shown.endswith("(response: Violent).")
            raw = asyncio.run(aevents(bare)) if run_async else events(bare)
            assert leaks(raw) == (text == BAD)


def test_text_from_a_tool_that_no_middleware_wraps_is_scrubbed_before_the_model() -> None:
    """Another middleware's answer in a tool's place, or a client's forged tool message."""
    model = ScriptedModel(replies=[reply(SAFE)])
    graph = guarded_agent(model=model, tools=[looking_tool()])
    from langchain_core.messages import ToolMessage

    call = {"name": "look", "args": {}, "id": "1", "type": "tool_call"}
    forged = [HumanMessage("hello"), AIMessage("", tool_calls=[call]), ToolMessage(BAD, tool_call_id="1")]
    result = graph.invoke({"messages": forged})
    assert not leaks(result)
    assert not leaks(model.asked)


def test_with_retry_of_a_chain_that_begins_with_another_part_asks_again() -> None:
    settings: Any = {"wait_exponential_jitter": False, "stop_after_attempt": 3}

    def asked(chain_of: Any) -> int:
        model = ScriptedModel(replies=[reply(BAD)])
        with pytest.raises(GuardViolation):
            chain_of(GuardedChatModel(model, make_guard())).invoke({"question": "go"})
        return len(model.asked)

    assert asked(lambda model: (PROMPT | model).with_retry(**settings)) == 3
    assert asked(lambda model: PROMPT | model.with_retry(**settings)) == 1
    assert asked(lambda model: (make_guard().as_runnable() | PROMPT | model).with_retry(**settings)) == 1


class Answering(AgentMiddleware):
    """Answers calls itself, such as out of a store of answers."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return AIMessage(BAD)


@pytest.mark.parametrize("guard_first", [False, True])
def test_a_middleware_that_answers_itself_is_judged_only_inside_the_guard(guard_first: bool) -> None:
    """The outer one's answer passes no hook of the guard. With the guard before it in the list, what it gives is judged
    before it enters the state; a stream of its own would be seen."""
    parts: list[Any] = [Answering(), GuardMiddleware(make_guard())]
    agent = create_agent(ScriptedModel(replies=[reply(SAFE)]), [], middleware=parts[::-1] if guard_first else parts)
    assert leaks(agent.invoke({"messages": [("user", "hi")]})) != guard_first
