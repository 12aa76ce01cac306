"""Agents and workflows: nothing flagged in events, results, memories or checkpoints."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from llama_index.core.agent.workflow import (
    AgentOutput,
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    ToolCall,
    ToolCallResult,
)
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool, QueryEngineTool, ToolMetadata, ToolOutput
from llama_index.core.tools.types import BaseTool
from llama_index.core.workflow import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from llama_index.postprocessor.guardkit import GuardMemory, guard_step, guarded, guarded_tools
from pydantic import BaseModel

from guardkit import GuardkitError, GuardViolation
from guardkit.testing import FakeGuard
from tests.leaks import BAD, FLAGGED, SAFE, SIZES, VIOLATION, check_no_trace, make_guard
from tests.llama_index.doubles import FunctionLLM, PlainLLM, Reply, index_of, reply, user

EXITS = ("error", "end", "replace")
SURFACES = ("prompt", "answer", "reasoning", "tool call", "tool output", "tool error")
KINDS = ("function", "react", "workflow")


class Told(Event):
    text: str


def look(where: str) -> str:
    """Looks somewhere."""
    if where == "error":
        raise ValueError(f"not there: {BAD}")
    return BAD if where == "bad" else f"found {where}"


def script(kind: str, surface: str) -> list[Reply]:
    """What the model says, turn by turn, when `surface` is bad."""
    where = {"tool output": "bad", "tool error": "error"}.get(surface, BAD if surface == "tool call" else "home")
    if kind == "react":
        action = (
            f'Thought: {BAD if surface == "reasoning" else "look"}\nAction: look\nAction Input: {{"where": "{where}"}}'
        )
        return [action, f"Thought: done\nAnswer: {BAD if surface == 'answer' else SAFE}"]
    thinking = BAD if surface == "reasoning" else ""
    called = reply("let me see", thinking=thinking, calls=[("look", {"where": where})])
    return [called, BAD if surface == "answer" else SAFE]


def agent_of(kind: str, surface: str, size: int, exit_behavior: Any, streaming: bool, guard: FakeGuard | None = None):
    guard = guard or make_guard()
    inner = (PlainLLM if kind == "react" else FunctionLLM)(*script(kind, surface), size=size)
    llm = guarded(inner, guard, exit_behavior=exit_behavior, violation_message=VIOLATION)
    tools = guarded_tools([look], guard, exit_behavior=exit_behavior, violation_message=VIOLATION)
    agent = (ReActAgent if kind == "react" else FunctionAgent)(
        name="a", description="an agent", tools=tools, llm=llm, streaming=streaming
    )
    return (AgentWorkflow(agents=[agent], root_agent="a") if kind == "workflow" else agent), inner


async def run_agent(
    agent: Any, prompt: str, guard: FakeGuard, exit_behavior: Any = "end"
) -> tuple[list[Any], Any, list[Any], dict[str, Any]]:
    """Events, result or error, memory, checkpoint."""
    kept = "error" if exit_behavior == "error" else "replace"
    memory = GuardMemory(
        memory=ChatMemoryBuffer.from_defaults(), guard=guard, violation_message=VIOLATION, exit_behavior=kept
    )
    ctx = Context(agent)
    handler = agent.run(user_msg=prompt, memory=memory, ctx=ctx, max_iterations=5)
    events, result = [], None
    try:
        async for event in handler.stream_events():
            events.append(event)
        result = await handler
    except GuardViolation as error:
        result = error
    except Exception as error:
        if "iterations" not in str(error):
            raise
        result = error
    return events, result, memory.get_all(), {k: str(v) for k, v in ctx.to_dict().items()}


@pytest.mark.parametrize("size", [1, 7, len(BAD)])
@pytest.mark.parametrize("exit_behavior", EXITS)
@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_flagged_leaves_an_agent(kind: str, streaming: bool, surface: str, exit_behavior: str, size: int):
    if not streaming and size != 7:
        return
    guard = make_guard()
    agent, inner = agent_of(kind, surface, size, exit_behavior, streaming, guard)
    prompt = f"please {FLAGGED}" if surface == "prompt" else "please look"
    events, result, memory, checkpoint = asyncio.run(run_agent(agent, prompt, guard, exit_behavior))
    # What LlamaIndex keeps of the start event before any hook: see test_the_start_of_a_run_holds_the_prompt.
    shown = [e for e in events if not isinstance(e, StartEvent)]
    check_no_trace(shown, "events")
    check_no_trace(result, "result")
    check_no_trace(memory, "memory")
    if surface != "prompt":
        check_no_trace(checkpoint, "checkpoint")
    check_no_trace(inner.script.asked, "what the model was asked")
    if surface in ("prompt", "answer", "reasoning", "tool call") and not isinstance(result, Exception):
        if exit_behavior == "end":
            assert VIOLATION in str(result)
    elif exit_behavior == "end" and surface == "tool output":
        assert str(result) == VIOLATION
    elif surface == "tool output" and exit_behavior == "replace":
        assert str(result) == SAFE
        assert VIOLATION in str([e for e in events if isinstance(e, ToolCallResult)])
    if exit_behavior == "error" and surface in ("prompt", "answer", "tool call"):
        assert isinstance(result, GuardViolation)


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("kind", KINDS)
def test_without_the_guard_the_same_run_leaks(kind: str, surface: str):
    agent, _ = agent_of(kind, surface, 7, "end", True, FakeGuard())
    prompt = f"please {FLAGGED}" if surface == "prompt" else "please look"
    found = asyncio.run(run_agent(agent, prompt, FakeGuard()))
    with pytest.raises(AssertionError):
        check_no_trace(found, "everything")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_arrives_complete_once_and_in_order(kind: str, size: int):
    guard = make_guard()
    agent, _ = agent_of(kind, "none", size, "end", True, guard)
    events, result, memory, _ = asyncio.run(run_agent(agent, "please look", guard))
    said = script(kind, "none")
    deltas = "".join(e.delta for e in events if isinstance(e, AgentStream))
    texts = [t if isinstance(t, str) else t.content for t in said]
    assert deltas == "".join(texts)
    assert str(result) == SAFE
    assert [e.tool_kwargs for e in events if isinstance(e, ToolCall) and not isinstance(e, ToolCallResult)] == [
        {"where": "home"}
    ]
    assert [e.tool_output.content for e in events if isinstance(e, ToolCallResult)] == ["found home"]
    assert any(isinstance(e, AgentOutput) for e in events)
    assert SAFE in (memory[-1].content or "")


@pytest.mark.parametrize("kind", KINDS)
def test_agent_streams_are_live(kind: str):
    guard = make_guard(holdback=2)
    agent, inner = agent_of(kind, "none", 3, "end", True, guard)

    async def early() -> int:
        handler, count = agent.run(user_msg="please look", memory=ChatMemoryBuffer.from_defaults()), 0
        async for event in handler.stream_events():
            if isinstance(event, AgentStream) and event.delta:
                count += not inner.script.sources[-1].done
        await handler
        return count

    assert asyncio.run(early()) > 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [{"script": {"please": RuntimeError("boom")}}, {"delay": 0.5, "timeout": 0.05}],
    ids=["raises", "hangs"],
)
def test_a_guard_that_fails_or_hangs_ends_the_run(kind: str, settings: Any):
    guard = FakeGuard(**settings)
    agent, inner = agent_of(kind, "none", 7, "end", True, guard)
    events, result, memory, _ = asyncio.run(run_agent(agent, "please look", guard))
    assert str(result) == VIOLATION
    assert inner.script.asked == []
    assert [e.delta for e in events if isinstance(e, AgentStream)] == [VIOLATION]
    assert all((m.content or "").endswith(VIOLATION) for m in memory)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_of_a_run_holds_the_prompt(kind: str):
    """An exception: LlamaIndex stores the prompt in the run's own state before any part of the agent is asked. What
    closes it is to judge it before the run."""
    guard = make_guard()
    agent, _ = agent_of(kind, "prompt", 7, "end", True, guard)
    *_, checkpoint = asyncio.run(run_agent(agent, f"please {FLAGGED}", guard))
    assert FLAGGED in str(checkpoint) or "\\u00b6" in str(checkpoint)
    with pytest.raises(GuardViolation):
        guard.enforce(f"please {FLAGGED}")


def test_without_a_guarded_memory_the_prompt_stays_there():
    guard = make_guard()
    agent, inner = agent_of("function", "prompt", 7, "end", True, guard)
    memory = ChatMemoryBuffer.from_defaults()

    async def go() -> Any:
        return await agent.run(user_msg=f"please {FLAGGED}", memory=memory)

    assert str(asyncio.run(go())) == VIOLATION
    assert FLAGGED in str(memory.get_all())  # an exception with a row in the docs: GuardMemory closes it
    check_no_trace(inner.script.asked, "what the model was asked")


def test_what_a_tool_writes_to_the_stream_itself_is_not_seen_by_the_guard():
    async def tell(ctx: Context) -> str:
        """Tells."""
        ctx.write_event_to_stream(Told(text=BAD))
        return "told"

    tell.__annotations__["ctx"] = Context
    guard = make_guard()
    agent = FunctionAgent(
        tools=guarded_tools([tell], guard), llm=guarded(FunctionLLM(reply(calls=[("tell", {})]), "done"), guard)
    )
    events, *_ = asyncio.run(run_agent(agent, "tell", guard))
    assert [e.text for e in events if isinstance(e, Told)] == [BAD]  # an exception with a row in the docs
    check_no_trace([e for e in events if not isinstance(e, Told)], "the other events")


def test_parallel_tool_calls():
    guard = make_guard()
    calls = [("look", {"where": "home"}), ("look", {"where": "bad"})]
    inner = FunctionLLM(reply(calls=calls), SAFE)
    agent = FunctionAgent(llm=guarded(inner, guard), tools=guarded_tools([look], guard, violation_message=VIOLATION))
    events, result, memory, checkpoint = asyncio.run(run_agent(agent, "look twice", guard))
    check_no_trace([events, result, memory, checkpoint], "a run")
    outputs = [e.tool_output.content for e in events if isinstance(e, ToolCallResult)]
    assert sorted(outputs) == sorted(["found home", VIOLATION])
    assert str(result) == SAFE


def test_handoff_between_guarded_agents():
    guard = make_guard()
    first = FunctionAgent(
        name="first",
        description="hands off",
        llm=guarded(FunctionLLM(reply(calls=[("handoff", {"to_agent": "second", "reason": "it knows"})])), guard),
        can_handoff_to=["second"],
    )
    second = FunctionAgent(
        name="second", description="answers", llm=guarded(FunctionLLM(BAD), guard, violation_message=VIOLATION)
    )
    events, result, memory, checkpoint = asyncio.run(
        run_agent(AgentWorkflow(agents=[first, second], root_agent="first"), "hi", guard)
    )
    assert str(result) == VIOLATION
    check_no_trace([events, result, memory, checkpoint], "a run")


@pytest.mark.parametrize("exit_behavior", EXITS)
@pytest.mark.parametrize("said", ["yes", BAD])
def test_a_person_in_the_loop(said: str, exit_behavior: Any):
    """What a tool asks and is told by events is judged as its output; waiting is no error to the guard."""

    async def ask(ctx: Context) -> str:
        """Asks."""
        told = await ctx.wait_for_event(
            HumanResponseEvent, waiter_id="asked", waiter_event=InputRequiredEvent(prefix="sure?")
        )
        return told.response

    ask.__annotations__["ctx"] = Context
    guard = make_guard()
    inner = FunctionLLM(reply(calls=[("ask", {})]), SAFE)
    settings: Any = {"exit_behavior": exit_behavior, "violation_message": VIOLATION}
    agent = FunctionAgent(tools=guarded_tools([ask], guard, **settings), llm=guarded(inner, guard, **settings))
    memory = GuardMemory(memory=ChatMemoryBuffer.from_defaults(), guard=guard)

    async def run() -> tuple[list[Any], str]:
        handler, events = agent.run("go", memory=memory), []
        async for event in handler.stream_events():
            events.append(event)
            if isinstance(event, InputRequiredEvent):
                handler.ctx.send_event(HumanResponseEvent(response=said))
        return events, str(await handler)

    if said == BAD and exit_behavior == "error":
        with pytest.raises(GuardViolation):
            asyncio.run(run())
    else:
        events, answer = asyncio.run(run())
        assert answer == (VIOLATION if said == BAD and exit_behavior == "end" else SAFE)
        check_no_trace(events, "events")
    check_no_trace([inner.script.asked, memory.get_all()], "prompts and memory")


# -- tools by themselves


def call_tool(tool: Any, how: str, **kwargs: Any) -> ToolOutput:
    return asyncio.run(tool.acall(**kwargs)) if how == "acall" else tool(**kwargs)


@pytest.mark.parametrize("how", ["call", "acall"])
def test_a_tool_is_not_called_with_what_is_blocked(how: str):
    asked: list[str] = []

    def send(body: str) -> str:
        """Sends."""
        asked.append(body)
        return "sent"

    (tool,) = guarded_tools([send], make_guard(), violation_message=VIOLATION)
    assert isinstance(tool, FunctionTool)
    assert call_tool(tool, how, body="hello").content == "sent"
    output = call_tool(tool, how, body=BAD)
    assert output.content == VIOLATION
    check_no_trace(output, "the output")
    assert asked == ["hello"]
    (strict,) = guarded_tools([send], make_guard(), exit_behavior="error")
    with pytest.raises(GuardViolation, match="call of tool 'send'"):
        call_tool(strict, how, body=BAD)


@pytest.mark.parametrize("how", ["call", "acall"])
@pytest.mark.parametrize(
    "raw",
    [
        {"page": {"body": BAD}},
        {FLAGGED: 1},
        [NodeWithScore(node=TextNode(text=BAD))],
        [NodeWithScore(node=TextNode(text="fine", metadata={"title": FLAGGED}))],
        user(BAD),
    ],
    ids=["mapping", "key", "nodes", "node metadata", "message"],
)
def test_raw_outputs_are_judged(raw: Any, how: str):
    class Fetch(BaseTool):
        @property
        def metadata(self) -> ToolMetadata:
            return ToolMetadata(name="fetch", description="fetches")

        def __call__(self, input: Any) -> ToolOutput:
            return ToolOutput("fetch", content="a page", raw_input={}, raw_output=raw)

    (tool,) = guarded_tools([Fetch()], make_guard(), violation_message=VIOLATION)
    output = asyncio.run(tool.acall("x")) if how == "acall" else tool("x")
    assert output.content == VIOLATION
    check_no_trace(output, "the output")
    (open_tool,) = guarded_tools([Fetch()], make_guard(), check_tool_results=False)
    assert open_tool("x").raw_output is raw


def test_a_query_engine_tool_keeps_its_sources():
    engine = index_of("one text").as_query_engine(llm=PlainLLM("an answer"))
    tool = QueryEngineTool.from_defaults(engine, name="ask", description="asks")
    (made,) = guarded_tools([tool], make_guard())
    output = made("what?")
    assert output.content == "an answer"
    assert output.raw_output.source_nodes[0].text == "one text"
    bad = RetrieverQueryEngine(index_of(BAD).as_retriever(), get_response_synthesizer(llm=PlainLLM("an answer")))
    (made,) = guarded_tools([QueryEngineTool.from_defaults(bad, name="ask", description="asks")], make_guard())
    check_no_trace(made("what?"), "the output")


def test_a_tool_with_a_context_parameter_gets_it():
    async def remember(ctx: Context, what: str) -> str:
        """Remembers."""
        await ctx.store.set("what", what)
        return "kept"

    remember.__annotations__["ctx"] = Context  # annotations are strings in this module, and LlamaIndex reads types
    guard = make_guard()
    (tool,) = guarded_tools([remember], guard)
    assert isinstance(tool, FunctionTool)
    assert tool.requires_context
    agent = FunctionAgent(
        tools=[tool], llm=guarded(FunctionLLM(reply(calls=[("remember", {"what": "a hat"})]), "done"), guard)
    )

    async def go() -> tuple[str, str]:
        ctx = Context(agent)
        result = await agent.run("keep a hat", ctx=ctx)
        return str(result), await ctx.store.get("what")

    assert asyncio.run(go()) == ("done", "a hat")


def test_the_function_behind_a_guarded_tool_is_guarded_too():
    (tool,) = guarded_tools([look], make_guard(), violation_message=VIOLATION)
    assert isinstance(tool, FunctionTool)
    assert tool.fn("bad") == VIOLATION
    assert tool.real_fn(where="home") == "found home"
    assert asyncio.run(tool.async_fn(where="bad")) == VIOLATION


def test_a_tool_error_that_is_harmless_passes_as_it_is():
    def fail() -> str:
        """Fails."""
        raise KeyError("no such city")

    (tool,) = guarded_tools([fail], make_guard())
    with pytest.raises(KeyError, match="no such city"):
        tool()


def test_a_guard_that_fails_lets_no_tool_output_through():
    (tool,) = guarded_tools([look], FakeGuard({"found": RuntimeError("boom")}), violation_message=VIOLATION)
    assert tool(where="home").content == VIOLATION


# -- own workflows


class Asked(Event):
    query: Any
    lang: str = "en"


class Checked(Event):
    query: Any
    lang: str = "en"


def flow(exit_behavior: Any = "end", field: str = "query", **settings: Any) -> Workflow:
    class Flow(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> Asked:
            return Asked(query=ev.query, lang="de")

        @step
        async def answer(self, ev: Checked) -> StopEvent:
            return StopEvent(result=(ev.query, ev.lang))

    guard_step(
        Flow,
        settings.pop("guard", make_guard()),
        takes=Asked,
        gives=Checked,
        field=field,
        exit_behavior=exit_behavior,
        violation_message=VIOLATION,
        **settings,
    )
    return Flow(timeout=120)


def go(workflow: Workflow, **kwargs: Any) -> Any:
    async def run() -> Any:
        return await workflow.run(**kwargs)

    return asyncio.run(run())


def test_a_guard_step_in_a_workflow():
    assert go(flow(), query="hello") == ("hello", "de")
    assert go(flow(), query=BAD) == VIOLATION
    assert go(flow("replace"), query=BAD) == (VIOLATION, "de")
    with pytest.raises(GuardViolation, match="field 'query'"):
        go(flow("error"), query=BAD)
    with pytest.raises(GuardkitError, match="no field 'text'"):
        go(flow(field="text"), query="hello")


def test_a_guard_step_reads_messages_and_nodes():
    assert go(flow(), query=user("hello"))[0].content == "hello"
    assert go(flow(), query=[user("hello"), user(FLAGGED)]) == VIOLATION
    nodes = [NodeWithScore(node=TextNode(text=t), score=s) for t, s in ((BAD, 0.9), ("fine", 0.1))]
    assert [n.text for n in go(flow(), query=nodes)[0]] == ["fine"]
    assert go(flow(), query=[n.node for n in nodes])[0] == [nodes[1].node]
    with pytest.raises(GuardkitError, match="must hold"):
        go(flow(), query=3)


class Draft(BaseModel):
    """A draft."""

    text: str
    pages: list[str] = []


@pytest.mark.parametrize(
    "clean", [{"a": {"b": ["fine"]}}, Draft(text="fine", pages=["good"]), ["fine"], ("fine", 1), {}]
)
def test_a_guard_step_reads_values_of_any_type(clean: Any):
    assert go(flow(), query=clean) == (clean, "de")
    for bad, left in (
        ({"a": {"b": ["fine", BAD]}}, {"a": {"b": ["fine", VIOLATION]}}),
        (Draft(text="fine", pages=[BAD]), Draft(text="fine", pages=[VIOLATION])),
        ({BAD: "fine"}, VIOLATION),
        ([threading.Lock(), "fine"], VIOLATION),
    ):
        assert go(flow("replace"), query=bad) == (left, "de")
        assert go(flow(), query=bad) == VIOLATION
        with pytest.raises(GuardViolation):
            go(flow("error"), query=bad)
