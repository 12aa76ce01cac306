"""Real parts end to end: `ChatOpenAI` and a server of its shape; supervisor, swarm, deepagents, where installed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from guardkit import GuardViolation
from langchain_guardkit import GuardedChatModel, GuardMiddleware, guard_graph
from tests.langchain.scripted import ScriptedModel, looking_tool, reply
from tests.leaks import BAD, SAFE, VIOLATION, check_no_trace, cut, make_guard

CONFIG: Any = {"configurable": {"thread_id": "1"}}
MODES: Any = ["messages", "updates"]


class _Server(BaseHTTPRequestHandler):
    """Chat completions: says what the last message names, whole or streamed, with a tool call where tools are given."""

    asked: ClassVar[list[Any]] = []

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        last = body["messages"][-1]
        wants_tool = bool(body.get("tools")) and last["role"] == "user"
        text = BAD if "bad" in str(last["content"]) else SAFE
        if wants_tool:
            call = {"id": "c1", "type": "function", "function": {"name": body["tools"][0]["function"]["name"]}}
            name = "text" if call["function"]["name"] == "Answer" else "query"
            call["function"]["arguments"] = json.dumps({name: text if name == "text" else "good"})
            message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
        else:
            message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        head = {"id": "r1", "created": 1, "model": "m"}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if wants_tool else "stop"}
            self._send(json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}))
            return
        deltas = [{"role": "assistant", "content": ""}]
        if wants_tool:
            deltas.append({"tool_calls": [{"index": 0, **message["tool_calls"][0]}]})
        else:
            deltas += [{"content": piece} for piece in cut(text, 3)]
        chunks = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        chunks.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if wants_tool else "stop"})
        events = [{**head, "object": "chat.completion.chunk", "choices": [chunk]} for chunk in chunks]
        self._send("".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n", "text/event-stream")

    def _send(self, text: str, kind: str = "application/json") -> None:
        data = text.encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def client() -> Iterator[Any]:
    openai = pytest.importorskip("langchain_openai")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _Server.asked.clear()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield openai.ChatOpenAI(model="m", base_url=url, api_key="none", max_retries=0)
    server.shutdown()
    server.server_close()


class Answer(BaseModel):
    text: str


@pytest.mark.parametrize("text", ["good", "bad"])
def test_chat_openai(client: Any, text: str) -> None:
    model = GuardedChatModel(client, make_guard(), exit_behavior="end", violation_message=VIOLATION)

    async def chunks() -> list[Any]:
        return [chunk async for chunk in model.astream(text)]

    whole = model.invoke(text)
    for seen in (
        [whole],
        [asyncio.run(model.ainvoke(text))],
        list(model.stream(text)),
        asyncio.run(chunks()),
    ):
        check_no_trace(seen, "answers")
        said = "".join(str(m.content) for m in seen)
        assert said == SAFE if text == "good" else said.endswith(VIOLATION)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] == 8
    structured = model.with_structured_output(Answer, method="function_calling")
    if text == "good":
        assert structured.invoke(text) == Answer(text=SAFE)
    else:
        with pytest.raises(GuardViolation):
            structured.invoke(text)
    n_asked = len(_Server.asked)
    assert model.invoke(BAD).content == VIOLATION
    assert len(_Server.asked) == n_asked


def test_an_agent_of_chat_openai(client: Any) -> None:
    for output, expected in ((SAFE, SAFE), (BAD, VIOLATION)):
        graph = create_agent(
            client, [looking_tool(good=output)], middleware=[GuardMiddleware(make_guard(), violation_message=VIOLATION)]
        )
        seen = list(graph.stream({"messages": [("user", "look")]}, stream_mode=["messages", "values"]))
        check_no_trace(seen, "streams")
        assert seen[-1][1]["messages"][-1].content == expected


class Bound(ScriptedModel):
    """Binds tools as providers do."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools], **kwargs)


def _helper(name: str, text: str, tools: Any = ()) -> Any:
    return create_agent(
        ScriptedModel(replies=[AIMessage(text)], size=3),
        list(tools),
        name=name,
        middleware=[GuardMiddleware(make_guard(), violation_message=VIOLATION)],
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [SAFE, BAD])
def test_a_supervisor(text: str) -> None:
    supervisor = pytest.importorskip("langgraph_supervisor")
    call = {"name": "transfer_to_helper", "args": {}, "id": "1", "type": "tool_call"}
    boss = GuardedChatModel(Bound(replies=[AIMessage("", tool_calls=[call]), AIMessage("all done")]), make_guard())
    saver = InMemorySaver()
    built = supervisor.create_supervisor([_helper("helper", text)], model=boss).compile(checkpointer=saver)
    graph = guard_graph(built, make_guard(), violation_message=VIOLATION)
    seen = list(graph.stream({"messages": [("user", "go")]}, CONFIG, stream_mode=MODES, subgraphs=True))
    check_no_trace(seen, "streams")
    said = [m.content for m in graph.get_state(CONFIG).values["messages"]]
    assert (SAFE if text == SAFE else VIOLATION) in said
    assert said[-1] == "all done"
    assert graph.invoke({"messages": [("user", BAD)]}, CONFIG)["messages"][-1].content == VIOLATION
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [SAFE, BAD])
def test_a_swarm(text: str) -> None:
    swarm = pytest.importorskip("langgraph_swarm")
    handoff = swarm.create_handoff_tool(agent_name="second")
    call = {"name": handoff.name, "args": {}, "id": "1", "type": "tool_call"}
    first = create_agent(
        ScriptedModel(replies=[AIMessage("", tool_calls=[call])]), [handoff], name="first",
        middleware=[GuardMiddleware(make_guard(), violation_message=VIOLATION)],
    )  # fmt: skip
    saver = InMemorySaver()
    built = swarm.create_swarm([first, _helper("second", text)], default_active_agent="first")
    graph = guard_graph(built.compile(checkpointer=saver), make_guard(), violation_message=VIOLATION)
    seen = list(graph.stream({"messages": [("user", "go")]}, CONFIG, stream_mode=MODES, subgraphs=True))
    check_no_trace(seen, "streams")
    values = graph.get_state(CONFIG).values
    assert values["active_agent"] == "second"
    assert values["messages"][-1].content == (SAFE if text == SAFE else VIOLATION)
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["prompt", "answer", "tool_output"])
def test_a_deep_agent(stage: str) -> None:
    deepagents = pytest.importorskip("deepagents")

    @tool
    def look(query: str) -> str:
        """Look something up."""
        return BAD if stage == "tool_output" else SAFE

    replies = [reply(query="x"), AIMessage(BAD if stage == "answer" else "fine")]
    saver = InMemorySaver()
    built = deepagents.create_deep_agent(
        model=ScriptedModel(replies=replies, size=3), tools=[look], checkpointer=saver,
        middleware=[GuardMiddleware(make_guard(), violation_message=VIOLATION)],
    )  # fmt: skip
    graph = guard_graph(built, make_guard(), violation_message=VIOLATION)
    asked = BAD if stage == "prompt" else "go"
    seen = list(graph.stream({"messages": [HumanMessage(asked)]}, CONFIG, stream_mode=[*MODES, "values"]))
    check_no_trace(seen, "streams")
    assert graph.get_state(CONFIG).values["messages"][-1].content == VIOLATION
    check_no_trace([saver.storage, saver.writes, saver.blobs], "checkpoints")
