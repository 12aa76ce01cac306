"""Documents and retrievers, observing callbacks, and the helpers for graphs of one's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from guardkit import GuardkitError, GuardViolation, Stage
from langchain_guardkit import (
    AsyncGuardCallbackHandler,
    GuardCallbackHandler,
    GuardDocumentTransformer,
    GuardedChatModel,
    GuardRetriever,
    guard_node,
    guard_route,
)
from tests.langchain.scripted import ScriptedModel, looking_tool, reply
from tests.langchain.surfaces import AGENT_SURFACES, WATCHED_SURFACES
from tests.leaks import BAD, SAFE, SIZES, VIOLATION, check_no_trace, make_guard

CONFIG: Any = {"configurable": {"thread_id": "1"}}
DOCUMENTS = [
    Document(SAFE, metadata={"source": "a"}),
    Document(BAD, metadata={"source": "b"}),
    Document("hmm", metadata={"source": "c"}),
    Document(SAFE, metadata={"title": BAD, "page": 3}),
    Document(""),
]


class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return DOCUMENTS


def test_unsafe_documents_are_dropped_flagged_or_redacted_in_one_batch() -> None:
    guard = make_guard()
    kept = GuardDocumentTransformer(guard).transform_documents(DOCUMENTS)
    assert [d.metadata.get("source") for d in kept] == ["a", "c", None]
    assert kept[0] is DOCUMENTS[0]
    assert kept[1].metadata["guardkit"]["action"] == "flag"
    harmless = make_guard()
    assert len(GuardDocumentTransformer(harmless).transform_documents([DOCUMENTS[0]] * 5)) == 5
    assert harmless.model.calls == 1  # where nothing is to be located, one call judges all
    flagged = GuardDocumentTransformer(guard, on_unsafe="flag").transform_documents(DOCUMENTS)
    assert [d.page_content for d in flagged] == [d.page_content for d in DOCUMENTS]
    assert [d.metadata.get("guardkit", {}).get("action") for d in flagged] == [None, "block", "flag", "block", None]
    redact = GuardDocumentTransformer(guard, on_unsafe="redact", violation_message=VIOLATION)
    redacted = asyncio.run(redact.atransform_documents(DOCUMENTS))
    check_no_trace(redacted, "redacted")
    assert [d.page_content for d in redacted] == [SAFE, VIOLATION, "hmm", SAFE, ""]
    assert redacted[1].metadata["source"] == "b"
    assert redact.transform_documents([]) == []
    with pytest.raises(GuardkitError, match="known: drop, flag, redact, error"):
        GuardDocumentTransformer(guard, on_unsafe="hide")  # type: ignore[arg-type]


@pytest.mark.parametrize("surface", WATCHED_SURFACES)
def test_a_guarded_retriever_shows_judged_documents_alone(surface: str) -> None:
    for inner in (Shelf(), RunnableLambda(lambda _: DOCUMENTS)):
        chain = RunnableLambda(lambda x: x["q"]) | GuardRetriever(inner, make_guard())
        seen = list(WATCHED_SURFACES[surface](chain, {"q": "hello"}, {}))
        check_no_trace(seen, surface)
    assert len(GuardRetriever(Shelf(), make_guard()).invoke("x")) == 3
    assert len(asyncio.run(GuardRetriever(Shelf(), make_guard()).ainvoke("x"))) == 3
    with pytest.raises(AssertionError):
        check_no_trace(list(WATCHED_SURFACES[surface](Shelf(), "x", {})), "a bare retriever")


# -- callbacks


@pytest.mark.parametrize("run_async", [False, True])
def test_callbacks_observe_every_stage(run_async: bool) -> None:
    sink: list[Any] = []
    for size in SIZES:
        del sink[:]
        model = ScriptedModel(replies=[reply(SAFE, reasoning=BAD, query="bad"), reply(SAFE)], size=size)
        graph = create_agent(model, [looking_tool(bad=BAD)])
        value: Any = {"messages": [HumanMessage("hmm")]}

        kind: Any = AsyncGuardCallbackHandler if run_async else GuardCallbackHandler
        handler = kind(make_guard(), sink=sink.append)
        surface = AGENT_SURFACES["astream messages" if run_async else "stream messages"]
        list(surface(graph, value, {"callbacks": [handler]}))
        found = {(o.event, o.decision.stage, o.decision.action.value) for o in sink}
        assert ("on_chat_model_start", Stage.prompt, "flag") in found
        assert ("on_llm_new_token", Stage.reasoning, "block") in found
        assert ("on_tool_start", Stage.tool_call, "allow") in found
        assert ("on_tool_end", Stage.tool_output, "block") in found
        assert ("on_llm_end", Stage.response, "allow") in found
        assert handler.observations == sink


def test_callbacks_observe_retrievers_and_plain_calls() -> None:
    handler = GuardCallbackHandler(make_guard())
    Shelf().invoke("hmm", {"callbacks": [handler]})
    ScriptedModel(replies=[reply(BAD)]).invoke("hello", {"callbacks": [handler]})
    assert [(o.event, o.decision.action.value) for o in handler.observations] == [
        ("on_retriever_start", "flag"),
        ("on_retriever_end", "block"),
        ("on_chat_model_start", "allow"),
        ("on_llm_end", "block"),
    ]


def test_callbacks_put_the_worst_verdict_on_the_run() -> None:
    from langchain_core.tracers.run_collector import RunCollectorCallbackHandler

    collector = RunCollectorCallbackHandler()
    handler = GuardCallbackHandler(make_guard())
    ScriptedModel(replies=[reply(BAD)]).invoke("hello", {"callbacks": [handler, collector]})
    assert collector.traced_runs[0].metadata["guardkit"]["stage"] == "response"


@pytest.mark.parametrize("run_async", [False, True])
def test_callbacks_raise_only_if_asked(run_async: bool) -> None:
    kind: Any = AsyncGuardCallbackHandler if run_async else GuardCallbackHandler

    def run(handler: Any) -> Any:
        model = ScriptedModel(replies=[reply(BAD)])
        if run_async:
            return asyncio.run(model.ainvoke("hello", {"callbacks": [handler]}))
        return model.invoke("hello", {"callbacks": [handler]})

    assert run(kind(make_guard())).content == BAD
    with pytest.raises(GuardViolation, match="response"):
        run(kind(make_guard(), raise_on_violation=True))


def test_callbacks_cannot_enforce() -> None:
    """Why the docs say so: what raises in a callback comes after others have seen the text."""
    seen: list[Any] = []
    handler = GuardCallbackHandler(make_guard(), raise_on_violation=True)
    graph = create_agent(ScriptedModel(replies=[reply(BAD)], size=1), [])
    stream = graph.stream({"messages": [("user", "x")]}, {"callbacks": [handler]}, stream_mode="messages")
    with pytest.raises(GuardViolation):
        seen.extend(stream)
    with pytest.raises(AssertionError):
        check_no_trace(seen, "stream")


# -- graphs


def graph_with(text: str, prompt_checked: bool = True, behavior: Any = "end", size: int = 7) -> Any:
    guard = make_guard()
    model = GuardedChatModel(ScriptedModel(replies=[reply(text)], size=size), guard, exit_behavior="end")
    graph = StateGraph(MessagesState)
    graph.add_node("guard_in", guard_node(guard, exit_behavior=behavior, violation_message=VIOLATION))
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("guard_out", guard_node(guard, exit_behavior=behavior, violation_message=VIOLATION))
    graph.add_edge(START, "guard_in")
    graph.add_conditional_edges("guard_in", guard_route("model"), ["model", END])
    graph.add_edge("model", "guard_out")
    graph.add_edge("guard_out", END)
    return graph.compile(checkpointer=InMemorySaver())


@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize("behavior", ["end", "replace", "error"])
def test_a_node_and_an_edge_guard_a_graph(behavior: str, run_async: bool) -> None:
    def run(graph: Any, text: str) -> list[Any]:
        value = {"messages": [HumanMessage(text)]}
        if not run_async:
            return list(graph.stream(value, CONFIG, stream_mode=["messages", "updates"]))

        async def arun() -> list[Any]:
            return [x async for x in graph.astream(value, CONFIG, stream_mode=["messages", "updates"])]

        return asyncio.run(arun())

    for size in SIZES:
        graph = graph_with(BAD, behavior=behavior, size=size)
        check_no_trace(run(graph, "hello"), "streams")
        check_no_trace([graph.checkpointer.storage, graph.checkpointer.blobs, graph.checkpointer.writes], "stored")
    graph = graph_with(SAFE, behavior=behavior)
    if behavior == "error":
        with pytest.raises(GuardViolation, match="message 0"):
            run(graph, BAD)
        return
    check_no_trace(run(graph, BAD), "streams")
    messages = [m.content for m in graph.get_state(CONFIG).values["messages"]]
    assert messages == ([VIOLATION, VIOLATION] if behavior == "end" else [VIOLATION, SAFE])
    graph = graph_with(SAFE, behavior=behavior)
    run(graph, "hello")
    assert [m.content for m in graph.get_state(CONFIG).values["messages"]] == ["hello", SAFE]


def test_a_node_scrubs_an_answer_that_no_guarded_model_gave() -> None:
    node = guard_node(make_guard(), violation_message=VIOLATION)
    (scrubbed,) = node.invoke({"messages": [HumanMessage("hello"), reply(BAD)]})["messages"]
    assert (scrubbed.content, scrubbed.id) == (VIOLATION, "reply-1")
