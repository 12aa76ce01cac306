"""What goes wrong round a stream: the upstream, the guard, the client, the server's end. Nothing leaks or is left."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest

from guardkit import Overloaded
from guardkit.testing import FakeGuard
from guardkit_serve import Upstream
from guardkit_serve.gate import BrokenOff
from tests.leaks import BAD, SAFE, cut, make_guard
from tests.serve import scripted
from tests.serve.scripted import ASKS, PATHS, PROTOCOLS, Reply, Script, ask, make_app, run, texts
from tests.serve.test_streams import check_clean, stream


def ended_with_error(protocol: str, reply: Reply) -> dict[str, Any]:
    """The error that a client of the protocol hears of, in its own form, behind the text."""
    data = reply.datas[-1]
    if protocol in ("chat", "completions"):
        assert reply.body.endswith(b"data: [DONE]\n\n")
        return data["error"]  # type: ignore[no-any-return]
    if protocol == "messages":
        assert data["type"] == "error"
        return data["error"]  # type: ignore[no-any-return]
    assert data["type"] == "response.failed"
    assert reply.datas[-2]["type"] == "error"
    return data["response"]["error"]  # type: ignore[no-any-return]


def middle(protocol: str, text: str = SAFE) -> list[Any]:
    """The events of an answer that is not over."""
    found = scripted.events(protocol, cut(text, 3))
    n_deltas = len(cut(text, 3))
    first = next(i for i, raw in enumerate(found) if cut(text, 3)[0].encode() in raw and b"delta" in raw + b"delta")
    return found[: first + n_deltas]


FAULTS: dict[str, list[Any]] = {
    "dies": [httpx.ReadError("reset")],
    "protocol": [httpx.RemoteProtocolError("bad chunk")],
    "silent": [httpx.ReadTimeout("no byte")],
    "ends": [],
    "garbage": [b"data: {not json}\n\n"],
    "twice": [b'data: {"id": "a", "id": "b", "type": "x"}\n\n'],
    "list": [b"data: [1, 2]\n\n"],
    "half": [b'data: {"id": "chatcmpl-1", "cho'],
    "not utf-8": [b"data: \xff\xfe\n\n"],
    "huge": [b"data: " + b"a" * 70_000],
    "huge whole": [b'data: {"x": "' + b"a" * 70_000 + b'"}\n\n'],
    "deep": [b"data: " + b"[" * 20_000 + b"\n\n"],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_upstream_that_fails_is_told_in_the_protocol(protocol: str, fault: str) -> None:
    script = Script([*middle(protocol), *FAULTS[fault]])
    reply = stream(protocol, script, max_event_bytes=60_000)
    assert ended_with_error(protocol, reply)["message"].startswith("the upstream")
    assert texts(protocol, reply) == SAFE  # judged, all of it
    assert script.closed == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_held_back_when_the_upstream_fails_is_judged_first(protocol: str, fault: str) -> None:
    script = Script([*middle(protocol, BAD), *FAULTS[fault]])
    reply = stream(protocol, script, max_event_bytes=60_000)
    check_clean(reply)
    assert script.closed == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_fault_before_the_first_byte_is_an_http_error(protocol: str) -> None:
    for pieces, status in (([httpx.ReadTimeout("x")], 504), ([], 502), ([b"data: {oops\n\n"], 502)):
        reply = stream(protocol, Script(pieces))
        assert reply.status == status
        assert "error" in reply.json


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_errors_of_the_upstream_pass(status: int) -> None:
    error = {"error": {"message": "no more than ten a minute", "type": "x", "code": "y", "param": None}}
    script = Script.json(error, status=status, headers={"retry-after": "7", "set-cookie": "a=b"})
    reply = stream("chat", script)
    assert (reply.status, reply.json) == (status, error)
    assert reply.headers["retry-after"] == "7"
    assert "set-cookie" not in reply.headers


def test_errors_of_the_upstream_are_judged_or_replaced() -> None:
    for script in (
        Script.json({"error": {"message": BAD}}, status=500),
        Script([b"<html>oops"], status=502, content_type="text/html"),
    ):
        reply = stream("chat", script)
        assert reply.status == script.status
        assert reply.json["error"]["message"] == f"the upstream answered with status {script.status}"
    moved = stream("chat", Script([], status=302, headers={"location": "http://169.254.169.254/"}))
    assert moved.status == 502
    assert "location" not in moved.headers


class Flaky(httpx.AsyncBaseTransport):
    def __init__(self, failures: list[Any], then: Script):
        self.failures, self.then, self.tries = failures, then, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.tries += 1
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return httpx.Response(failure)
        return await self.then.handle_async_request(request)


def test_retries_come_before_the_first_byte_only() -> None:
    upstream = Upstream(scripted.URL, retries=2)
    good = scripted.events("chat", cut(SAFE, 9))
    flaky = Flaky([httpx.ConnectError("no"), 503], Script(good))
    reply = run(ask(make_app(make_guard(), flaky, upstream=upstream), PATHS["chat"], {**ASKS["chat"], "stream": True}))
    assert reply.body == b"".join(good)
    assert flaky.tries == 3
    flaky = Flaky([], Script([*middle("chat"), httpx.ReadError("gone")]))
    run(ask(make_app(make_guard(), flaky, upstream=upstream), PATHS["chat"], {**ASKS["chat"], "stream": True}))
    assert flaky.tries == 1
    flaky = Flaky([httpx.ConnectError("no")] * 9, Script(good))
    reply = run(ask(make_app(make_guard(), flaky, upstream=upstream), PATHS["chat"], ASKS["chat"]))
    assert (reply.status, flaky.tries) == (502, 3)


def test_an_answer_without_its_done_is_closed() -> None:
    events = scripted.chat_events(cut(SAFE, 9), done=False)
    reply = stream("chat", Script(events))
    assert reply.body == b"".join(events) + b"data: [DONE]\n\n"


def test_gzip_is_undone() -> None:
    events = b"".join(scripted.chat_events(cut(BAD, 9)))
    reply = stream("chat", Script([gzip.compress(events)], headers={"content-encoding": "gzip"}))
    check_clean(reply)
    assert "content-encoding" not in reply.headers
    body = gzip.compress(json.dumps(scripted.whole("chat", SAFE)).encode())
    script = Script([body], content_type="application/json", headers={"content-encoding": "gzip"})
    reply = run(ask(make_app(make_guard(), script), PATHS["chat"], ASKS["chat"]))
    assert reply.json == scripted.whole("chat", SAFE)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"a": 1}', b'{"choices": 1}', b'{"choices": [{"index": 0}]}', b"\xff"]
)
def test_a_whole_answer_that_cannot_be_read_is_withheld(data: bytes) -> None:
    reply = run(
        ask(make_app(make_guard(), Script([data], content_type="application/json")), PATHS["chat"], ASKS["chat"])
    )
    assert reply.status == 502
    assert reply.json["error"]["code"] == "upstream_error"


def test_a_whole_answer_has_a_size() -> None:
    script = Script.json(scripted.whole("chat", SAFE * 100))
    reply = run(ask(make_app(make_guard(), script, max_answer_bytes=1000), PATHS["chat"], ASKS["chat"]))
    assert reply.status == 502


# ------------------------------------------------------------------------------------------------------- the guard


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_guard_that_hangs_is_not_waited_for(protocol: str) -> None:
    reply = stream(protocol, Script(scripted.events(protocol, [SAFE])), FakeGuard({}, delay=0.4), judge_s=0.05)
    assert SAFE not in texts(protocol, reply)
    assert SAFE not in reply.body.decode()


def test_a_guard_without_room_sheds_requests() -> None:
    guard = FakeGuard({"busy": Overloaded("full")})
    script = Script(scripted.events("chat", [SAFE]))
    body = {**ASKS["chat"], "messages": [{"role": "user", "content": "busy"}], "stream": True}
    reply = run(ask(make_app(guard, script), PATHS["chat"], body))
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert script.requests == []


# ------------------------------------------------------------------------------------- the client, the server's end


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("leave_after", [0, 1, 3])
def test_a_client_that_goes_away_stops_the_upstream(protocol: str, leave_after: int) -> None:
    script = Script([*middle(protocol), None])  # would wait for ever

    async def go() -> None:
        app = make_app(make_guard(), script)
        before = len(asyncio.all_tasks())
        await ask(app, PATHS[protocol], {**ASKS[protocol], "stream": True}, leave_after=leave_after)
        assert len(asyncio.all_tasks()) == before
        assert app.state.serving.observer.streams_open == 0  # type: ignore[attr-defined]
        assert app.state.serving.observer.requests_open == 0  # type: ignore[attr-defined]

    run(go())
    assert script.closed == len(script.requests)


def test_a_client_that_leaves_a_whole_answer_stops_it_too() -> None:
    script = Script([b'{"choices": ', None], content_type="application/json")
    reply = run(ask(make_app(make_guard(), script), PATHS["chat"], ASKS["chat"], leave_after=0))
    assert reply.status == 0
    assert script.closed == len(script.requests)


def test_a_client_that_reads_no_more_is_given_up() -> None:
    script = Script(scripted.events("chat", cut(SAFE, 4)))
    app = make_app(make_guard(), script, write_s=0.1)
    with pytest.raises(BrokenOff):  # which closes the connection
        run(ask(app, PATHS["chat"], {**ASKS["chat"], "stream": True}, stall_after=2))
    assert script.closed == 1
    assert app.state.serving.observer.streams_open == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_end_of_the_server_ends_streams_in_their_protocol(protocol: str) -> None:
    script = Script([*middle(protocol), None])

    async def go() -> Reply:
        app = make_app(make_guard(), script)
        task = asyncio.ensure_future(ask(app, PATHS[protocol], {**ASKS[protocol], "stream": True}))
        while script.sent < len(script.pieces) - 1:  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
        app.state.serving.draining.end()  # type: ignore[attr-defined]
        return await task

    reply = run(go())
    assert "shutting down" in ended_with_error(protocol, reply)["message"]
    assert script.closed == 1
