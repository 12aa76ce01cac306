# ruff: noqa: E501
"""Chats that lie in values of no known shape, and pieces of streams: each text at its own stage, none cut up."""

from __future__ import annotations

import json
import re
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Message
from guardkit.reading.pieces import is_piece, joined
from guardkit.reading.records import read_record

ASK, REPLY = {"role": "user", "content": "asked"}, {"role": "assistant", "content": "told"}
LC = {
    "lc": 1,
    "type": "constructor",
    "id": ["langchain", "schema", "messages", "AIMessage"],
    "kwargs": {"content": "told", "type": "ai"},
}
BOTH = {("asked", "prompt"), ("told", "response")}


def said(item: Any) -> list[str | None]:
    return [item] if isinstance(item, str) else [part.text for part in item[-1].parts()]


def judged(data: Any) -> set[tuple[str | None, str]]:
    found: set[tuple[str | None, str]] = set()
    for entry in read_record(data).judged:
        if isinstance(entry.item, str):
            found.add((entry.item, "prompt"))
        else:
            found |= {(part.text, part.stage.value) for part in entry.item[-1].parts()}
    return found


@pytest.mark.parametrize(
    "data",
    [
        {"request_body": {"messages": [ASK]}, "response_body": {"choices": [{"message": REPLY}]}},
        {"custom": 1, "result": {"type": "succeeded", "message": {"type": "message", **REPLY}}, "params": {"messages": [ASK]}},
        {"recordId": "r", "modelInput": {"messages": [ASK]}, "modelOutput": {"role": "assistant", "content": [{"type": "text", "text": "told"}]}},
        {"input": {"inputBodyJson": {"messages": [ASK]}}, "output": {"outputBodyJson": {"output": {"message": REPLY}}}},
        {"inputs": {"messages": [[ASK]]}, "outputs": {"generations": [[{"message": LC}]]}},
        {"name": "span", "attributes": [{"key": "in", "value": {"stringValue": json.dumps([ASK])}}, {"key": "out", "value": {"stringValue": json.dumps([REPLY])}}]},
        {"logEvents": [{"message": json.dumps({"prompt": "asked", "completion": "told"})}]},
        {"conversation_a": [ASK, REPLY], "conversation_b": [ASK, REPLY]},
        {"log": {"entries": [{"postData": {"text": json.dumps({"messages": [ASK]})}, "content": {"text": json.dumps({"choices": [{"message": REPLY}]}, indent=2) + "\n"}}]}},
        {"twice": json.dumps({"again": json.dumps({"messages": [ASK, REPLY]})})},
        {"data": {"question": "asked", "generated_text": "told"}},
    ],
    ids=["bodies", "Anthropic batch", "Bedrock batch", "Bedrock log", "LangSmith", "OpenTelemetry", "CloudWatch", "arena", "HAR", "JSON in JSON", "answer"],
)  # fmt: skip
def test_a_chat_is_found_wherever_it_lies(data: Any) -> None:
    assert judged(data) >= BOTH
    assert not read_record(data).ignored


def test_what_a_model_said_in_a_wrapped_chat_is_traced() -> None:
    data = {"span": {"in": json.dumps([ASK, REPLY, ASK])}, "end": {"choices": [{"message": REPLY}]}, "note": "aside"}
    found = read_record(data, outputs=True)
    assert [[message.content for message in entry.item] for entry in found.judged] == [["asked", "told"], ["told"]]  # type: ignore[union-attr]
    assert [(entry.path, entry.number) for entry in found.judged] == [("span.in", 0), ("end", 1)]
    assert found.ignored == ("span", "end", "note")
    with pytest.raises(ValueError, match="no 'messages'"):
        read_record({"span": {"messages": [ASK]}}, outputs=True)


def test_what_stands_beside_a_chat_is_judged_with_it() -> None:
    data = {"event": {"messages": [ASK], "tenant note": "aside", "extra": {"deep": ["more"]}}, "other": "last"}
    texts = judged(data)
    assert ("asked", "prompt") in texts
    rest = next(text for text, _ in texts if text and "aside" in text)
    assert all(words in rest for words in ("more", "last", "tenant note"))
    assert "asked" not in rest


def test_messages_of_people_are_not_taken_for_a_model_s() -> None:
    for data in (
        {"type": "message", "user": "U1", "text": "asked", "ts": "1.2"},
        {"update_id": 1, "message": {"message_id": 5, "from": {"id": 7, "first_name": "Jo"}, "text": "asked"}},
        {"messages": [{"type": "message", "user": "U1", "text": "asked"}]},
    ):
        assert {stage for _, stage in judged(data)} == {"prompt"}
        assert any("asked" in (text or "") for text, _ in judged(data))
    assert judged({"role": "Assistant", "content": "told"}) == {("told", "response")}


@pytest.mark.parametrize(
    "data",
    [
        {"output": {"message": REPLY, "note": "BAD WORDS"}},
        {"input": {"messages": [ASK], "note": "BAD WORDS"}, "preferred_output": [REPLY], "non_preferred_output": [REPLY]},
        {"output": [{"type": "message", **REPLY}], "text": {"note": "BAD WORDS"}},
        {"page_content": "a page", "text": "BAD WORDS"},
        {"class_name": "BAD WORDS", "text": "a node"},
        {**LC, "note": "BAD WORDS"},
        {**LC, "type": "BAD WORDS"},
        {"type": "human", "data": {"content": "asked", "type": ["BAD WORDS"]}},
    ],
)  # fmt: skip
def test_what_stands_beside_what_is_read_is_never_lost(data: Any) -> None:
    found = read_record(data)
    texts = "\n".join(text or "" for entry in found.judged for text in said(entry.item))
    assert "BAD WORDS" in texts or found.ignored[-1].split(".")[0] in data


def test_an_answer_that_was_ended_before_a_word_is_no_error() -> None:
    assert judged({"candidates": [{"finishReason": "SAFETY", "index": 0, "safetyRatings": []}]}) == {("", "response")}


def test_blocks_of_threads_agents_and_telemetry() -> None:
    quote = {"type": "file_citation", "text": "[1]", "file_citation": {"file_id": "f", "quote": "a quote"}}
    told = {"role": "assistant", "content": [{"type": "text", "text": {"value": "told", "annotations": [quote]}}]}
    assert ("told", "response") in judged(told)
    assert any(stage == "document" and "a quote" in (text or "") for text, stage in judged(told))
    agent = {"role": "agent", "messageId": "m1", "kind": "message", "parts": [{"kind": "text", "text": "told"}]}
    assert judged(agent) == {("told", "response")}
    result = {"role": "user", "parts": [{"type": "tool_call_response", "id": "c", "response": "found"}]}
    assert judged(result) == {("found", "tool_output")}


def test_a_proxy_s_log_gives_the_answer_its_context() -> None:
    found = read_record({"messages": [ASK], "response": {"choices": [{"message": REPLY}]}, "user note": "aside"})
    (entry,) = found.judged
    assert [message.content for message in entry.item] == ["asked", "told"]  # type: ignore[union-attr]
    assert found.ignored == ("messages[0]", "user note")


def _openai(**delta: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }


def _event(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, **more}


STREAMS: dict[str, list[Any]] = {
    "OpenAI": [_openai(role="assistant", content=""), _openai(content="on"), _openai(content="e word"), {**_openai(), "usage": {"n": 1}}],
    "OpenAI completions": [{"choices": [{"index": 0, "text": t, "finish_reason": None}]} for t in ("one ", "wo", "rd")],
    "Responses": [_event("response.output_text.delta", item_id="m", output_index=0, content_index=0, delta=t, sequence_number=i, obfuscation="aB3") for i, t in enumerate(("on", "e wo", "rd"))],
    "Anthropic": [_event("message_start", message={"id": "m", "type": "message", "role": "assistant", "content": []}), *(_event("content_block_delta", index=0, delta={"type": "text_delta", "text": t}) for t in ("on", "e wo", "rd"))],
    "Bedrock": [{"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": t}}} for t in ("on", "e word")],
    "Ollama": [{"model": "m", "message": {"role": "assistant", "content": t}, "done": False} for t in ("on", "e word")],
    "AI SDK": [_event("text-start", id="0"), *(_event("text-delta", id="0", delta=t) for t in ("on", "e word"))],
    "Cohere": [_event("content-delta", index=0, delta={"message": {"content": {"text": t}}}) for t in ("on", "e word")],
    "TGI": [{"index": i, "token": {"id": 5, "text": t, "logprob": -0.1, "special": False}, "generated_text": None} for i, t in enumerate(("on", "e word"))],
    "Assistants": [{"id": "m", "object": "thread.message.delta", "delta": {"content": [{"index": 0, "type": "text", "text": {"value": t}}]}} for t in ("on", "e word")],
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_pieces_of_a_stream_are_put_together_or_refused(name: str) -> None:
    pieces = STREAMS[name]
    assert all(map(is_piece, pieces))
    assert joined(pieces).content.split("\n")[0] == "one word"
    assert ("one word", "response") in {(t and t.split("\n")[0], s) for t, s in judged({"chunks": pieces})}
    for piece in pieces:
        with pytest.raises(ValueError, match="piece of a stream"):
            read_record(piece)


def test_thoughts_calls_and_candidates_of_a_stream_stay_apart() -> None:
    def call(index: int, text: str) -> dict[str, Any]:
        return _openai(tool_calls=[{"index": index, "function": {"arguments": text}}])

    pieces = [
        _openai(reasoning_content="thi"),
        _openai(reasoning_content="nking"),
        call(0, '{"a": "\\u0068'),
        call(1, "{}"),
        call(0, 'i"}'),
    ]
    second = {"object": "chat.completion.chunk", "choices": [{"index": 1, "delta": {"content": "other"}}]}
    assert joined([*pieces, _openai(content="to"), second, _openai(content="ld")]) == Message(
        "assistant", "told\nother", "thinking", ('{"a": "hi"}', "{}")
    )


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet='ab c\n"\\é', min_size=1, max_size=30), st.data())
def test_however_a_stream_is_cut_its_text_is_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    bits = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert joined([_openai(content=bit) for bit in bits]).content == text


KEYS = st.sampled_from(
    [
        "messages",
        "message",
        "role",
        "content",
        "choices",
        "output",
        "input",
        "a",
        "type",
        "text",
        "parts",
        "delta",
        "body",
    ]
)
VALUES = st.recursive(
    st.sampled_from(["BAD WORDS", "user", "assistant", "message", 1, None, True, '{"role": "user", "content": "BAD WORDS"}', '["BAD WORDS"]']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["event", "span", "log"]) | KEYS, VALUES, min_size=1, max_size=3))
def test_a_marked_text_in_any_wrapping_is_judged_or_the_record_is_not(data: Any) -> None:
    marks = count()
    data = json.loads(re.sub("BAD WORDS", lambda _: f"BAD WORDS{next(marks)}!", json.dumps(data)))
    try:
        found = read_record(data)
    except ValueError:
        return
    texts = "\n".join(text or "" for entry in found.judged for text in said(entry.item))
    for number in range(next(marks)):
        assert f"BAD WORDS{number}!" in texts or found.ignored
