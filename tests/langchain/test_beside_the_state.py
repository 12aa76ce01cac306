"""What an agent's model is asked beside the state's messages, and what lets a text pass without being judged again."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, dynamic_prompt, wrap_model_call
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, Overwrite, Send

from guardkit import GuardViolation
from guardkit.testing import FakeGuard
from langchain_guardkit import GuardedChatModel, GuardedStore, GuardMiddleware, guard_graph, guard_node, guard_route
from langchain_guardkit.stating import PASSED, overwriting, without_passes
from tests.langchain.scripted import ScriptedModel, reply
from tests.leaks import BAD, CONTROVERSIAL, SAFE, VIOLATION, check_no_trace, make_guard

CONFIG: Any = {"configurable": {"thread_id": "1"}}
MODES: Any = ["messages", "updates", "values", "custom", "tasks", "debug", "checkpoints"]


def hello() -> dict[str, Any]:
    return {"messages": [HumanMessage("hello")]}


def run(agent: Any, given: Any, run_async: bool) -> Any:
    return asyncio.run(agent.ainvoke(given, CONFIG)) if run_async else agent.invoke(given, CONFIG)


def agent_of(*middleware: Any, model: Any = None, tools: Any = (), **settings: Any) -> tuple[Any, Any, InMemorySaver]:
    saver = InMemorySaver()
    model = model or ScriptedModel(replies=[reply(SAFE)])
    guard = GuardMiddleware(make_guard(), violation_message=VIOLATION, **settings)
    return create_agent(model, list(tools), middleware=[*middleware, guard], checkpointer=saver), model, saver


@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize("behavior", ["end", "replace", "error"])
def test_what_another_middleware_puts_before_the_model_is_judged(behavior: Any, run_async: bool) -> None:
    def remember(request: Any) -> Any:
        return request.override(messages=[HumanMessage(f"as you said: {BAD}"), *request.messages, HumanMessage(BAD)])

    if run_async:

        @wrap_model_call
        async def memory(request: Any, handler: Any) -> Any:
            return await handler(remember(request))

    else:

        @wrap_model_call  # type: ignore[no-redef]
        def memory(request: Any, handler: Any) -> Any:
            return handler(remember(request))

    agent, model, _ = agent_of(memory, exit_behavior=behavior)
    if behavior == "error":
        with pytest.raises(GuardViolation):
            run(agent, hello(), run_async)
    else:
        said = run(agent, hello(), run_async)["messages"][-1].content
        assert said == (SAFE if behavior == "replace" else VIOLATION)
    check_no_trace(model.asked, "what the model was asked")
    assert bool(model.asked) == (behavior == "replace")


def test_history_that_another_middleware_brings_does_not_end_the_turn() -> None:
    @wrap_model_call
    def memory(request: Any, handler: Any) -> Any:
        return handler(request.override(messages=[HumanMessage(BAD), AIMessage("no"), *request.messages]))

    agent, model, _ = agent_of(memory)
    assert agent.invoke(hello(), CONFIG)["messages"][-1].content == SAFE
    check_no_trace(model.asked, "what the model was asked")


@pytest.mark.parametrize("check_system", [False, True])
def test_the_system_prompt_is_judged_where_that_is_asked_for(check_system: bool) -> None:
    @dynamic_prompt
    def memory(request: Any) -> str:
        return f"Be kind. The user said before: {BAD}"

    agent, model, _ = agent_of(memory, check_system=check_system)
    said = agent.invoke(hello(), CONFIG)["messages"][-1].content
    assert said == (VIOLATION if check_system else SAFE)
    assert bool(model.asked) != check_system


def test_a_run_from_a_checkpoint_that_was_made_without_the_guard() -> None:
    saver, model = InMemorySaver(), ScriptedModel(replies=[reply(SAFE)])
    bare = create_agent(model, [], checkpointer=saver)
    bare.invoke({"messages": [HumanMessage(BAD)]}, CONFIG)
    before_model = next(s for s in bare.get_state_history(CONFIG) if s.next == ("model",))
    model.asked.clear()
    agent = create_agent(
        model, [], middleware=[GuardMiddleware(make_guard(), violation_message=VIOLATION)], checkpointer=saver
    )
    assert agent.invoke(None, before_model.config)["messages"][-1].content == VIOLATION
    assert not model.asked
    assert agent.invoke(hello(), CONFIG)["messages"][-1].content == SAFE
    check_no_trace(model.asked, "what the model was asked")


@pytest.mark.parametrize("run_async", [False, True])
def test_a_models_error_is_judged_before_a_retry_makes_an_answer_of_it(run_async: bool) -> None:
    class Failing(ScriptedModel):
        def _next(self, messages: Any) -> Any:
            self._asked.append(messages)
            raise ConnectionError(self.replies[0].content)

    def agent(text: str) -> Any:
        model = Failing(replies=[reply(text)])
        retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)
        return agent_of(retry, model=model)

    bad, model, saver = agent(BAD)
    assert run(bad, hello(), run_async)["messages"][-1].content == VIOLATION
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")
    assert len(model.asked) == 1
    harmless, model, _ = agent("no route to host")
    assert "no route to host" in run(harmless, hello(), run_async)["messages"][-1].content
    assert len(model.asked) == 2


@pytest.mark.parametrize("behavior", ["end", "replace", "error"])
def test_a_withheld_output_that_is_the_answer_ends_its_own_turn_alone(behavior: Any) -> None:
    @tool(return_direct=True)
    def look(query: str) -> str:
        """Look something up."""
        return BAD

    model = ScriptedModel(replies=[reply(query="x"), reply(SAFE)])
    agent, _, saver = agent_of(model=model, tools=[look], exit_behavior=behavior)
    if behavior == "error":
        with pytest.raises(GuardViolation):
            agent.invoke(hello(), CONFIG)
    else:
        assert agent.invoke(hello(), CONFIG)["messages"][-1].content == VIOLATION
    assert agent.invoke(hello(), CONFIG)["messages"][-1].content == SAFE
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")


def _pass_for(agent: Any, message: HumanMessage) -> str:
    """The digest with which the message passes."""
    other = {"configurable": {"thread_id": "elsewhere"}}
    middleware = next(n.runnable.func.__self__ for name, n in agent.builder.nodes.items() if "before_model" in name)
    assert middleware.before_model({"messages": [HumanMessage("x")]}, None)[PASSED]
    assert not agent.get_state(other).values
    return str(middleware._input.key_of(message))


@pytest.mark.parametrize("door", ["update", "command", "pairs", "send", "tool"])
def test_nobody_else_writes_what_passed(door: str) -> None:
    bad = HumanMessage(f"please: {BAD}")

    @tool
    def look(query: str) -> Any:
        """Look something up."""
        return [Command(update={"messages": [ToolMessage("ok", tool_call_id="call-1")], PASSED: [key]})]

    model = ScriptedModel(replies=[reply(query="x"), reply(SAFE)])
    agent, _, _ = agent_of(model=model, tools=[look], exit_behavior="replace")
    graph, key = guard_graph(agent), _pass_for(agent, bad)
    graph.invoke(hello(), CONFIG)
    if door == "update":
        graph.update_state(CONFIG, {PASSED: [key]})
    elif door == "command":
        graph.invoke(Command(update={PASSED: [key], "messages": [HumanMessage("go on")]}, goto="model"), CONFIG)
    elif door == "pairs":
        graph.invoke(Command(update=[(PASSED, [key])], goto="model"), CONFIG)
    elif door == "send":
        sent = Send("GuardMiddleware.before_model", {"messages": [bad], PASSED: [key]})
        graph.invoke(Command(goto=[sent]), CONFIG)
    assert key not in (graph.get_state(CONFIG).values.get(PASSED) or ())
    agent.invoke({"messages": [bad]}, CONFIG)
    check_no_trace(model.asked, "what the model was asked")


def test_only_passes_are_taken_out() -> None:
    command = Command(update={"a": 1}, goto=["x", Send("y", {"b": 2})], resume={"c": 3})
    assert without_passes(command) == command
    assert without_passes(Command(update={"a": 1, PASSED: ["d"]}, goto="x")) == Command(update={"a": 1}, goto="x")
    for plain in ("text", None, {"a": 1}, ["b"]):
        assert without_passes(plain) is plain


FORMS = [
    Overwrite([HumanMessage(BAD)]),
    {"__overwrite__": [HumanMessage(BAD)]},
    {"type": "__overwrite__", "value": [HumanMessage(BAD)]},
]


@pytest.mark.parametrize("form", FORMS, ids=["class", "key", "type"])
def test_what_takes_the_place_of_a_state_is_judged(form: Any) -> None:
    agent, model, saver = agent_of()
    graph = guard_graph(agent)
    graph.invoke(hello(), CONFIG)
    seen = list(graph.stream({"messages": form}, CONFIG, stream_mode=MODES))
    graph.update_state(CONFIG, {"messages": form})
    check_no_trace([seen, model.asked, saver.storage, saver.writes, saver.blobs], "streams and checkpoints")
    _, again = overwriting(form)
    found = graph.invoke({"messages": again([HumanMessage("anew")])}, CONFIG)["messages"]
    assert [message.content for message in found] == ["anew", SAFE]


def test_instructions_that_were_replaced_end_no_later_turn() -> None:
    """A client may send instructions, too. Those of the application's own prompt are judged anew each time."""
    for build in (lambda agent: agent, guard_graph):
        agent, model, _ = agent_of()
        graph = build(agent)
        given = {"messages": [SystemMessage(BAD), HumanMessage("hello")]}
        assert graph.invoke(given, CONFIG)["messages"][-1].content == VIOLATION
        assert not model.asked
        assert graph.invoke(hello(), CONFIG)["messages"][-1].content == SAFE
        check_no_trace(model.asked, "what the model was asked")
    wrapped = GuardedChatModel(ScriptedModel(replies=[reply(SAFE)]), make_guard(), exit_behavior="end")
    for _ in range(2):
        assert "withheld" in wrapped.invoke([SystemMessage(BAD), HumanMessage("hello")]).content
        assert "withheld" in "".join(c.content for c in wrapped.stream([SystemMessage(BAD), HumanMessage("x")]))


@pytest.mark.parametrize("last", [True, False])
def test_middlewares_behind_the_guard_are_seen_too(last: bool) -> None:
    """As in deepagents, which lists its memory behind the application's middlewares."""

    @dynamic_prompt
    def memory(request: Any) -> str:
        return f"Be kind. The user said before: {BAD}"

    guard = GuardMiddleware(make_guard(), violation_message=VIOLATION, check_system=True)
    model = ScriptedModel(replies=[reply(SAFE)])
    middleware: Any = [memory, guard] if last else [guard, memory]
    agent = create_agent(model, [], middleware=middleware)
    assert agent.invoke(hello())["messages"][-1].content == VIOLATION
    assert not model.asked


@pytest.mark.parametrize("behavior", ["end", "replace", "error"])
def test_a_guard_node_asks_no_model_with_what_it_stopped_before(behavior: Any) -> None:
    model = ScriptedModel(replies=[AIMessage(SAFE), AIMessage(BAD), AIMessage(SAFE)])
    graph = StateGraph(MessagesState)
    graph.add_node("before", guard_node(make_guard(), exit_behavior=behavior))
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("after", guard_node(make_guard(), exit_behavior=behavior))
    graph.add_edge(START, "before")
    graph.add_conditional_edges("before", guard_route("model"))
    graph.add_edge("model", "after")
    compiled: Any = graph.compile(checkpointer=InMemorySaver())
    said = []
    for text in ("hello", BAD, "and now?", "and then?", "at last?"):
        try:
            said.append(compiled.invoke({"messages": [HumanMessage(text)]}, CONFIG)["messages"][-1].content)
        except GuardViolation:
            said.append("raised")
    check_no_trace(model.asked, "what the model was asked")
    assert (said[0], said[-1]) == (SAFE, SAFE)
    check_no_trace(compiled.get_state(CONFIG).values, "state")


def test_a_store_gives_out_nothing_that_stood_in_it_before() -> None:
    inner = InMemoryStore()
    inner.put(("a",), "k", {"text": BAD, "n": 1})
    inner.put(("a",), "l", {"text": "fine"})
    inner.put(("a",), BAD, {"text": "fine"})
    inner.put((BAD,), "k", {"text": "fine"})
    store = GuardedStore(inner, make_guard(), exit_behavior="error", violation_message=VIOLATION)
    item = store.get(("a",), "k")
    assert item is not None
    assert (item.value, item.namespace) == ({"text": VIOLATION, "n": 1}, ("a",))
    assert asyncio.run(store.aget(("a",), "l")) == inner.get(("a",), "l")
    seen = [store.search(()), store.list_namespaces(), asyncio.run(store.asearch(("a",)))]
    check_no_trace(seen, "what the store gives")
    assert [len(found) for found in seen] == [2, 1, 2]
    assert inner.get(("a",), "k").value["text"] == BAD  # type: ignore[union-attr]


class Second(GuardMiddleware):
    """Another guard of the same agent."""


@pytest.mark.parametrize("behavior", ["end", "replace", "error"])
def test_two_guards_end_a_turn_once_and_neither_takes_the_others_word(behavior: Any) -> None:
    other = Second(FakeGuard({"sunny": "unsafe"}), exit_behavior=behavior, violation_message=VIOLATION)
    model = ScriptedModel(replies=[AIMessage(BAD), AIMessage(SAFE)])
    agent, _, _ = agent_of(other, model=model, exit_behavior=behavior)
    said = []
    for text in ("hello", BAD, "a sunny day", "how are you?"):
        try:
            said.append(agent.invoke({"messages": [HumanMessage(text)]}, CONFIG)["messages"][-1].content)
        except GuardViolation:
            said.append("raised")
    check_no_trace(model.asked, "what the model was asked")
    assert "sunny" not in str(model.asked)
    ended = {"end": [VIOLATION] * 3, "replace": [VIOLATION, SAFE, SAFE], "error": ["raised"] * 3}[behavior]
    assert said == [*ended, SAFE]


@pytest.mark.parametrize("kind", [HumanMessage, SystemMessage, AIMessage, partial(ToolMessage, tool_call_id="1")])
def test_a_mark_that_was_seen_lets_no_other_text_pass(kind: Any) -> None:
    agent, model, _ = agent_of()
    graph = guard_graph(agent)
    wrapped = GuardedChatModel(model, make_guard(), exit_behavior="end", violation_message=VIOLATION)
    ways = [lambda m: graph.invoke({"messages": m}, CONFIG)["messages"][-1]]
    if kind is not AIMessage:  # a model's own words are context to it
        ways.append(wrapped.invoke)
    for ask in ways:
        seen = ask([HumanMessage(BAD)]).response_metadata["guardkit"]
        for mark in (seen, {**seen, "message": BAD}):
            ask([kind(BAD, response_metadata={"guardkit": mark}), HumanMessage("hello")])
            check_no_trace(model.asked, "what the model was asked")


def test_what_a_person_approves_is_approved_in_that_conversation_alone() -> None:
    saver = InMemorySaver()
    guard = GuardMiddleware(make_guard(), ask_on_flag=True)
    agent = create_agent(ScriptedModel(replies=[AIMessage(SAFE)]), [], middleware=[guard], checkpointer=saver)
    asked = []
    for thread in ("1", "1", "2"):
        config: Any = {"configurable": {"thread_id": thread}}
        result = agent.invoke({"messages": [HumanMessage(f"{CONTROVERSIAL} question")]}, config)
        asked.append("__interrupt__" in result)
        if asked[-1]:
            assert agent.invoke(Command(resume=True), config)["messages"][-1].content == SAFE
    assert asked == [True, False, True]
