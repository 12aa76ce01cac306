"""Streamed answers through the proxy, in every protocol: what passes, what is withheld, and how it ends."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from guardkit.testing import FakeGuard
from tests.leaks import AFTER_MARK, BAD, FLAGGED_MARK, SAFE, cut, make_guard
from tests.serve import scripted
from tests.serve.scripted import ASKS, PATHS, PROTOCOLS, STAGES, Reply, Script, ask, make_app, run, texts

HOLDBACK = 8
CUTTINGS = int(os.environ.get("GUARDKIT_CUTTINGS", "20"))
"""Of each protocol and stage; 200 make two thousand in all."""
CASES = [(protocol, stage) for protocol in PROTOCOLS for stage in STAGES[protocol]]


def stream(protocol: str, script: Script, guard: Any = None, *, ask_for: Any = None, **settings: Any) -> Reply:
    app = make_app(guard or make_guard(), script, **settings)
    body = {**ASKS[protocol], "stream": True, **(ask_for or {})}
    reply: Reply = run(ask(app, PATHS[protocol], body))
    return reply


@pytest.mark.parametrize(("protocol", "stage"), CASES)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_passes_arrives_byte_for_byte(protocol: str, stage: str, size: int) -> None:
    text = f'{{"q": "{SAFE}"}}' if stage == "tool_call" else SAFE
    sent = b"".join(scripted.events(protocol, cut(text, 4), stage))
    script = Script([sent[i : i + size] for i in range(0, len(sent), size)])
    reply = stream(protocol, script)
    assert reply.status == 200
    assert reply.body == sent
    assert reply.headers["x-guardkit-action"] == "allow"
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert script.closed == 1


@pytest.mark.parametrize(("protocol", "stage"), CASES)
@pytest.mark.parametrize("ending", ["end", "error", "replace"])
def test_a_violation_ends_and_nothing_leaks(protocol: str, stage: str, ending: str) -> None:
    script = Script(scripted.events(protocol, cut(BAD, 3), stage))
    reply = stream(protocol, script, on_violation=ending)
    check_clean(reply)
    shown = texts(protocol, reply)
    if ending == "replace":
        assert shown.endswith("This was withheld by a safety check.")
        shown = shown.removesuffix("This was withheld by a safety check.").removesuffix("\n\n")
    shown_raw = shown
    assert SAFE.startswith(shown.rstrip())
    if stage != "tool_call":  # which is not cut
        released = SAFE.split()[: len(SAFE.split()) - HOLDBACK + 1]
        assert shown.split() == released
    check_ending(protocol, reply, ending)
    assert script.closed == 1
    came = len(texts(protocol, Reply(pieces=script.pieces[: script.sent])))  # type: ignore[index, arg-type]
    if ending != "error":  # text out and text withheld are the text that came
        told = reply.datas[-2 if protocol == "messages" else -1]
        told = told.get("response", told)["guardkit"]
        names = {"tool_call": len("look_up") * (protocol != "responses")}.get(stage, 0)
        assert told["released"] + told["withheld"] == came + names
        assert told["released"] == len(shown_raw) + names
    assert script.sent < len(script.pieces)  # type: ignore[arg-type]


def check_clean(reply: Reply) -> None:
    whole = reply.body.decode() + "".join(str(data) for data in reply.datas)
    if reply.headers.get("content-type", "").startswith("application/json"):  # where marks may stand as escapes
        whole += str(reply.json)
    assert FLAGGED_MARK not in whole
    assert AFTER_MARK not in whole


def check_ending(protocol: str, reply: Reply, ending: str) -> None:
    """Each protocol's own end."""
    datas, raw = reply.datas, reply.body.decode()
    if protocol in ("chat", "completions"):
        assert raw.endswith("data: [DONE]\n\n")
        if ending == "error":
            assert datas[-1]["error"]["code"] == "content_filter"
        else:
            assert datas[-1]["choices"][0]["finish_reason"] == {"end": "content_filter", "replace": "stop"}[ending]
            assert datas[-1]["guardkit"]["action"] == "block"
    elif protocol == "messages":
        if ending == "error":
            assert datas[-1]["type"] == "error"
        else:
            assert [data["type"] for data in datas[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
            assert datas[-2]["delta"]["stop_reason"] == {"end": "refusal", "replace": "end_turn"}[ending]
    else:
        numbers = [data["sequence_number"] for data in datas]
        assert numbers == sorted(set(numbers))
        last = {"end": "response.incomplete", "error": "response.failed", "replace": "response.completed"}[ending]
        assert datas[-1]["type"] == last
        if ending == "end":
            assert datas[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}
        if ending == "error":
            assert datas[-2]["type"] == "error"


@pytest.mark.parametrize(("protocol", "stage"), CASES)
def test_random_cuttings_leak_nothing(protocol: str, stage: str) -> None:
    """However upstream cuts its texts into events and its events into pieces, the client gets the same text."""
    chance = random.Random(f"{protocol} {stage}")
    seen = set()
    for _ in range(CUTTINGS):
        ending = chance.choice(("end", "error"))
        sent = b"".join(scripted.events(protocol, randomly(chance, BAD, 1, 40), stage))
        reply = stream(protocol, Script(randomly(chance, sent, 1, 400)), on_violation=ending)
        check_clean(reply)
        check_ending(protocol, reply, ending)
        shown = texts(protocol, reply)
        assert SAFE.startswith(shown)
        if stage != "tool_call":
            seen.add(shown)
    assert len(seen) <= 1


def randomly(chance: random.Random, whole: Any, least: int, most: int) -> list[Any]:
    out, at = [], 0
    while at < len(whole):
        size = chance.choice((1, chance.randint(least, most)))
        out.append(whole[at : at + size])
        at += size
    return out


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("ending", ["end", "error", "replace"])
@pytest.mark.parametrize("streams", [True, False])
def test_a_bad_prompt_never_reaches_the_upstream(protocol: str, ending: str, streams: bool) -> None:
    script = Script([])
    key = {"completions": "prompt", "responses": "input"}.get(protocol, "messages")
    bad = [{"role": "user", "content": f"hello {BAD}"}] if key == "messages" else f"hello {BAD}"
    app = make_app(make_guard(), script, on_violation=ending)
    reply = run(ask(app, PATHS[protocol], {**ASKS[protocol], key: bad, "stream": streams}))
    assert script.requests == []
    assert reply.headers["x-guardkit-action"] == "block"
    check_clean(reply)
    if ending == "error":
        assert reply.status == 400
        assert reply.json["error"]["code"] == "content_filter"
    else:
        assert reply.status == 200
        if streams:
            if protocol == "messages" and ending == "end":
                assert [data["type"] for data in reply.datas] == ["message_start", "message_delta", "message_stop"]
            else:
                check_ending(protocol, reply, ending)


@pytest.mark.parametrize(("protocol", "stage"), CASES)
@pytest.mark.parametrize("ending", ["end", "error", "replace"])
def test_whole_answers(protocol: str, stage: str, ending: str) -> None:
    good = scripted.whole(protocol, SAFE, stage)
    script = Script.json(good)
    reply = run(ask(make_app(make_guard(), script), PATHS[protocol], ASKS[protocol]))
    assert reply.body == script.pieces[0]  # type: ignore[index]
    assert reply.headers["x-guardkit-action"] == "allow"
    app = make_app(make_guard(), Script.json(scripted.whole(protocol, BAD, stage)), on_violation=ending)
    reply = run(ask(app, PATHS[protocol], ASKS[protocol]))
    assert reply.headers["x-guardkit-action"] == "block"
    assert FLAGGED_MARK not in reply.body.decode()
    assert FLAGGED_MARK not in str(reply.json)
    if ending == "error":
        assert reply.status == 400
        assert reply.json["error"]["code"] == "content_filter"
        return
    assert reply.status == 200
    if protocol == "responses":
        assert reply.json["status"] == ("incomplete" if ending == "end" else "completed")
    elif protocol == "messages":
        assert reply.json["stop_reason"] == ("refusal" if ending == "end" else "end_turn")
    else:
        assert reply.json["choices"][0]["finish_reason"] == ("content_filter" if ending == "end" else "stop")
    assert ("withheld by a safety check" in reply.body.decode()) == (ending == "replace")


def test_a_guard_that_fails_is_a_violation_unless_allowed() -> None:
    script = {"crash": RuntimeError("broken")}
    events = scripted.chat_events(cut(f"{SAFE} crash {SAFE}", 5))
    reply = stream("chat", Script(events), FakeGuard(script))
    assert "crash" not in texts("chat", reply)
    check_ending("chat", reply, "end")
    assert reply.datas[-1]["guardkit"]["judged"] is False
    reply = stream("chat", Script(events), FakeGuard(script, on_error="allow"))
    assert reply.body == b"".join(events)


def test_halves_of_a_character_hold_nothing_up() -> None:
    r"""Servers cut "\ud83d\ude00" between events."""
    events = [
        raw.replace(b"@", rb"\ud83d").replace(b"~", rb"\ude00") for raw in scripted.chat_events(cut(f"@~ {SAFE}", 1))
    ]
    script = Script([*events[:-4], None])  # it falls silent before the end
    app = make_app(make_guard(), script)

    async def shown() -> str:
        body = {**ASKS["chat"], "stream": True}
        reply = await ask(app, PATHS["chat"], body, leave_after=5)
        return reply.body.decode()

    assert rb"\ud83d".decode() in run(shown())


def test_arguments_are_judged_as_the_tool_will_read_them() -> None:
    r"""With the escapes of their JSON undone, cut anywhere."""
    escaped = "".join(f"\\u{ord(c):04x}" for c in "forbidden words")
    for size in (1, 2, 5, 100):
        events = scripted.chat_events(cut(f'{{"q": "{escaped} and more of it"}}', size), "tool_call")
        reply = stream("chat", Script(events), FakeGuard({"forbidden words": "unsafe"}))
        check_ending("chat", reply, "end")
        assert "and more" not in texts("chat", reply)
        assert reply.datas[-1]["guardkit"]["stage"] == "tool_call"
