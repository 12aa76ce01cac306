"""Servers on real sockets, for clients that bring their own: the guard's, and a scripted upstream behind it."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from guardkit import Guard
from guardkit_serve import Settings, Upstream, create_app
from tests.leaks import BAD, SAFE, cut
from tests.serve import scripted


class LiveUpstream:
    """Answers by path: a dict whole, a list of bytes as a stream. requests: (path, headers, body), as they came."""

    def __init__(self, answers: dict[str, Any]):
        self.answers = answers
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.cancelled = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while (message := await receive())["type"] == "http.request":
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        body = json.loads(raw) if raw else None
        self.requests.append((scope["path"], headers, body))
        answer = self.answers[scope["path"]]
        if callable(answer):
            answer = answer(body)
        if isinstance(answer, dict):
            head = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for piece in answer:
            if piece is None:
                gone = asyncio.ensure_future(receive())
                await asyncio.wait({gone}, timeout=60)
                if gone.done():
                    self.cancelled.set()
                gone.cancel()
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """The server's address. It runs in a thread, and is asked to end."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    (listening,) = (sock for each in server.servers for sock in each.sockets)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def guarded(guard: Guard, upstream: LiveUpstream, **settings: Any) -> Iterator[tuple[str, str]]:
    """The addresses of the guard's server and of the upstream behind it."""
    with running(upstream) as behind:
        app = create_app(guard, Settings(access_log=False, upstreams=(Upstream(behind, retries=0),), **settings))
        with running(app) as address:
            yield address, behind


ANSWERS = {
    scripted.PATHS[protocol]: lambda body, protocol=protocol: (
        scripted.events(protocol, ["Dark soil, ", "sun, and ", "water ", "in the ", "morning."])
        if body.get("stream")
        else scripted.whole(protocol, "Dark soil, sun, and water in the morning.")
    )
    for protocol in scripted.PROTOCOLS
}


def _rude(protocol: str, body: Any) -> Any:
    """Flagged where the question says "rudely", reasoning where it says "think"; a tool call where a tool is offered
    and has not answered."""
    asked = json.dumps(body)
    said = BAD if "rudely" in asked else SAFE
    stage = "reasoning" if "think" in asked and "reasoning" in scripted.STAGES[protocol] else "response"
    if body.get("tools") and body.get("messages", [{"role": "user"}])[-1]["role"] == "user":
        said, stage = json.dumps({"q": said}, ensure_ascii=False), "tool_call"
    if body.get("stream"):
        return scripted.events(protocol, cut(said, 4), stage)
    return scripted.whole(protocol, said, stage)


RUDE: dict[str, Any] = {path: functools.partial(_rude, protocol) for protocol, path in scripted.PATHS.items()}
RUDE["/v1/models"] = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "us"}]}
