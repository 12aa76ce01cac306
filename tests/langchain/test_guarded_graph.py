"""`guard_graph`, policies of a run's own, violation messages, hooks, redaction, repair, and guarded chains."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from guardkit import Decision, GuardkitError, GuardViolation
from langchain_guardkit import GuardedChatModel, GuardMiddleware, GuardRunnable, guard_graph
from tests.langchain.scripted import ScriptedModel, looking_tool, reply
from tests.langchain.surfaces import AGENT_SURFACES
from tests.leaks import BAD, SAFE, VIOLATION, check_no_trace, make_guard

CONFIG: Any = {"configurable": {"thread_id": "1"}}


def ask(text: str) -> Any:
    return {"messages": [("user", text)]}


class Everything(BaseCallbackHandler):
    """Sees the input of every run."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.seen.append(inputs)

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.seen.append(messages)

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.seen.append(outputs)


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("surface", AGENT_SURFACES)
def test_a_prompt_is_kept_out_of_everything(surface: str, behavior: Any) -> None:
    saver, model = InMemorySaver(), ScriptedModel(replies=[AIMessage("fine")])
    inner = create_agent(model, [looking_tool()], middleware=[GuardMiddleware(make_guard())], checkpointer=saver)
    graph = guard_graph(inner, make_guard(), exit_behavior=behavior, violation_message=VIOLATION)
    handler, seen = Everything(), []
    config: Any = {**CONFIG, "callbacks": [handler]}
    try:
        for item in AGENT_SURFACES[surface](graph, ask(BAD), config):
            seen.append(item)
    except GuardViolation as violation:
        assert behavior == "error"
        check_no_trace(violation, "error")
    else:
        assert behavior != "error"
    check_no_trace([seen, handler.seen, model.asked], surface)
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")
    messages = graph.get_state(CONFIG).values.get("messages", [])
    assert [m.text for m in messages] == {"error": [], "end": [VIOLATION] * 2, "replace": [VIOLATION, "fine"]}[behavior]
    assert graph.invoke(ask("and now?"), CONFIG)["messages"][-1].content == "fine"
    assert not graph.get_state(CONFIG).next


def test_it_is_the_graph_in_all_else() -> None:
    guard = make_guard()
    inner = create_agent(
        ScriptedModel(replies=[AIMessage("fine")]), [], middleware=[GuardMiddleware(guard)],
        checkpointer=InMemorySaver(), name="helper",
    )  # fmt: skip
    for graph in (guard | inner, guard_graph(inner), guard_graph(inner, guard).with_config(tags=["x"])):  # type: ignore[operator]
        assert isinstance(graph, type(inner))
        assert graph.name == "helper"
        assert graph.get_graph().nodes.keys() == inner.get_graph().nodes.keys()
        modes: Any = ["updates", "values", "messages", "custom", "tasks", "checkpoints", "debug"]
        for mode in (*modes, modes):
            assert (
                list(graph.stream(ask("go"), CONFIG, stream_mode=mode, subgraphs=True, durability="sync"))
                or mode == "custom"
            )
        assert graph.invoke(ask("go"), CONFIG, context={"user": 1}, durability="exit")["messages"][-1].content == "fine"
        assert asyncio.run(graph.ainvoke(ask("go"), CONFIG, context={"user": 1}))["messages"][-1].content == "fine"
        assert list(graph.get_state_history(CONFIG))
        graph.update_state(
            CONFIG, {"messages": [HumanMessage(BAD)]}
        ) if graph.guardkit.enforcement.exit_behavior != "error" else None
        check_no_trace(graph.get_state(CONFIG).values, "state")


def test_it_works_inside_another_graph_and_resumes() -> None:
    def wait(state: Any) -> Any:
        return {"messages": [AIMessage(f"said {interrupt('go on?')}")]}

    def small() -> Any:
        builder: Any = StateGraph(MessagesState)
        builder.add_node("wait", wait)
        builder.add_edge(START, "wait")
        return builder

    for text, said in ((SAFE, "yes"), (SAFE, BAD), (BAD, "")):
        saver = InMemorySaver()
        child = guard_graph(small().compile(), make_guard(), violation_message=VIOLATION)
        outer: Any = StateGraph(MessagesState)
        outer.add_node("child", child)
        outer.add_edge(START, "child")
        graph = guard_graph(outer.compile(checkpointer=saver), make_guard(), violation_message=VIOLATION)
        result = graph.invoke(ask(text), CONFIG)
        if text == SAFE:
            assert result["__interrupt__"]
            result = graph.invoke(Command(resume=said), CONFIG)
            assert result["messages"][-1].content == (f"said {said}" if said == "yes" else f"said {VIOLATION}")
        else:
            assert result["messages"][-1].content == VIOLATION
        check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")


def test_it_says_what_it_cannot_guard() -> None:
    with pytest.raises(TypeError, match="compiled graph"):
        guard_graph(StateGraph(MessagesState), make_guard())
    bare = create_agent(ScriptedModel(replies=[reply("x")]), [])
    with pytest.raises(TypeError, match="needs a guard"):
        guard_graph(bare)
    with pytest.raises(GuardkitError, match="messages_key"):
        guard_graph(bare, make_guard(), messages_key="chat")


# -- policies of a run's own


@dataclass
class Tenant:
    guard_policy: str


def test_a_run_names_its_policy() -> None:
    guard, policies = make_guard(), {"strict": "strict", "loose": "loose"}
    model = GuardedChatModel(ScriptedModel(replies=[AIMessage("hmm")]), guard, policies=policies, exit_behavior="end")
    agent = create_agent(
        ScriptedModel(replies=[AIMessage("hmm")]), [], middleware=[GuardMiddleware(guard, policies=policies)]
    )
    step = GuardRunnable(guard, policies=policies, exit_behavior="end", stage="response")
    for name, passes in (("strict", False), ("loose", True)):
        config: Any = {"configurable": {"guard_policy": name}}
        assert (model.invoke("go", config).content == "hmm") == passes
        assert (asyncio.run(model.ainvoke("go", config)).content == "hmm") == passes
        assert ("".join(str(c.content) for c in model.stream("go", config)) == "hmm") == passes
        assert (agent.invoke(ask("go"), config)["messages"][-1].content == "hmm") == passes
        assert (agent.invoke(ask("go"), context=Tenant(name))["messages"][-1].content == "hmm") == passes  # type: ignore[arg-type]
        assert (step.invoke("hmm", config) == "hmm") == passes
        assert ("".join(step.stream("hmm", config)) == "hmm") == passes
    for unknown in (model, step):
        with pytest.raises(GuardkitError, match="'none'; known: 'strict', 'loose'"):
            unknown.invoke("go", {"configurable": {"guard_policy": "none"}})


# -- what a violation says and does


def test_violation_messages_and_the_hook() -> None:
    told: list[Decision] = []
    by_stage = {"prompt": "no such questions", "response": "no such answers"}
    for message, expected in (
        (by_stage, "no such answers"),
        (lambda decision: f"{decision.stage.value}!", "response!"),
        ("{severity} {stage}", "unsafe response"),
    ):
        told.clear()
        graph = create_agent(
            ScriptedModel(replies=[AIMessage(BAD)]), [],
            middleware=[GuardMiddleware(make_guard(), violation_message=message, on_violation=told.append)],
        )  # fmt: skip
        assert graph.invoke(ask("go"))["messages"][-1].content == expected
        assert [decision.stage.value for decision in told] == ["response"]
    with pytest.raises(GuardkitError, match="unknown stage 'anwser'"):
        GuardRunnable(make_guard(), violation_message={"anwser": "x"})


def test_spans_are_redacted_where_the_policy_says_redact() -> None:
    policy = {"name": "p", "rules": [{"severity": "unsafe", "action": "redact"}]}
    guard = make_guard(policy=policy)
    text = "First comes this. Then ¶¶¶¶ ¶¶¶ it is. Last comes that."
    model = ScriptedModel(replies=[AIMessage(text, id="7")])
    answer = GuardedChatModel(model, guard, exit_behavior="end").invoke([HumanMessage(text)])
    for seen in (str(answer.content), str(model.asked[0][0].content), GuardRunnable(guard).invoke(text)):
        assert seen.startswith("First comes this. ")
        assert seen.endswith(" Last comes that.")
        check_no_trace(seen, "redacted")
    assert answer.response_metadata["guardkit"]["action"] == "redact"
    graph = create_agent(ScriptedModel(replies=[AIMessage(text)]), [], middleware=[GuardMiddleware(guard)])
    assert str(graph.invoke(ask("go"))["messages"][-1].content).endswith("Last comes that.")


@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("tries", [0, 1, 2])
def test_a_blocked_answer_is_repaired_where_that_is_asked_for(tries: int, way: str, run_async: bool) -> None:
    bad = AIMessage("¶¶¶¶ ¶¶¶ at once")
    inner = ScriptedModel(replies=[bad, bad, AIMessage("fine")], size=3)
    model = GuardedChatModel(inner, make_guard(), exit_behavior="end", violation_message=VIOLATION, repair=tries)

    async def chunks() -> str:
        return "".join([str(c.content) async for c in model.astream("go")])

    if way == "invoke":
        said = str((asyncio.run(model.ainvoke("go")) if run_async else model.invoke("go")).content)
    else:
        said = asyncio.run(chunks()) if run_async else "".join(str(c.content) for c in model.stream("go"))
    assert said == ("fine" if tries == 2 else VIOLATION)
    assert len(inner.asked) == tries + 1
    check_no_trace(inner.asked, "what the model was asked")


# -- chains


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
def test_a_chain_shows_no_raw_prompt_behind_a_guard(behavior: Any) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])
    handler = Everything()
    model = ScriptedModel(replies=[AIMessage("fine")])
    chain = GuardRunnable(make_guard(), exit_behavior=behavior) | prompt | model
    value, config = {"question": BAD}, {"callbacks": [handler]}
    for call in (
        lambda: chain.invoke(value, config),
        lambda: list(chain.stream(value, config)),
        lambda: chain.batch([value], config),
        lambda: asyncio.run(chain.ainvoke(value, config)),
    ):
        try:
            call()
        except GuardViolation:
            assert behavior == "error"
    assert handler.seen
    check_no_trace([handler.seen, model.asked], behavior)


@pytest.mark.parametrize("behavior", ["error", "end", "replace"])
def test_a_whole_chain_is_guarded_by_field(behavior: Any) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])

    def chain(answer: str) -> Any:
        model = prompt | ScriptedModel(replies=[AIMessage(answer)], size=5) | StrOutputParser()
        return model | RunnableLambda(lambda text: {"answer": text, "note": BAD})

    def guarded(answer: str) -> Any:
        return GuardRunnable(
            chain(answer), make_guard(), input_key="question", output_key="answer", exit_behavior=behavior,
            violation_message=VIOLATION,
        )  # fmt: skip

    assert guarded(SAFE).invoke({"question": "hi", "other": BAD}) == {"answer": SAFE, "note": BAD}
    for question, answer in ((BAD, SAFE), ("hi", BAD)):
        handler = Everything()
        call = guarded(answer)
        if behavior == "error":
            with pytest.raises(GuardViolation):
                call.invoke({"question": question}, {"callbacks": [handler]})
        else:
            result = call.invoke({"question": question}, {"callbacks": [handler]})
            replaced = behavior == "replace" and question == BAD
            assert result["answer"] == (SAFE if replaced else VIOLATION)
        for seen in handler.seen:
            if isinstance(seen, dict):
                check_no_trace(seen.get("question"), "runs")
                check_no_trace(seen.get("answer"), "runs")
    with pytest.raises(GuardkitError, match="no 'question' to judge: the keys are ask"):
        guarded(SAFE).invoke({"ask": "hi"})


# -- a chat model's own interface


def test_a_guarded_model_is_configured_copied_and_written_like_any_other() -> None:
    model = GuardedChatModel(ScriptedModel(replies=[AIMessage("fine")]), make_guard(), exit_behavior="end")
    configurable = model.configurable_fields(
        holdback=ConfigurableField(id="h"), exit_behavior=ConfigurableField(id="e")
    )
    assert configurable.with_config(configurable={"h": 1, "e": "error"}).invoke("hi").content == "fine"
    with pytest.raises(GuardViolation):
        configurable.with_config(configurable={"e": "error"}).invoke(BAD)
    inner = ScriptedModel(replies=[AIMessage("fine")]).configurable_fields(size=ConfigurableField(id="size"))
    assert GuardedChatModel(inner, make_guard()).invoke("hi", {"configurable": {"size": 2}}).content == "fine"
    assert "GuardedChatModel" in dumps(model)
    assert copy.deepcopy(model).invoke("hi").content == "fine"
