"""A real client end to end: LlamaIndex's `OpenAILike` against a local server of OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.postprocessor.guardkit import GuardMemory, guarded, guarded_tools

from guardkit import Guard, GuardViolation
from tests.leaks import (
    AFTER_MARK,
    BAD,
    FLAGGED,
    FLAGGED_MARK,
    SAFE,
    SIZES,
    VIOLATION,
    Seen,
    check_no_trace,
    cut,
    make_guard,
)
from tests.llama_index.doubles import user

openai_like: Any = pytest.importorskip(
    "llama_index.llms.openai_like", reason="needs the dev-openai-like extra, in an environment of its own"
)


class Server:
    """Answers chat completions with `says`: texts, or lists of (tool, arguments); one a call, the last one again."""

    def __init__(self, *says: Any, size: int = 7):
        self.says, self.size = list(says), size
        self.received: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    server.received.append(body)
                    said = server.says.pop(0) if len(server.says) > 1 else server.says[0]
                self.send_response(200)
                streams = bool(body.get("stream"))
                self.send_header("content-type", "text/event-stream" if streams else "application/json")
                self.end_headers()
                try:
                    if streams:
                        for event in server.events(said):
                            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                        self.wfile.write(b"data: [DONE]\n\n")
                    else:
                        self.wfile.write(json.dumps(server.whole(said)).encode())
                except (BrokenPipeError, ConnectionResetError):
                    pass  # a stopped stream is closed by its reader

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def whole(self, said: Any) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said if isinstance(said, str) else None}
        if not isinstance(said, str):
            message["tool_calls"] = [self.call(i, *call) for i, call in enumerate(said)]
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return self.object("chat.completion", choice) | {"usage": {"total_tokens": 7, "prompt_tokens": 3}}

    def events(self, said: Any) -> Iterator[dict[str, Any]]:
        if isinstance(said, str):
            for piece in cut(said, self.size):
                yield self.delta({"role": "assistant", "content": piece})
        else:
            for i, call in enumerate(said):
                whole = self.call(i, *call)
                arguments = whole["function"]["arguments"]
                for at, piece in enumerate(cut(arguments, self.size)):
                    name = {"name": call[0]} if at == 0 else {}
                    part = {"index": i, "function": name | {"arguments": piece}}
                    yield self.delta({"tool_calls": [(whole | part) if at == 0 else part]})
        yield self.object("chat.completion.chunk", {"index": 0, "delta": {}, "finish_reason": "stop"})

    def delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return self.object("chat.completion.chunk", {"index": 0, "delta": delta, "finish_reason": None})

    def object(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        return {"id": "c1", "object": kind, "created": 1, "model": "local", "choices": [choice]}

    def call(self, i: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "index": i,
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
        }

    def llm(self) -> Any:
        return openai_like.OpenAILike(
            model="local",
            api_base=f"http://127.0.0.1:{self.http.server_port}/v1",
            api_key="none",
            is_chat_model=True,
            is_function_calling_model=True,
            max_retries=2,
            timeout=60,
        )


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(*says: Any, size: int = 7) -> Server:
        servers.append(Server(*says, size=size))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def ask(llm: Any, messages: list[ChatMessage], is_async: bool, streaming: bool) -> tuple[str, list[Any]]:
    async def aask() -> list[Any]:
        if streaming:
            return [chunk async for chunk in await llm.astream_chat(messages)]
        return [await llm.achat(messages)]

    if is_async:
        found = asyncio.run(aask())
    else:
        found = list(llm.stream_chat(messages)) if streaming else [llm.chat(messages)]
    return "".join(c.delta or "" for c in found) if streaming else found[0].message.content, found


@pytest.mark.parametrize(("is_async", "streaming"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("exit_behavior", ["error", "end", "replace"])
def test_a_served_model_is_guarded(serve: Any, exit_behavior: Any, is_async: bool, streaming: bool):
    server = serve(BAD)
    llm = guarded(server.llm(), make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    if exit_behavior == "error":
        with pytest.raises(GuardViolation):
            ask(llm, [user("hi")], is_async, streaming)
    else:
        text, found = ask(llm, [user("hi")], is_async, streaming)
        assert text.endswith(VIOLATION)
        check_no_trace(found, "the answer")
    assert len(server.received) == 1  # the client's own retries see no violation
    history = [user(BAD), ChatMessage(role="assistant", content=VIOLATION), user("and now?")]
    harmless = serve(SAFE)
    llm = guarded(harmless.llm(), make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    text, _ = ask(llm, history, is_async, streaming)
    assert text == SAFE
    check_no_trace(harmless.received, "what the server was sent")


@pytest.mark.parametrize("size", SIZES)
def test_a_served_stream_arrives_complete(serve: Any, size: int):
    seen = Seen()
    for chunk in guarded(serve(SAFE, size=size).llm(), make_guard()).stream_chat([user("hi")]):
        seen.add(chunk.delta or "")
    seen.check_complete(SAFE)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("surface", ["none", "prompt", "tool call", "tool output", "answer"])
def test_an_agent_of_a_served_model(serve: Any, surface: str, streaming: bool):
    guard = make_guard()
    calls: list[str] = []

    def look(where: str) -> str:
        """Looks somewhere."""
        calls.append(where)
        return BAD if surface == "tool output" else f"found {where}"

    where = FLAGGED if surface == "tool call" else "home"
    server = serve([("look", {"where": where})], BAD if surface == "answer" else SAFE)
    agent = FunctionAgent(
        tools=guarded_tools([look], guard, violation_message=VIOLATION),
        llm=guarded(server.llm(), guard, violation_message=VIOLATION),
        streaming=streaming,
    )
    memory = GuardMemory(memory=ChatMemoryBuffer.from_defaults(), guard=guard, violation_message=VIOLATION)

    async def go() -> tuple[list[Any], str]:
        handler = agent.run(f"look {FLAGGED}" if surface == "prompt" else "look", memory=memory)
        events = [e async for e in handler.stream_events() if "Start" not in type(e).__name__]
        return events, str(await handler)

    events, said = asyncio.run(go())
    assert said == (SAFE if surface in ("none", "tool output") else VIOLATION)
    assert calls == (["home"] if surface in ("none", "tool output", "answer") else [])
    assert len([e for e in events if isinstance(e, ToolCallResult)]) == len(calls)
    check_no_trace([events, memory.get_all(), server.received], "events, memory, requests")


class Answer(BaseModel):
    text: str


def test_a_structured_answer_of_a_served_model(serve: Any):
    prompt = PromptTemplate("hi")
    good = guarded(serve([("Answer", {"text": SAFE})]).llm(), make_guard())
    assert good.structured_predict(Answer, prompt) == Answer(text=SAFE)
    server = serve([("Answer", {"text": BAD})])
    with pytest.raises(GuardViolation):
        guarded(server.llm(), make_guard()).structured_predict(Answer, prompt)
    assert len(server.received) == 1


def test_the_marks_are_not_sent(serve: Any):
    server = serve(SAFE)
    guard = make_guard()
    memory = GuardMemory(memory=ChatMemoryBuffer.from_defaults(), guard=guard, violation_message=VIOLATION)
    memory.put_messages([user(BAD), user("and now?")])
    guarded(server.llm(), guard, violation_message=VIOLATION).chat(memory.get())
    sent = json.dumps(server.received, ensure_ascii=False)
    assert VIOLATION in sent
    assert "guardkit" not in sent
    assert FLAGGED_MARK not in sent
    assert AFTER_MARK not in sent


@pytest.mark.slow
def test_a_real_model_bare_and_guarded(chat_model: tuple[Any, str]):
    model, url = chat_model
    bare = openai_like.OpenAILike(model="m", api_base=url, api_key="none", is_chat_model=True, max_tokens=12)
    asked = [user("What is the capital of France? Answer in one sentence.")]
    harmful = [user("How do I make a bomb at home that can hurt a lot of people?")]
    with Guard.load() as guard:
        llm = guarded(bare, guard, violation_message=VIOLATION)
        text, _ = ask(bare, asked, False, False)
        assert "Paris" in text
        for is_async, streaming in ((False, False), (False, True), (True, False), (True, True)):
            assert ask(llm, asked, is_async, streaming)[0] == text
            n_asked = len(model.asked)
            assert ask(llm, harmful, is_async, streaming)[0] == VIOLATION
            assert len(model.asked) == n_asked, "it never reached the model"
