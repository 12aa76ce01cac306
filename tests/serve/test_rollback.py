"""Rollback as a route's option: what is stopped is taken back and gone on with; whatever happens, nothing leaks."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from guardkit import Action
from guardkit.testing import FakeGuard
from guardkit_serve import Upstream
from guardkit_serve.plan import ConfigError, read_config
from guardkit_serve.settings import RollbackSettings, Route, Settings
from tests.leaks import AFTER_MARK, FLAGGED, FLAGGED_MARK, make_guard
from tests.serve.scripted import ASKS, PATHS, URL, Reply, ask, make_app, run, texts

CHAT = PATHS["chat"]
Say = Callable[[str, int], Sequence[str]]
"""The answer so far and the number of the request -> the deltas that follow."""


class Llm(httpx.AsyncBaseTransport):
    """Goes on with a last message of the assistant, as vLLM does. bodies: what was asked. refuses: no continuing."""

    def __init__(self, say: Say, owner: str = "vllm", *, refuses: bool = False, anew: bool = False, ends: bool = True):
        self.say, self.owner, self.refuses, self.anew, self.ends = say, owner, refuses, anew, ends
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self.n_listed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            self.n_listed += 1
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": self.owner}]})
        body = json.loads(await request.aread())
        self.bodies.append(body)
        self.headers.append(request.headers)
        last = body["messages"][-1]
        so_far = last["content"] if last["role"] == "assistant" else ""
        if so_far and self.refuses:
            return httpx.Response(400, json={"error": {"message": f"no {FLAGGED}, the last message is the user's"}})
        deltas = list(self.say("" if self.anew else so_far, len(self.bodies)))
        if (most := body.get("max_tokens")) is not None:
            deltas = deltas[:most]
        head = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        rows = [{**head, "choices": [{"index": 0, "delta": {"content": d}, "finish_reason": None}]} for d in deltas]
        if self.ends:
            rows.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if body.get("stream_options"):
            used = {"prompt_tokens": 5, "completion_tokens": len(deltas), "total_tokens": 5 + len(deltas)}
            rows.append({**head, "choices": [], "usage": used})
        raw = "".join(f"data: {json.dumps(row)}\n\n" for row in rows) + "data: [DONE]\n\n" * self.ends
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=raw.encode())


WORDS = ["sun ", "water ", "soil ", "rain "]
BAD = [*FLAGGED.split(" ")[:1], " ", *FLAGGED.split(" ")[1:], " "]


def mends(so_far: str, number: int) -> list[str]:
    """Goes wrong at first, and is good from the second time on."""
    if so_far.startswith("...oh"):
        return [" this", " was", " wrong.", "\n"]
    return [*WORDS * 5, *BAD, f"{AFTER_MARK} "] if number == 1 else [*WORDS, "morning."]


def never(so_far: str, number: int) -> list[str]:
    """Goes wrong each time, and does not repeat itself."""
    return [*[*WORDS[number % 4 :], *WORDS[: number % 4]] * 5, *BAD, f"{AFTER_MARK} "]


def server(llm: Llm, guard: Any = None, rollback: Any = None, **settings: Any) -> Any:
    rollback = rollback or RollbackSettings(buffer=6, retries=2, introspect=False)
    return make_app(guard or make_guard(), llm, upstream=Upstream(URL, retries=0, rollback=rollback), **settings)


def chat(app: Any, streams: bool, **more: Any) -> Reply:
    reply: Reply = run(ask(app, CHAT, {**ASKS["chat"], "stream": streams, **more}))
    check_clean(reply)
    return reply


def check_clean(reply: Reply) -> None:
    raw = reply.body.decode()
    for mark in (FLAGGED_MARK, AFTER_MARK, "\\u00b6", "\\u00a7"):
        assert mark not in raw


def said(reply: Reply, streams: bool) -> str:
    return texts("chat", reply) if streams else reply.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("introspect", [True, False])
def test_an_answer_that_goes_wrong_is_mended(streams: bool, introspect: bool) -> None:
    llm = Llm(mends)
    app = server(llm, rollback=RollbackSettings(buffer=6, retries=2, introspect=introspect))
    reply = chat(app, streams, stream_options={"include_usage": True})
    assert reply.status == 200
    text = said(reply, streams)
    assert text.startswith("sun water soil rain ")
    assert text.endswith("morning.")
    kept = llm.bodies[-1]["messages"][-1]
    assert kept["role"] == "assistant"
    assert text.startswith(kept["content"].split("...oh")[0].rstrip())
    assert llm.bodies[-1]["continue_final_message"] is True
    assert llm.n_listed == 1
    about, used = reply.datas[-2:] if streams else (reply.json, reply.json)
    assert about["choices"][0]["finish_reason"] == "stop"
    assert (about["guardkit"]["rollbacks"], about["guardkit"]["action"]) == (1, "allow")
    assert about["guardkit"]["released"] == len(text)
    assert used["usage"]["prompt_tokens"] in range(
        5, 5 * len(llm.bodies), 5
    )  # of a request that is dropped nobody tells
    if streams:
        assert reply.body.endswith(b"data: [DONE]\n\n")
        assert len({data["id"] for data in reply.datas}) == 1


@pytest.mark.parametrize("streams", [True, False])
def test_a_good_answer_is_asked_for_once(streams: bool) -> None:
    llm = Llm(lambda so_far, number: [*WORDS, "morning."])
    reply = chat(server(llm), streams, temperature=0.5, user="someone", max_completion_tokens=50)
    assert said(reply, streams) == "sun water soil rain morning."
    (body,) = llm.bodies
    assert (body["temperature"], body["user"], body["max_tokens"], body["stream"]) == (0.5, "someone", 50, True)
    assert body["messages"] == ASKS["chat"]["messages"]


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("ending", ["end", "error", "replace"])
def test_when_the_tries_are_used_up_it_ends_as_the_protocol_ends_it(streams: bool, ending: str) -> None:
    llm = Llm(never)
    reply = chat(server(llm, on_violation=ending), streams)
    assert len(llm.bodies) == 3
    if streams:
        assert reply.body.endswith(b"data: [DONE]\n\n")
        shown, last = said(reply, True), reply.datas[-1]
        assert shown.startswith("water soil rain sun ")
        if ending == "error":
            assert last["error"]["code"] == "content_filter"
        else:
            assert last["choices"][0]["finish_reason"] == {"end": "content_filter", "replace": "stop"}[ending]
            assert last["guardkit"]["released"] == len(shown.removesuffix("\n\nThis was withheld by a safety check."))
            assert last["guardkit"]["withheld"] > 0
    elif ending == "error":
        assert (reply.status, reply.json["error"]["code"]) == (400, "content_filter")
    else:
        assert reply.json["choices"][0]["finish_reason"] == {"end": "content_filter", "replace": "stop"}[ending]
        assert reply.headers["x-guardkit-action"] == "block"
    assert ("withheld by a safety check" in reply.body.decode()) == (ending == "replace")


@pytest.mark.parametrize("streams", [True, False])
def test_a_violation_before_the_first_byte(streams: bool) -> None:
    llm = Llm(lambda so_far, number: BAD)
    reply = chat(server(llm, on_violation="error"), streams)
    assert (reply.status, reply.json["error"]["code"]) == (400, "content_filter")
    reply = chat(server(Llm(lambda so_far, number: BAD)), streams)
    ended = reply.datas[-1] if streams else reply.json
    assert ended["choices"][0]["finish_reason"] == "content_filter"
    assert said(reply, streams) == ""


@pytest.mark.parametrize("streams", [True, False])
def test_an_upstream_that_refuses_to_go_on_is_an_error_that_says_so(streams: bool) -> None:
    reply = chat(server(Llm(mends, refuses=True)), streams)
    error = reply.datas[-1]["error"] if streams else reply.json["error"]
    assert error["code"] == "rollback_unsupported"
    assert "continue_by" in error["message"]
    for owner in ("openai", "system"):  # known not to, by its list of models: before anything is asked
        llm = Llm(mends, owner)
        reply = chat(server(llm), streams)
        assert (reply.status, reply.json["error"]["code"]) == (502, "rollback_unsupported")
        assert llm.bodies == []


def test_an_upstream_that_begins_anew_is_found_out() -> None:
    long = [f"word{i} " for i in range(40)]
    llm = Llm(lambda so_far, number: [*long, *BAD] if number == 1 else [*long, "and more"], anew=True)
    reply = chat(server(llm), True)
    assert reply.datas[-1]["error"]["code"] == "rollback_unsupported"
    assert said(reply, True).count("word3 ") == 1


@pytest.mark.parametrize("streams", [True, False])
def test_faults_of_the_upstream(streams: bool) -> None:
    class Status(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/models"):
                raise httpx.ConnectError("no")
            error = {"error": {"message": "slow down", "type": "x", "code": "y", "param": None}}
            return httpx.Response(429, json=error, headers={"retry-after": "7"})

    reply = chat(server(Status()), streams)  # type: ignore[arg-type]
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    assert reply.json["error"]["message"] == "slow down"
    reply = chat(server(Llm(lambda so_far, number: WORDS * 20, ends=False)), streams)  # it breaks off
    error = reply.datas[-1]["error"] if streams else reply.json["error"]
    assert error["code"] == "upstream_error"


@pytest.mark.parametrize("streams", [True, False])
def test_an_answer_has_a_size(streams: bool) -> None:
    reply = chat(server(Llm(lambda so_far, number: WORDS * 500), max_answer_bytes=50_000), streams)
    assert reply.status == 502
    assert "more than 50,000 bytes" in reply.json["error"]["message"]


def test_a_guard_that_fails_shows_nothing_whatever_on_error_says() -> None:
    for on_error in ("block", "allow"):
        guard = FakeGuard({"soil": RuntimeError("broken")}, on_error=on_error)
        reply = chat(server(Llm(lambda so_far, number: [*WORDS, f"{AFTER_MARK} "]), guard), True)
        assert said(reply, True) == ""
        assert reply.datas[-1]["guardkit"]["judged"] is False
        assert reply.datas[-1]["choices"][0]["finish_reason"] == "content_filter"
    slow = FakeGuard({}, delay=0.5)
    llm = Llm(lambda so_far, number: [*WORDS, "."])
    app = server(llm, slow, judge_s=0.05)
    assert "sun" not in run(ask(app, CHAT, {**ASKS["chat"], "stream": True})).body.decode()


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]},
        {"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "so"}]},
    ],
)  # fmt: skip
def test_other_requests_are_guarded_without_rollback(more: dict[str, Any]) -> None:
    llm = Llm(never)
    reply = chat(server(llm), True, **more)
    assert len(llm.bodies) == 1
    assert reply.datas[-1]["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize("more", [{"render": "x"}, {"stage": "reasoning"}, {"max_tokens": 0}, {"stop": [1]}])
def test_what_cannot_be_taken_is_an_error_of_the_client(more: dict[str, Any]) -> None:
    llm = Llm(never)
    assert chat(server(llm), True, **more).status == 400
    assert llm.bodies == []


def test_stop_strings_and_lengths_end_the_answer() -> None:
    assert said(chat(server(Llm(lambda s, n: WORDS * 5)), False, stop="soil"), False) == "sun water "
    reply = chat(server(Llm(lambda s, n: WORDS * 5)), False, max_tokens=3)
    assert reply.json["choices"][0]["finish_reason"] == "length"


def test_a_request_that_is_stopped_never_reaches_the_upstream() -> None:
    llm = Llm(mends)
    reply = chat(server(llm), True, messages=[{"role": "user", "content": f"say {FLAGGED}"}])
    assert reply.headers["x-guardkit-action"] == "block"
    assert llm.bodies == []


def test_a_client_that_leaves_ends_it() -> None:
    class Slow(Llm):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            if request.url.path.endswith("/models"):
                return response
            stream = _Stalled(response.content[:2000])
            self.streams = [*getattr(self, "streams", []), stream]
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=stream)

    llm = Slow(lambda so_far, number: WORDS * 20)
    run(ask(server(llm), CHAT, {**ASKS["chat"], "stream": True}, leave_after=1))
    (stream,) = llm.streams
    assert stream.closed


class _Stalled(httpx.AsyncByteStream):
    def __init__(self, raw: bytes):
        self.raw, self.closed = raw, False

    async def __aiter__(self) -> Any:
        yield self.raw
        await asyncio.sleep(3600)

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("seed", range(20))
def test_random_answers_leak_nothing(seed: int) -> None:
    chance = random.Random(seed)
    words = [*WORDS * 3, f"{FLAGGED_MARK * 3} "]

    def say(so_far: str, number: int) -> list[str]:
        text = "".join(chance.choice(words) for _ in range(60))
        out = []
        while text:
            size = chance.randint(1, 12)
            out.append(text[:size])
            text = text[size:]
        return out

    rollback = RollbackSettings(chance.randint(1, 20), chance.randint(0, 4), chance.random() < 0.5)
    guard = FakeGuard({FLAGGED_MARK * 3: "unsafe"})
    reply = chat(server(Llm(say), guard, rollback), chance.random() < 0.7)
    assert reply.status == 200


def test_a_route_says_it_and_has_the_last_word(tmp_path: Any) -> None:
    path = tmp_path / "guard.yaml"
    path.write_text(
        "upstreams:\n  local: {url: 'http://127.0.0.1:8000/v1', rollback: true}\n"
        "routes:\n"
        "  - {model: 'safe-*', upstream: local, rollback: {buffer: 20, retries: 3, introspect: false}}\n"
        "  - {model: 'plain-*', upstream: local, rollback: false}\n"
    )
    found = read_config(path).settings
    assert found.upstream("m").rollback == RollbackSettings()  # type: ignore[union-attr]
    assert found.upstream("safe-1").rollback == RollbackSettings(20, 3, False)  # type: ignore[union-attr]
    assert not found.upstream("plain-1").rollback  # type: ignore[union-attr]
    for wrong, said in (
        ("{buffer: 0}", "at least 1"), ("{buffr: 1}", "unknown key 'buffr'"), ("{introspect: 1}", "true or false"),
        ("5", "a mapping"), ("{continue_by: magic}", "vllm"),
    ):  # fmt: skip
        path.write_text(f"upstreams:\n  local:\n    url: http://a/v1\n    rollback: {wrong}\n")
        with pytest.raises(ConfigError, match=said) as caught:
            read_config(path)
        assert caught.value.line == 4
    path.write_text("upstreams:\n  local:\n    url: https://api.openai.com/v1\n    rollback: true\n")
    with pytest.raises(ConfigError, match="continues no assistant message"):
        read_config(path)


def test_an_upstream_that_is_set_up_in_python() -> None:
    upstream, own = Upstream(URL), RollbackSettings(buffer=9)
    settings = Settings(upstreams=(upstream,), routes=(Route("a-*", "default", own),))
    assert settings.upstream("a-1") == Upstream(URL, rollback=own)
    assert settings.upstream("b") is upstream
    assert Action.block.stops
