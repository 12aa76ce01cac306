"""Query and chat engines: the query, the nodes and the answer, in real in-memory indexes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RetrieverQueryEngine,
    RouterQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool, ToolOutput
from llama_index.postprocessor.guardkit import GuardChatEngine, GuardNodePostprocessor, GuardQueryEngine

from guardkit import GuardViolation
from guardkit.testing import FakeGuard
from tests.leaks import BAD, FLAGGED, SAFE, SIZES, VIOLATION, Seen, check_no_trace, make_guard
from tests.llama_index.doubles import PlainLLM, index_of, user

EXITS = ("error", "end", "replace")
WAYS = [(False, False), (False, True), (True, False), (True, True)]  # async, streaming


def engine_of(
    *replies: Any, nodes: tuple[Any, ...] = ("one text", "another text"), size: int = 5, streaming: bool = False
):
    llm = PlainLLM(*replies, size=size)
    return index_of(*nodes).as_query_engine(llm=llm, streaming=streaming, similarity_top_k=10), llm


def ask(engine: BaseQueryEngine, text: Any = "what?", is_async: bool = False) -> tuple[str, Any]:
    """The answer's text, as a consumer reads it, and the response."""

    async def aask() -> tuple[str, Any]:
        got = await engine.aquery(text)
        if isinstance(got, AsyncStreamingResponse):
            return "".join([t async for t in got.async_response_gen()]), got
        if isinstance(got, StreamingResponse):
            return "".join(got.response_gen), got
        return str(got), got

    if is_async:
        return asyncio.run(aask())
    got = engine.query(text)
    return ("".join(got.response_gen) if isinstance(got, StreamingResponse) else str(got)), got


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("exit_behavior", EXITS)
@pytest.mark.parametrize("surface", ["query", "node", "answer"])
@pytest.mark.parametrize(("is_async", "streaming"), WAYS)
def test_nothing_flagged_leaves_a_query_engine(
    is_async: bool, streaming: bool, surface: str, exit_behavior: Any, size: int
):
    if not streaming and size != 7:
        return
    nodes = ("a fine text", BAD) if surface == "node" else ("a fine text", "another")
    inner, llm = engine_of(BAD if surface == "answer" else SAFE, nodes=nodes, size=size, streaming=streaming)
    engine = GuardQueryEngine(inner, make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    query = f"what about {FLAGGED}" if surface == "query" else "what?"
    if exit_behavior == "error" and surface != "node":
        with pytest.raises(GuardViolation) as violation:
            ask(engine, query, is_async)
        check_no_trace(violation.value, "the error")
        return
    text, response = ask(engine, query, is_async)
    seen = Seen()
    seen.add(text)
    seen.check_clean()
    check_no_trace([response.metadata, response.source_nodes, getattr(response, "response", "")], "the response")
    check_no_trace(llm.script.asked, "what the model was asked")
    if surface == "node":
        assert text == SAFE
        assert [n.text for n in response.source_nodes] == ["a fine text"]
    else:
        assert text.endswith(VIOLATION)
        assert response.metadata["guardkit"]["action"] == "block"
    if surface == "query":
        assert llm.script.asked == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("is_async", "streaming"), WAYS)
def test_what_passes_arrives_complete_with_sources_and_metadata(is_async: bool, streaming: bool, size: int):
    inner, _llm = engine_of(SAFE, size=size, streaming=streaming)
    text, response = ask(GuardQueryEngine(inner, make_guard(holdback=4)), is_async=is_async)
    assert text == SAFE
    plain = ask(engine_of(SAFE, size=size, streaming=streaming)[0], is_async=is_async)[1]
    assert type(response) is type(plain)
    assert [(n.text, n.score) for n in response.source_nodes] == [(n.text, n.score) for n in plain.source_nodes]
    assert set(response.metadata) == set(plain.metadata)


def test_a_stream_is_live():
    inner, llm = engine_of(SAFE, size=3, streaming=True)
    response = GuardQueryEngine(inner, make_guard(holdback=4)).query("what?")
    seen = Seen()
    for text in response.response_gen:
        seen.source = llm.script.sources[0]
        seen.add(text)
    seen.check_complete(SAFE)
    seen.check_live(4)


def test_the_engine_that_was_given_stays_as_it_is():
    inner, _llm = engine_of(BAD)
    GuardQueryEngine(inner, make_guard())
    assert str(inner.query("what?")) == BAD
    assert inner._node_postprocessors == []


def test_it_is_what_it_wraps():
    inner, _ = engine_of()
    engine = GuardQueryEngine(inner, make_guard())
    assert isinstance(engine, GuardQueryEngine)
    assert isinstance(engine, RetrieverQueryEngine)
    assert isinstance(engine, BaseQueryEngine)
    assert engine.callback_manager is inner.callback_manager
    assert engine.retriever is inner.retriever
    prompts = engine.get_prompts()
    key = "response_synthesizer:text_qa_template"
    assert prompts.keys() == inner.get_prompts().keys()
    engine.update_prompts({key: PromptTemplate("Q {query_str} C {context_str}")})
    assert engine.get_prompts()[key].get_template() == "Q {query_str} C {context_str}"
    other = engine.with_retriever(index_of(BAD).as_retriever())
    assert isinstance(other, GuardQueryEngine)
    assert other.query("what?").source_nodes == []


def test_callbacks_and_traces_work():
    debug = LlamaDebugHandler(print_trace_on_end=False)
    inner, _ = engine_of()
    inner.callback_manager = CallbackManager([debug])
    GuardQueryEngine(inner, make_guard()).query("what?")
    assert debug.get_event_pairs("query")


def test_retrieve_and_synthesize():
    inner, _ = engine_of(BAD, nodes=("fine", BAD))
    engine = GuardQueryEngine(inner, make_guard(), violation_message=VIOLATION)
    assert [n.text for n in engine.retrieve(QueryBundle("what?"))] == ["fine"]
    assert [n.text for n in asyncio.run(engine.aretrieve(QueryBundle("what?")))] == ["fine"]
    assert engine.retrieve(QueryBundle(FLAGGED)) == []
    nodes = [NodeWithScore(node=TextNode(text=BAD))]
    response = engine.synthesize(QueryBundle("what?"), nodes, nodes)
    check_no_trace(response, "the response")
    check_no_trace(asyncio.run(engine.asynthesize(QueryBundle("what?"), nodes)), "the response")


def test_a_query_bundle_is_judged_whole():
    engine = GuardQueryEngine(engine_of()[0], make_guard(), violation_message=VIOLATION)
    assert str(engine.query(QueryBundle("fine", custom_embedding_strs=[FLAGGED]))) == VIOLATION
    assert str(engine.query(QueryBundle("fine", image_path="a.png"))) == VIOLATION


def wrapped(kind: str, inner: RetrieverQueryEngine, llm: PlainLLM) -> BaseQueryEngine:
    if kind == "citation":
        return CitationQueryEngine.from_args(index_of("fine", BAD), llm=llm, similarity_top_k=5)
    if kind == "transform":
        return TransformQueryEngine(inner, HyDEQueryTransform(llm=PlainLLM("a guess")))
    tools = [QueryEngineTool.from_defaults(inner, description="all")]
    chosen = PlainLLM('[{"choice": 1, "reason": "only one"}]', chat_model=False)
    return RouterQueryEngine(LLMSingleSelector.from_defaults(llm=chosen), tools, llm=llm)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", ["citation", "transform", "router"])
def test_nodes_are_guarded_inside_other_engines(kind: str, is_async: bool):
    inner, llm = engine_of(SAFE, nodes=("fine", BAD))
    text, response = ask(GuardQueryEngine(wrapped(kind, inner, llm), make_guard()), is_async=is_async)
    assert text == SAFE
    check_no_trace([response.source_nodes, response.metadata], "the response")
    check_no_trace(llm.script.asked, "what the model was asked")


class Hidden(BaseQueryEngine):
    """An engine that shows nothing of its inside."""

    def __init__(self, response: Any):
        super().__init__(None)
        self.response = response

    def _get_prompt_modules(self) -> dict[str, Any]:
        return {}

    def _query(self, query_bundle: QueryBundle) -> Any:
        return self.response

    async def _aquery(self, query_bundle: QueryBundle) -> Any:
        return self.response


class Person(BaseModel):
    name: str


@pytest.mark.parametrize("is_async", [False, True])
def test_an_engine_that_hides_its_nodes_has_its_sources_screened(is_async: bool):
    nodes = [NodeWithScore(node=TextNode(text=t, id_=t[:3], metadata={"k": t})) for t in ("fine", BAD)]
    metadata = {n.node_id: n.metadata for n in nodes} | {"sql": f"select {FLAGGED}", "rows": 3}
    engine = GuardQueryEngine(Hidden(Response("an answer", nodes, metadata)), make_guard())
    _, response = ask(engine, is_async=is_async)
    assert [n.text for n in response.source_nodes] == ["fine"]
    assert response.metadata == {"fin": {"k": "fine"}, "rows": 3}
    assert not isinstance(engine, RetrieverQueryEngine)


@pytest.mark.parametrize("is_async", [False, True])
def test_pydantic_answers(is_async: bool):
    fine, bad = PydanticResponse(Person(name="Ada")), PydanticResponse(Person(name=FLAGGED))
    assert ask(GuardQueryEngine(Hidden(fine), make_guard()), is_async=is_async)[1].name == "Ada"
    response = ask(GuardQueryEngine(Hidden(bad), make_guard(), violation_message=VIOLATION), is_async=is_async)[1]
    assert str(response) == VIOLATION


def test_what_is_only_flagged_passes_and_says_so():
    _, response = ask(GuardQueryEngine(Hidden(Response("hmm so it is")), make_guard()))
    assert response.response == "hmm so it is"
    assert response.metadata["guardkit"]["severity"] == "controversial"


def test_redaction_of_an_answer():
    guard = FakeGuard({"bad": "unsafe"}, policy={"rules": [{"severity": "unsafe", "action": "redact"}]})
    _, response = ask(GuardQueryEngine(Hidden(Response("Good. This is bad. Fine.")), guard))
    assert response.response == "Good. [redacted] Fine."


@pytest.mark.parametrize(("is_async", "streaming"), WAYS)
def test_a_guard_that_fails_or_hangs_lets_nothing_through(is_async: bool, streaming: bool):
    for guard in (FakeGuard({"crash": RuntimeError("boom")}), FakeGuard(delay=0.5, timeout=0.05)):
        inner, _ = engine_of("all crash here", streaming=streaming)
        text, _ = ask(GuardQueryEngine(inner, guard, violation_message=VIOLATION), is_async=is_async)
        assert text.endswith(VIOLATION)
        assert "crash" not in text


def test_a_cancelled_stream_shows_nothing_more():
    inner, _llm = engine_of(SAFE, size=3, streaming=True)
    engine = GuardQueryEngine(inner, FakeGuard(delay=0.01, holdback=1))
    shown: list[str] = []

    async def read() -> None:
        response = await engine.aquery("what?")
        async for text in response.async_response_gen():
            shown.append(text)
            await asyncio.sleep(3600)

    async def go() -> None:
        task = asyncio.create_task(read())
        while not shown:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert len(shown) == 1


# -- chat engines

ENGINES = ("simple", "context", "condense_plus_context", "condense_question", "custom")


class Custom(BaseChatEngine):
    """Someone's own engine: an LLM under a name of its own in a closure, and a memory."""

    def __init__(self, llm: PlainLLM, memory: ChatMemoryBuffer, nodes: tuple[str, ...]):
        inside = SimpleChatEngine(llm=llm, memory=memory, prefix_messages=[])
        self._memory = memory
        self._ask = lambda: SimpleChatEngine(llm=llm, memory=self._memory, prefix_messages=[])
        self._reset = inside.reset
        self._nodes = [NodeWithScore(node=TextNode(text=t)) for t in nodes]

    def __copy__(self) -> Custom:
        made = object.__new__(Custom)
        made.__dict__.update(self.__dict__)
        llm = self._ask()._llm
        made._ask = lambda: SimpleChatEngine(llm=llm, memory=made._memory, prefix_messages=[])
        return made

    def _with_sources(self, response: Any) -> Any:
        response.source_nodes = self._nodes
        if isinstance(response, AgentChatResponse):
            response.metadata = {"pages": [n.text for n in self._nodes], "turn": 1}
        response.sources = [ToolOutput("retriever", content=str(self._nodes), raw_input={}, raw_output=self._nodes)]
        return response

    def chat(self, message: str, chat_history: Any = None) -> AgentChatResponse:
        return self._with_sources(self._ask().chat(message, chat_history))

    async def achat(self, message: str, chat_history: Any = None) -> AgentChatResponse:
        return self._with_sources(await self._ask().achat(message, chat_history))

    def stream_chat(self, message: str, chat_history: Any = None) -> StreamingAgentChatResponse:
        return self._with_sources(self._ask().stream_chat(message, chat_history))

    async def astream_chat(self, message: str, chat_history: Any = None) -> StreamingAgentChatResponse:
        return self._with_sources(await self._ask().astream_chat(message, chat_history))

    def reset(self) -> None:
        self._reset()

    @property
    def chat_history(self) -> Any:
        return self._memory.get_all()


def chat_engine_of(kind: str, *replies: Any, nodes: tuple[str, ...] = ("a fine text",), size: int = 5, streaming=False):
    llm = PlainLLM(*replies, size=size)
    memory = ChatMemoryBuffer.from_defaults(token_limit=10_000)
    index = index_of(*nodes)
    if kind == "simple":
        return SimpleChatEngine.from_defaults(llm=llm, memory=memory), llm
    if kind == "custom":
        return Custom(llm, memory, nodes), llm
    if kind == "condense_question":
        query_engine = index.as_query_engine(llm=llm, similarity_top_k=5, streaming=streaming)
        return CondenseQuestionChatEngine.from_defaults(query_engine, llm=llm, memory=memory), llm
    retriever = index.as_retriever(similarity_top_k=5)
    kind_ = ContextChatEngine if kind == "context" else CondensePlusContextChatEngine
    return kind_.from_defaults(retriever, llm=llm, memory=memory), llm


def talk(
    engine: BaseChatEngine, message: str = "hello", is_async: bool = False, streaming: bool = False, **kwargs: Any
) -> tuple[str, Any]:
    async def atalk() -> tuple[str, Any]:
        if not streaming:
            got = await engine.achat(message, **kwargs)
            return str(got), got
        got = await engine.astream_chat(message, **kwargs)
        return "".join([t async for t in got.async_response_gen()]), got

    if is_async:
        return asyncio.run(atalk())
    if not streaming:
        got = engine.chat(message, **kwargs)
        return str(got), got
    got = engine.stream_chat(message, **kwargs)
    return "".join(got.response_gen), got


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # LlamaIndex's writer raises too
@pytest.mark.parametrize("size", [1, 7, len(BAD)])
@pytest.mark.parametrize("exit_behavior", EXITS)
@pytest.mark.parametrize("surface", ["message", "node", "answer"])
@pytest.mark.parametrize(("is_async", "streaming"), WAYS)
@pytest.mark.parametrize("kind", ENGINES)
def test_nothing_flagged_leaves_a_chat_engine(
    kind: str, is_async: bool, streaming: bool, surface: str, exit_behavior: Any, size: int
):
    if not streaming and size != 7:
        return
    nodes = ("a fine text", BAD) if surface == "node" else ("a fine text",)
    answer = BAD if surface == "answer" else SAFE
    inner, llm = chat_engine_of(kind, answer, nodes=nodes, size=size, streaming=streaming)
    engine = GuardChatEngine(inner, make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    message = f"about {FLAGGED}" if surface == "message" else "hello"
    if exit_behavior == "error" and surface != "node":
        with pytest.raises(GuardViolation) as violation:
            talk(engine, message, is_async, streaming)
        check_no_trace(violation.value, "the error")
        check_no_trace(engine.chat_history, "memory")
        return
    text, response = talk(engine, message, is_async, streaming)
    if writer := getattr(response, "write_response_to_history_thread", None):
        writer.join()
    seen = Seen()
    seen.add(text)
    seen.check_clean()
    check_no_trace(engine.chat_history, "memory")
    check_no_trace(inner.chat_history, "the given engine's memory")
    check_no_trace([response.response, response.sources, response.source_nodes], "the response")
    check_no_trace(getattr(response, "metadata", None), "the response's metadata")
    assert isinstance(response, StreamingAgentChatResponse if streaming else AgentChatResponse)
    if kind != "custom":  # what an engine hides it has read already; its sources are screened all the same
        check_no_trace(llm.script.asked, "what the model was asked")
    if surface == "node":
        assert text == SAFE
        if kind not in ("simple", "condense_question"):
            assert [n.text for n in response.source_nodes] == ["a fine text"]
    else:
        assert text.endswith(VIOLATION)
    if surface == "message":
        assert engine.chat_history == []
        assert llm.script.asked == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("is_async", "streaming"), WAYS)
@pytest.mark.parametrize("kind", ENGINES)
def test_a_conversation_goes_on_and_is_remembered(kind: str, is_async: bool, streaming: bool, size: int):
    inner, _llm = chat_engine_of(kind, SAFE, size=size, streaming=streaming)
    engine = GuardChatEngine(inner, make_guard(holdback=4))
    text, _response = talk(engine, "hello", is_async, streaming)
    assert text == SAFE
    for _ in range(100):  # a writer of LlamaIndex's may still be at work
        if len(engine.chat_history) == 2:
            break
        time.sleep(0.02)
    assert [m.content for m in engine.chat_history] == ["hello", SAFE]
    engine.reset()
    assert engine.chat_history == []


@pytest.mark.parametrize("kind", ENGINES)
def test_a_memory_keeps_nothing_that_was_shown_too_early(kind: str):
    inner, _ = chat_engine_of(kind, BAD, size=3, streaming=True)
    engine = GuardChatEngine(inner, make_guard(holdback=0, debounce=2), violation_message=VIOLATION)
    _, response = talk(engine, streaming=True)
    if writer := getattr(response, "write_response_to_history_thread", None):
        writer.join()
    check_no_trace(engine.chat_history, "memory")


class Careless(RetrieverQueryEngine):
    """Someone's own: it forgets the postprocessors."""

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._retriever.retrieve(query_bundle)


def test_a_subclass_that_forgets_the_postprocessors_has_its_sources_screened():
    engine = GuardQueryEngine(Careless.from_args(index_of("fine", BAD).as_retriever(), PlainLLM(SAFE)), make_guard())
    response = engine.query("what?")
    assert [n.text for n in response.source_nodes] == ["fine"]
    check_no_trace(response, "the response")


def test_a_chat_history_that_is_given_is_judged():
    inner, llm = chat_engine_of("simple", SAFE)
    engine = GuardChatEngine(inner, make_guard(), violation_message=VIOLATION)
    text, _ = talk(engine, "hello", chat_history=[user("fine"), user(FLAGGED)])
    assert text == SAFE
    check_no_trace(engine.chat_history, "memory")
    check_no_trace(llm.script.asked, "what the model was asked")
    assert engine.chat_history[0].content == "fine"


def test_own_postprocessor_and_switches():
    flags = GuardNodePostprocessor(guard=make_guard(), on_block="flag")
    inner, _ = engine_of(SAFE, nodes=(BAD,))
    response = GuardQueryEngine(inner, make_guard(), node_postprocessor=flags).query("what?")
    assert response.source_nodes[0].metadata["guardkit_action"] == "block"
    off = GuardQueryEngine(engine_of(BAD)[0], make_guard(), check_input=False, check_nodes=False, check_output=False)
    assert str(off.query(FLAGGED)) == BAD
    chat = GuardChatEngine(
        chat_engine_of("simple", BAD)[0], make_guard(), check_input=False, check_nodes=False, check_output=False
    )
    assert str(chat.chat(FLAGGED)) == BAD
