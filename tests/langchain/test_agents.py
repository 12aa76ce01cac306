"""`GuardMiddleware` in agents: state, tools, people, sub-agents, structured output, and other middlewares."""

import asyncio
import pickle
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    ToolRetryMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import ParentCommand
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from guardkit import Guard, GuardViolation
from langchain_guardkit import GuardedChatModel, GuardMiddleware
from tests.langchain.scripted import ScriptedModel, looking_tool, reply
from tests.langchain.surfaces import AGENT_SURFACES
from tests.leaks import BAD, FLAGGED, SAFE, VIOLATION, check_no_trace, make_guard

CONFIG: Any = {"configurable": {"thread_id": "1"}}


def ask(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


def agent(replies: list[AIMessage], tools: Any = (), *, more: Any = (), **settings: Any) -> Any:
    guard = settings.pop("guard", None) or make_guard()
    settings.setdefault("violation_message", VIOLATION)
    return create_agent(
        ScriptedModel(replies=replies),
        list(tools) or [looking_tool(bad=BAD, good="sunny")],
        middleware=[*more, GuardMiddleware(guard, **settings)],
        checkpointer=InMemorySaver(),
    )


def texts(graph: Any) -> list[str]:
    return [str(m.content) for m in graph.get_state(CONFIG).values["messages"]]


def test_only_what_is_new_is_judged() -> None:
    guard = make_guard()
    graph = agent([reply("one"), reply("two")], guard=guard)
    graph.invoke(ask("first question"), CONFIG)
    before = guard.model.calls
    graph.invoke(ask("second question"), CONFIG)
    second = guard.model.calls - before
    graph.invoke(ask("third question"), CONFIG)
    assert guard.model.calls - before - second == second  # a longer history costs nothing


def test_a_streamed_answer_is_judged_once() -> None:
    def calls(system: str | None) -> int:
        guard = make_guard()
        graph = create_agent(
            ScriptedModel(replies=[reply(SAFE)]), [], middleware=[GuardMiddleware(guard)], system_prompt=system
        )
        list(graph.stream(ask("hello"), stream_mode="messages"))
        return guard.model.calls

    guard = make_guard()
    guard.decide("hello")
    list(GuardedChatModel(ScriptedModel(replies=[reply(SAFE)]), guard).stream([AIMessage("x")]))
    assert calls(None) == calls("be kind") == guard.model.calls


def test_a_scrubbed_prompt_stays_scrubbed_in_the_next_turn() -> None:
    graph = agent([reply("one")])
    graph.invoke(ask(BAD), CONFIG)
    assert texts(graph) == [VIOLATION, VIOLATION]
    graph.invoke(ask("fine"), CONFIG)
    assert texts(graph) == [VIOLATION, VIOLATION, "fine", "one"]


def test_replace_lets_the_agent_go_on_after_a_poisoned_tool() -> None:
    graph = agent([reply(query="bad"), reply("went on")], exit_behavior="replace")
    graph.invoke(ask("hello"), CONFIG)
    assert texts(graph) == ["hello", "", VIOLATION, "went on"]


def test_end_stops_after_a_poisoned_tool() -> None:
    graph = agent([reply(query="bad"), reply("went on")], exit_behavior="end")
    graph.invoke(ask("hello"), CONFIG)
    assert texts(graph) == ["hello", "", VIOLATION, VIOLATION]


@pytest.mark.parametrize("run_async", [False, True])
def test_parallel_tool_calls_are_judged_one_by_one(run_async: bool) -> None:
    calls = [{"name": "look", "args": {"query": q}, "id": q, "type": "tool_call"} for q in ("good", "bad", "else")]
    graph = agent([AIMessage("", tool_calls=calls), reply("done")], exit_behavior="replace")
    if run_async:
        asyncio.run(graph.ainvoke(ask("hello"), CONFIG))
    else:
        graph.invoke(ask("hello"), CONFIG)
    messages = graph.get_state(CONFIG).values["messages"]
    assert {m.tool_call_id: m.content for m in messages if isinstance(m, ToolMessage)} == {
        "good": "sunny",
        "bad": VIOLATION,
        "else": SAFE,
    }


def test_a_tool_call_never_runs_with_unsafe_arguments() -> None:
    ran = []

    @tool
    def look(query: str) -> str:
        """Look."""
        ran.append(query)
        return "ok"

    for behavior in ("end", "replace", "error"):
        graph = agent([reply(query=FLAGGED), reply("done")], [look], exit_behavior=behavior)
        if behavior == "error":
            with pytest.raises(GuardViolation, match="message 1: block: tool_call"):
                graph.invoke(ask("hello"), CONFIG)
        else:
            graph.invoke(ask("hello"), CONFIG)
    assert ran == []


def test_errors_name_stage_and_message_index() -> None:
    for replies, expected in (
        ([reply(BAD)], "message 1: block: response"),
        ([reply("x", reasoning=BAD)], "message 1: block: reasoning"),
        ([reply(query="bad"), reply("x")], "message 2: block: tool_output"),
    ):
        with pytest.raises(GuardViolation, match=expected):
            agent(replies, exit_behavior="error").invoke(ask("hello"), CONFIG)


@pytest.mark.parametrize(
    ("check", "replies", "prompt"),
    [
        ("check_input", [reply("fine")], BAD),
        ("check_output", [reply(BAD)], "hello"),
        ("check_reasoning", [reply("fine", reasoning=BAD)], "hello"),
        ("check_tool_calls", [reply(query=FLAGGED), reply("fine")], "hello"),
        ("check_tool_results", [reply(query="bad"), reply("fine")], "hello"),
    ],
)
def test_each_check_can_be_left_out(check: str, replies: list[AIMessage], prompt: str) -> None:
    on, off = agent(replies), agent(replies, **{check: False})
    on.invoke(ask(prompt), CONFIG)
    off.invoke(ask(prompt), CONFIG)
    check_no_trace(on.get_state(CONFIG).values, "checked")
    with pytest.raises(AssertionError):
        check_no_trace(off.get_state(CONFIG).values, "not checked")


# -- people


@pytest.mark.parametrize("answer", [True, {"type": "approve"}, False, {"type": "reject"}, None])
def test_a_person_can_approve_a_controversial_tool_call(answer: Any) -> None:
    graph = agent([reply(query="hmm"), reply("done")], ask_on_flag=True)
    graph.invoke(ask("hello"), CONFIG)
    (pending,) = graph.get_state(CONFIG).interrupts
    assert pending.value["guardkit"]["severity"] == "controversial"
    assert pending.value["content"] == {"name": "look", "args": {"query": "hmm"}}
    graph.invoke(Command(resume={pending.id: answer}), CONFIG)
    approved = answer is True or answer == {"type": "approve"}
    assert texts(graph)[2:] == ([SAFE, "done"] if approved else [VIOLATION, VIOLATION])


def test_a_person_can_approve_a_controversial_prompt() -> None:
    for answer in (True, False):
        graph = agent([reply("done")], ask_on_flag=True)
        graph.invoke(ask("hmm"), CONFIG)
        (pending,) = graph.get_state(CONFIG).interrupts
        graph.invoke(Command(resume={pending.id: answer}), CONFIG)
        assert texts(graph) == (["hmm", "done"] if answer else [VIOLATION, VIOLATION])


def test_what_a_person_edits_is_judged_again() -> None:
    people = HumanInTheLoopMiddleware(interrupt_on={"look": True})
    for edited, expected in (("good", "sunny"), (FLAGGED, VIOLATION)):
        graph = agent([reply(query="good"), reply("done")], more=[people])
        graph.invoke(ask("hello"), CONFIG)
        action = {"name": "look", "args": {"query": edited}}
        resume = Command(resume={"decisions": [{"type": "edit", "edited_action": action}]})
        graph.invoke(resume, CONFIG)
        assert texts(graph)[2].endswith(expected)  # after a note of the reviewing middleware


def test_a_tool_that_interrupts_resumes_inside_the_guard() -> None:
    @tool
    def look(query: str) -> str:
        """Ask a person."""
        return str(interrupt("what do you say?"))

    for said, expected in (("all fine", "all fine"), (BAD, VIOLATION)):
        graph = agent([reply(query="x"), reply("done")], [look], exit_behavior="replace")
        graph.invoke(ask("hello"), CONFIG)
        graph.invoke(Command(resume=said), CONFIG)
        assert texts(graph)[2] == expected


# -- structured output


class Answer(BaseModel):
    text: str


@pytest.mark.parametrize("text", [SAFE, BAD])
@pytest.mark.parametrize("strategy", ["tool", "provider"])
def test_structured_output_is_judged(strategy: str, text: str) -> None:
    if strategy == "tool":
        call = {"name": "Answer", "args": {"text": text}, "id": "1", "type": "tool_call"}
        replies, wanted = [AIMessage("", tool_calls=[call])], ToolStrategy(Answer)
    else:
        replies, wanted = [AIMessage(Answer(text=text).model_dump_json())], ProviderStrategy(Answer)
    saver = InMemorySaver()
    for tools in ([], [looking_tool()]):
        graph = create_agent(
            ScriptedModel(replies=replies),
            tools,
            response_format=wanted,
            middleware=[GuardMiddleware(make_guard(), violation_message=VIOLATION)],
            checkpointer=saver,
        )
        if text == SAFE:
            assert graph.invoke(ask("hello"), CONFIG)["structured_response"] == Answer(text=SAFE)
            continue
        try:
            result = graph.invoke(ask("hello"), CONFIG)
            assert result.get("structured_response") is None
        except Exception as error:  # the violation message is no answer of that shape
            check_no_trace(error, "error")
        check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")


def test_structured_output_of_a_guarded_model() -> None:
    call = {"name": "Answer", "args": {"text": SAFE}, "id": "1", "type": "tool_call"}
    bad = {**call, "args": {"text": BAD}}
    good, poisoned = (ScriptedModel(replies=[AIMessage("", tool_calls=[c])]) for c in (call, bad))
    assert GuardedChatModel(good, make_guard()).with_structured_output(Answer).invoke("x") == Answer(text=SAFE)
    raw = GuardedChatModel(good, make_guard()).with_structured_output(Answer, include_raw=True).invoke("x")
    assert raw["parsed"] == Answer(text=SAFE)
    with pytest.raises(GuardViolation):
        GuardedChatModel(poisoned, make_guard()).with_structured_output(Answer).invoke("x")


# -- sub-agents


@pytest.mark.parametrize("unwrapped", [False, True])
@pytest.mark.parametrize("text", [SAFE, BAD])
def test_a_sub_agent_is_guarded_as_a_tool_and_by_itself(unwrapped: bool, text: str) -> None:
    inner = create_agent(
        ScriptedModel(replies=[reply(text)], size=3),
        [],
        middleware=[GuardMiddleware(make_guard(), violation_message=VIOLATION)] if unwrapped else [],
    )

    @tool
    def delegate(task: str) -> str:
        """Ask the other agent."""
        return str(inner.invoke(ask(task))["messages"][-1].content)

    call = AIMessage("", tool_calls=[{"name": "delegate", "args": {"task": "t"}, "id": "1", "type": "tool_call"}])
    graph = agent(
        [call, reply("done")], [delegate], exit_behavior="replace", unwrapped_tools=["delegate"] if unwrapped else []
    )
    seen = list(graph.stream(ask("hello"), CONFIG, stream_mode=["messages", "updates", "values"], subgraphs=True))
    check_no_trace(seen, "the parent's streams")
    assert texts(graph)[2] == (SAFE if text == SAFE else VIOLATION)
    inside = [m for _, mode, item in seen if mode == "messages" for m in item[:1] if isinstance(m, AIMessageChunk)]
    assert ("one fine word" in "".join(str(m.content) for m in inside)) == unwrapped
    saver: Any = graph.checkpointer
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")


@pytest.mark.parametrize("unwrapped", [True, False])
def test_a_sub_agent_that_asks_a_person_resumes(unwrapped: bool) -> None:
    people = HumanInTheLoopMiddleware(interrupt_on={"look": True})
    inner_model = ScriptedModel(replies=[reply(query="good"), reply("inner is done")])
    inner = create_agent(inner_model, [looking_tool(good="sunny")], middleware=[people, GuardMiddleware(make_guard())])

    @tool
    def delegate(task: str) -> str:
        """Ask the other agent."""
        return str(inner.invoke(ask(task))["messages"][-1].content)

    call = AIMessage("", tool_calls=[{"name": "delegate", "args": {"task": "t"}, "id": "1", "type": "tool_call"}])
    graph = agent([call, reply("done")], [delegate], unwrapped_tools=["delegate"] if unwrapped else [])
    graph.invoke(ask("hello"), CONFIG)
    assert graph.get_state(CONFIG).interrupts
    graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), CONFIG)
    assert texts(graph)[2:] == ["inner is done", "done"]
    assert len(inner_model.asked) == 2  # the step that was finished is not run again


def test_a_command_from_a_tool_is_judged() -> None:
    @tool
    def look(query: str) -> Command[Any]:
        """Write to the state."""
        return Command(update={"messages": [ToolMessage(BAD, tool_call_id="call-1"), AIMessage(BAD)]})

    graph = agent([reply(query="x"), reply("done")], [look], exit_behavior="replace")
    seen = list(graph.stream(ask("hello"), CONFIG, stream_mode=["messages", "updates", "values"]))
    check_no_trace(seen, "streams")
    check_no_trace(graph.get_state(CONFIG).values, "state")


def test_artifacts_and_tool_errors_are_judged() -> None:
    @tool(response_format="content_and_artifact")
    def look(query: str) -> tuple[str, Any]:
        """Give an artifact."""
        return "fine", {"raw": [BAD if query == "bad" else SAFE]}

    for query in ("bad", "good"):
        graph = agent([reply(query=query), reply("done")], [look], exit_behavior="replace")
        graph.invoke(ask("hello"), CONFIG)
        message = graph.get_state(CONFIG).values["messages"][2]
        assert (message.content, message.artifact) == (
            (VIOLATION, None) if query == "bad" else ("fine", {"raw": [SAFE]})
        )

    @tool("look")
    def failing(query: str) -> str:
        """Fail."""
        raise ValueError(BAD)

    saver = InMemorySaver()
    guarded = create_agent(
        ScriptedModel(replies=[reply(query="x")]), [failing], middleware=[GuardMiddleware(make_guard())],
        checkpointer=saver,
    )  # fmt: skip
    assert "withheld" in guarded.invoke(ask("hello"), CONFIG)["messages"][-1].content
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")


def test_injected_arguments_work_and_carry_no_observers() -> None:
    leaky = RunnableLambda(lambda _: BAD)

    @tool
    def look(
        query: str,
        runtime: ToolRuntime,
        state: Annotated[Any, InjectedState],
        call_id: Annotated[str, InjectedToolCallId],
        config: RunnableConfig,
    ) -> str:
        """Run something by every config that a tool can get hold of."""
        for given in (runtime.config, config, None):
            leaky.invoke("x", given)
        runtime.emit_output_delta(BAD)
        return f"{query} {len(state['messages'])} {call_id} {runtime.tool_call_id}"

    for surface in ("astream_events v1", "astream_events v2", "astream_events v3", "stream_events v3", "astream_log"):
        graph = agent([reply(query="q"), reply("done")], [look])
        check_no_trace(list(AGENT_SURFACES[surface](graph, ask("hello"), CONFIG)), surface)
        assert texts(graph)[2] == "q 2 call-1 call-1"


# -- other middlewares


class Shouting(AgentMiddleware):
    """Changes what the model is asked, and looks at what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        response = handler(request)
        self.seen.append(response.result)
        return response


@pytest.mark.parametrize("last", [True, False])
def test_beside_other_middlewares(last: bool) -> None:
    shouting = Shouting()
    others: list[Any] = [shouting, ModelCallLimitMiddleware(run_limit=5), ToolRetryMiddleware(max_retries=1)]
    guard = GuardMiddleware(make_guard(), violation_message=VIOLATION)
    for text, expected in ((SAFE, SAFE), (BAD, VIOLATION)):
        graph = create_agent(
            ScriptedModel(replies=[reply(query="good"), reply(text)], size=3),
            [looking_tool(good="sunny")],
            middleware=[*others, guard] if last else [guard, *others],
            checkpointer=InMemorySaver(),
        )
        check_no_trace(list(graph.stream(ask("hello"), CONFIG, stream_mode=["messages", "values"])), "streams")
        assert texts(graph)[-1] == expected
    if last:
        check_no_trace(shouting.seen, "what an outer middleware sees")


def test_a_retry_asks_again_only_for_faults_of_the_model() -> None:
    model = ScriptedModel(replies=[reply(BAD)])
    graph = create_agent(
        model,
        [],
        middleware=[
            ModelRetryMiddleware(max_retries=2, initial_delay=0, on_failure="error"),
            GuardMiddleware(make_guard(), exit_behavior="end"),
        ],
    )
    graph.invoke(ask("hello"))
    assert len(model.asked) == 1


def test_a_fallback_model_is_guarded_where_the_guard_is_last() -> None:
    class Broken(ScriptedModel):
        def _next(self, messages: Any) -> AIMessage:
            raise ConnectionError("down")

    for guard_last in (True, False):
        fallback = ModelFallbackMiddleware(ScriptedModel(replies=[reply(BAD)], size=3))
        guard = GuardMiddleware(make_guard(), violation_message=VIOLATION)
        graph = create_agent(
            Broken(replies=[]), [], middleware=[fallback, guard] if guard_last else [guard, fallback],
            checkpointer=InMemorySaver(),
        )  # fmt: skip
        seen = list(graph.stream(ask("hello"), CONFIG, stream_mode=["messages", "updates", "values"]))
        assert texts(graph)[-1] == VIOLATION  # whatever the order, the state is clean
        if guard_last:
            check_no_trace(seen, "streams")
        else:
            with pytest.raises(AssertionError):
                check_no_trace(seen, "the wrong order")


def test_a_model_that_is_guarded_already_is_not_wrapped_again() -> None:
    guard = make_guard()
    model = GuardedChatModel(ScriptedModel(replies=[reply(BAD)]), guard, exit_behavior="end")
    graph = create_agent(model, [], middleware=[GuardMiddleware(guard)], checkpointer=InMemorySaver())
    graph.invoke(ask("hello"), CONFIG)
    assert "¶" not in texts(graph)[-1]


class Stricter(GuardMiddleware):
    """A guard of the application's own."""

    def __init__(self, guard: Any, **settings: Any):
        super().__init__(guard, exit_behavior="error", **settings)


def test_a_guard_of_ones_own_raises_as_it_was_told_and_stands_beside_another() -> None:
    for guard in (Stricter(make_guard()), pickle.loads(pickle.dumps(Stricter(Guard.load())))):
        assert isinstance(guard, Stricter)
        assert guard.name == "Stricter"
    tools = Stricter(make_guard(), check_input=False, check_output=False)
    graph = create_agent(
        ScriptedModel(replies=[reply(query="weather"), reply(BAD)]),
        [looking_tool(weather=BAD)],
        middleware=[GuardMiddleware(make_guard(), check_tool_results=False), tools],
    )
    with pytest.raises(GuardViolation, match="tool_output"):
        graph.invoke(ask("go"))


@pytest.mark.parametrize("raised", [False, True])
def test_what_a_graph_in_a_tool_hands_to_its_parent_is_judged(raised: bool) -> None:
    command: Any = Command(graph=Command.PARENT, update={"messages": [HumanMessage(BAD)]})

    def leave(state: Any) -> Any:
        if raised:
            raise ParentCommand(command)
        return command

    inner: Any = StateGraph(MessagesState).add_node("leave", leave).add_edge(START, "leave").compile()

    @tool
    def look(query: str) -> str:
        """Look."""
        return str(inner.invoke(ask("go")))

    agent = create_agent(
        ScriptedModel(replies=[reply(query="x"), reply(SAFE)]), [look], middleware=[GuardMiddleware(make_guard())]
    )
    saver = InMemorySaver()
    parent: Any = StateGraph(MessagesState).add_node("agent", agent).add_edge(START, "agent")
    graph = parent.compile(checkpointer=saver)
    seen = list(graph.stream(ask("go"), CONFIG, stream_mode=["values", "updates", "debug"], subgraphs=True))
    check_no_trace([seen, saver.storage, saver.writes, saver.blobs], "streams and checkpoints")
    assert "withheld by a safety guard" in texts(graph)[-1]
