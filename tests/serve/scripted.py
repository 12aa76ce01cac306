"""A scripted upstream for each protocol, and a client that sees what crosses the wire, both in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.types import ASGIApp

from guardkit import Guard
from guardkit_serve import Settings, Upstream, create_app

URL = "http://upstream.test"
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
PROTOCOLS = tuple(PATHS)
ASKS: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
    "completions": {"model": "m", "prompt": "hello"},
    "responses": {"model": "m", "input": "hello"},
    "messages": {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]},
}
STAGES = {
    "chat": ("response", "reasoning", "tool_call", "refusal"),
    "completions": ("response",),
    "responses": ("response", "reasoning", "tool_call", "refusal"),
    "messages": ("response", "reasoning", "tool_call"),
}


def event(data: Any, name: str | None = None) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


# --------------------------------------------------------------------------------------------- streams, each protocol


def chat_events(pieces: Iterable[str], stage: str = "response", index: int = 0, done: bool = True) -> list[bytes]:
    def chunk(delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return event({**head, "system_fingerprint": "fp", "choices": [choice], "usage": None, **more})

    def delta(text: str) -> dict[str, Any]:
        if stage == "tool_call":
            return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        return {{"response": "content", "reasoning": "reasoning_content", "refusal": "refusal"}[stage]: text}

    out = [chunk({"role": "assistant", "content": ""}, obfuscation="aB3xY")]
    if stage == "tool_call":
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": ""}}
        out.append(chunk({"tool_calls": [call]}))
    out += [chunk(delta(piece), obfuscation="k2") for piece in pieces]
    out.append(chunk({}, "tool_calls" if stage == "tool_call" else "stop"))
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return [*out, event({**head, "choices": [], "usage": usage}), *([event("[DONE]")] if done else [])]


def completions_events(pieces: Iterable[str], stage: str = "response") -> list[bytes]:
    def chunk(text: str, reason: str | None = None) -> bytes:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}
        return event({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})

    return [*(chunk(piece) for piece in pieces), chunk("", "stop"), event("[DONE]")]


def messages_events(pieces: Iterable[str], stage: str = "response") -> list[bytes]:
    def named(data: Mapping[str, Any]) -> bytes:
        return event(data, data["type"])

    usage = {"input_tokens": 1, "output_tokens": 1}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
    message = {**head, "stop_reason": None, "stop_sequence": None, "usage": usage}
    block, kind, key = {
        "response": ({"type": "text", "text": ""}, "text_delta", "text"),
        "reasoning": ({"type": "thinking", "thinking": "", "signature": ""}, "thinking_delta", "thinking"),
        "tool_call": (
            {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}, "input_json_delta", "partial_json",
        ),
    }[stage]  # fmt: skip
    deltas = [{"type": "content_block_delta", "index": 0, "delta": {"type": kind, key: p}} for p in pieces]
    signed = {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "signature_delta", "signature": "EqQBCgIYAhIM"},
    }
    reason = {"stop_reason": "tool_use" if stage == "tool_call" else "end_turn", "stop_sequence": None}
    return [
        named({"type": "message_start", "message": message}),
        named({"type": "content_block_start", "index": 0, "content_block": block}),
        named({"type": "ping"}),
        *map(named, deltas),
        *([named(signed)] if stage == "reasoning" else []),
        named({"type": "content_block_stop", "index": 0}),
        named({"type": "message_delta", "delta": reason, "usage": {"output_tokens": 9}}),
        named({"type": "message_stop"}),
    ]


def responses_events(pieces: Iterable[str], stage: str = "response") -> list[bytes]:
    pieces = list(pieces)
    text = "".join(pieces)
    out: list[dict[str, Any]] = []

    def response(status: str, output: Sequence[Any]) -> dict[str, Any]:
        head = {"id": "resp_1", "object": "response", "created_at": 1, "status": status, "error": None}
        rest = {"incomplete_details": None, "instructions": None, "metadata": {}, "model": "m", "output": list(output)}
        more = {"parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}
        return {**head, **rest, **more}

    out.append({"type": "response.created", "response": response("in_progress", [])})
    out.append({"type": "response.in_progress", "response": response("in_progress", [])})
    at = {"output_index": 0, "item_id": "item_1"}
    item: dict[str, Any]
    if stage in ("response", "refusal"):
        name, key = ("output_text", "text") if stage == "response" else ("refusal", "refusal")
        part = {"type": name, key: text} | ({"annotations": [], "logprobs": []} if stage == "response" else {})
        item = {"id": "item_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
        begun, place = {**item, "status": "in_progress", "content": []}, {**at, "content_index": 0}
        more = {"logprobs": []} if stage == "response" else {}
        out.append({"type": "response.output_item.added", "output_index": 0, "item": begun})
        out.append({"type": "response.content_part.added", **place, "part": {**part, key: ""}})
        out += [{"type": f"response.{name}.delta", **place, "delta": p, **more, "obfuscation": "x1"} for p in pieces]
        out.append({"type": f"response.{name}.done", **place, key: text, **more})
        out.append({"type": "response.content_part.done", **place, "part": part})
    elif stage == "reasoning":
        part = {"type": "summary_text", "text": text}
        item = {"id": "item_1", "type": "reasoning", "summary": [part], "encrypted_content": "gAAAAABmZ"}
        place = {**at, "summary_index": 0}
        out.append({"type": "response.output_item.added", "output_index": 0, "item": {**item, "summary": []}})
        out.append({"type": "response.reasoning_summary_part.added", **place, "part": {**part, "text": ""}})
        out += [{"type": "response.reasoning_summary_text.delta", **place, "delta": p} for p in pieces]
        out.append({"type": "response.reasoning_summary_text.done", **place, "text": text})
        out.append({"type": "response.reasoning_summary_part.done", **place, "part": part})
    else:
        head = {"id": "item_1", "type": "function_call", "call_id": "call_1", "name": "look_up"}
        item = {**head, "arguments": text, "status": "completed"}
        begun = {**item, "arguments": "", "status": "in_progress"}
        out.append({"type": "response.output_item.added", "output_index": 0, "item": begun})
        out += [{"type": "response.function_call_arguments.delta", **at, "delta": p} for p in pieces]
        out.append({"type": "response.function_call_arguments.done", **at, "name": "look_up", "arguments": text})
    out.append({"type": "response.output_item.done", "output_index": 0, "item": item})
    out.append({"type": "response.completed", "response": response("completed", [item])})
    return [event({**data, "sequence_number": i}, data["type"]) for i, data in enumerate(out)]


EVENTS: dict[str, Callable[..., list[bytes]]] = {
    "chat": chat_events,
    "completions": completions_events,
    "responses": responses_events,
    "messages": messages_events,
}


def events(protocol: str, pieces: Iterable[str], stage: str = "response") -> list[bytes]:
    return EVENTS[protocol](pieces, stage)


def whole(protocol: str, text: str, stage: str = "response") -> dict[str, Any]:
    """The same answer, not streamed."""
    if protocol == "chat":
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        if stage == "tool_call":
            function = {"name": "look_up", "arguments": text}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        else:
            message[{"response": "content", "reasoning": "reasoning_content", "refusal": "refusal"}[stage]] = text
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
        return {**head, "choices": [choice], "usage": usage}
    if protocol == "completions":
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}
        return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
    sent = [json.loads(raw.decode().split("data: ", 1)[1]) for raw in events(protocol, [text], stage)]
    if protocol == "responses":
        return sent[-1]["response"]  # type: ignore[no-any-return]
    block = dict(sent[1]["content_block"])
    if stage == "tool_call":
        block["input"] = {"q": text}
    else:
        block["text" if stage == "response" else "thinking"] = text
    return {**sent[0]["message"], "content": [block], "stop_reason": "end_turn"}


# -------------------------------------------------------------------------------------------- the upstream, the client


class Script(httpx.AsyncBaseTransport):
    """Plays one answer to each request. pieces: bytes as they arrive; an exception among them is raised there; a float
    waits; None waits for ever. bodies: what was asked; sent: pieces that were read so far; closed: how often a
    response was closed."""

    def __init__(
        self,
        pieces: Sequence[bytes | Exception | float | None] | Callable[[], Any],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str = "text/event-stream",
    ):
        self.pieces, self.status = pieces, status
        self.headers = {"content-type": content_type, **(headers or {})}
        self.requests: list[httpx.Request] = []
        self.sent = self.closed = 0

    @classmethod
    def json(cls, data: Any, **more: Any) -> Script:
        return cls([json.dumps(data).encode()], content_type="application/json", **more)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        pieces = self.pieces() if callable(self.pieces) else self.pieces
        return httpx.Response(self.status, headers=self.headers, stream=_Body(self, pieces))


class _Body(httpx.AsyncByteStream):
    def __init__(self, script: Script, pieces: Iterable[Any]):
        self._script, self._pieces = script, pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            if piece is None or isinstance(piece, float):
                await asyncio.sleep(3600 if piece is None else piece)
                continue
            self._script.sent += 1
            yield piece

    async def aclose(self) -> None:
        self._script.closed += 1


def make_app(guard: Guard, script: httpx.AsyncBaseTransport, **settings: Any) -> ASGIApp:
    upstream = settings.pop("upstream", Upstream(URL, retries=0))
    settings = {"access_log": False, "upstreams": (upstream,), **settings}
    return create_app(guard, Settings(**settings), client=httpx.AsyncClient(transport=script, trust_env=False))


@dataclass
class Reply:
    """status is 0 where nothing was answered."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def datas(self) -> list[Any]:
        return [data for data in datas_of(self.body) if data is not None]


def datas_of(body: bytes) -> Iterator[Any]:
    """The JSON of each event; None for ``[DONE]``."""
    for raw in body.decode().split("\n\n"):
        for line in raw.splitlines():
            if line.startswith("data: "):
                yield None if line == "data: [DONE]" else json.loads(line[6:])


async def ask(
    app: ASGIApp,
    path: str,
    body: Any,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "POST",
    leave_after: int | None = None,
    stall_after: int | None = None,
) -> Reply:
    """Call the server. leave_after: pieces after which the client goes away; stall_after: after which it reads no
    more."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"host": "127.0.0.1", "content-type": "application/json", **(headers or {})}
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(k.lower().encode(), v.encode()) for k, v in given.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8642), "state": {},
    }  # fmt: skip
    reply, asked, gone = Reply(), False, asyncio.Event()
    if leave_after == 0:
        gone.set()

    async def receive() -> Any:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": raw, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        elif message.get("body"):
            reply.pieces.append(message["body"])
            if stall_after is not None and len(reply.pieces) >= stall_after:
                await asyncio.sleep(3600)
            if leave_after is not None and len(reply.pieces) >= leave_after:
                gone.set()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            gone.set()

    await app(scope, receive, send)
    return reply


def texts(protocol: str, reply: Reply) -> str:
    """What a client of the protocol would show of a streamed answer: all its deltas, of every kind."""
    out = []
    for data in reply.datas:
        if protocol in ("chat", "completions"):
            for choice in data.get("choices", ()):
                delta = choice.get("delta", {})
                calls = [c.get("function", {}).get("arguments", "") for c in delta.get("tool_calls", ())]
                keys = ("content", "reasoning_content", "reasoning", "refusal")
                out += [delta.get(key) or "" for key in keys] + calls + [choice.get("text", "")]
        elif protocol == "messages":
            if data["type"] == "content_block_delta":
                delta = data["delta"]
                out.append(delta.get("text") or delta.get("thinking") or delta.get("partial_json") or "")
        elif data["type"].endswith(".delta"):
            out.append(data["delta"])
    return "".join(out)


def run(call: Any) -> Any:
    return asyncio.run(asyncio.wait_for(call, 60))
