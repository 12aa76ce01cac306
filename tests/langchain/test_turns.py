"""A blocked turn ends that turn, once: histories, retries, approvals, sub-graphs, structured output."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, ToolRetryMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda, RunnableSequence
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from guardkit import GuardViolation
from langchain_guardkit import GuardedChatModel, GuardedTool, GuardMiddleware, GuardRunnable, MessageViolation
from tests.langchain.scripted import ScriptedModel, looking_tool, reply
from tests.leaks import BAD, FLAGGED, SAFE, VIOLATION, check_no_trace, make_guard

CONFIG: Any = {"configurable": {"thread_id": "1"}}
BEHAVIORS = ("error", "end", "replace")


def ask(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


def agent(replies: list[AIMessage], tools: Any = (), more: Any = (), saver: Any = None, **settings: Any) -> Any:
    settings.setdefault("violation_message", VIOLATION)
    return create_agent(
        ScriptedModel(replies=replies),
        list(tools),
        middleware=[*more, GuardMiddleware(make_guard(), **settings)],
        checkpointer=saver or InMemorySaver(),
    )


HISTORIES: dict[str, list[BaseMessage]] = {
    "a refused turn": [HumanMessage(BAD), AIMessage(VIOLATION), HumanMessage("and now?")],
    "a turn without an answer": [HumanMessage(BAD), HumanMessage("and now?")],
    "an old tool output": [
        HumanMessage("hello"),
        AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}]),
        {"role": "tool", "content": BAD, "tool_call_id": "1"},  # type: ignore[list-item]
        AIMessage("x"),
        HumanMessage("and now?"),
    ],
}


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("kind", HISTORIES)
def test_earlier_turns_are_replaced_and_the_new_one_is_answered(kind: str, behavior: Any) -> None:
    model = ScriptedModel(replies=[reply("fine")])
    guarded = GuardedChatModel(model, make_guard(), exit_behavior=behavior, violation_message=VIOLATION)
    history = HISTORIES[kind]
    assert guarded.invoke(history).content == "fine"
    assert "".join(str(c.content) for c in guarded.stream(history)) == "fine"
    assert asyncio.run(guarded.ainvoke(history)).content == "fine"
    check_no_trace(model.asked, "what the model was asked")
    graph = create_agent(model, [looking_tool()], middleware=[GuardMiddleware(make_guard(), exit_behavior=behavior)])
    result = graph.invoke({"messages": history})
    assert result["messages"][-1].content == "fine"
    check_no_trace(result, "state")
    settled = GuardRunnable(make_guard(), exit_behavior=behavior).invoke(
        graph.invoke({"messages": history})["messages"]
    )
    assert settled[-1].content == "fine"


@pytest.mark.parametrize("behavior", ["error", "end"])
def test_instructions_belong_to_every_turn(behavior: Any) -> None:
    model = ScriptedModel(replies=[reply("fine")])
    guarded = GuardedChatModel(model, make_guard(), exit_behavior=behavior)
    messages = [SystemMessage(BAD), HumanMessage("hello")]
    if behavior == "error":
        with pytest.raises(GuardViolation, match="message 0"):
            guarded.invoke(messages)
    else:
        assert "withheld" in str(guarded.invoke(messages).content)
    assert not model.asked


@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize("stage", ["prompt", "answer", "tool_call", "tool_output"])
def test_an_error_leaves_a_clean_state_and_the_next_turn_works(stage: str, run_async: bool) -> None:
    fine = AIMessage("fine")
    bad = {
        "prompt": [fine],
        "answer": [AIMessage(BAD), fine],
        "tool_call": [reply(query=FLAGGED), fine],
        "tool_output": [reply(query="bad"), fine],
    }[stage]
    graph = agent(bad, [looking_tool(bad=BAD)], exit_behavior="error")

    def invoke(text: str) -> Any:
        return asyncio.run(graph.ainvoke(ask(text), CONFIG)) if run_async else graph.invoke(ask(text), CONFIG)

    with pytest.raises(MessageViolation) as caught:
        invoke(BAD if stage == "prompt" else "hello")
    assert caught.value.stage.value == {"answer": "response"}.get(stage, stage)
    assert pickle.loads(pickle.dumps(caught.value)).message_index == caught.value.message_index
    check_no_trace(graph.get_state(CONFIG).values, "state")
    assert invoke("and now?")["messages"][-1].content == "fine"
    assert invoke("and the date?")["messages"][-1].content == "fine"


@pytest.mark.parametrize("guard_last", [True, False])
@pytest.mark.parametrize("failing", [True, False])
@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_a_tool_runs_once_whatever_the_guard_says_of_its_output(behavior: Any, failing: bool, guard_last: bool) -> None:
    paid = []

    @tool
    def pay(query: str) -> str:
        """Pay."""
        paid.append(query)
        if failing:
            raise ValueError(BAD)
        return BAD

    retry = ToolRetryMiddleware(max_retries=3, initial_delay=0, retry_on=lambda error: True)
    guard = GuardMiddleware(make_guard(), exit_behavior=behavior, violation_message=VIOLATION)
    graph = create_agent(
        ScriptedModel(replies=[reply(query="1", name="pay"), reply("done")]),
        [pay],
        middleware=[retry, guard] if guard_last else [guard, retry],
        checkpointer=InMemorySaver(),
    )
    if behavior == "error":
        with pytest.raises(GuardViolation):
            graph.invoke(ask("go"), CONFIG)
    else:
        last = graph.invoke(ask("go"), CONFIG)["messages"][-1].content
        assert last == ("done" if behavior == "replace" else VIOLATION)
    assert len(paid) == 1
    check_no_trace(graph.get_state(CONFIG).values, "state")


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_a_model_is_not_asked_again_because_of_a_violation(behavior: Any) -> None:
    model = ScriptedModel(replies=[reply(BAD)])
    retry = ModelRetryMiddleware(max_retries=3, initial_delay=0, retry_on=lambda error: True)
    graph = create_agent(model, [], middleware=[retry, GuardMiddleware(make_guard(), exit_behavior=behavior)])
    try:
        graph.invoke(ask("go"))
    except GuardViolation:
        assert behavior == "error"
    assert len(model.asked) == 1
    retried = GuardedChatModel(model, make_guard(), exit_behavior=behavior).with_retry(
        wait_exponential_jitter=False, stop_after_attempt=3
    )
    try:
        retried.invoke("go")
    except GuardViolation:
        assert behavior == "error"
    assert len(model.asked) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "chain_of",
    [
        lambda model: model | StrOutputParser(),
        lambda model: model | StrOutputParser() | str.upper,
        lambda model: (lambda said: said) | model | StrOutputParser(),
        lambda model: {"said": lambda said: said} | (RunnableLambda(lambda d: d["said"]) | model.with_retry()),
        lambda model: (model | StrOutputParser()).with_config(tags=["x"]),
        lambda model: model.bind(stop=["x"]),
        lambda model: make_guard().as_runnable() | (RunnableLambda(lambda said: said) | model),
    ],
)
def test_a_chain_is_not_run_again_because_of_a_violation(chain_of: Any, asynchronous: bool) -> None:
    model = ScriptedModel(replies=[reply(BAD)])
    chain = chain_of(GuardedChatModel(model, make_guard()))
    if type(chain) is not RunnableSequence:
        chain = chain.with_retry(wait_exponential_jitter=False, stop_after_attempt=3)
    with pytest.raises(GuardViolation):
        asyncio.run(chain.ainvoke("go")) if asynchronous else chain.invoke("go")
    assert len(model.asked) == 1


def test_other_faults_are_still_tried_again() -> None:
    calls = []

    def fail(said: str) -> str:
        calls.append(said)
        raise ValueError("not now")

    model = GuardedChatModel(ScriptedModel(replies=[reply(SAFE)]), make_guard())
    with pytest.raises(ValueError, match="not now"):
        (model | StrOutputParser() | fail).with_retry(wait_exponential_jitter=False).invoke("go")
    assert len(calls) == 3


def test_a_guarded_tool_is_not_tried_again() -> None:
    ran = []

    @tool
    def look(query: str) -> str:
        """Look."""
        ran.append(query)
        return BAD

    guarded = GuardedTool(look, make_guard(), exit_behavior="error")
    with pytest.raises(GuardViolation):
        guarded.with_retry(wait_exponential_jitter=False).invoke({"query": "x"})
    assert len(ran) == 1


def test_a_node_that_langgraph_retries_is_not_run_again() -> None:
    from langgraph.types import RetryPolicy

    model = ScriptedModel(replies=[reply(BAD)])
    guarded = GuardedChatModel(model, make_guard())
    graph: Any = StateGraph(MessagesState)
    graph.add_node(
        "model",
        lambda state: {"messages": [guarded.invoke(state["messages"])]},
        retry_policy=RetryPolicy(initial_interval=0.01),
    )
    graph.add_edge(START, "model")
    with pytest.raises(GuardViolation):
        graph.compile().invoke(ask("go"))
    assert len(model.asked) == 1


@pytest.mark.parametrize("text", [SAFE, BAD])
def test_a_sub_graph_in_a_tool_keeps_its_checkpoints_judged(text: str) -> None:
    steps = []

    def first(state: Any) -> Any:
        steps.append("first")
        return {"messages": [AIMessage(text)]}

    def second(state: Any) -> Any:
        return {"messages": [AIMessage(f"said {interrupt('go on?')}")]}

    builder: Any = StateGraph(MessagesState)
    builder.add_node("first", first)
    builder.add_node("second", second)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    inner = builder.compile()

    @tool
    def delegate(query: str) -> str:
        """Run the graph."""
        return str(inner.invoke(ask(query))["messages"][-1].content)

    saver = InMemorySaver()
    graph = agent([reply(query="x", name="delegate"), reply("done")], [delegate], saver=saver, exit_behavior="replace")
    graph.invoke(ask("hello"), CONFIG)
    result = graph.invoke(Command(resume="yes"), CONFIG)
    assert [m.content for m in result["messages"][2:]] == ["said yes", "done"]
    assert steps == ["first"]
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")


def test_what_a_tool_asks_a_person_is_judged() -> None:
    @tool
    def look(query: str) -> str:
        """Ask."""
        return str(interrupt({"question": BAD, "options": ["a", "b"]}))

    saver = InMemorySaver()
    graph = agent([reply(query="x"), reply("done")], [look], saver=saver, exit_behavior="replace")
    seen = list(graph.stream(ask("hello"), CONFIG, stream_mode=["updates", "values"]))
    check_no_trace(seen, "streams")
    (pending,) = graph.get_state(CONFIG).interrupts
    assert pending.value == {"question": VIOLATION, "options": ["a", "b"]}
    assert graph.invoke(Command(resume="fine"), CONFIG)["messages"][2].content == "fine"
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")


def test_another_worker_neither_asks_nor_judges_again() -> None:
    saver = InMemorySaver()
    asked, calls = [], []
    for text in ("hmm question", "plain question", "another one"):
        guard = make_guard()
        graph = create_agent(
            ScriptedModel(replies=[reply("fine")]), [], middleware=[GuardMiddleware(guard, ask_on_flag=True)],
            checkpointer=saver,
        )  # fmt: skip
        result, n = graph.invoke(ask(text), CONFIG), 0
        while "__interrupt__" in result:
            n += 1
            result = graph.invoke(Command(resume=True), CONFIG)
        asked.append(n)
        calls.append(guard.model.calls)
    assert asked == [1, 0, 0]
    assert calls[1] == calls[2]  # however long the history is


class Answer(BaseModel):
    text: str


@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("strategy", ["tool", "provider"])
@pytest.mark.parametrize("tools", [False, True])
def test_structured_output_has_a_blocked_result(strategy: str, behavior: Any, tools: bool) -> None:
    if strategy == "tool":
        call = {"name": "Answer", "args": {"text": BAD}, "id": "1", "type": "tool_call"}
        replies, wanted = [AIMessage("", tool_calls=[call])], ToolStrategy(Answer)
    else:
        replies, wanted = [AIMessage(Answer(text=BAD).model_dump_json())], ProviderStrategy(Answer)  # type: ignore[assignment]
    model = ScriptedModel(replies=replies)
    graph = create_agent(
        model,
        [looking_tool()] if tools else [],
        response_format=wanted,
        middleware=[GuardMiddleware(make_guard(), exit_behavior=behavior, violation_message=VIOLATION)],
    )
    if behavior == "error":
        with pytest.raises(MessageViolation):
            graph.invoke(ask("go"))
    else:
        result = graph.invoke(ask("go"))
        assert result.get("structured_response") is None
        assert result["messages"][-1].content == VIOLATION
        assert result["messages"][-1].response_metadata["guardkit"]["action"] == "block"
    assert len(model.asked) == 1


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_structured_output_of_a_model_raises_a_violation_and_no_parsing_error(behavior: Any) -> None:
    call = {"name": "Answer", "args": {"text": BAD}, "id": "1", "type": "tool_call"}
    model = GuardedChatModel(
        ScriptedModel(replies=[AIMessage("", tool_calls=[call])]), make_guard(), exit_behavior=behavior
    )
    with pytest.raises(MessageViolation):
        model.with_structured_output(Answer).invoke("go")
    with pytest.raises(MessageViolation):
        list(model.with_structured_output(Answer).stream("go"))
    raw = model.with_structured_output(Answer, include_raw=True)
    if behavior != "error":
        result: Any = raw.invoke("go")
        assert isinstance(result["parsing_error"], MessageViolation)
        assert result["parsed"] is None
        check_no_trace(result, "raw")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("behavior", ["end", "replace", "error"])
def test_a_message_history_keeps_no_blocked_prompt(behavior: Any) -> None:
    history = InMemoryChatMessageHistory()
    model = GuardedChatModel(ScriptedModel(replies=[reply(SAFE)]), make_guard(), exit_behavior=behavior)
    chain: Any = RunnableWithMessageHistory(model, lambda session_id: history)
    for text in (BAD, "and now?"):
        try:
            chain.invoke([HumanMessage(text)], {"configurable": {"session_id": "1"}})
        except GuardViolation:
            assert (text, behavior) == (BAD, "error")
    check_no_trace(history.messages, "history")
    assert history.messages[-1].content == SAFE
