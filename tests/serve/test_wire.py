"""What of an answer can carry text beside its texts: fields and events of other names, comments, logprobs, what is said
to be opaque, transcripts, headers. All of it is judged, in however many events it comes, or does not go out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from guardkit.testing import FakeGuard
from tests.leaks import AFTER_MARK, BAD, FLAGGED, FLAGGED_MARK, SAFE, SCRIPT, cut, make_guard
from tests.serve import scripted
from tests.serve.scripted import ASKS, PATHS, Reply, Script, ask, event, make_app, run
from tests.serve.test_streams import check_clean, stream

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(delta: dict[str, Any] | None = None, **choice: Any) -> bytes:
    return event({**HEAD, "choices": [{"index": 0, "delta": delta or {}, "finish_reason": None, **choice}]})


def named(data: dict[str, Any]) -> bytes:
    return event(data, data["type"])


# ------------------------------------------------------------------------------- texts that grow where none is known


def between(protocol: str, middle: Sequence[bytes]) -> list[bytes]:
    """An answer of the protocol with these events in it."""
    events = scripted.events(protocol, [])
    at = {"chat": 1, "completions": 0, "messages": 2, "responses": 4}[protocol]
    return [*events[:at], *middle, *events[at:]]


def block(kind: str, **more: Any) -> bytes:
    return named({"type": "content_block_start", "index": 0, "content_block": {"type": kind, **more}})


def item(n: int, **more: Any) -> bytes:
    return named({"type": "response.output_item.added", "output_index": n + 1, "item": {"type": "note", **more}})


GROWING: dict[str, tuple[str, Callable[[int, str], bytes]]] = {
    "a chat event": ("chat", lambda i, p: event({**HEAD, "choices": [], "note": p})),
    "a chat event, deep": ("chat", lambda i, p: event({**HEAD, "choices": [], "x": {"y": [{"z": p}]}})),
    "a choice": ("chat", lambda i, p: chunk(note=p)),
    "a delta": ("chat", lambda i, p: chunk({"note": p})),
    "a call's field": ("chat", lambda i, p: chunk({"tool_calls": [{"index": 0, "note": p}]})),
    "a call's id": ("chat", lambda i, p: chunk({"tool_calls": [{"index": 0, "id": p}]})),
    "a call's function": ("chat", lambda i, p: chunk({"tool_calls": [{"index": 0, "function": {"note": p}}]})),
    "a finish reason": ("chat", lambda i, p: chunk(finish_reason=p)),
    "comments": ("chat", lambda i, p: f": {p}\n\n".encode()),
    "ids": ("chat", lambda i, p: f"id: {p}\ndata: {json.dumps({**HEAD, 'choices': []})}\n\n".encode()),
    "names of events": ("chat", lambda i, p: event({**HEAD, "choices": []}, p)),
    "fields of no name": ("chat", lambda i, p: f"note: {p}\n\n".encode()),
    "a completion": ("completions", lambda i, p: event({**HEAD, "choices": [], "note": p})),
    "a choice of a completion": ("completions", lambda i, p: event({**HEAD, "choices": [{"text": "", "note": p}]})),
    "ping": ("messages", lambda i, p: named({"type": "ping", "note": p})),
    "a new event": ("messages", lambda i, p: named({"type": "note_delta", "index": 0, "note": p})),
    "a known event": ("messages", lambda i, p: named({"type": "message_delta", "delta": {"note": p}})),
    "a new delta": (
        "messages",
        lambda i, p: named({"type": "content_block_delta", "index": 0, "delta": {"type": "note_delta", "note": p}}),
    ),
    "beside a delta": (
        "messages",
        lambda i, p: named(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "", "note": p}}
        ),
    ),
    "a compaction": (
        "messages",
        lambda i, p: named(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "compaction_delta", "content": p}}
        ),
    ),
    "a new event of responses": ("responses", lambda i, p: named({"type": "response.note.partial", "note": p})),
    "a new delta of responses": (
        "responses",
        lambda i, p: named({"type": "response.shell_call_output_content.delta", "output_index": 0, "delta": {"a": p}}),
    ),
    "beside a known delta": (
        "responses",
        lambda i, p: named({"type": "response.output_text.delta", "output_index": 0, "delta": "", "note": p}),
    ),
    "done events": (
        "responses",
        lambda i, p: named({"type": "response.note.done", "output_index": 0, "text": p}),
    ),
    "a failed call": ("responses", lambda i, p: named({"type": "response.mcp_call.failed", "error": p})),
    "items": ("responses", lambda i, p: item(i, note=p)),
}  # fmt: skip


@pytest.mark.parametrize("size", [2, 5, 1000])
@pytest.mark.parametrize("name", GROWING)
def test_a_text_that_grows_where_none_is_known_is_judged(name: str, size: int) -> None:
    protocol, make = GROWING[name]
    bad = between(protocol, [make(i, piece) for i, piece in enumerate(cut(BAD, size))])
    check_clean(stream(protocol, Script(bad)))
    good = between(protocol, [make(i, piece) for i, piece in enumerate(cut(SAFE, size))])
    assert stream(protocol, Script(good)).body == b"".join(good)


def test_signs_of_life_are_not_held_up() -> None:
    """Comments that come before the answer, each with another time in it."""
    pings = [f": still at work, ping - 2026-11-26 11:{i:02}:00.5+00:00\n\n".encode() for i in range(9)]
    reply = run(ask(make_app(make_guard(), Script([*pings, None])), PATHS["chat"], {**ASKS["chat"], "stream": True},
                    leave_after=9))  # fmt: skip
    assert reply.body == b"".join(pings)


# --------------------------------------------------------------------------------------------------------- logprobs


def token(text: str, **more: Any) -> dict[str, Any]:
    return {"token": text, "logprob": -0.1, "bytes": list(text.encode()), "top_logprobs": [], **more}


LOGPROBS: dict[str, Callable[[str], Any]] = {
    "a string": lambda text: text,
    "a string in a list's place": lambda text: {"content": text},
    "tokens": lambda text: {"content": [token(piece) for piece in cut(text, 3)]},
    "a field of a token": lambda text: {"content": [token("fine", note=text)]},
    "a field beside": lambda text: {"content": [], "note": text},
    "a key": lambda text: {"content": [token("fine", **{text: 1})]},
    "bytes": lambda text: {"content": [token("fine", bytes=list(text.encode()))]},
    "an alternative": lambda text: {"content": [token("fine", top_logprobs=[token(text)])]},
    "a field of an alternative": lambda text: {"content": [token("fine", top_logprobs=[token("well", note=text)])]},
    "bytes of an alternative": lambda text: {
        "content": [token("fine", top_logprobs=[token("well", bytes=list(text.encode()))])]
    },
    "completions": lambda text: {"tokens": cut(text, 3), "token_logprobs": [], "text_offset": []},
    "completions' alternatives": lambda text: {"tokens": ["fine"], "top_logprobs": [{text: -0.1}]},
    "completions' other fields": lambda text: {"tokens": ["fine"], "note": text},
}


def of_choice(protocol: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "finish_reason": None, **choice}]}


@pytest.mark.parametrize("protocol", ["chat", "completions"])
@pytest.mark.parametrize("name", LOGPROBS)
def test_logprobs_of_choices_tell_nothing_unjudged(protocol: str, name: str) -> None:
    for text, is_bad in ((BAD, True), (SAFE, False)):
        said: dict[str, Any] = {"delta": {"content": "fine"}} if protocol == "chat" else {"text": "fine"}
        events = between(protocol, [event(of_choice(protocol, {**said, "logprobs": LOGPROBS[name](text)}))])
        reply = stream(protocol, Script(events))
        if is_bad:
            check_clean(reply)
        else:
            assert reply.body == b"".join(events)
        whole = scripted.whole(protocol, "fine")
        whole["choices"][0]["logprobs"] = LOGPROBS[name](text)
        reply = run(ask(make_app(make_guard(), Script.json(whole)), PATHS[protocol], ASKS[protocol]))
        if is_bad:
            check_clean(reply)
        else:
            assert reply.json == whole


@pytest.mark.parametrize("name", [name for name in LOGPROBS if "completions" not in name])
def test_logprobs_of_responses_tell_nothing_unjudged(name: str) -> None:
    for text, is_bad in ((BAD, True), (SAFE, False)):
        found = LOGPROBS[name](text)
        found = found["content"] if isinstance(found, dict) and "note" not in found else found
        for kind in ("response.output_text.delta", "response.output_text.done"):
            at = {"output_index": 0, "content_index": 0, "item_id": "item_1"}
            key = "delta" if kind.endswith("delta") else "text"
            events = scripted.events("responses", [])
            said = named({"type": "response.output_text.delta", **at, "delta": "fine"})
            last = named({"type": kind, **at, key: "fine", "logprobs": found})
            middle = [last] if key == "delta" else [said, last]
            reply = stream("responses", Script([*events[:4], *middle, events[-1]]))
            if is_bad:
                check_clean(reply)
            else:
                assert reply.body == b"".join([*events[:4], *middle, events[-1]])


def test_logprobs_as_servers_give_them_pass() -> None:
    """Alternatives are tokens, halves of characters among them."""
    half = {"token": "bytes:\\xc3", "logprob": -2.0, "bytes": [0xC3]}
    found = {"content": [token(" soil", top_logprobs=[token(" soil"), token(" Erde"), half])], "refusal": None}
    events = between("chat", [chunk({"content": " soil"}, logprobs=found)])
    assert stream("chat", Script(events)).body == b"".join(events)
    old = {"tokens": [" soil"], "token_logprobs": [-0.1], "top_logprobs": [{" soil": -0.1, " earth": -2.0}]}
    events = between("completions", [event({**HEAD, "choices": [{"index": 0, "text": " soil", "logprobs": old}]})])
    assert stream("completions", Script(events)).body == b"".join(events)


# ------------------------------------------------------------------------------------------- what is said to be opaque

JOINED = BAD.replace(" ", "_")
OPAQUE: dict[str, tuple[str, Callable[[str], list[bytes]]]] = {
    "redacted thinking": ("messages", lambda text: [block("redacted_thinking", data=text)]),
    "a signature": ("messages", lambda text: [block("thinking", thinking="", signature=text)]),
    "a signature that grows": (
        "messages",
        lambda text: [
            named({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": piece}})
            for piece in cut(text, 40)
        ],
    ),
    "encrypted content": (
        "responses",
        lambda text: [item(0, type="reasoning", id="rs_1", summary=[], encrypted_content=text)],
    ),
    "beside encrypted content": (
        "responses",
        lambda text: [item(0, type="reasoning", id="rs_1", encrypted_content="gAAAAABm", note=text)],
    ),
    "a thought's signature": ("chat", lambda text: [chunk({"thought_signature": text})]),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_is_said_to_be_opaque_is_judged_where_it_reads_as_text(name: str) -> None:
    protocol, make = OPAQUE[name]
    guard = FakeGuard({**SCRIPT, FLAGGED.replace(" ", "_"): "unsafe"})
    for text in (BAD, JOINED):
        check_clean(stream(protocol, Script(between(protocol, make(text))), guard))
    good = between(protocol, make("EqQBCgIYAhIMdGhpcyBpcw+/=="))
    assert stream(protocol, Script(good), guard).body == b"".join(good)


def blocked(reply: Reply) -> None:
    check_clean(reply)
    assert (reply.status, reply.headers["x-guardkit-action"]) == (200, "block")


@pytest.mark.parametrize("text", [BAD, JOINED])
def test_the_same_of_whole_answers(text: str) -> None:
    guard = FakeGuard({**SCRIPT, FLAGGED.replace(" ", "_"): "unsafe"})
    answer = scripted.whole("messages", SAFE)
    for more in (
        {"type": "redacted_thinking", "data": text},
        {"type": "thinking", "thinking": "so", "signature": text},
        {"type": "redacted_thinking", "data": "EqQB", "note": text},
    ):
        script = Script.json({**answer, "content": [*answer["content"], more]})
        blocked(run(ask(make_app(guard, script), PATHS["messages"], ASKS["messages"])))
    answer = scripted.whole("responses", SAFE)
    for more in (
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": text},
        {"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAAAABm", "note": text},
        {"type": "reasoning", "id": text, "encrypted_content": "gAAAAABm"},
        {"type": "item_reference", "id": text},
    ):
        script = Script.json({**answer, "output": [more, *answer["output"]]})
        blocked(run(ask(make_app(guard, script), PATHS["responses"], ASKS["responses"])))


# --------------------------------------------------------------------------------------------- transcripts and headers


def test_a_transcript_is_judged_where_audio_may_pass() -> None:
    guard = make_guard(on_error="allow")
    for text, is_bad in ((BAD, True), (SAFE, False)):
        audio = [{"id": "audio_1"}, {"data": "aGVsbG8="}, *({"transcript": piece} for piece in cut(text, 4))]
        events = between("chat", [chunk({"audio": part}) for part in audio])
        reply = stream("chat", Script(events), guard)
        whole = scripted.whole("chat", SAFE)
        told = {"id": "audio_1", "data": "aGVsbG8=", "transcript": text, "expires_at": 1}
        whole["choices"][0]["message"] = {"role": "assistant", "content": None, "audio": told}
        at_once = run(ask(make_app(guard, Script.json(whole)), PATHS["chat"], ASKS["chat"]))
        if is_bad:
            check_clean(reply)
            check_clean(at_once)
        else:
            assert reply.body == b"".join(events)
            assert at_once.json == whole


@pytest.mark.parametrize("streams", [True, False])
def test_headers_carry_no_text(streams: bool) -> None:
    said = BAD.encode("latin-1")
    passing = {
        "x-request-id": "req_011CUEZ", "retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "openai-processing-ms": "12",
        "x-ratelimit-reset-tokens": "6m0.5s", "anthropic-ratelimit-tokens-reset": "2026-11-26T11:00:00Z",
    }  # fmt: skip
    for name in ("x-request-id", "request-id", "retry-after", "openai-version", "x-ratelimit-note", "x-should-retry"):
        for headers in (
            {name: said},
            {name: said.replace(b" ", b"-")},
            {f"x-ratelimit-{SAFE.replace(' ', '-')}": b"1"},
        ):
            script = Script(scripted.chat_events([SAFE]), headers=headers)
            if not streams:
                script = Script.json(scripted.whole("chat", SAFE), headers=headers)
            asked = {**ASKS["chat"], "stream": streams}
            reply = run(
                ask(
                    make_app(make_guard(), script),
                    PATHS["chat"],
                    asked,
                )
            )
            assert not any("¶" in value or "fine" in name for name, value in reply.headers.items())
            assert reply.status == 200
    script = Script(scripted.chat_events([SAFE]), headers=passing)
    reply = run(ask(make_app(make_guard(), script), PATHS["chat"], {**ASKS["chat"], "stream": True}))
    assert passing.items() <= reply.headers.items()


# ------------------------------------------------------------------------------------------------------- the framing


def test_marks_and_frames_that_clients_skip() -> None:
    answer = b"".join(scripted.chat_events(cut(SAFE, 5)))
    for raw in (b"\xef\xbb\xbf" + answer, b"\n\n\n" + answer, b"event: ping\n\n" + answer, b"data:\n\n" + answer,
                answer.replace(b"data: ", b"data:"), b"retry: 100\n\n:\n\n" + answer):  # fmt: skip
        for size in (1, 7, len(raw)):
            reply = stream("chat", Script([raw[i : i + size] for i in range(0, len(raw), size)]))
            assert reply.body == raw
    bad = b"".join(scripted.chat_events(cut(BAD, 5)))
    for raw in (b"\xef\xbb\xbf" + bad, bad.replace(b"data: ", b"data:"), bad.replace(b"data: {", b"data: {\ndata: ")):
        for size in (1, 7, len(raw)):
            reply = stream("chat", Script([raw[i : i + size] for i in range(0, len(raw), size)]))
            assert not {FLAGGED_MARK, AFTER_MARK} & set(reply.body.decode())
            assert b"content_filter" in reply.body


def test_what_follows_the_end_does_not_go_out() -> None:
    for protocol in scripted.PROTOCOLS:
        events = scripted.events(protocol, [SAFE])
        after = [*scripted.events(protocol, [BAD]), b": " + BAD.encode() + b"\n\n"]
        for script in (Script([*events, *after]), Script([b"".join([*events, *after])])):
            reply = stream(protocol, script)
            check_clean(reply)
            assert reply.body == b"".join(events)
