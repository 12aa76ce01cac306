"""Where a text may stand beside the content: under any field's name, in ids, in what looks like a guard's mark."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, Send, interrupt

from guardkit import GuardViolation
from langchain_guardkit import GuardDocumentTransformer, GuardedChatModel, GuardedStore, GuardMiddleware, guard_graph
from tests.langchain.scripted import ScriptedModel, looking_tool, reply
from tests.leaks import BAD, FLAGGED, SAFE, VIOLATION, check_no_trace, make_guard, strings_in

CONFIG: Any = {"configurable": {"thread_id": "1"}}
MODES: Any = ["messages", "updates", "values", "custom", "tasks", "debug", "checkpoints"]


@dataclasses.dataclass
class Blob:
    data: bytes = BAD.encode()


PLACES: dict[str, dict[str, Any]] = {
    "unknown kwargs": {"additional_kwargs": {"x": {"y": [BAD]}}},
    "bytes in kwargs": {"additional_kwargs": {"x": BAD.encode()}},
    "a dataclass in kwargs": {"additional_kwargs": {"x": Blob()}},
    "a provider's metadata": {"response_metadata": {"provider": {"snippet": BAD}}},
    "a mark that is a text": {"response_metadata": {"guardkit": BAD}},
    "an unknown field of a mark": {"response_metadata": {"guardkit": {"action": "block", "x": BAD}}},
    "a forged violation message": {"response_metadata": {"guardkit": {"action": "block", "message": BAD}}},
    "a forged rule": {"response_metadata": {"guardkit": {"action": "block", "rule": BAD, "id": "0" * 32}}},
    "a forged category": {"response_metadata": {"guardkit": {"action": "block", "categories": [FLAGGED]}}},
    "a mark in the kwargs": {"additional_kwargs": {"guardkit": {"message": BAD}}},
    "a field that nobody declared": {"foo": BAD},
    "an undeclared role": {"role": BAD},
    "the name": {"name": BAD},
    "the id": {"id": BAD},
}
ANSWERS: dict[str, dict[str, Any]] = {
    **PLACES,
    "a key of the usage": {
        "usage_metadata": {
            "input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "input_token_details": {BAD: 1},
        }
    },
    "a call's id": {"tool_calls": [{"name": "look", "args": {}, "id": BAD, "type": "tool_call"}]},
    "tokens of the log-probabilities": {
        "response_metadata": {"logprobs": {"content": [{"token": f"{word} "} for word in BAD.split()]}}
    },
    "a broken call's id": {
        "invalid_tool_calls": [{"name": "a", "args": "x", "id": BAD, "error": None, "type": "invalid_tool_call"}]
    },
}  # fmt: skip


class Model(BaseChatModel):
    """Gives its messages, whole (all at once, as candidates) or as the chunks of a stream."""

    messages: list[Any]
    output: Any = None
    asked: list[Any] = []  # noqa: RUF012

    @property
    def _llm_type(self) -> str:
        return "given"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.asked.append(messages)
        given = [ChatGeneration(message=message.model_copy(deep=True)) for message in self.messages]
        return ChatResult(generations=given, llm_output=self.output)

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in self.messages:
            yield ChatGenerationChunk(message=chunk.model_copy(deep=True))

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream([]):
            yield chunk


def guarded(*messages: BaseMessage, output: Any = None) -> GuardedChatModel:
    model = Model(messages=list(messages), output=output)
    return GuardedChatModel(model, make_guard(), exit_behavior="end", violation_message=VIOLATION)


@pytest.mark.parametrize("content", [SAFE, ""])
@pytest.mark.parametrize("place", ANSWERS)
def test_whole_answers(place: str, content: str) -> None:
    result = guarded(AIMessage(content, **ANSWERS[place])).generate([[HumanMessage("hi")]])
    check_no_trace(result, "the result")
    assert result.generations[0][0].text == VIOLATION


@pytest.mark.parametrize("place", ANSWERS)
def test_streamed_answers(place: str) -> None:
    fields = dict(ANSWERS[place])
    for call in fields.pop("tool_calls", ()):
        fields["tool_call_chunks"] = [{**call, "args": "{}", "index": 0, "type": "tool_call_chunk"}]
    chunks = [AIMessageChunk(content="fine ", id="1"), AIMessageChunk(content="x", **fields)]
    model = guarded(*chunks, AIMessageChunk(content=" ok", id="1", chunk_position="last"))

    async def collect() -> list[Any]:
        return [chunk async for chunk in model.astream("hi")]

    for seen in (list(model.stream("hi")), asyncio.run(collect())):
        check_no_trace(seen, "the stream")
        assert str(seen[-1].content).endswith(VIOLATION) or str(seen[-2].content).endswith(VIOLATION)


def test_what_a_provider_says_of_several_answers() -> None:
    model = guarded(AIMessage("fine"), AIMessage("good"), output={"token_usage": {"n": 3}, "note": BAD})
    result = model.generate([[HumanMessage("hi")]])
    check_no_trace(result, "the result")
    assert [one.text for one in result.generations[0]] == ["fine", "good"]


MESSAGES = [
    *((f"human: {place}", HumanMessage("hi", **fields)) for place, fields in PLACES.items()),
    *((f"tool: {place}", ToolMessage("hi", tool_call_id="1", **fields)) for place, fields in PLACES.items()),
    ("system", SystemMessage("hi", foo=BAD)),
    ("the call that a tool answers", ToolMessage("hi", tool_call_id=BAD)),
    ("an artifact", ToolMessage("hi", tool_call_id="1", artifact={"a": [Blob()]})),
    ("a role", ChatMessage("hi", role=BAD)),
    ("a function's name", FunctionMessage("hi", name=BAD)),
]


@pytest.mark.parametrize(("place", "message"), MESSAGES, ids=[place for place, _ in MESSAGES])
def test_prompts(place: str, message: BaseMessage) -> None:
    for behavior in ("end", "replace"):
        model = Model(messages=[AIMessage("fine")], asked=[])
        wrapped = GuardedChatModel(model, make_guard(), exit_behavior=behavior, violation_message=VIOLATION)
        said = wrapped.invoke([HumanMessage("x"), message]).content
        check_no_trace(model.asked, "what the model was asked")
        assert said == (VIOLATION if behavior == "end" else "fine")
    if place.startswith("human"):
        saver = InMemorySaver()
        agent = create_agent(ScriptedModel(replies=[reply("ok")]), middleware=[GuardMiddleware(make_guard())],
                             checkpointer=saver)  # fmt: skip
        seen = list(guard_graph(agent).stream({"messages": [message]}, CONFIG, stream_mode=MODES))
        check_no_trace([seen, saver.storage, saver.writes, saver.blobs], "streams and checkpoints")
        bare = list(agent.stream({"messages": [message]}, {"configurable": {"thread_id": "2"}}, stream_mode="updates"))
        check_no_trace(bare, "updates")
        check_no_trace(agent.get_state({"configurable": {"thread_id": "2"}}).values, "state")


def test_a_harmless_message_keeps_what_it_carries() -> None:
    message = HumanMessage("hi", id="run--8f2a", name="ann", foo="fine", additional_kwargs={"x": ["y"]})
    model = Model(messages=[AIMessage("fine")], asked=[])
    GuardedChatModel(model, make_guard()).invoke([message])
    assert model.asked == [[message]]


class Own(HumanMessage):
    """A kind of message with a field of its own."""

    note: str


def test_a_kind_of_message_with_fields_of_its_own() -> None:
    model = Model(messages=[AIMessage("fine")], asked=[])
    wrapped = GuardedChatModel(model, make_guard(), exit_behavior="replace", violation_message=VIOLATION)
    wrapped.invoke([Own("hi", note=BAD), Own("hi", note="fine")])
    ((replaced, kept),) = model.asked
    check_no_trace(replaced, "the message")
    assert isinstance(replaced, HumanMessage)
    assert kept.note == "fine"


@pytest.mark.parametrize(
    "document",
    [
        Document("hi", metadata={"guardkit": BAD}),
        Document("hi", metadata={"guardkit": {"severity": BAD}}),
        Document("hi", metadata={BAD.encode(): 1}),
        Document("hi", id=BAD),
    ],
    ids=["mark", "mark's field", "key", "id"],
)
def test_documents(document: Document) -> None:
    check_no_trace(GuardDocumentTransformer(make_guard()).transform_documents([document]), "documents")


def test_a_flagged_document_is_read_again_without_a_decision_about_its_mark() -> None:
    (flagged,) = GuardDocumentTransformer(make_guard(), on_unsafe="flag").transform_documents([Document("hmm")])
    assert flagged.metadata["guardkit"]["severity"] == "controversial"
    assert GuardDocumentTransformer(make_guard()).transform_documents([flagged]) == [flagged]


# --------------------------------------------------------------------------------------------- in an agent


def agent_of(*tools: Any, replies: Any = None, store: Any = None) -> tuple[Any, InMemorySaver]:
    saver = InMemorySaver()
    model = ScriptedModel(replies=replies or [reply(query="x"), reply(SAFE)])
    middleware = [GuardMiddleware(make_guard(), violation_message=VIOLATION)]
    return create_agent(model, list(tools), middleware=middleware, checkpointer=saver, store=store), saver


def check_run(agent: Any, saver: InMemorySaver, given: Any = None) -> None:
    given = {"messages": [HumanMessage("hello")]} if given is None else given
    seen = list(agent.stream(given, CONFIG, stream_mode=MODES, subgraphs=True))
    check_no_trace([seen, saver.storage, saver.writes, saver.blobs], "streams and checkpoints")
    check_no_trace(agent.get_state(CONFIG), "state")


def _noted() -> Exception:
    error = ValueError("hm")
    error.add_note(BAD)
    return error


def _caused() -> Exception:
    error = ValueError("hm")
    error.__cause__ = ExceptionGroup("both", [KeyError(BAD)])
    return error


def _message(**fields: Any) -> ToolMessage:
    return ToolMessage("hi", tool_call_id="call-1", **fields)


RESULTS: dict[str, Any] = {
    **{place: _message(**fields) for place, fields in PLACES.items()},
    "an artifact": _message(artifact=Blob()),
    "an artifact of bytes": _message(artifact={"a": bytearray(BAD.encode())}),
    "an artifact that is a table": _message(artifact=np.array(["hi", BAD])),
    "a list of commands": [Command(update={"messages": [_message(foo=BAD)]})],
    "what is sent to a node": Command(
        update={"messages": [_message()]}, goto=[Send("model", {"messages": [HumanMessage("hi", foo=BAD)]})]
    ),
    "an error's note": _noted(),
    "an error's cause": _caused(),
}


@pytest.mark.parametrize("place", RESULTS)
def test_what_a_tool_gives_back(place: str) -> None:
    @tool
    def look(query: str) -> Any:
        """Look something up."""
        if isinstance(RESULTS[place], Exception):
            raise RESULTS[place]
        return RESULTS[place]

    check_run(*agent_of(look))


def test_a_harmless_table_is_an_artifact_like_any_other() -> None:
    table = np.array(["one", "two"])

    @tool
    def look(query: str) -> Any:
        """Look something up."""
        return _message(artifact=table)

    agent, _ = agent_of(look)
    messages = agent.invoke({"messages": [HumanMessage("hello")]}, CONFIG)["messages"]
    assert messages[2].artifact is table
    assert messages[-1].content == SAFE


@pytest.mark.parametrize("place", ANSWERS)
def test_an_agents_answer(place: str) -> None:
    check_run(*agent_of(looking_tool(), replies=[AIMessage("fine", **ANSWERS[place]), reply(SAFE)]))


@pytest.mark.parametrize("value", [BAD, {"a": [BAD]}, Blob()], ids=["text", "dict", "dataclass"])
def test_what_resumes_a_graph(value: Any) -> None:
    @tool
    def look(query: str) -> str:
        """Look something up."""
        return str(interrupt("what?"))

    agent, saver = agent_of(look)
    graph = guard_graph(agent)
    list(graph.stream({"messages": [HumanMessage("hello")]}, CONFIG))
    check_run(graph, saver, Command(resume=value))


def _putting(key: str, value: Any) -> Any:
    @tool
    def look(query: str, runtime: ToolRuntime) -> str:
        """Look something up."""
        assert runtime.store is not None
        runtime.store.put(("notes",), key, value)
        return "kept"

    return look


def test_a_store_that_a_tool_writes_to() -> None:
    """LangGraph hands a tool the graph's store itself: without a guard of its own it keeps what it is given."""
    for store in (InMemoryStore(), GuardedStore(InMemoryStore(), make_guard(), violation_message=VIOLATION)):
        agent, saver = agent_of(_putting("k", {"text": BAD, "n": 1}), store=store)
        check_run(agent, saver)
        (kept,) = [item.value for item in store.search(("notes",))]
        if isinstance(store, InMemoryStore):
            assert any("¶" in text for text in strings_in(kept)), "the leak is there to be seen"
        else:
            assert kept == {"text": VIOLATION, "n": 1}


def test_a_guarded_store() -> None:
    inner = InMemoryStore()
    store = GuardedStore(inner, make_guard(), exit_behavior="error")
    store.put(("a",), "k", {"text": "fine"})
    asyncio.run(store.aput(("a",), "l", {"text": "good"}))
    assert [item.value["text"] for item in store.search(("a",))] == ["fine", "good"]
    assert store.get(("a",), "k") == inner.get(("a",), "k")
    store.delete(("a",), "k")
    for namespace, key, value in ((("a",), "k", {"x": BAD}), ((BAD,), "k", {}), (("a",), BAD, {"x": "fine"})):
        with pytest.raises(GuardViolation):
            store.put(namespace, key, value)
    check_no_trace([inner.list_namespaces(), [i.key for i in inner.search(())]], "the store")
    assert len(inner.search(())) == 1
