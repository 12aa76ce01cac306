"""Pieces of streams in JSON lines: put together answer by answer, also where a log wraps them; the rest stays."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit_cli.records import Reader, Source
from tests.reading.test_nested_and_pieces import STREAMS

Said = list[tuple[str, str]]


def chunk(stream: str, text: str, end: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": end}
    return {"id": stream, "object": "chat.completion.chunk", "choices": [choice]}


def dumped(text: str, **more: Any) -> dict[str, Any]:
    told = {"content": text, "id": "run-1", "type": "AIMessageChunk", **more}
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "AIMessageChunk"], "kwargs": told}


def read(rows: list[Any], outputs: bool = False) -> list[tuple[int, Said | str]]:
    """The line of each record, and its texts with their stages or the beginning of its error."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found: list[tuple[int, Said | str]] = []
    for part in Reader(jsonl=True, outputs=outputs).read(Source("x.jsonl", io.BytesIO(data))):
        for record in part:
            if isinstance(record.item, list):
                found.append((record.line, [(p.text or "", p.stage.value) for p in record.item[-1].parts()]))
            elif record.item is None:
                found.append((record.line, (record.error or "").split(" (")[0]))
            else:
                found.append((record.line, [(record.item, "text")]))
    return found


@pytest.mark.parametrize("name", STREAMS)
def test_an_answer_in_pieces_is_one_record(name: str) -> None:
    pieces = STREAMS[name]
    whole = [(1, [("one word", "response")])]
    assert read(pieces) == whole
    assert read([{"ts": i, "request_id": "r1", "level": "debug", "chunk": p} for i, p in enumerate(pieces)]) == whole
    assert [said for _, said in read([{"ts": i, "message": json.dumps(p)} for i, p in enumerate(pieces)])] == [
        said for _, said in whole
    ]
    assert read(pieces, outputs=True) == whole


GEMINI = [{"role": "model", "parts": [{"text": "one "}]}, {"role": "model", "parts": [{"text": "two"}]}]
ANTHROPIC = [
    {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": []}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "one "}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "two"}},
    {"type": "message_stop"},
]
RESPONSES = [
    {"type": "response.created", "response": {"id": "r", "status": "in_progress", "instructions": "Be", "output": []}},
    {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "delta": "one "},
    {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "delta": "two"},
    {"type": "response.completed", "response": {"id": "r", "output": [{"type": "message", "role": "assistant",
     "content": [{"type": "output_text", "text": "one two"}]}]}},
]  # fmt: skip
OTHERS: dict[str, tuple[list[Any], list[Any]]] = {
    "several at once": (
        [chunk("a", "one "), chunk("b", "uno "), chunk("a", "two", "stop"), chunk("b", "dos", "stop"),
         {"id": "a", "object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 9}}],
        [(1, [("one two", "response")]), (2, [("uno dos", "response")])],
    ),
    "candidates": (
        [chunk("a", "one "), chunk("a", "uno ", index=1), chunk("a", "two", "stop"), chunk("a", "dos", "stop", 1)],
        [(1, [("one two\nuno dos", "response")])],
    ),
    "an id for each piece": ([chunk("a", "one "), chunk("b", "two")], [(1, [("one two", "response")])]),
    "among records": (
        [{"text": "hi"}, chunk("a", "one "), {"text": "ho"}, chunk("a", "two", "stop"), {"text": "he"}],
        [(1, [("hi", "text")]), (3, [("ho", "text")]), (2, [("one two", "response")]), (5, [("he", "text")])],
    ),
    "with words around it": (
        [{"note": "what is this about", "chunk": chunk("a", "one ")}, {"chunk": chunk("a", "two", "stop")}],
        [(1, [("note\nwhat is this about", "text")]), (1, [("one two", "response")])],
    ),
    "cut off": ([chunk("a", "one ")], [(1, "a piece of a stream")]),
    "Gemini": (
        [{"responseId": "r", "candidates": [{"content": GEMINI[0]}]},
         {"responseId": "r", "candidates": [{"content": GEMINI[1], "finishReason": "STOP"}]}],
        [(1, [("one two", "response")])],
    ),
    "whole answers of Gemini": (
        [{"responseId": r, "candidates": [{"content": GEMINI[1], "finishReason": "STOP"}]} for r in "ab"],
        [(1, [("two", "response")]), (2, [("two", "response")])],
    ),
    "Anthropic, twice": (
        ANTHROPIC * 2, [(1, [("one two", "reasoning")]), (6, [("one two", "reasoning")])],
    ),
    "Bedrock's wrapping": (
        [{"chunk": {"bytes": base64.b64encode(json.dumps(p).encode()).decode()}} for p in ANTHROPIC],
        [(1, [("one two", "reasoning")])],
    ),
    "Responses": (RESPONSES, [(4, [("one two", "response")]), (2, [("one two", "response")])]),
    "Ollama, twice": (
        [{"message": {"role": "assistant", "content": t}, "done": not t} for t in ("one ", "two", "") * 2],
        [(1, [("one two", "response")]), (4, [("one two", "response")])],
    ),
    "LangChain": ([dumped("one "), dumped("two")], [(1, [("one two", "response")])]),
    "LangChain, whole": (
        [dumped("one two", id=r, response_metadata={"finish_reason": "stop"}) for r in "ab"],
        [(1, [("one two", "response")]), (2, [("one two", "response")])],
    ),
    "LangChain's events": (
        [{"event": "on_chat_model_stream", "run_id": "r", "data": {"chunk": dumped(t)}} for t in ("one ", "two")],
        [(1, [("one two", "response")])],
    ),
    "Gemini Live": (
        [*({"serverContent": {"modelTurn": {"parts": [{"text": t}]}}} for t in ("one ", "two")),
         {"serverContent": {"turnComplete": True}}],
        [(1, [("one two", "response")])],
    ),
    "agent client protocol": (
        [{"method": "session/update", "params": {"sessionId": "s", "update": {"sessionUpdate": f"agent_{kind}_chunk",
          "content": {"type": "text", "text": t}}}} for t in ("one ", "two") for kind in ("message", "thought")],
        [(1, [("one two", "response")]), (2, [("one two", "reasoning")])],
    ),
    "agent to agent": (
        [{"jsonrpc": "2.0", "result": {"kind": "artifact-update", "taskId": "t", "lastChunk": t == "two",
          "artifact": {"artifactId": "a", "parts": [{"kind": "text", "text": t}]}}} for t in ("one ", "two")],
        [(1, [("one two", "response")])],
    ),
    "no streams": (
        [{"task": "buy milk", "done": False}, {"task": "walk on", "done": False}, {"delta": "+3", "at": "9"},
         {"delta": "rose", "note": "what is this"}],
        [(1, [("task\nbuy milk\ndone", "text")]), (2, [("task\nwalk on\ndone", "text")]),
         (3, [("delta\n+3\nat\n9", "text")]), (4, [("delta\nrose\nnote\nwhat is this", "text")])],
    ),
    "of one's own": ([{"delta": "one "}, {"delta": "two"}], [(1, [("one two", "response")])]),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_streams_in_json_lines(name: str) -> None:
    rows, expected = OTHERS[name]
    assert read(rows) == expected


def test_a_stream_without_an_end_is_cut() -> None:
    text = "a word " * 20_000
    found = read([{"delta": text}] * 40)
    assert len(found) == 2
    assert "".join(str(said[0][0]) for _, said in found) == text * 40


def test_pieces_that_the_items_of_a_list_wrap() -> None:
    rows: list[Any] = [
        {"trace": [{"ts": i, "data": chunk("a", text)} for i, text in enumerate(("one ", "tw", "o"))]},
        {"trace": [{"note": "some words", "data": f"data: {json.dumps(chunk('a', text))}"} for text in ("tw", "o")]},
        {"logprobs": {"content": [{"token": text, "logprob": -0.1} for text in ("one", " tw", "o")]}},
    ]
    found = [said for _, said in read(rows)]
    assert [("one two", "response") in said for said in found] == [True, False, True]
    assert ("two", "response") in found[1]
    assert "some words" in found[1][0][0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.text("xyz ", min_size=1, max_size=4)), min_size=1, max_size=30))
def test_however_streams_take_turns_each_is_one_answer(pieces: list[tuple[str, str]]) -> None:
    rows = [chunk(stream, text) for stream, text in pieces]
    names = list(dict.fromkeys(stream for stream, _ in pieces))
    rows += [chunk(name, "", "stop") for name in names]
    whole = {name: "".join(text for stream, text in pieces if stream == name) for name in names}
    assert sorted(said[0][0] for _, said in read(rows)) == sorted(whole.values())  # type: ignore[misc]
