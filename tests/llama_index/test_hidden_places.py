"""Where a text may stand beside the content: ids, templates, media types, keys of counts, errors, sources."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.base.response.schema import Response
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.tools import FunctionTool, ToolOutput
from llama_index.core.workflow import Context, Event
from llama_index.postprocessor.guardkit import (
    GuardMemory,
    GuardNodePostprocessor,
    GuardQueryEngine,
    guarded,
    guarded_tools,
)

from tests.leaks import BAD, FLAGGED, FLAGGED_MARK, SAFE, VIOLATION, check_no_trace, make_guard, strings_in
from tests.llama_index.doubles import FunctionLLM, PlainLLM, reply, user


@dataclasses.dataclass
class Blob:
    data: bytes = BAD.encode()


def related(**fields: Any) -> dict[str, Any]:
    return {"relationships": {NodeRelationship.SOURCE: RelatedNodeInfo(**{"node_id": "1", **fields})}}


NODES: dict[str, Any] = {
    "id": TextNode(text="hi", id_=BAD),
    "object's bytes": TextNode(text="hi", metadata={"x": Blob()}),
    "mark": TextNode(text="hi", metadata={"guardkit_action": BAD}),
    "template": TextNode(text="hi", text_template="{metadata_str} {content} " + BAD),
    "metadata's template": TextNode(text="hi", metadata={"a": "b"}, metadata_template="{key} {value} " + BAD),
    "separator": TextNode(text="hi", metadata_separator=BAD),
    "media type": TextNode(text="hi", mimetype=BAD),
    "keys kept apart": TextNode(text="hi", excluded_llm_metadata_keys=[BAD]),
    "keys kept from embeddings": TextNode(text="hi", excluded_embed_metadata_keys=[BAD]),
    "related id": TextNode(text="hi", **related(node_id=BAD)),
    "related hash": TextNode(text="hi", **related(hash=BAD)),
    "related metadata": TextNode(text="hi", **related(metadata={BAD: "x"})),
    "image's text": ImageNode(text=BAD, image="aGk="),
    "image's address": ImageNode(text="hi", image_url=f"http://x/{BAD}"),
    "image's path": ImageNode(text="hi", image_path=BAD),
    "image's type": ImageNode(text="hi", image_mimetype=BAD),
    "image's data": ImageNode(text="hi", image=BAD),
    "index id": IndexNode(text="hi", index_id=BAD),
    "index object": IndexNode(text="hi", index_id="1", obj=[Blob()]),
    "index node": IndexNode(text="hi", index_id="1", obj=IndexNode(text="x", index_id="2", obj=TextNode(text=BAD))),
    "media's type": Node(text_resource=MediaResource(text="hi", mimetype=BAD)),
    "media's text": Node(text_resource=MediaResource(text="hi"), image_resource=MediaResource(text=BAD)),
}  # fmt: skip


@pytest.mark.parametrize("on_block", ["drop", "redact"])
@pytest.mark.parametrize("place", NODES)
def test_nodes(place: str, on_block: Any) -> None:
    screen = GuardNodePostprocessor(guard=make_guard(), media="keep", on_block=on_block)
    given = [NodeWithScore(node=NODES[place]), NodeWithScore(node=TextNode(text="fine", id_="kept"))]
    kept = screen.postprocess_nodes(given)
    check_no_trace(kept, "the nodes")
    assert kept[-1].node.node_id == "kept"


def test_harmless_fields_pass() -> None:
    node = ImageNode(
        text="a fox",
        id_="9b2f6c1e-7a52-4a3e-8f0e-0f5a5d0c1b22",
        image="aGkgdGhlcmU=" * 40,
        image_mimetype="image/png",
        image_path="/data/img_0042.png",
        **related(hash="ab" * 32),
    )
    screen = GuardNodePostprocessor(guard=make_guard(script={"image": "unsafe"}), media="keep")
    assert screen.postprocess_nodes([NodeWithScore(node=node)]) == [NodeWithScore(node=node)]


BLOCKS: dict[str, Any] = {
    "a document's type": DocumentBlock(data=b"aGk=", document_mimetype=BAD),
    "a document's title": DocumentBlock(data=b"aGk=", title=BAD),
    "a document's bytes": DocumentBlock(data=BAD.encode()),
    "an image's type": ImageBlock(url="http://x/y.png", image_mimetype=BAD),
    "a citation's place": CitationBlock(
        cited_content=TextBlock(text="x"), source="x", title="t", additional_location_info={BAD: 1}
    ),
    "beside the reasoning": ThinkingBlock(content="x", additional_information={"x": BAD}),
    "a call's id": ToolCallBlock(tool_call_id=BAD, tool_name="a", tool_kwargs={}),
}
KWARGS: dict[str, Any] = {
    "unknown": {"x": BAD},
    "a name": {"name": BAD},
    "a mark": {"guardkit": BAD},
    "a mark's category": {
        "guardkit": {
            "action": "block",
            "stage": "prompt",
            "judged": True,
            "severity": "unsafe",
            "categories": [FLAGGED],
        }
    },
    "an object": {"x": Blob()},
}
MESSAGES = {
    **{place: {"blocks": [TextBlock(text="fine"), block]} for place, block in BLOCKS.items()},
    **{place: {"content": "fine", "additional_kwargs": kwargs} for place, kwargs in KWARGS.items()},
}


@pytest.mark.parametrize("exit_behavior", ["end", "replace"])
@pytest.mark.parametrize("place", [place for place in MESSAGES if place != "a call's id"])
def test_prompts(place: str, exit_behavior: Any) -> None:
    for stream in (False, True):
        inner = PlainLLM("fine")
        llm = guarded(inner, make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
        message = ChatMessage(role=MessageRole.USER, **MESSAGES[place])
        said = list(llm.stream_chat([message])) if stream else llm.chat([message])
        check_no_trace([inner.script.asked, said], "what was asked and said")


class Given(PlainLLM):
    """Gives one response as it is; streamed, after a chunk of text."""

    given: Any

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return ChatResponse(**self.given)

    def stream_chat(self, messages: Any, **kwargs: Any) -> Iterator[ChatResponse]:  # type: ignore[override]
        yield ChatResponse(message=ChatMessage(role="assistant", content="fine"), delta="fine")
        yield ChatResponse(**{"delta": "", **self.given})


FINE = ChatMessage(role="assistant", content="fine")
RESPONSES: dict[str, dict[str, Any]] = {
    **{place: {"message": ChatMessage(role="assistant", **fields)} for place, fields in MESSAGES.items()},
    "a raw text": {"message": FINE, "raw": {"x": BAD}},
    "a key of the usage": {"message": FINE, "raw": {"usage": {BAD: 1, "total_tokens": 3}}},
    "a key of the counts": {"message": FINE, "additional_kwargs": {BAD: 1, "x": BAD}},
    "log probabilities": {"message": FINE, "logprobs": [[LogProb(token=BAD)]]},
    "alternatives": {"message": FINE, "logprobs": [[LogProb(token="fine"), LogProb(token=BAD)]]},
}


@pytest.mark.parametrize("exit_behavior", ["end", "replace"])
@pytest.mark.parametrize("place", RESPONSES)
def test_answers(place: str, exit_behavior: Any) -> None:
    llm = guarded(Given(given=RESPONSES[place]), make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    check_no_trace([llm.chat([user("hi")]), list(llm.stream_chat([user("hi")]))], "the answer")


def test_log_probabilities_of_an_answer_stay() -> None:
    ranked = [[LogProb(token="fi"), LogProb(token=" go")], [LogProb(token="ne"), LogProb(token="od")]]
    given = {"message": FINE, "logprobs": ranked, "raw": {"usage": {"total_tokens": 3}}}
    response = guarded(Given(given=given), make_guard()).chat([user("hi")])
    assert response.logprobs == ranked
    assert response.raw == {"usage": {"total_tokens": 3}}


# --------------------------------------------------------------------------------------------- tools, engines


def run_agent(tool: FunctionTool) -> dict[str, Any]:
    guard = make_guard()
    llm = FunctionLLM(reply(calls=[("look", {"q": "x"})]), SAFE)
    agent = FunctionAgent(
        tools=guarded_tools([tool], guard, violation_message=VIOLATION),
        llm=guarded(llm, guard, violation_message=VIOLATION),
    )
    memory = GuardMemory(memory=ChatMemoryBuffer.from_defaults(), guard=guard, violation_message=VIOLATION)

    async def go() -> dict[str, Any]:
        context = Context(agent)
        run = agent.run("hello", memory=memory, ctx=context)
        events = [event async for event in run.stream_events() if "Start" not in type(event).__name__]
        found = {"events": events, "result": await run, "asked": llm.script.asked, "memory": memory.get_all()}
        return {**found, "kept": await context.store.get("notes", None)}

    return asyncio.run(go())


def _noted() -> Exception:
    error = ValueError("hm")
    error.add_note(BAD)
    return error


def _caused() -> Exception:
    error = ValueError("hm")
    error.__cause__ = KeyError(BAD)
    return error


def _output(**fields: Any) -> ToolOutput:
    return ToolOutput(**{"content": "hi", "tool_name": "look", "raw_input": {}, "raw_output": "ok", **fields})


RESULTS: dict[str, Any] = {
    "an object": Blob(),
    "bytes": BAD.encode(),
    "the raw input": _output(raw_input={"x": BAD}),
    "the raw output": _output(raw_output=Blob()),
    "the tool's name": _output(tool_name=BAD),
    "the error": _output(is_error=True, exception=_caused()),
    "nodes": [NodeWithScore(node=TextNode(text="x", metadata={"y": BAD}))],
    "a response's sources": Response("fine", source_nodes=[NodeWithScore(node=TextNode(text=BAD))]),
    "a response's metadata": Response("fine", metadata={"x": BAD}),
    "a raised note": _noted(),
    "a raised cause": _caused(),
}


@pytest.mark.parametrize("place", RESULTS)
def test_what_a_tool_gives_back(place: str) -> None:
    def look(q: str) -> Any:
        if isinstance(RESULTS[place], Exception):
            raise RESULTS[place]
        return RESULTS[place]

    check_no_trace(run_agent(FunctionTool.from_defaults(look, description="looks")), "the run")


class Noticed(Event):
    text: str


def test_what_a_tool_writes_itself_goes_past_the_guard() -> None:
    """An exception of the docs: the workflow's stream and store are handed to the tool as they are."""

    async def look(ctx: Context, q: str) -> str:
        ctx.write_event_to_stream(Noticed(text=BAD))
        await ctx.store.set("notes", BAD)
        return "ok"

    look.__annotations__["ctx"] = Context  # as it is without postponed annotations
    found = run_agent(FunctionTool.from_defaults(async_fn=look, description="looks"))
    assert any(FLAGGED_MARK in text for text in strings_in(found["events"]))
    assert found["kept"] == BAD
    check_no_trace([found["result"], found["asked"], found["memory"]], "what goes on")


class Inner(BaseQueryEngine):
    def __init__(self, response: Response):
        super().__init__(None)
        self.response = response

    def _get_prompt_modules(self) -> Any:
        return {}

    def _query(self, query_bundle: Any) -> Any:
        return self.response

    async def _aquery(self, query_bundle: Any) -> Any:
        return self.response


@pytest.mark.parametrize(
    "response",
    [
        Response("fine", metadata={BAD: 1}),
        Response("fine", metadata={"x": Blob()}),
        Response("fine", metadata={"guardkit": {"action": "allow", "x": BAD}}),
        Response("fine", source_nodes=[NodeWithScore(node=TextNode(text="x", id_=BAD))]),
        Response("fine", source_nodes=[NodeWithScore(node=TextNode(text="x", id_="n"))], metadata={"n": {"x": BAD}}),
    ],
    ids=["key", "object", "mark", "source's id", "metadata of a source"],
)
def test_responses_of_an_engine(response: Response) -> None:
    engine = GuardQueryEngine(Inner(response), guard=make_guard(), violation_message=VIOLATION)
    check_no_trace([engine.query("hi"), asyncio.run(engine.aquery("hi"))], "the response")
