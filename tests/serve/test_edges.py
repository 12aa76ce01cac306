"""The corners of each protocol: several choices, texts side by side, what repeats a text, what stands beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from guardkit import Policy
from guardkit.testing import FakeGuard
from tests.leaks import AFTER_MARK, BAD, FLAGGED_MARK, SAFE, cut, make_guard
from tests.serve import scripted
from tests.serve.scripted import ASKS, PATHS, PROTOCOLS, Script, ask, event, make_app, run, texts
from tests.serve.test_streams import CUTTINGS, check_clean, check_ending, stream

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(delta: dict[str, Any], index: int = 0, reason: str | None = None, **choice: Any) -> bytes:
    return event({**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": reason, **choice}]})


# ------------------------------------------------------------------------------------------- several texts at a time


def test_every_choice_is_judged() -> None:
    events = []
    for one, two in zip(cut(SAFE, 4), cut(BAD, 4), strict=False):
        events += [chunk({"content": one}, 0), chunk({"content": two}, 1)]
    events += [chunk({"content": rest}, 1) for rest in cut(BAD, 4)[len(cut(SAFE, 4)) :]]
    events += [chunk({}, 0, "stop"), chunk({}, 1, "stop"), event("[DONE]")]
    script = Script(events)
    reply = stream("chat", script, ask_for={"n": 2})
    check_clean(reply)
    ends = {c["index"]: c["finish_reason"] for d in reply.datas for c in d["choices"] if c["finish_reason"]}
    assert ends == {0: "content_filter", 1: "content_filter"}
    assert reply.body.endswith(b"data: [DONE]\n\n")
    whole = scripted.whole("chat", SAFE)
    whole["choices"].append({**scripted.whole("chat", BAD)["choices"][0], "index": 1})
    reply = run(ask(make_app(make_guard(), Script.json(whole)), PATHS["chat"], {**ASKS["chat"], "n": 2}))
    assert [c["finish_reason"] for c in reply.json["choices"]] == ["stop", "content_filter"]
    assert reply.json["choices"][0] == whole["choices"][0]
    assert FLAGGED_MARK not in reply.body.decode()


def test_interleaved_choices_pass_byte_for_byte() -> None:
    events = [chunk({"role": "assistant", "content": ""}, i) for i in range(3)]
    for piece in cut(SAFE, 3):
        events += [chunk({"content": piece}, i) for i in range(3)]
    events += [chunk({}, i, "stop") for i in range(3)] + [event("[DONE]")]
    assert stream("chat", Script(events)).body == b"".join(events)


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_an_answer_does_not_wait_for_the_end_of_its_reasoning(key: str) -> None:
    """When the answer begins the reasoning before it is released, judged as it stands."""
    events = [chunk({key: piece}) for piece in cut(SAFE, 4)] + [chunk({"content": piece}) for piece in cut(SAFE, 4)]
    script = Script([*events, None])

    async def early() -> str:
        reply = await ask(
            make_app(make_guard(), script), PATHS["chat"], {**ASKS["chat"], "stream": True}, leave_after=20
        )
        return texts("chat", reply)

    assert run(early()).startswith(SAFE + "one")


@pytest.mark.parametrize("size", [1, 2, 7, 30])
@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_texts_that_take_turns_are_each_held_back(size: int, pieces: int) -> None:
    """Cut into alternating pieces of reasoning and answer, no flagged word is seen of either, and what is seen is the
    same however the bytes come."""
    good = list(_turns(cut(f"{SAFE} {SAFE}", size), "so it goes on and on. "[: size + 1]))
    assert stream("chat", Script([*good, _END, event("[DONE]")])).body == b"".join([*good, _END, event("[DONE]")])
    raw = b"".join(_turns(cut(BAD, size), "so "))
    step = max(1, len(raw) // pieces)
    reply = stream("chat", Script([raw[i : i + step] for i in range(0, len(raw), step)]))
    check_clean(reply)
    check_ending("chat", reply, "end")
    one = stream("chat", Script(list(_turns(cut(BAD, size), "so "))))
    assert texts("chat", reply) == texts("chat", one)


_END = chunk({}, 0, "stop")


def _turns(texts: list[str], other: str) -> Iterator[bytes]:
    for text in texts:
        yield from (chunk({"content": text}), chunk({"reasoning": other}))


def test_a_text_that_pauses_is_released_and_what_follows_it_too() -> None:
    """Reasoning without a word about its end: the answer is not held up by it."""
    answer = cut(f"{SAFE} {SAFE}", 6)
    events = [chunk({"reasoning": "first things first "}), *(chunk({"content": piece}) for piece in answer)]
    script = Script([*events, None])  # no end

    async def early() -> str:
        app = make_app(make_guard(), script)
        reply = await ask(app, PATHS["chat"], {**ASKS["chat"], "stream": True}, leave_after=10)
        return texts("chat", reply)

    assert run(early()).startswith("first things first one fine word")


def test_the_beginning_of_a_flagged_run_waits_for_its_second_token() -> None:
    """A text pauses on a flagged token: nothing of the run is seen before the text goes on, or ends."""
    guard = FakeGuard({"¶": "unsafe"}, debounce=2)
    rest = [chunk({"content": piece}) for piece in cut(f"{SAFE} {SAFE}", 6)]
    begun = [chunk({"reasoning": "so far so good ¶ "}), *rest]
    goes_on = [*begun, chunk({"reasoning": "¶ and so on "}), _END, event("[DONE]")]
    reply = stream("chat", Script(goes_on), guard)
    assert "¶" not in texts("chat", reply)
    check_ending("chat", reply, "end")
    ends = [*begun, _END, event("[DONE]")]  # one flagged token at its end is no run
    assert stream("chat", Script(ends), guard).body == b"".join(ends)


def test_tool_calls_side_by_side_are_each_judged() -> None:
    def call(index: int, text: str) -> bytes:
        return chunk({"tool_calls": [{"index": index, "function": {"arguments": text}}]})

    good = [call(i % 2, piece) for i, piece in enumerate(cut(SAFE, 5))]
    events = [*good, chunk({}, 0, "tool_calls"), event("[DONE]")]
    assert stream("chat", Script(events)).body == b"".join(events)
    bad = [call(0, "{}"), *(call(1, piece) for piece in cut(BAD, 5))]
    check_clean(stream("chat", Script([*bad, chunk({}, 0, "tool_calls"), event("[DONE]")])))


# ------------------------------------------------------------------------------------------- what stands beside a text

BESIDE: dict[str, dict[str, Any]] = {
    "unknown in the delta": {"choices": [{"index": 0, "delta": {"notes": BAD}, "finish_reason": None}]},
    "nested in the delta": {"choices": [{"index": 0, "delta": {"a": [{"b": BAD}]}, "finish_reason": None}]},
    "unknown in the choice": {"choices": [{"index": 0, "delta": {}, "extra": {"x": BAD}, "finish_reason": None}]},
    "unknown in the event": {"choices": [], "comment": BAD},
    "a message": {"choices": [{"index": 0, "message": {"content": BAD}, "finish_reason": None}]},
    "a text": {"choices": [{"index": 0, "text": BAD, "delta": {}}]},
    "a refusal": {"choices": [{"index": 0, "delta": {"refusal": BAD}}]},
    "a function call": {"choices": [{"index": 0, "delta": {"function_call": {"name": "f", "arguments": BAD}}}]},
    "a custom call": {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "custom": {"input": BAD}}]}}]},
    "reasoning details": {"choices": [{"index": 0, "delta": {"reasoning_details": [{"type": "x", "text": BAD}]}}]},
    "logprobs alone": {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": BAD}]}}]},
    "blocks": {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": BAD}]}}]},
    "an error": {"error": {"message": BAD}},
    "a key of the event": {"choices": [], BAD: 1},
    "a key of the choice": {"choices": [{"index": 0, "delta": {}, BAD: None}]},
    "a key of the delta": {"choices": [{"index": 0, "delta": {BAD: ""}}]},
    "a key further in": {"choices": [{"index": 0, "delta": {"x": {BAD: 1}}}]},
    "a role": {"choices": [{"index": 0, "delta": {"role": BAD}}]},
    "a finish reason": {"choices": [{"index": 0, "delta": {}, "finish_reason": BAD}]},
}


@pytest.mark.parametrize("name", BESIDE)
def test_texts_in_unusual_places_are_judged(name: str) -> None:
    reply = stream("chat", Script([event({**HEAD, **BESIDE[name]}), event("[DONE]")]))
    check_clean(reply)
    check_ending("chat", reply, "end")
    good = json.loads(json.dumps(BESIDE[name], ensure_ascii=False).replace(BAD, SAFE))
    events = [event({**HEAD, **good}), event("[DONE]")]
    if name != "an error":
        assert stream("chat", Script(events)).body == b"".join(events)


def test_keys_of_other_protocols_events_are_judged() -> None:
    for protocol in ("messages", "responses"):
        for kind in ("ping", "content_block_delta", "response.output_text.delta", "other"):
            beside = {"type": kind, "index": 0, "delta": {"type": "text_delta", BAD: 1}, BAD: 1}
            check_clean(stream(protocol, Script([event(beside, kind)])))


def test_comments_and_ids_are_judged_too() -> None:
    for bad in (
        f": {BAD}\n\n",
        f"id: {BAD}\ndata: {{}}\n\n",
        f"whatever {BAD}: x\n\n",
        f"event: {BAD}\ndata: {{}}\n\n",
    ):
        reply = stream("chat", Script([bad.encode(), event("[DONE]")]))
        check_clean(reply)
    keep_alive = [
        b": PROCESSING\n\n",
        b": ping - 2026\r\n\r\n",
        b"id: 7\nretry: 100\n\n",
        *scripted.chat_events([SAFE]),
    ]
    assert stream("chat", Script(keep_alive)).body == b"".join(keep_alive)


def test_audio_and_images_in_an_answer_follow_on_error() -> None:
    for delta in (
        {"audio": {"data": "aGVsbG8="}},
        {"images": [{"image_url": {"url": "data:image/png;base64,aGVsbG8="}}]},
    ):
        events = [chunk(delta), chunk({}, 0, "stop"), event("[DONE]")]
        check_ending("chat", stream("chat", Script(events)), "end")
        assert b"aGVsbG8" not in stream("chat", Script(events)).body
        assert stream("chat", Script(events), FakeGuard({}, on_error="allow")).body == b"".join(events)


def test_logprobs_tell_nothing_that_is_withheld() -> None:
    def with_logprobs(piece: str) -> bytes:
        token = {"token": piece, "logprob": -0.1, "bytes": None, "top_logprobs": []}
        return chunk({"content": piece}, 0, None, logprobs={"content": [token], "refusal": None})

    good = [*(with_logprobs(piece) for piece in cut(SAFE, 3)), chunk({}, 0, "stop"), event("[DONE]")]
    assert stream("chat", Script(good)).body == b"".join(good)
    for size in (3, 40, 1000):
        check_clean(stream("chat", Script([with_logprobs(piece) for piece in cut(BAD, size)])))


def test_azures_annotations_pass() -> None:
    filters = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
    first = {**HEAD, "choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": filters}]}
    offsets = {"check_offset": 44, "start_offset": 44, "end_offset": 198}
    note = {"index": 0, "finish_reason": None, "content_filter_results": filters, "content_filter_offsets": offsets}
    events = [
        event(first),
        *scripted.chat_events(cut(SAFE, 5))[:-1],
        event({**HEAD, "id": "", "choices": [note]}),
        event("[DONE]"),
    ]
    assert stream("chat", Script(events)).body == b"".join(events)


def test_moderation_results_of_openai_pass() -> None:
    found = {"type": "moderation_results", "model": "omni-moderation-latest", "results": [{"flagged": False}]}
    events = [event({**HEAD, "choices": [], "moderation": {"input": found, "output": found}}), event("[DONE]")]
    assert stream("chat", Script(events)).body == b"".join(events)


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_line_end(protocol: str, line_end: str) -> None:
    sent = b"".join(scripted.events(protocol, cut(SAFE, 4))).replace(b"\n", line_end.encode())
    assert stream(protocol, Script(cut_bytes(sent, 7))).body == sent
    bad = b"".join(scripted.events(protocol, cut(BAD, 4))).replace(b"\n", line_end.encode())
    check_clean(stream(protocol, Script(cut_bytes(bad, 7))))


def cut_bytes(raw: bytes, size: int) -> list[bytes]:
    return [raw[i : i + size] for i in range(0, len(raw), size)]


# ------------------------------------------------------------------------------------- events that repeat the text


def test_what_repeats_a_text_that_was_never_streamed_is_judged() -> None:
    """An upstream that sends good deltas and a bad `done`."""
    for stage in scripted.STAGES["responses"]:
        good = scripted.responses_events(cut(SAFE, 4), stage)
        bad = scripted.responses_events(cut(BAD, 4), stage)
        ends = [raw for raw in bad if b".done" in raw or b"response.completed" in raw]
        for end in ends:
            deltas = [raw for raw in good if b".done" not in raw and b"completed" not in raw]
            reply = stream("responses", Script([*deltas, end]))
            check_clean(reply)
            check_ending("responses", reply, "end")


def test_items_that_come_whole_are_judged() -> None:
    for stage in scripted.STAGES["responses"]:
        events = scripted.responses_events(cut(BAD, 4), stage)
        without = [raw for raw in events if b".delta" not in raw]
        check_clean(stream("responses", Script(without)))
        good = [raw for raw in scripted.responses_events(cut(SAFE, 4), stage) if b".delta" not in raw]
        assert stream("responses", Script(good)).body == b"".join(good)


def test_a_response_may_repeat_what_the_request_said() -> None:
    events = scripted.responses_events(cut(SAFE, 4))
    instructions, tool = (
        "Be brief and kind to people.",
        {"type": "function", "name": "f", "description": "Looks up soil."},
    )
    told = [e.replace(b'"instructions": null', f'"instructions": "{instructions}"'.encode()) for e in events]
    guard = make_guard()
    asked = {"instructions": instructions, "tools": [tool]}
    before = guard.model.calls
    assert stream("responses", Script(told), guard, ask_for=asked).body == b"".join(told)
    assert guard.model.calls - before > 0


def test_anthropics_tool_results_and_citations_are_judged() -> None:
    start, *_, stop, delta, last = scripted.messages_events([], "response")[0:1] + scripted.messages_events([])[-4:]

    def block(content: dict[str, Any]) -> list[bytes]:
        begin = {"type": "content_block_start", "index": 0, "content_block": content}
        return [start, event(begin, "content_block_start"), stop, delta, last]

    found = {"type": "web_search_result", "title": "t", "url": "https://example.org/a", "encrypted_content": "Eo8BC"}
    for text, is_bad in ((BAD, True), (SAFE, False)):
        result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{**found, "title": text}]}
        cited = {"type": "char_location", "cited_text": text, "document_index": 0, "document_title": None}
        citation = {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": cited}}
        text_block = {"type": "text", "text": "", "citations": []}
        for events in (
            block(result),
            [*block(text_block)[:2], event(citation, "content_block_delta"), *block(text_block)[2:]],
        ):
            reply = stream("messages", Script(events))
            if is_bad:
                check_clean(reply)
                assert reply.datas[-2]["delta"]["stop_reason"] == "refusal"
            else:
                assert reply.body == b"".join(events)
    hidden = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"}
    assert stream("messages", Script(block(hidden))).body == b"".join(block(hidden))


# --------------------------------------------------------------------------------------------------- the request

TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
PARAMETERS = {"type": "object", "properties": {"q": {"type": "string", "description": BAD}}}
USER = {"role": "user", "content": "hello"}


def tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **more}}


def says(role: str, *blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": role, "content": list(blocks) if blocks else None, **more}


SCHEMA = {"type": "json_schema", "json_schema": {"schema": PARAMETERS}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
CALLED = says("assistant", tool_calls=[TOOL_CALL])
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": BAD}
USED = says("assistant", {"type": "tool_use", "id": "t", "name": "f", "input": {}})
USE_RESULT = says("user", {"type": "tool_result", "tool_use_id": "t", "content": BAD})
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": BAD}
BAD_REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a system prompt": ("chat", {"messages": [{"role": "system", "content": BAD}, USER]}),
    "a block": ("chat", {"messages": [says("user", {"type": "text", "text": BAD})]}),
    "a tool result": ("chat", {"messages": [USER, CALLED, RESULT]}),
    "a tool's schema": ("chat", {"tools": [tool(parameters=PARAMETERS)]}),
    "a prediction": ("chat", {"prediction": {"type": "content", "content": BAD}}),
    "metadata": ("chat", {"metadata": {"note": BAD}}),
    "a schema of the answer": ("chat", {"response_format": SCHEMA}),
    "a prefilled answer": ("messages", {"messages": [USER, {"role": "assistant", "content": BAD}]}),
    "anthropic's system": ("messages", {"system": [{"type": "text", "text": BAD}]}),
    "anthropic's tool result": ("messages", {"messages": [USER, USED, USE_RESULT]}),
    "anthropic's tool": ("messages", {"tools": [{"name": "f", "description": BAD, "input_schema": {}}]}),
    "instructions": ("responses", {"instructions": BAD}),
    "an input item": ("responses", {"input": [says("user", {"type": "input_text", "text": BAD})]}),
    "a call's output": ("responses", {"input": [USER, OUTPUT]}),
    "prompt variables": ("responses", {"prompt": {"id": "pmpt_1", "variables": {"city": BAD}}}),
    "one of several prompts": ("completions", {"prompt": ["fine", BAD]}),
    "a suffix": ("completions", {"suffix": BAD}),
    "an image": ("chat", {"messages": [says("user", IMAGE)]}),
    "token ids": ("completions", {"prompt": [1, 2, 3]}),
}
UNREADABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "a prompt and token ids": ("completions", {"prompt": ["fine", [1, 2]]}),
    "embeddings": ("completions", {"prompt_embeds": "UEsDBAAACAgAAAAA"}),
    "token ids elsewhere": ("chat", {"prompt_token_ids": [[1, 2], [3]]}),
    "a context of ids": ("completions", {"context": [1, 2, 3]}),
    "a message of ids": ("chat", {"messages": [{"role": "user", "content": [1, 2, 3]}]}),
    "ids beside a message": ("chat", {"messages": [{**USER, "token_ids": [1, 2, 3]}]}),
    "an embedded image": ("chat", {"messages": [says("user", {"type": "image_embeds", "image_embeds": "UEsDBA"})]}),
    "embedded words": ("chat", {"messages": [says("user", {"type": "prompt_embeds", "data": "UEsDBA"})]}),
    "audio": ("chat", {"messages": [says("user", {"type": "input_audio", "input_audio": {"data": "UklGRg=="}})]}),
    "a file": ("responses", {"input": [says("user", {"type": "input_file", "file_id": "file-abc"})]}),
    "an uploaded file": ("messages", {"messages": [says("user", {"type": "container_upload", "file_id": "f_1"})]}),
}
EARLIER: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a file": ("chat", "messages", says("user", {"type": "file", "file": {"file_id": "file-abc"}})),
    "an answer's audio": ("chat", "messages", {"role": "assistant", "audio": {"id": "audio_abc"}}),
    "an image": ("chat", "messages", says("user", IMAGE)),
    "a file of Responses": ("responses", "input", says("user", {"type": "input_file", "file_id": "file-abc"})),
    "a screenshot": (
        "responses",
        "input",
        {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "file_id": "f-1"}},
    ),
    "a document of Anthropic's": (
        "messages",
        "messages",
        says("user", {"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_only_a_model_can_read_is_not_passed_on(name: str) -> None:
    protocol, body = UNREADABLE[name]
    script = Script.json(scripted.whole(protocol, SAFE))
    reply = run(ask(make_app(make_guard(), script, on_violation="error"), PATHS[protocol], {**ASKS[protocol], **body}))
    assert (reply.status, reply.json["error"]["code"]) == (400, "content_filter")
    assert script.requests == []
    open_guard = make_guard(policy=Policy("open", on_error="allow"))
    reply = run(ask(make_app(open_guard, script), PATHS[protocol], {**ASKS[protocol], **body}))
    assert reply.status == 200
    assert script.bodies == [{**ASKS[protocol], **body}]


def test_numbers_of_tokens_that_are_settings_pass() -> None:
    script = Script.json(scripted.whole("chat", SAFE))
    body = {**ASKS["chat"], "stop_token_ids": [1, 2], "logit_bias": {"50256": -100}, "seed": 7}
    assert run(ask(make_app(make_guard(), script), PATHS["chat"], body)).status == 200
    assert script.bodies == [body]


@pytest.mark.parametrize("name", EARLIER)
def test_what_cannot_be_judged_does_not_pass_as_part_of_an_earlier_turn(name: str) -> None:
    protocol, key, earlier = EARLIER[name]
    script = Script.json(scripted.whole(protocol, SAFE))
    body = {**ASKS[protocol], key: [USER, earlier, {"role": "assistant", "content": "fine"}, USER]}
    reply = run(ask(make_app(make_guard(), script, on_violation="error"), PATHS[protocol], body))
    assert (reply.status, reply.json["error"]["code"]) == (400, "content_filter")
    assert script.requests == []


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_all_that_a_request_holds_is_judged(name: str) -> None:
    protocol, body = BAD_REQUESTS[name]
    script = Script.json(scripted.whole(protocol, SAFE))
    reply = run(ask(make_app(make_guard(), script, on_violation="error"), PATHS[protocol], {**ASKS[protocol], **body}))
    assert reply.status == 400
    assert reply.json["error"]["code"] == "content_filter"
    assert script.requests == []
    good = json.loads(json.dumps(body, ensure_ascii=False).replace(BAD, SAFE))
    if name not in ("an image", "token ids"):
        reply = run(ask(make_app(make_guard(), script), PATHS[protocol], {**ASKS[protocol], **good}))
        assert reply.headers["x-guardkit-action"] == "allow"
        assert script.bodies == [{**ASKS[protocol], **good}]


def test_an_earlier_turn_that_was_blocked_does_not_block_the_chat_for_ever() -> None:
    """It goes on without it: the upstream sees a mark in its place."""
    history = [{"role": "user", "content": BAD}, {"role": "assistant", "content": "I cannot help with that."}, USER]
    script = Script.json(scripted.whole("chat", SAFE))
    reply = run(ask(make_app(make_guard(), script), PATHS["chat"], {**ASKS["chat"], "messages": history}))
    assert reply.headers["x-guardkit-action"] == "redact"
    assert script.bodies[0]["messages"] == [{"role": "user", "content": "[redacted]"}, *history[1:]]
    call = {**TOOL_CALL, "function": {"name": "look_up", "arguments": json.dumps({"q": BAD})}}
    history = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "x"},
        USER,
    ]
    run(ask(make_app(make_guard(), script), PATHS["chat"], {**ASKS["chat"], "messages": history}))
    assert script.bodies[1]["messages"][1]["tool_calls"] == [
        {**call, "function": {"name": "look_up", "arguments": "{}"}}
    ]


def test_a_policy_that_redacts() -> None:
    policy = Policy("tidy", rules=[{"severity": "controversial", "action": "redact"}])
    guard = FakeGuard({"hmm": "controversial"}, policy=policy)
    asked = {"messages": [{"role": "user", "content": "Water it. And hmm there. Then rest."}]}
    script = Script.json(scripted.whole("chat", "Dig first. Say hmm to it. Then water."))
    reply = run(ask(make_app(guard, script), PATHS["chat"], {**ASKS["chat"], **asked}))
    assert reply.headers["x-guardkit-action"] == "redact"
    sent = script.bodies[0]["messages"][0]["content"]
    assert "hmm" not in sent
    assert sent.startswith("Water it.")
    told = reply.json["choices"][0]["message"]["content"]
    assert "hmm" not in told
    assert told.startswith("Dig first.")
    assert reply.json["choices"][0]["finish_reason"] == "stop"


def test_a_conversation_is_judged_once() -> None:
    guard = make_guard()
    script = Script.json(scripted.whole("chat", SAFE))
    app = make_app(guard, script)
    history = [USER, {"role": "assistant", "content": SAFE}]
    body = {**ASKS["chat"], "messages": [*history, USER]}
    run(ask(app, PATHS["chat"], body))
    before = guard.model.calls
    run(ask(app, PATHS["chat"], body))
    assert guard.model.calls - before <= 2  # the answer alone
    tried = run(ask(app, PATHS["chat"], {**body, "messages": [*history, {"role": "user", "content": BAD}]}))
    assert tried.headers["x-guardkit-action"] == "block"


def test_the_client_chooses_neither_upstream_nor_header() -> None:
    script = Script.json(scripted.whole("chat", SAFE))
    headers = {
        "x-guardkit-upstream": "http://evil.test", "x-forwarded-host": "evil.test", "cookie": "a=b", "te": "trailers",
        "connection": "keep-alive, x-secret", "x-secret": "1", "openai-organization": "org-1", "x-upstream": "http://e",
    }  # fmt: skip
    app = make_app(make_guard(), script)
    run(ask(app, f"{PATHS['chat']}?api-version=1&url=http://evil.test", ASKS["chat"], headers))
    (request,) = script.requests
    assert str(request.url) == "http://upstream.test/v1/chat/completions?api-version=1&url=http://evil.test"
    assert request.headers["host"] == "upstream.test"
    assert request.headers["openai-organization"] == "org-1"
    for name in headers.keys() - {"openai-organization", "connection"}:
        assert name not in request.headers
    for path in (
        "/v1/files",
        "/v1/embeddings",
        "/v1/chat/completions/../files",
        "/http://evil.test/",
        "/../etc/passwd",
    ):
        assert run(ask(app, path, {})).status == 404


def test_per_request_policies_are_those_that_were_loaded() -> None:
    script = Script.json(scripted.whole("chat", "hmm"))
    app = make_app(make_guard(), script)
    assert run(ask(app, PATHS["chat"], ASKS["chat"], {"x-guardkit-policy": "loose"})).status == 400
    assert run(ask(app, PATHS["chat"], ASKS["chat"], {"x-guardkit-model": "other"})).status == 400
    assert run(ask(app, PATHS["chat"], ASKS["chat"], {"x-guardkit-policy": "balanced"})).status == 200


def test_keys_and_texts_are_in_no_log(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from guardkit_serve.running import _log_to_stderr

    class Broken(FakeGuard):
        async def adecide_batch(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError(f"sk-secret {BAD}")

    logger = logging.getLogger("guardkit.access")
    kept = logger.handlers, logger.propagate
    _log_to_stderr()
    try:
        for guard in (make_guard(), Broken({})):
            app = make_app(guard, Script.json(scripted.whole("chat", BAD)), access_log=True)
            asked = {**ASKS["chat"], "messages": [{"role": "user", "content": BAD}]}
            for body in (ASKS["chat"], asked, b'{"sk-secret'):
                reply = run(ask(app, PATHS["chat"], body, {"authorization": "Bearer sk-secret"}))
                assert "sk-secret" not in reply.body.decode()
            run(ask(app, f"/{BAD}?sk-secret", {}))
    finally:
        logger.handlers, logger.propagate = kept
    err = capsys.readouterr().err
    assert "sk-secret" not in err + caplog.text
    assert FLAGGED_MARK not in err + caplog.text
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert len(lines) == 8
    assert lines[0]["path"] == PATHS["chat"]
    assert {line["action"] for line in lines} == {"block", "none"}


# ------------------------------------------------------------------------------------- many random streams at once


@pytest.mark.parametrize("seed", range(30))
def test_random_answers_of_several_texts(seed: int) -> None:
    """Choices, kinds and pieces at random. Safe ones pass byte for byte; flagged ones leak nothing, in any cutting."""
    chance = random.Random(seed)
    for is_bad in (False, True):
        flows = []
        for index in range(chance.randint(1, 3)):
            for kind in chance.sample(["content", "reasoning", "call", "refusal"], chance.randint(1, 2)):
                bad = is_bad and (chance.random() < 0.5 or not flows)
                flows.append((index, kind, randomly(chance, BAD if bad else SAFE)))
        events = [chunk({"role": "assistant", "content": ""}, i) for i in range(3)]
        while any(pieces for _, _, pieces in flows):
            index, kind, pieces = chance.choice([flow for flow in flows if flow[2]])
            for piece in [pieces.pop(0) for _ in range(min(len(pieces), chance.randint(1, 30)))]:
                delta = (
                    {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
                    if kind == "call"
                    else {kind: piece}
                )
                events.append(chunk(delta, index))
        events += [*(chunk({}, i, "stop") for i in range(3)), event("[DONE]")]
        raw = b"".join(events)
        seen = set()
        for _ in range(2):
            reply = stream("chat", Script(randomly(chance, raw)), make_guard(holdback=chance.choice((1, 8))))
            if is_bad:
                assert AFTER_MARK not in reply.body.decode()
                check_ending("chat", reply, "end")
            else:
                assert reply.body == raw
                seen.add(reply.body)


def randomly(chance: random.Random, whole: Any) -> list[Any]:
    out, at = [], 0
    while at < len(whole):
        size = chance.choice((1, chance.randint(1, 30), chance.randint(1, 300)))
        out.append(whole[at : at + size])
        at += size
    return out


@pytest.mark.parametrize("seed", range(max(1, CUTTINGS // 2)))
def test_random_turns_leak_nothing(seed: int) -> None:
    """Texts that take turns at random, of several choices: no flagged token of any is seen, however long it waited for
    the next one, and what is seen is the same however the bytes come."""
    chance = random.Random(seed)
    bad = f"{SAFE} {FLAGGED_MARK} {FLAGGED_MARK * 2} {AFTER_MARK} {AFTER_MARK * 3}"
    left = {(i, key): list(cut(SAFE, chance.randint(2, 40))) for i in range(2) for key in ("content", "reasoning")}
    left[chance.choice(list(left))] = cut(bad, chance.choice((1, 3, 9, 200)))
    events = []
    while left:
        of = chance.choice(list(left))
        for _ in range(chance.choice((1, 1, 1, 5, 40))):
            if of in left:
                events.append(chunk({of[1]: left[of].pop(0)}, of[0]))
                if not left[of]:
                    del left[of]
    events += [chunk({}, i, "stop") for i in range(2)] + [event("[DONE]")]
    raw, size = b"".join(events), chance.choice((50, 400, 5000, 1 << 20))
    guard = FakeGuard({FLAGGED_MARK: "unsafe"}, debounce=2)
    replies = [
        stream("chat", Script(pieces), guard, ask_for={"n": 2})
        for pieces in (events, [raw[i : i + size] for i in range(0, len(raw), size)])
    ]
    for reply in replies:
        check_clean(reply)
        check_ending("chat", reply, "end")
    assert texts("chat", replies[0]) == texts("chat", replies[1])


@pytest.mark.parametrize("answered", PROTOCOLS)
@pytest.mark.parametrize("asked", PROTOCOLS)
def test_an_upstream_that_answers_otherwise_than_asked_leaks_nothing(asked: str, answered: str) -> None:
    """By another protocol, with a stream for a whole answer, or the other way round."""
    for stage in scripted.STAGES[answered]:
        for wants_stream in (True, False):
            whole = Script.json(scripted.whole(answered, BAD, stage))
            for script in (whole, *(Script(scripted.events(answered, cut(BAD, size), stage)) for size in (1,))):
                body = ASKS[asked] | ({"stream": True} if wants_stream else {})
                reply = run(ask(make_app(make_guard(), script), PATHS[asked], body))
                said = reply.body.decode()
                for mark in (AFTER_MARK, FLAGGED_MARK):
                    assert mark not in said
                    assert json.dumps(mark)[1:-1] not in said
