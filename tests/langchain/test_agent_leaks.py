"""The leak test for agents: every surface, every place a bad text can come from, exit behaviour and cutting."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from guardkit import GuardViolation
from guardkit.testing import FakeGuard
from langchain_guardkit import GuardMiddleware
from tests.langchain.scripted import MARKER, STAGES, USAGE, ScriptedModel, looking_tool, reply, script_for
from tests.langchain.surfaces import AGENT_SURFACES
from tests.leaks import SAFE, SIZES, VIOLATION, Seen, check_no_trace, make_guard

CONFIG: Any = {"configurable": {"thread_id": "1"}}
HOLDBACK = 4
SYNC_OUTPUT_STAGES = [stage for stage in STAGES if stage != "prompt"]


class Agent:
    """A scripted agent with a checkpointer, and what is left in it."""

    def __init__(self, stage: str, behavior: Any, size: int, text: str | None = None, **settings: Any):
        self.prompt, replies, outputs = script_for(stage) if text is None else script_for(stage, text)
        self.model = ScriptedModel(replies=replies, size=size)
        self.saver = InMemorySaver()
        self.guard: FakeGuard = make_guard(holdback=HOLDBACK)
        self.graph = create_agent(
            self.model,
            [looking_tool(**outputs)],
            middleware=[GuardMiddleware(self.guard, exit_behavior=behavior, violation_message=VIOLATION, **settings)],
            checkpointer=self.saver,
        )

    @property
    def input(self) -> Any:
        return {"messages": [{"role": "user", "content": self.prompt}]}

    @property
    def messages(self) -> list[BaseMessage]:
        return list(self.graph.get_state(CONFIG).values["messages"])

    def check_nothing_left(self) -> None:
        check_no_trace([self.saver.storage, self.saver.writes, self.saver.blobs], "checkpoints")
        check_no_trace([dict(s.values) for s in self.graph.get_state_history(CONFIG)], "history")


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("stage", SYNC_OUTPUT_STAGES)
@pytest.mark.parametrize("surface", AGENT_SURFACES)
def test_nothing_flagged_is_seen_or_kept(surface: str, stage: str, behavior: str) -> None:
    for size in SIZES:
        agent = Agent(stage, behavior, size)
        seen: list[Any] = []
        try:
            for item in AGENT_SURFACES[surface](agent.graph, agent.input, CONFIG):
                seen.append(item)
        except GuardViolation as violation:
            assert behavior == "error"
            check_no_trace(violation, "error")
        else:
            assert behavior != "error"
            check_no_trace(agent.messages, "state")
            if behavior != "error":
                assert any(VIOLATION in str(message.content) for message in agent.messages)
        check_no_trace(seen, f"{surface}, {size} characters a chunk")
        agent.check_nothing_left()


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("surface", AGENT_SURFACES)
def test_an_unsafe_prompt_reaches_neither_the_model_nor_the_current_state(surface: str, behavior: str) -> None:
    agent = Agent("prompt", behavior, 7)
    seen: list[Any] = []

    def watch() -> None:
        for item in AGENT_SURFACES[surface](agent.graph, agent.input, CONFIG):
            seen.append(item)

    if behavior == "error":
        with pytest.raises(GuardViolation, match="message 0: block: prompt"):
            watch()
    else:
        watch()
    check_no_trace(agent.model.asked, "what the model was asked")
    assert len(agent.model.asked) == (1 if behavior == "replace" else 0)
    if behavior != "error":
        check_no_trace(agent.messages, "current state")
    if "events" in surface:
        return  # these show each run's input, the graph's own first: see test_exceptions.py
    values = [item for mode, item in seen if mode == "values"]
    check_no_trace(values[1:], "values after the input")
    check_no_trace([item for item in seen if item[0] != "values"], "streams")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("surface", ["stream messages", "astream messages", "stream several", "astream several"])
def test_what_passes_arrives_complete_once_in_order_and_live(surface: str, size: int) -> None:
    agent = Agent("tool_output", "end", size, text="sunny all day long")
    agent.model.pause = HOLDBACK  # half-way the model waits until its text has come through
    answer, arguments, outputs = Seen(), "", []
    ids: set[str] = set()
    for mode, item in AGENT_SURFACES[surface](agent.graph, agent.input, CONFIG):
        if mode != "messages":
            continue
        message, metadata = item
        assert metadata["langgraph_node"] in ("model", "tools")
        if isinstance(message, ToolMessage):
            outputs.append(message)
        elif isinstance(message, AIMessageChunk):
            if message.id == "reply-1":
                answer.source = agent.model.source
                answer.add(str(message.content))
            ids.add(str(message.id))
            arguments += "".join(c["args"] or "" for c in message.tool_call_chunks)
        else:
            raise AssertionError(f"a whole message came through as well: {message!r}")
    answer.check_complete(SAFE)
    assert arguments == '{"query": "weather"}'
    assert [m.content for m in outputs] == ["sunny all day long"]
    assert ids == {"reply-0", "reply-1"}
    final = agent.messages[-1]
    assert isinstance(final, AIMessage)
    assert (final.content, final.id, final.usage_metadata) == (SAFE, "reply-1", USAGE)
    assert final.response_metadata == MARKER


@pytest.mark.parametrize("size", SIZES)
def test_streamed_tool_call_chunks_are_live(size: int) -> None:
    agent = Agent("tool_call", "end", size, text=f"a long query {SAFE}")
    arguments = []
    for message, _ in agent.graph.stream(agent.input, CONFIG, stream_mode="messages"):
        if isinstance(message, AIMessageChunk):
            arguments += [c["args"] for c in message.tool_call_chunks if c["args"]]
    assert "".join(arguments) == f'{{"query": "a long query {SAFE}"}}'
    assert len(arguments) == -(-len("".join(arguments)) // size)  # in the pieces in which they came


@pytest.mark.parametrize("surface", ["invoke", "ainvoke", "stream updates", "astream updates"])
def test_the_state_of_a_safe_run_is_that_of_an_unguarded_one(surface: str) -> None:
    agent = Agent("reasoning", "end", 7, text="let me think about it")
    plain = create_agent(ScriptedModel(replies=[reply(SAFE, reasoning="let me think about it")]), [looking_tool()])
    expected = plain.invoke(agent.input)["messages"][-1]
    for _ in AGENT_SURFACES[surface](agent.graph, agent.input, CONFIG):
        pass
    assert agent.messages[-1].model_dump() == expected.model_dump()


@pytest.mark.parametrize("stage", SYNC_OUTPUT_STAGES)
def test_the_surfaces_see_what_they_are_there_to_see(stage: str) -> None:
    _, replies, outputs = script_for(stage)
    blind = []
    for name, surface in AGENT_SURFACES.items():
        graph = create_agent(ScriptedModel(replies=replies, size=3), [looking_tool(**outputs)])
        try:
            check_no_trace(list(surface(graph, {"messages": [("user", "hello")]}, {})), "an unguarded agent")
            blind.append(name)
        except AssertionError:
            pass
    assert set(blind) == {"stream custom", "astream custom"}  # only tools that write to it are seen there
