"""Real clients through the server: what they parse equals a direct call's, and what is withheld ends as they expect."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.leaks import BAD, FLAGGED_MARK, SAFE, cut, make_guard
from tests.serve import scripted
from tests.serve.live import LiveUpstream, guarded

TEXT = '{"need": "sun", "hours": 6}'
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
}
BAD_ENDS = {"end": "content_filter", "replace": "stop"}


class Plant(BaseModel):
    need: str
    hours: int


def answer(protocol: str, text: str) -> Callable[[Any], Any]:
    """Good or bad by the model that is asked for, a tool call where tools are given."""

    def answers(body: Any) -> Any:
        said = BAD if body["model"] == "bad" else text
        stage = "tool_call" if body.get("tools") and body["model"] != "bad" else "response"
        said = '{"q": "soil"}' if stage == "tool_call" else said
        if not body.get("stream"):
            return scripted.whole(protocol, "soil" if protocol == "messages" and stage == "tool_call" else said, stage)
        return scripted.events(protocol, cut(said, 4), stage)

    return answers


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    models = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "us"}]}
    answers = {scripted.PATHS[p]: answer(p, TEXT) for p in scripted.PROTOCOLS} | {"/v1/models": models}
    with guarded(make_guard(), LiveUpstream(answers)) as found:
        yield found


CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What do tomatoes need?"}]}
RESPONSES: dict[str, Any] = {"model": "m", "input": "What do tomatoes need?"}
MESSAGES: dict[str, Any] = {**CHAT, "max_tokens": 100}
FLAT_TOOL: Any = {"type": "function", "name": "look_up", "parameters": TOOL["function"]["parameters"], "strict": False}
INPUT_TOOL: Any = {"name": "look_up", "input_schema": TOOL["function"]["parameters"]}

OPENAI: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda c: c.chat.completions.create(**CHAT),
    "chat tools": lambda c: c.chat.completions.create(**CHAT, tools=[TOOL]),
    "chat parsed": lambda c: c.chat.completions.parse(**CHAT, response_format=Plant),
    "chat stream": lambda c: list(c.chat.completions.create(**CHAT, stream=True)),
    "chat stream tools": lambda c: list(c.chat.completions.create(**CHAT, stream=True, tools=[TOOL])),
    "chat stream parsed": lambda c: _final(c.chat.completions.stream(**CHAT, response_format=Plant)),
    "completions": lambda c: c.completions.create(model="m", prompt="x"),
    "completions stream": lambda c: list(c.completions.create(model="m", prompt="x", stream=True)),
    "responses": lambda c: c.responses.create(**RESPONSES),
    "responses tools": lambda c: c.responses.create(**RESPONSES, tools=[FLAT_TOOL]),
    "responses parsed": lambda c: c.responses.parse(**RESPONSES, text_format=Plant),
    "responses stream": lambda c: list(c.responses.create(**RESPONSES, stream=True)),
    "responses stream parsed": lambda c: _final(c.responses.stream(**RESPONSES, text_format=Plant)),
    "models": lambda c: c.models.list().data,
}  # fmt: skip
ANTHROPIC: dict[str, Callable[[anthropic.Anthropic], Any]] = {
    "messages": lambda c: c.messages.create(**MESSAGES),
    "messages tools": lambda c: c.messages.create(**MESSAGES, tools=[INPUT_TOOL]),
    "messages stream": lambda c: list(c.messages.create(**MESSAGES, stream=True)),
    "messages stream tools": lambda c: _final(c.messages.stream(**MESSAGES, tools=[INPUT_TOOL])),
    "messages stream text": lambda c: _text(c.messages.stream(**MESSAGES)),
}


def _final(manager: Any) -> Any:
    with manager as stream:
        names = ("get_final_completion", "get_final_response", "get_final_message")
        return [list(stream), *(getattr(stream, name)() for name in names if hasattr(stream, name))]


def _text(manager: Any) -> list[str]:
    with manager as stream:
        return list(stream.text_stream)


def openai_at(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0, timeout=60)


def anthropic_at(address: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=address, api_key="k", max_retries=0, timeout=60)


@pytest.mark.parametrize("name", OPENAI)
def test_openai_parses_what_a_direct_call_gives(servers: tuple[str, str], name: str) -> None:
    through, direct = (OPENAI[name](openai_at(address)) for address in servers)
    assert through == direct
    assert through


@pytest.mark.parametrize("name", ANTHROPIC)
def test_anthropic_parses_what_a_direct_call_gives(servers: tuple[str, str], name: str) -> None:
    through, direct = (ANTHROPIC[name](anthropic_at(address)) for address in servers)
    assert through == direct
    assert through


def test_the_async_clients_too(servers: tuple[str, str]) -> None:
    async def both(address: str) -> Any:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as one:
            whole = await one.chat.completions.create(**CHAT)
            chunks = [chunk async for chunk in await one.chat.completions.create(**CHAT, stream=True)]
            events = [event async for event in await one.responses.create(**RESPONSES, stream=True)]
        two = anthropic.AsyncAnthropic(base_url=address, api_key="k", max_retries=0)
        async with two, two.messages.stream(**MESSAGES) as stream:
            final = await stream.get_final_message()
        return whole, chunks, events, final

    assert asyncio.run(both(servers[0])) == asyncio.run(both(servers[1]))


# ----------------------------------------------------------------------------------- what they make of a violation


def test_openai_sees_a_filtered_answer(servers: tuple[str, str]) -> None:
    client = openai_at(servers[0])
    bad = {**CHAT, "model": "bad"}
    whole = client.chat.completions.create(**bad)
    assert (whole.choices[0].finish_reason, whole.choices[0].message.content) == ("content_filter", "")
    chunks = list(client.chat.completions.create(**bad, stream=True))
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert SAFE.startswith(text)
    assert text
    with client.responses.stream(model="bad", input="x") as stream:
        events = list(stream)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "content_filter"
    assert FLAGGED_MARK not in events[-1].response.output_text
    assert SAFE.startswith(events[-1].response.output_text)
    response = client.responses.create(model="bad", input="x")
    assert (response.status, response.output_text) == ("incomplete", "")
    blocked = client.chat.completions.create(model="m", messages=[{"role": "user", "content": BAD}])
    assert blocked.choices[0].finish_reason == "content_filter"


def test_anthropic_sees_a_refusal(servers: tuple[str, str]) -> None:
    client = anthropic_at(servers[0])
    bad = {**MESSAGES, "model": "bad"}
    message = client.messages.create(**bad)
    assert (message.stop_reason, message.content) == ("refusal", [])
    assert message.stop_details is not None
    with client.messages.stream(**bad) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.stop_reason == "refusal"
    assert SAFE.startswith(text)
    blocked = client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": BAD}])
    assert blocked.stop_reason == "refusal"


def test_errors_and_messages_are_the_clients_own() -> None:
    answers = {scripted.PATHS[p]: answer(p, TEXT) for p in scripted.PROTOCOLS}
    with guarded(make_guard(), LiveUpstream(answers), on_violation="error") as (address, _):
        client, other = openai_at(address), anthropic_at(address)
        with pytest.raises(openai.BadRequestError, match="withheld") as caught:
            client.chat.completions.create(**{**CHAT, "model": "bad"})
        assert caught.value.code == "content_filter"
        with pytest.raises(openai.APIError, match="withheld"):
            list(client.chat.completions.create(**{**CHAT, "model": "bad"}, stream=True))
        with pytest.raises(anthropic.BadRequestError, match="withheld"):
            other.messages.create(**{**MESSAGES, "model": "bad"})
        with (
            pytest.raises(anthropic.APIStatusError, match="withheld"),
            other.messages.stream(**{**MESSAGES, "model": "bad"}) as stream,
        ):
            list(stream)
        failed = list(client.responses.create(model="bad", input="x", stream=True))[-1]
        assert failed.type == "response.failed"
    with guarded(make_guard(), LiveUpstream(answers), on_violation="replace", message="Not this.") as (address, _):
        client, other = openai_at(address), anthropic_at(address)
        assert client.chat.completions.create(**{**CHAT, "model": "bad"}).choices[0].message.content == "Not this."
        with client.responses.stream(model="bad", input="x") as events:
            list(events)
            assert events.get_final_response().output_text.endswith("Not this.")
        with other.messages.stream(**{**MESSAGES, "model": "bad"}) as messages:
            assert messages.get_final_text().endswith("Not this.")


def test_moderations_by_the_sdk(servers: tuple[str, str]) -> None:
    found = openai_at(servers[0]).moderations.create(input=["fine", BAD])
    assert [one.flagged for one in found.results] == [False, True]
    assert found.results[1].categories.violence
    assert found.results[1].category_scores.violence > 0.5


def test_a_client_that_hangs_up_is_noticed_at_the_upstream() -> None:
    upstream = LiveUpstream({"/v1/chat/completions": lambda body: [*scripted.chat_events(cut(SAFE, 4))[:9], None]})
    with guarded(make_guard(), upstream) as (address, _):
        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=60
        ) as answer:
            next(answer.iter_bytes())
        assert upstream.cancelled.wait(60)


def test_keys_go_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from guardkit_serve import Key, Settings, Upstream, create_app
    from tests.serve.live import running

    upstream = LiveUpstream({"/v1/chat/completions": scripted.whole("chat", SAFE)})
    key = Key("app", hashlib.sha256(b"sk-guard").hexdigest())
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream")
    with running(upstream) as behind:
        for settings, given, passed in (
            (Settings(upstreams=(Upstream(behind),)), "sk-mine", "Bearer sk-mine"),
            (Settings(upstreams=(Upstream(behind, key_env="UPSTREAM_KEY"),)), "sk-mine", "Bearer sk-upstream"),
            (Settings(upstreams=(Upstream(behind),), keys=(key,)), "sk-guard", None),
            (
                Settings(upstreams=(Upstream(behind, key_env="UPSTREAM_KEY"),), keys=(key,)),
                "sk-guard",
                "Bearer sk-upstream",
            ),
        ):
            with running(create_app(make_guard(), settings)) as address:
                client = openai.OpenAI(base_url=f"{address}/v1", api_key=given, max_retries=0)
                client.chat.completions.create(**CHAT)
                assert upstream.requests[-1][1].get("authorization") == passed


def test_langchain(servers: tuple[str, str]) -> None:
    from langchain_openai import ChatOpenAI

    through, direct = (ChatOpenAI(model="m", base_url=f"{a}/v1", api_key="k", max_retries=0) for a in servers)  # type: ignore[arg-type]
    asked = [("user", "What do tomatoes need?")]
    assert through.invoke(asked).content == direct.invoke(asked).content == TEXT
    chunks = [[chunk.content for chunk in model.stream(asked)] for model in (through, direct)]
    assert chunks[0] == chunks[1]
    calls = [model.bind_tools([TOOL]).invoke(asked).tool_calls for model in (through, direct)]
    assert calls[0] == calls[1]
    assert calls[0][0]["args"] == {"q": "soil"}
    parsed = [model.with_structured_output(Plant).invoke(asked) for model in (through, direct)]
    assert parsed[0] == parsed[1] == Plant(need="sun", hours=6)
    bad = ChatOpenAI(model="bad", base_url=f"{servers[0]}/v1", api_key="k", max_retries=0)  # type: ignore[arg-type]
    pieces = list(bad.stream(asked))
    assert pieces[-1].response_metadata.get("finish_reason") == "content_filter" or any(
        p.response_metadata.get("finish_reason") == "content_filter" for p in pieces
    )
    assert SAFE.startswith("".join(str(p.content) for p in pieces))


def test_many_streams_at_once(servers: tuple[str, str]) -> None:
    found: list[Any] = []

    def one() -> None:
        found.append(list(openai_at(servers[0]).chat.completions.create(**CHAT, stream=True)))

    threads = [threading.Thread(target=one) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 16
    assert all(each == found[0] for each in found)


def test_smuggled_and_malformed_requests_are_refused(servers: tuple[str, str]) -> None:
    """Two readings of one request must not exist."""
    host, port = servers[0].removeprefix("http://").split(":")
    for head in (
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Content-Length: -1\r\n",
        "X-A: b\r\n c: d\r\nContent-Length : 5\r\n",
        "X-A: a\x00b\r\nContent-Length: 2\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=60) as wire:
            body = "0\r\n\r\nPOST /v1/check HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 14\r\n\r\n"
            wire.sendall(f"POST /v1/check HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n{body}".encode())
            said = b""
            while piece := wire.recv(65536):
                said += piece
                if b"\r\n\r\n" in said:
                    break
            assert re.match(rb"HTTP/1.1 4\d\d ", said), (head, said)
