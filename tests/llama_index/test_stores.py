"""What is kept and fed back: ingestion's docstore and cache, memory blocks, drafts, sub-answers, nodes' metadata."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import uuid
from collections import namedtuple
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import CodeActAgent, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, CitationBlock, DocumentBlock, TextBlock
from llama_index.core.extractors import TitleExtractor
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.memory import BaseMemoryBlock, InsertMethod, Memory, StaticMemoryBlock
from llama_index.core.memory.memory_blocks import FactExtractionMemoryBlock
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetryQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import SubQuestion
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import ImageNode, IndexNode, NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import QueryEngineTool
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.postprocessor.guardkit import (
    GuardIngestionPipeline,
    GuardMemory,
    GuardNodePostprocessor,
    GuardQueryEngine,
    GuardTransform,
    guarded,
    guarded_tools,
)

from guardkit import GuardViolation
from guardkit.testing import FakeGuard
from tests.leaks import BAD, FLAGGED, SAFE, VIOLATION, check_no_trace, make_guard
from tests.llama_index.doubles import FunctionLLM, PlainLLM, SmallEmbedding, index_of, user

# -- ingestion


def run(pipeline: IngestionPipeline, is_async: bool, *texts: str) -> list[str]:
    documents = [Document(text=text, id_=f"d{i}") for i, text in enumerate(texts)]
    nodes = asyncio.run(pipeline.arun(documents=documents)) if is_async else pipeline.run(documents=documents)
    return [node.get_content() for node in nodes]


def pipeline_of(guard: Any, own: bool, **settings: Any) -> IngestionPipeline:
    if own:
        return GuardIngestionPipeline(guard, transformations=[], **settings)
    return IngestionPipeline(transformations=[GuardTransform(guard=guard)], **settings)


@pytest.mark.filterwarnings("ignore:docstore_strategy")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("strategy", list(DocstoreStrategy))
def test_a_dropped_document_is_stored_nowhere_and_read_again(strategy: Any, is_async: bool, own: bool):
    store, cache, vectors = SimpleDocumentStore(), IngestionCache(), SimpleVectorStore()
    settings = {"docstore": store, "cache": cache, "vector_store": vectors, "docstore_strategy": strategy}
    strict = pipeline_of(make_guard(), own, **settings)
    for _ in range(3):  # neither a cache nor a hash lets the second or third run store it
        run(strict, is_async, "fine", BAD)
        assert list(store.docs) == ["d0"]
        check_no_trace([store.to_dict(), cache.cache.to_dict()], "docstore and cache")
    assert BAD in run(pipeline_of(FakeGuard(), own, **settings), is_async, "fine", BAD)
    assert set(store.docs) == {"d0", "d1"}


def test_a_document_that_turned_bad_is_deleted():
    store, vectors = SimpleDocumentStore(), SimpleVectorStore()
    settings = {"docstore": store, "vector_store": vectors, "transformations": [SmallEmbedding()]}
    pipeline = GuardIngestionPipeline(make_guard(), **settings)
    pipeline.run(documents=[Document(text="fine", id_="d0")])
    pipeline.run(documents=[Document(text=BAD, id_="d0")])
    assert store.docs == {}


def test_a_document_that_lost_a_part_is_stored_without_its_text():
    store = SimpleDocumentStore()
    splitter = SentenceSplitter(chunk_size=20, chunk_overlap=0, paragraph_separator="\n\n")
    pipeline = IngestionPipeline(transformations=[splitter, GuardTransform(guard=make_guard())], docstore=store)
    text = f"{SAFE}. " * 3 + f"{BAD}. " + f"{SAFE}. "
    with pytest.warns(UserWarning, match="docstore_strategy"):
        kept = pipeline.run(documents=[Document(text=text, id_="d0")])
    assert kept
    check_no_trace([store.to_dict(), kept], "docstore and nodes")


# -- memory blocks


class Block(BaseMemoryBlock[Any]):
    content: Any

    async def _aget(self, messages: list[ChatMessage] | None = None, **kwargs: Any) -> Any:
        return self.content

    async def _aput(self, messages: list[ChatMessage]) -> None:
        pass


BLOCKS: dict[str, Any] = {
    "static": lambda: StaticMemoryBlock(name="b", static_content=BAD),
    "facts": lambda: FactExtractionMemoryBlock(name="b", llm=PlainLLM(), facts=[BAD]),
    "text": lambda: Block(name="b", content=BAD),
    "blocks": lambda: Block(name="b", content=[TextBlock(text=BAD)]),
    "messages": lambda: Block(name="b", content=[user(BAD)]),
}


@pytest.mark.parametrize("insert", list(InsertMethod))
@pytest.mark.parametrize("kind", BLOCKS)
def test_memory_blocks_are_judged_each_by_itself(kind: str, insert: Any):
    guard, inner = make_guard(), FunctionLLM(SAFE)
    blocks = [BLOCKS[kind](), StaticMemoryBlock(name="other", static_content="likes tea")]
    memory = Memory.from_defaults(memory_blocks=blocks, insert_method=insert)

    async def go() -> str:
        agent = FunctionAgent(tools=[], llm=guarded(inner, guard))
        return str(await agent.run("hi", memory=GuardMemory(memory=memory, guard=guard, violation_message=VIOLATION)))

    assert asyncio.run(go()) == SAFE
    check_no_trace(inner.script.asked, "what the model was asked")
    assert "likes tea" in str(inner.script.asked)
    assert VIOLATION in str(inner.script.asked)


def test_what_stood_in_a_memory_before_the_guard_is_not_given_out():
    memory = Memory.from_defaults()
    memory.put_messages([user(BAD), ChatMessage(role="assistant", content=BAD), user("fine")])
    guarded_memory = GuardMemory(memory=memory, guard=make_guard(), exit_behavior="error")
    check_no_trace([guarded_memory.get(), guarded_memory.get_all()], "the memory")
    check_no_trace(asyncio.run(guarded_memory.aget()), "the memory")


# -- what goes into the next prompt


@pytest.mark.parametrize("mode", [ResponseMode.REFINE, ResponseMode.TREE_SUMMARIZE])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_drafts_are_judged_before_they_enter_the_next_prompt(streaming: bool, is_async: bool, mode: Any):
    llm = PlainLLM(BAD, SAFE)
    long = ["one " * 40, "two " * 40]
    settings: dict[str, Any] = {"response_mode": mode, "streaming": streaming, "similarity_top_k": 2}
    engine = index_of(*long).as_query_engine(llm=llm, **settings)
    if mode is ResponseMode.TREE_SUMMARIZE:
        engine._response_synthesizer._prompt_helper.context_window = 150
        engine._response_synthesizer._prompt_helper.num_output = 8
    made = GuardQueryEngine(engine, make_guard(), violation_message=VIOLATION)

    async def aask() -> str:
        got = await made.aquery("what?")
        return "".join([t async for t in got.async_response_gen()]) if streaming else str(got)

    got = asyncio.run(aask()) if is_async else str(made.query("what?"))
    assert got == SAFE
    assert len(llm.script.asked) > 1
    check_no_trace(llm.script.asked, "what the model was asked")


class Questions:
    def generate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return [SubQuestion(sub_question="what?", tool_name="a")]

    async def agenerate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return self.generate(tools, query)


@pytest.mark.parametrize("is_async", [False, True])
def test_answers_to_sub_questions_are_judged(is_async: bool):
    inner = index_of("fine").as_query_engine(llm=PlainLLM(BAD))
    llm = PlainLLM(SAFE)
    tool = QueryEngineTool.from_defaults(inner, name="a", description="a")
    synthesizer = index_of("x").as_query_engine(llm=llm)._response_synthesizer
    engine = SubQuestionQueryEngine(Questions(), synthesizer, [tool], verbose=False)  # type: ignore[arg-type]
    made = GuardQueryEngine(engine, make_guard(), violation_message=VIOLATION)
    assert str(asyncio.run(made.aquery("what?")) if is_async else made.query("what?")) == SAFE
    check_no_trace(llm.script.asked, "what the model was asked")
    assert VIOLATION in str(llm.script.asked)


class Never:
    """An evaluator that is never content."""

    def evaluate_response(self, *args: Any, **kwargs: Any) -> Any:
        return type("Evaluation", (), {"passing": False, "feedback": "no"})()

    async def aevaluate_response(self, *args: Any, **kwargs: Any) -> Any:
        return self.evaluate_response()


@pytest.mark.parametrize("exit_behavior", ["error", "end"])
def test_a_retrying_engine_does_not_ask_again(exit_behavior: Any):
    llm = PlainLLM(BAD)
    engine = RetryQueryEngine(index_of("fine").as_query_engine(llm=llm), Never(), max_retries=3)  # type: ignore[arg-type]
    made = GuardQueryEngine(engine, make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    if exit_behavior == "error":
        with pytest.raises(GuardViolation):
            made.query("what?")
    else:
        assert str(made.query("what?")) == VIOLATION
    assert len(llm.script.asked) == 1


def test_a_code_act_agent_is_guarded():
    guard = make_guard()

    def execute(code: str) -> str:
        """Executes."""
        return BAD if "bad" in code else "done"

    inner = FunctionLLM("<execute>bad()</execute>", SAFE)
    agent = CodeActAgent(tools=[], code_execute_fn=execute, llm=guarded(inner, guard))
    agent.tools = guarded_tools(agent.tools, guard, violation_message=VIOLATION)

    async def go() -> tuple[list[Any], str]:
        from llama_index.core.workflow import Context

        handler = agent.run("hi", ctx=Context(agent))
        return [e async for e in handler.stream_events()], str(await handler)

    events, said = asyncio.run(go())
    assert said == SAFE
    check_no_trace([events, inner.script.asked], "events and prompts")


# -- nodes

Point = namedtuple("Point", "x note")


class Colour(enum.Enum):
    red = "red"


class Text(TextNode):
    summary: str = ""


NODES: dict[str, Any] = {
    "key": TextNode(text="fine", metadata={FLAGGED: 1}),
    "hidden key": TextNode(text="fine", metadata={FLAGGED: 1}, excluded_llm_metadata_keys=[FLAGGED]),
    "bytes": TextNode(text="fine", metadata={"raw": BAD.encode()}),
    "named tuple": TextNode(text="fine", metadata={"point": Point(1, BAD)}),
    "deep": TextNode(text="fine", metadata={"a": [{"b": ({BAD},)}]}),
    "related": TextNode(
        text="fine",
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="n", metadata={"k": {FLAGGED: [1]}})},
    ),
    "object": IndexNode(text="fine", index_id="i", obj=Point(1, BAD)),
    "field": Text(text="fine", summary=BAD),
    "caption": ImageNode(text=BAD, image_url="http://localhost/a.png"),
}


@pytest.mark.parametrize("on_block", ["drop", "redact"])
@pytest.mark.parametrize("kind", NODES)
def test_text_anywhere_in_a_node_is_found(kind: str, on_block: Any):
    screen = GuardNodePostprocessor(guard=make_guard(), media="keep", on_block=on_block)
    left = screen.postprocess_nodes([NodeWithScore(node=NODES[kind])])
    check_no_trace(left, "the nodes")
    assert on_block == "redact" or not left


def test_harmless_values_pass_and_keep_their_types():
    metadata = {
        "date": datetime.date(2024, 1, 2),
        "id": uuid.uuid4(),
        "price": decimal.Decimal("1.5"),
        "tags": {"a", "b"},
        "point": Point(1, "note"),
        "colour": Colour.red,
        "n": None,
    }
    node = TextNode(text="fine", metadata=metadata)
    (kept,) = GuardNodePostprocessor(guard=make_guard()).postprocess_nodes([NodeWithScore(node=node)])
    assert kept.node is node
    bad = TextNode(text="fine", metadata=metadata | {"point": Point(2, BAD)})
    (left,) = GuardNodePostprocessor(guard=make_guard(), on_block="redact").postprocess_nodes([NodeWithScore(node=bad)])
    assert left.node.metadata["point"] == Point(2, "[redacted]")
    assert left.node.metadata["price"] == decimal.Decimal("1.5")


def test_what_cannot_be_read_follows_on_error():
    node = NodeWithScore(node=TextNode(text="fine", metadata={"raw": b"\xff\xfe\x00\x01"}))
    assert GuardNodePostprocessor(guard=make_guard()).postprocess_nodes([node]) == []
    assert GuardNodePostprocessor(guard=make_guard(on_error="allow")).postprocess_nodes([node]) == [node]


@pytest.mark.parametrize(
    "block",
    [
        DocumentBlock(data=BAD.encode(), document_mimetype="text/plain"),
        DocumentBlock(data=b"fine words", title=BAD, document_mimetype="text/plain"),
        CitationBlock(cited_content=TextBlock(text=BAD), source="s", title="t", additional_location_info={}),
    ],
    ids=["file", "title", "citation"],
)
def test_texts_in_blocks_are_found(block: Any):
    llm = guarded(PlainLLM(SAFE), make_guard(), exit_behavior="error")
    message = ChatMessage(role="user", blocks=[TextBlock(text="hi"), block])
    with pytest.raises(GuardViolation):
        llm.chat([message])
    said = guarded(PlainLLM(ChatMessage(role="assistant", blocks=[TextBlock(text="hi"), block])), make_guard())
    check_no_trace(said.chat([user("hi")]), "the answer")


def test_an_index_is_made_of_what_passes():
    documents = [Document(text="fine"), Document(text=BAD)]
    index = VectorStoreIndex.from_documents(
        documents, transformations=[GuardTransform(guard=make_guard())], embed_model=SmallEmbedding()
    )
    check_no_trace(index.docstore.docs, "the index")


def test_what_a_step_of_a_pipeline_has_a_model_say_is_judged():
    store = SimpleDocumentStore()
    extractor = TitleExtractor(llm=PlainLLM(BAD), show_progress=False)
    pipeline = GuardIngestionPipeline(make_guard(), transformations=[extractor], docstore=store, disable_cache=False)
    nodes = pipeline.run(documents=[Document(text="fine", id_="a")])
    check_no_trace([nodes, store.to_dict(), pipeline.cache.cache], "nodes, docstore and cache")
    assert nodes[0].metadata["document_title"]
    assert isinstance(extractor.llm, PlainLLM), "the one that was given stays as it is"
