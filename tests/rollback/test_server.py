"""Rollback over servers: what is sent to have an answer continued, and what is shown of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("httpx")

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import GuardkitError
from guardkit.models.remote_client import ServerError
from guardkit.rollback import Rollback, RollbackResult
from guardkit.testing import FakeGuard

ASK = [{"role": "user", "content": "What do tomatoes need?"}]
SCRIPT: dict[str, Any] = {"forbidden": "unsafe"}
WORDS = [" sun", " water,", " a forbidden", " soil\n", " rain. ", " \U0001f345", " and"]
Say = Callable[[str, int], list[str]]
"""The answer so far, and the number of the request -> the deltas that follow."""


class Llm:
    """A server that goes on with a last message of the assistant, as `owner`'s does. bodies: of its requests."""

    def __init__(self, say: Say, owner: str = "vllm", anew: bool = False, refuses: bool = False, cut: int = 0):
        self.say, self.owner, self.anew, self.refuses, self.cut = say, owner, anew, refuses, cut
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: Any) -> Any:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "llm", "owned_by": self.owner}]})
        body = json.loads(request.content)
        self.bodies.append(body)
        chat = request.url.path.endswith("/chat/completions")
        so_far = body["prompt"].split("<assistant>")[-1] if not chat else ""
        if chat and body["messages"][-1]["role"] == "assistant":
            so_far = body["messages"][-1]["content"]
            if self.refuses:
                return httpx.Response(400, json={"error": {"message": "the last message must be of the user"}})
            assert so_far == so_far.rstrip()
        deltas = self.say("" if self.anew else so_far, len(self.bodies))
        reason = "stop"
        if (most := body.get("max_tokens")) is not None and len(deltas) > most:
            deltas, reason = deltas[:most], "length"
        rows = []
        for i, delta in enumerate(deltas):
            end = reason if i == len(deltas) - 1 else None
            choice = {"delta": {"content": delta}} if chat else {"text": delta}
            rows.append({"choices": [{"index": 0, "finish_reason": end, **choice}]})
        text = "".join(f"data: {json.dumps(row)}\n\n" for row in rows)
        return httpx.Response(200, text=text[: self.cut or None] + "data: [DONE]\n\n")

    @property
    def client(self) -> Any:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://llm/v1", trust_env=False)


def talk(seed: int, n: int = 60, rare: int = 1) -> Say:
    rng = random.Random(seed)
    words = [w for w in WORDS if "forbidden" not in w] * rare + [" a forbidden"]
    return lambda so_far, number: [rng.choice(words) for _ in range(n)]


def whole(client: Any, rollback: Rollback, **options: Any) -> tuple[list[str], RollbackResult]:
    async def read() -> tuple[list[str], RollbackResult]:
        answer = rollback.stream(client, ASK, **options)
        return [text async for text in answer], answer.result

    return asyncio.run(read())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1 << 20), st.integers(1, 45), st.integers(1, 30), st.integers(0, 4), st.booleans(), st.booleans(),
    st.sampled_from([1, 4]),
)  # fmt: skip
def test_no_character_that_was_judged_unsafe_is_shown(
    seed: int, buffer: int, stride: int, retries: int, introspect: bool, show: bool, rare: int
) -> None:
    llm = Llm(talk(seed, rare=rare))
    rollback = Rollback(
        FakeGuard(SCRIPT), buffer=buffer, stride=stride, retries=retries, introspect=introspect, show_introspection=show
    )
    shown, result = whole(llm.client, rollback, max_tokens=50)
    assert "".join(shown) == result.text
    assert "forbidden" not in result.answer
    assert result.rollbacks <= retries
    assert result.wait_tokens == buffer * (result.rollbacks + 1)
    assert len(result.dropped) == result.rollbacks + result.refused
    for body in llm.bodies:
        if body["messages"][-1]["role"] == "assistant":
            assert body["continue_final_message"] is True
            assert body["add_generation_prompt"] is False
    if not (introspect and show):  # each continuation begins with text that stands, or is dropped later
        first = llm.bodies[0]["messages"]
        assert first == ASK


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp", "someone"])
def test_an_answer_is_continued_as_its_server_does_it(owner: str) -> None:
    def say(so_far: str, number: int) -> list[str]:
        return [" sun and"] * 8 + [" a forbidden", " thing"] if number == 1 else [" water.", " Done."]

    llm = Llm(say, owner)
    shown, result = whole(llm.client, Rollback(FakeGuard(SCRIPT), buffer=4, introspect=False), temperature=0.7)
    kept = llm.bodies[1]["messages"][-1]
    assert kept["role"] == "assistant"
    assert result.text == kept["content"] + " water. Done." == "".join(shown)
    assert (llm.bodies[1].get("continue_final_message"), llm.bodies[1]["temperature"]) == (
        (None if owner == "llamacpp" else True), 0.7,
    )  # fmt: skip
    assert result.dropped[0].text.startswith(" ")
    assert (result.rollbacks, result.refused, result.finish_reason) == (1, False, "stop")


def test_prefix_and_rendered_prompts() -> None:
    def say(so_far: str, number: int) -> list[str]:
        return [" sun"] * 8 + [" a forbidden"] if number == 1 else [" water."]

    rollback = Rollback(FakeGuard(SCRIPT), buffer=4, introspect=False)
    llm = Llm(say)
    whole(llm.client, rollback, continue_by="prefix", model="llm")
    assert llm.bodies[1]["messages"][-1] == {"role": "assistant", "content": " sun" * 6, "prefix": True}

    llm = Llm(say)
    _, result = whole(
        llm.client, rollback, render=lambda messages, answer: f"{messages[0]['content']}<assistant>{answer}"
    )
    assert llm.bodies[1]["prompt"] == "What do tomatoes need?<assistant>" + " sun" * 6
    assert result.text == " sun" * 6 + " water."


def test_an_introspection_is_asked_for_and_stays_hidden() -> None:
    def say(so_far: str, number: int) -> list[str]:
        if so_far.startswith("...oh"):
            return [" that", " was", " wrong.", "\n", "more"]
        return [" sun"] * 8 + [" a forbidden"] if number == 1 else [" water."]

    llm = Llm(say)
    _, result = whole(llm.client, Rollback(FakeGuard(SCRIPT), buffer=4))
    said = "...oh, I'm sorry, I just realized that was wrong."
    assert result.dropped[0].introspection == said
    assert "forbidden" in llm.bodies[1]["messages"][0]["content"]
    assert llm.bodies[2]["messages"][-1]["content"] == " sun" * 6 + said
    assert result.text == " sun" * 6 + " water."


def test_blanks_at_a_seam_stand_once() -> None:
    def say(so_far: str, number: int) -> list[str]:
        return [" sun \n"] * 8 + [" a forbidden"] if number == 1 else ["\n", " water."]

    llm = Llm(say)
    _, result = whole(llm.client, Rollback(FakeGuard(SCRIPT), buffer=4, introspect=False))
    assert llm.bodies[1]["messages"][-1]["content"].endswith(" sun")
    assert result.text.endswith(" sun \nwater.")


def test_a_server_that_does_not_go_on_is_an_error_in_words() -> None:
    def say(so_far: str, number: int) -> list[str]:
        return [f" Tomatoes need sun, water and soil number {i}." for i in range(9)] + [" a forbidden"]

    rollback = Rollback(FakeGuard(SCRIPT), buffer=20, introspect=False)
    with pytest.raises(ServerError, match=r"400.*continue_by.*render="):
        whole(Llm(say, refuses=True).client, rollback)
    with pytest.raises(ServerError, match="anew"):
        whole(Llm(say, anew=True).client, rollback)
    llm = Llm(say, owner="openai")
    with pytest.raises(ServerError, match="continues no assistant message"):
        whole(llm.client, rollback)
    assert llm.bodies == []


def test_a_server_that_fails_shows_nothing_unjudged() -> None:
    failing = httpx.AsyncClient(
        transport=httpx.MockTransport(lambda r: httpx.Response(503, text="busy")),
        base_url="http://l/v1",
        trust_env=False,
    )
    with pytest.raises(ServerError, match="no models"):
        whole(failing, Rollback(FakeGuard()))
    with pytest.raises(ServerError, match="503"):
        whole(failing, Rollback(FakeGuard()), model="llm", continue_by="vllm")
    broken = Llm(talk(1), cut=700)
    with pytest.raises(ServerError, match="no JSON"):
        whole(broken.client, Rollback(FakeGuard()))


def test_a_guard_that_fails_ends_in_a_refusal() -> None:
    guard = FakeGuard({"soil": RuntimeError("boom")}, on_error="allow")
    shown, result = whole(Llm(talk(3, rare=9)).client, Rollback(guard, buffer=3))
    assert result.refused
    assert "boom" in (result.error or "")
    assert "soil" not in result.text == "".join(shown)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_is_of_the_whole_answer(name: str) -> None:
    def say(so_far: str, number: int) -> list[str]:
        return [" sun"] * 12 + [" forbidden"] * 4 if number == 1 else [" water"] * 40

    llm = Llm(say)
    _, result = whole(llm.client, Rollback(FakeGuard(SCRIPT), buffer=4, introspect=False), **{name: 20})
    assert (result.n_tokens, result.finish_reason, result.rollbacks) == (20, "length", 1)
    assert [body[name] for body in llm.bodies] == [20, 20 - llm.bodies[1]["messages"][-1]["content"].count("sun")]
    assert all(("max_tokens" in body) == (name == "max_tokens") for body in llm.bodies)


def once(body: str) -> tuple[list[str], RollbackResult]:
    """An answer that came as `body`."""
    client = httpx.AsyncClient(
        transport=httpx.MockTransport(lambda _: httpx.Response(200, text=body)), base_url="http://llm/v1"
    )
    return whole(client, Rollback(FakeGuard(SCRIPT), buffer=4), model="llm", continue_by="vllm")


@pytest.mark.parametrize(
    "body",
    [
        "", "<html>hello</html>", '{"choices": [{"message": {"content": "forbidden"}}]}',
        'event: error\ndata: {"message": "full"}\n\n', 'data: {"choices": [{"delta": {"content": "sun"}}]}\n\n',
    ],
)  # fmt: skip
def test_an_answer_that_breaks_off_or_is_no_stream_is_an_error(body: str) -> None:
    with pytest.raises(ServerError, match="broke off, or was no stream"):
        once(body)


@pytest.mark.parametrize(
    ("delta", "says"),
    [({"function_call": {"name": "f", "arguments": "forbidden"}}, "calls a tool"), ({"audio": {"data": ""}}, "speaks")],
)
def test_what_is_no_text_is_refused(delta: dict[str, Any], says: str) -> None:
    row = {"choices": [{"delta": delta, "finish_reason": "stop"}]}
    with pytest.raises(GuardkitError, match=says):
        once(f"data: {json.dumps(row)}\n\n")


def test_a_refusal_in_a_field_of_its_own_is_judged_and_shown() -> None:
    for said, refused in (("I would rather not.", False), ("a forbidden thing", True)):
        row = {"choices": [{"delta": {"content": None, "refusal": said}, "finish_reason": "stop"}]}
        shown, result = once(f"data: {json.dumps(row)}\n\ndata: [DONE]\n\n")
        assert (result.refused, "".join(shown) == said) == (refused, not refused)


def test_thoughts_in_a_field_of_their_own_stay_out_and_tool_calls_are_refused() -> None:
    def answer(delta: dict[str, Any]) -> Any:
        rows = [{"choices": [{"delta": delta}]}, {"choices": [{"delta": {"content": "Sun."}, "finish_reason": "stop"}]}]
        text = "".join(f"data: {json.dumps(row)}\n\n" for row in rows)
        handler = httpx.MockTransport(lambda request: httpx.Response(200, text=text))
        return httpx.AsyncClient(transport=handler, base_url="http://l/v1", trust_env=False)

    rollback = Rollback(FakeGuard())
    options = {"model": "m", "continue_by": "vllm"}
    assert whole(answer({"reasoning_content": "let me think"}), rollback, **options)[1].text == "Sun."
    with pytest.raises(GuardkitError, match="tool"):
        whole(answer({"tool_calls": [{"index": 0}]}), rollback, **options)
    with pytest.raises(GuardkitError, match="'tools'"):
        rollback.stream("http://l/v1", ASK, tools=[])
    with pytest.raises(GuardkitError, match="AsyncOpenAI"):
        rollback.stream(42, ASK)
    with pytest.raises(ValueError, match="continue_by"):
        rollback.stream("http://l/v1", ASK, continue_by="magic")


def test_the_openai_client() -> None:
    openai = pytest.importorskip("openai")

    def say(so_far: str, number: int) -> list[str]:
        return [" sun"] * 8 + [" a forbidden"] if number == 1 else [" water."]

    llm = Llm(say)
    rollback = Rollback(FakeGuard(SCRIPT), buffer=4, introspect=False)
    client = openai.AsyncOpenAI(api_key="x", base_url="http://llm/v1", http_client=llm.client)
    shown, result = whole(client, rollback, stop="END", max_tokens=30)
    assert result.text == " sun" * 6 + " water." == "".join(shown)
    assert llm.bodies[1]["continue_final_message"] is True
    assert (llm.bodies[1]["stop"], llm.bodies[1]["max_tokens"]) == (["END"], 24)
    with pytest.raises(GuardkitError, match="AsyncOpenAI"):
        rollback.stream(openai.OpenAI(api_key="x"), ASK)
    refusing = Llm(say, refuses=True)
    client = openai.AsyncOpenAI(api_key="x", base_url="http://llm/v1", http_client=refusing.client)
    with pytest.raises(ServerError, match=r"refuses to go on"):
        whole(client, rollback)


def test_it_can_be_awaited_and_left_early() -> None:
    llm = Llm(talk(5, rare=50))
    rollback = Rollback(FakeGuard(SCRIPT), buffer=4)

    async def both() -> tuple[RollbackResult, Any]:
        result = await rollback.stream(llm.client, ASK)
        answer = rollback.stream(llm.client, ASK)
        texts = answer.__aiter__()
        await anext(texts)
        await texts.aclose()
        return result, answer

    result, answer = asyncio.run(both())
    assert isinstance(result, RollbackResult)
    assert answer.text
    assert answer._source._deltas is None
    assert answer._answer.stream._session is None
