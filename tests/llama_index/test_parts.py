"""Between question and answer: models inside engines, rerankers, callbacks, facts, escapes, tool outputs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import SQLDatabase
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.indices.query.query_transform import HyDEQueryTransform, StepDecomposeQueryTransform
from llama_index.core.memory import FactExtractionMemoryBlock, Memory
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import (
    FLAREInstructQueryEngine,
    MultiStepQueryEngine,
    NLSQLTableQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import BaseTool, QueryEngineTool, ToolMetadata, ToolOutput
from llama_index.postprocessor.guardkit import (
    GuardMemory,
    GuardNodePostprocessor,
    GuardQueryEngine,
    guarded,
    guarded_tools,
)
from pydantic import BaseModel
from sqlalchemy import create_engine, text

from guardkit import GuardViolation
from tests.leaks import BAD, FLAGGED_MARK, VIOLATION, check_no_trace, make_guard, strings_in
from tests.llama_index.doubles import PlainLLM, SmallEmbedding, index_of, user

pytestmark = pytest.mark.filterwarnings("ignore")


class Scripts:
    """LLMs of one engine, and all that they were asked after what they had said themselves."""

    def __init__(self) -> None:
        self.made: list[PlainLLM] = []

    def llm(self, *replies: str) -> PlainLLM:
        self.made.append(PlainLLM(*replies))
        return self.made[-1]

    @property
    def asked(self) -> list[Any]:
        return [llm.script.asked for llm in self.made]


def _inner(scripts: Scripts) -> Any:
    return index_of("fine").as_query_engine(llm=scripts.llm("an answer"))


def _tool(scripts: Scripts) -> QueryEngineTool:
    return QueryEngineTool(query_engine=_inner(scripts), metadata=ToolMetadata(name="t", description="d"))


def flare(scripts: Scripts) -> Any:
    llm = scripts.llm(f"so [Search({BAD})] it is", "done [Search(none)]", "done")
    return FLAREInstructQueryEngine(_inner(scripts), llm=llm, max_iterations=2)


def sub_questions(scripts: Scripts) -> Any:
    said = json.dumps({"items": [{"sub_question": BAD, "tool_name": "t"}]})
    return SubQuestionQueryEngine.from_defaults(
        query_engine_tools=[_tool(scripts)],
        question_gen=LLMQuestionGenerator.from_defaults(llm=scripts.llm(said)),
        llm=scripts.llm("all in all"),
        use_async=False,
        verbose=False,
    )


def multi_step(scripts: Scripts) -> Any:
    return MultiStepQueryEngine(
        _inner(scripts),
        StepDecomposeQueryTransform(llm=scripts.llm(BAD, "none")),
        response_synthesizer=get_response_synthesizer(llm=scripts.llm("in the end")),
        index_summary="x",
        num_steps=2,
    )


def hyde(scripts: Scripts) -> Any:
    return TransformQueryEngine(_inner(scripts), HyDEQueryTransform(llm=scripts.llm(BAD)))


def router(scripts: Scripts) -> Any:
    said = json.dumps([{"choice": 1, "reason": BAD}], ensure_ascii=False)
    selector = LLMSingleSelector.from_defaults(llm=scripts.llm(said))
    return RouterQueryEngine(selector=selector, query_engine_tools=[_tool(scripts)], llm=scripts.llm("summed up"))


def rows(scripts: Scripts) -> Any:
    database = create_engine("sqlite://")
    with database.begin() as connection:
        connection.execute(text("create table t (a text)"))
        connection.execute(text("insert into t values (:a)"), {"a": BAD})
    llm = scripts.llm("SQLQuery: select a from t", "an answer")
    return NLSQLTableQueryEngine(SQLDatabase(database), tables=["t"], llm=llm, embed_model=SmallEmbedding())


def reranked(scripts: Scripts) -> Any:
    rerank = LLMRerank(llm=scripts.llm("Doc: 1, Relevance: 9"), top_n=2)
    engine = index_of("fine", BAD).as_query_engine(llm=scripts.llm("an answer"), similarity_top_k=2)
    return engine.__class__(engine._retriever, engine._response_synthesizer, node_postprocessors=[rerank])


ENGINES: list[Callable[[Scripts], Any]] = [flare, sub_questions, multi_step, hyde, router, rows, reranked]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("exit_behavior", ["end", "error"])
@pytest.mark.parametrize("make", ENGINES, ids=[make.__name__ for make in ENGINES])
def test_nothing_that_an_engine_says_or_finds_on_its_way_enters_a_prompt(
    make: Any, exit_behavior: Any, is_async: bool
) -> None:
    scripts = Scripts()
    engine = make(scripts)
    guard = GuardQueryEngine(engine, make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    try:
        response = asyncio.run(guard.aquery("hi")) if is_async else guard.query("hi")
    except GuardViolation as violation:
        assert exit_behavior == "error"
        check_no_trace(violation, "error")
    else:
        check_no_trace(response, "the answer")
    check_no_trace(scripts.asked, "prompts")
    bare = Scripts()
    bare_engine = make(bare)
    answer = bare_engine.query("hi")
    leak = any(FLAGGED_MARK in found for found in strings_in([bare.asked, answer.metadata]))
    assert leak or make is hyde, "the leak is there to be seen"


def test_a_reranker_gets_judged_nodes_and_limits_hold_for_the_last() -> None:
    scripts = Scripts()
    nodes = GuardNodePostprocessor(guard=make_guard(), max_nodes=1, min_nodes=1)
    engine = GuardQueryEngine(reranked(scripts), make_guard(), node_postprocessor=nodes)
    assert len(engine._engine._node_postprocessors) == 3  # type: ignore[attr-defined]
    assert len(engine.query("hi").source_nodes) == 1


CALLS: list[Callable[[Any], Any]] = [
    lambda llm: llm.chat([user(BAD)]),
    lambda llm: asyncio.run(llm.achat([user(BAD)])),
    lambda llm: list(llm.stream_chat([user(BAD)])),
    lambda llm: llm.complete(BAD),
    lambda llm: asyncio.run(llm.acomplete(BAD)),
    lambda llm: list(llm.stream_complete(BAD)),
]


@pytest.mark.parametrize("exit_behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("call", range(len(CALLS)))
def test_callbacks_see_no_blocked_prompt(call: int, exit_behavior: Any) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    inner = PlainLLM("fine", callback_manager=CallbackManager([debug]))
    llm = guarded(inner, make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    try:
        CALLS[call](llm)
    except GuardViolation:
        assert exit_behavior == "error"
    check_no_trace([event.payload for event in debug.get_events()], "events")
    assert bool(debug.get_events()) == (exit_behavior == "replace"), "where nothing is asked, no call is told"


class Note(BaseModel):
    """A note."""

    text: str


@pytest.mark.parametrize("exit_behavior", ["error", "end", "replace"])
def test_an_answer_in_json_is_read_without_its_escapes(exit_behavior: Any) -> None:
    """What parses it shows the object's own text."""
    said = json.dumps({"text": BAD})
    assert FLAGGED_MARK not in said
    prompt = PromptTemplate("x")
    ways: list[Callable[[Any], Any]] = [
        lambda llm: llm.structured_predict(Note, prompt),
        lambda llm: asyncio.run(llm.astructured_predict(Note, prompt)),
        lambda llm: list(llm.stream_structured_predict(Note, prompt)),
        lambda llm: llm.as_structured_llm(Note).complete("x"),
        lambda llm: json.dumps(json.loads(llm.complete("x").text), ensure_ascii=False),
        lambda llm: [chunk.message.content for chunk in llm.stream_chat([user("x")])][-1],
    ]
    for size in (1, 7, len(said)):
        for way in ways:
            llm = guarded(PlainLLM(said, size=size), make_guard(), exit_behavior=exit_behavior)
            try:
                seen = way(llm)
            except (GuardViolation, json.JSONDecodeError) as error:
                check_no_trace(error, "error")
            else:
                check_no_trace(seen, "objects")
                assert "00b6" not in str(seen)
    harmless = guarded(PlainLLM(json.dumps({"text": "schön"}), size=3), make_guard())
    assert harmless.structured_predict(Note, prompt) == Note(text="schön")
    assert list(harmless.stream_structured_predict(Note, prompt))[-1] == Note(text="schön")


def test_facts_that_a_memory_block_makes_up_are_not_kept() -> None:
    llm = PlainLLM(f"<facts><fact>{BAD}</fact><fact>likes tea</fact></facts>")
    block = FactExtractionMemoryBlock(name="facts", llm=llm, max_facts=5)
    memory = Memory.from_defaults(
        session_id="s", token_limit=60, chat_history_token_ratio=0.3, token_flush_size=10, memory_blocks=[block]
    )
    guard = GuardMemory(memory=memory, guard=make_guard(), violation_message=VIOLATION)

    async def talk() -> Any:
        for i in range(4):
            await guard.aput(user(f"hello there number {i} and some more words to fill it"))
            await guard.aput(ChatMessage(role="assistant", content="yes"))
        return await guard.aget()

    check_no_trace(asyncio.run(talk()), "what is given out")
    check_no_trace([block.facts, llm.script.asked], "what is kept, and shown to the block's model")
    assert "likes tea" in block.facts


OUTPUTS: dict[str, Callable[[], ToolOutput]] = {
    "the input": lambda: ToolOutput("t", content="fine", raw_input={"x": [BAD]}, raw_output="fine"),
    "the name": lambda: ToolOutput(BAD, content="fine", raw_input={}, raw_output="fine"),
    "the error": lambda: ToolOutput("t", content="fine", raw_input={}, is_error=True, exception=ValueError(BAD)),
}


@pytest.mark.parametrize("field", OUTPUTS)
def test_what_a_tool_says_of_its_call_is_judged(field: str) -> None:
    class Given(BaseTool):
        @property
        def metadata(self) -> ToolMetadata:
            return ToolMetadata(name="t", description="d")

        def __call__(self, input: Any) -> ToolOutput:
            return OUTPUTS[field]()

    (tool,) = guarded_tools([Given()], make_guard(), violation_message=VIOLATION)
    for output in (tool.call("x"), asyncio.run(tool.acall("x"))):
        check_no_trace([output, output.raw_input, output.tool_name, output.exception], "output")
        assert output.content == VIOLATION
