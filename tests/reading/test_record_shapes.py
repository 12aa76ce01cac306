# ruff: noqa: E501
"""Records of every shape: what is judged, after what, and what is said not to be."""

from __future__ import annotations

import json
from collections import UserDict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Guard, Stage
from guardkit.reading.jsontext import parse
from guardkit.reading.records import read_record
from guardkit.testing import FakeGuard

T = "some words"
U, A = {"role": "user", "content": "asked"}, {"role": "assistant", "content": T}


def judged(data: Any, **options: Any) -> list[tuple[str | None, str]]:
    """Texts and stages of all that is judged."""
    found = []
    for entry in read_record(data, **options).judged:
        if isinstance(entry.item, str):
            found.append((entry.item, "prompt"))
        else:
            found += [(part.text, part.stage.value) for part in entry.item[-1].parts()]
    return found


RESPONSE = [(T, "response")]
PROMPT = [(T, "prompt")]
BOTH = [(T, "response"), ("other", "response")]
RECORDS: list[tuple[str, Any, list[tuple[str, str]], tuple[str, ...]]] = [
    ("string", T, PROMPT, ()),
    ("text", {"text": T}, PROMPT, ()),
    ("prompt", {"prompt": T, "id": "row_1"}, PROMPT, ()),
    ("prompt and response", {"prompt": "asked", "response": T}, RESPONSE, ("prompt",)),
    ("prompt and completion", {"prompt": "asked", "completion": T}, RESPONSE, ("prompt",)),
    ("conversational completion", {"prompt": [U], "completion": [A]}, RESPONSE, ("prompt[0]",)),
    ("conversational prompt", {"prompt": [{"role": "user", "content": T}]}, PROMPT, ()),
    ("messages", {"messages": [U, A]}, RESPONSE, ("messages[0]",)),
    ("long chat", {"messages": [U, A, U, A, {"role": "user", "content": T}]}, PROMPT, ("messages[0..3]",)),
    ("list of messages", [U, A], RESPONSE, ("[0]",)),
    ("request", {"model": "m-1", "messages": [{"role": "user", "content": T}], "temperature": 1, "tools": [{"type": "function", "function": {"name": "f", "description": "does it"}}]}, PROMPT, ("tools",)),
    ("batch request", {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": T}]}}, PROMPT, ()),
    ("batch response", {"id": "b", "custom_id": "r-1", "response": {"status_code": 200, "body": {"choices": [{"index": 0, "message": A}]}}, "error": None}, RESPONSE, ()),
    ("choices", {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [{"message": A}, {"message": {"role": "assistant", "content": "other"}}], "usage": {"n": 1}}, BOTH, ()),
    ("completions", {"choices": [{"text": T, "finish_reason": "stop"}]}, RESPONSE, ()),
    ("Responses output", {"object": "response", "output": [{"type": "reasoning", "summary": []}, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": T}]}]}, [(None, "response"), (T, "response")], ()),
    ("Responses input", {"model": "m", "input": [U, {"type": "function_call_output", "call_id": "c", "output": T}]}, [(T, "tool_output")], ("input[0]",)),
    ("Responses input text", {"model": "m", "input": T}, PROMPT, ()),
    ("Anthropic request", {"system": "be kind", "messages": [{"role": "user", "content": [{"type": "text", "text": T}]}]}, PROMPT, ("system",)),
    ("Anthropic response", {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": T}], "stop_reason": "end_turn"}, RESPONSE, ()),
    ("Bedrock response", {"output": {"message": {"role": "assistant", "content": [{"text": T}]}}, "stopReason": "end_turn", "usage": {"n": 1}}, RESPONSE, ()),
    ("Bedrock request", {"modelId": "m", "system": [{"text": "be kind"}], "messages": [{"role": "user", "content": [{"text": T}]}]}, PROMPT, ("system", "modelId")),
    ("Gemini request", {"contents": [{"role": "user", "parts": [{"text": T}]}], "systemInstruction": {"parts": [{"text": "be kind"}]}}, PROMPT, ("systemInstruction",)),
    ("Gemini text", {"contents": T}, PROMPT, ()),
    ("Gemini response", {"candidates": [{"content": {"role": "model", "parts": [{"text": T}]}, "finishReason": "STOP"}]}, RESPONSE, ()),
    ("AI SDK", {"id": "m1", "role": "user", "parts": [{"type": "text", "text": T}]}, PROMPT, ()),
    ("Ollama", {"model": "m", "message": A, "done": True}, RESPONSE, ()),
    ("LangChain message", {"type": "human", "content": T, "additional_kwargs": {}}, PROMPT, ()),
    ("LangChain dump", {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "AIMessage"], "kwargs": {"content": T}}, RESPONSE, ()),
    ("LangChain prompt dump", {"lc": 1, "type": "constructor", "id": ["langchain", "prompts", "ChatPromptValue"], "kwargs": {"messages": [{"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "HumanMessage"], "kwargs": {"content": T}}]}}, PROMPT, ()),
    ("LangChain document", {"page_content": T, "metadata": {"role": "x"}}, [(f"{T}\nrole\nx", "document")], ()),
    ("LlamaIndex", {"role": "user", "blocks": [{"block_type": "text", "text": T}], "additional_kwargs": {}}, PROMPT, ()),
    ("LlamaIndex node", {"class_name": "TextNode", "text": T, "metadata": {}}, [(T, "document")], ()),
    ("ShareGPT", {"id": "x", "conversations": [{"from": "human", "value": "asked"}, {"from": "gpt", "value": T}]}, RESPONSE, ("conversations[0]",)),
    ("Alpaca", {"instruction": "do it", "input": "on this", "output": T}, RESPONSE, ("instruction", "input")),
    ("Alpaca without output", {"instruction": "do it", "input": T}, [(f"do it\n{T}", "prompt")], ()),
    ("preference", {"prompt": "asked", "chosen": T, "rejected": "other"}, BOTH, ("prompt",)),
    ("conversational preference", {"chosen": [U, A], "rejected": [U, {"role": "assistant", "content": "other"}]}, BOTH, ("chosen[0]", "rejected[0]")),
    ("OpenAI preference", {"input": {"messages": [U]}, "preferred_output": [A], "non_preferred_output": [{"role": "assistant", "content": "other"}]}, BOTH, ("input.messages[0]",)),
    ("arena", {"prompt": "asked", "model_a": "m-1", "response_a": T, "response_b": "other"}, BOTH, ("prompt", "model_a")),
    ("numbered answers", {"prompt": "asked", "response_0": T, "response_1": "other"}, BOTH, ("prompt",)),
    ("list of completions", {"prompt": "asked", "completions": [{"model": "m", "response": T}, {"response": "other"}]}, BOTH, ("prompt",)),
    ("list of texts", {"prompt": "asked", "responses": [T, "other"]}, BOTH, ("prompt",)),
    ("Cohere's generations", {"generations": [{"id": "x", "text": T}], "prompt": "asked"}, RESPONSE, ("prompt",)),
    ("pieces as a list", {"input": {"prompt": "asked"}, "output": [T]}, RESPONSE, ("input",)),
    ("objects in and out", {"input": {"query": "asked"}, "output": {"result": T}}, RESPONSE, ("input",)),
    ("a prompt that is an object", {"id": 1, "prompt": {"text": T}}, [(f"id\nprompt\ntext\n{T}", "prompt")], ()),
    ("a quiz", {"question": "which?", "choices": [T, "other"]}, [("which?", "prompt")], ("choices",)),
    ("turns of two keys", {"conversation": [{"human": "a", "assistant": T}]}, [(f"conversation\nhuman\na\nassistant\n{T}", "prompt")], ()),
    ("Telegram", {"messages": [{"type": "message", "from": "Ann", "text": "a"}, {"type": "message", "from": "Bo", "text": T}]}, [(f"messages\ntype\nmessage\nfrom\nAnn\ntext\na\nmessage\nBo\n{T}", "prompt")], ()),
    ("Discord", {"messages": [{"type": "Default", "content": T, "author": {"name": "x"}}]}, [(f"messages\ntype\nDefault\ncontent\n{T}\nauthor\nname\nx", "prompt")], ()),
    ("roles in capitals", {"messages": [{"role": "User", "content": "asked"}, {"role": "ASSISTANT", "content": T}]}, RESPONSE, ("messages[0]",)),
    ("roles of others", {"messages": [{"role": "prompter", "content": "asked"}, {"role": "bot", "content": T}]}, RESPONSE, ("messages[0]",)),
    ("journald", {"MESSAGE": list(T.encode()), "PRIORITY": "6"}, [(f"MESSAGE\n{T}\nPRIORITY\n6", "prompt")], ()),
    ("token ids", {"input": [[9906, 1917], [15339]], "model": "m-1"}, [(None, "prompt"), ("input\nmodel\nm-1", "prompt")], ()),
    ("reasoning beside", {"reasoning_content": "hm", "response": T}, [("hm", "reasoning"), (T, "response")], ()),
    ("labels beside", {"prompt": T, "category": "a name", "severity": 3}, PROMPT, ("category",)),
    ("unknown", {"ts": "2026-01-01", "event": {"note": T}}, [(f"ts\n2026-01-01\nevent\nnote\n{T}", "prompt")], ()),
    ("unknown list", ["one", {"two": T}], [(f"one\ntwo\n{T}", "prompt")], ()),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected", "ignored"), [r[1:] for r in RECORDS], ids=[r[0] for r in RECORDS])
def test_what_is_judged_in_a_record_of_every_shape(data: Any, expected: Any, ignored: tuple[str, ...]) -> None:
    assert judged(data) == expected
    assert read_record(data).ignored == ignored


@pytest.mark.parametrize("data", [r[1] for r in RECORDS if "response" in {s for _, s in r[2]}])
def test_every_output_of_a_model_can_be_traced(data: Any) -> None:
    found = read_record(data, outputs=True).judged
    assert all(not isinstance(entry.item, str) and entry.item[-1].stage is Stage.response for entry in found)
    assert any(part.text == T for entry in found for part in entry.item[-1].parts())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (3, "got a number"),
        ([], "a list without any"),
        ({}, "no text in it"),
        ({"n": 1}, "'n'"),
        ({"messages": []}, "'messages' must be"),
        ({"choices": [{"delta": {"content": "a"}}]}, "piece of a stream"),
        ({"object": "chat.completion.chunk", "choices": [{"delta": {}}]}, "piece of a stream"),
        ({"type": "response.output_text.delta", "delta": "a"}, "piece of a stream"),
        ({"type": "content_block_delta", "delta": {"text": "a"}}, "piece of a stream"),
        ({"custom_id": "r", "response": None, "error": {"message": "no"}}, "failed"),
        ({"Text": "x", "text": "y"}, "given twice"),
        ({"prompt": "x", " prompt": "y"}, "given twice"),
        ({"ｔｅｘｔ": "x", "text": "y"}, "given twice"),
        ({"messages": [{"role": "user", "content": "x"}], "Messages": [3]}, "given twice"),
        ({"prompt": "x", "response": 3}, "'response' must be a string, not a number"),
    ],
)
def test_what_cannot_be_read_says_why(data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_record(data)


def test_a_shape_and_a_field_can_be_named() -> None:
    row = {"text": "a", "log": {"msg": T, "more": "b"}}
    assert judged(row, field="log.msg") == PROMPT
    assert read_record(row, field="log.msg").ignored == ("text", "log.more")
    assert judged({"log": {"messages": [U, A]}}, field="log") == RESPONSE
    assert judged({"text": "a", "more": T}, shape="values") == [(f"text\na\nmore\n{T}", "prompt")]
    with pytest.raises(ValueError, match="not of the shape 'messages'"):
        read_record(row, shape="messages")
    with pytest.raises(ValueError, match="unknown shape"):
        read_record(row, shape="nonsense")


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"b": {"a": 1, "\\u0061": 2}}', "[" * 100_000, '{"a": ' * 5_000, "{"]
)
def test_json_that_is_not_read(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse(text)


def test_deep_json_is_an_error_or_judged() -> None:
    for depth in (50, 300, 900):
        try:
            found = read_record(json.loads('{"a": ' * depth + '"BAD"' + "}" * depth))
        except (ValueError, RecursionError):
            continue
        item = found.judged[0].item
        assert "BAD" in item if isinstance(item, str) else item[-1].unjudgeable


KEYS = st.sampled_from((
    "text", "prompt", "response", "messages", "choices", "message", "role", "content", "type", "id", "input", "output",
    "instruction", "chosen", "rejected", "conversations", "from", "value", "metadata", "contents", "parts", "body", "x",
    "page_content", "system", "kwargs", "lc", "custom_id", "class_name", "candidates", "tool_calls", "data", "request",
))  # fmt: skip
BEYOND = ("done", "stop", "object", "url", "status_code", "completion", "answer", "conversation", "preferred_output")
WORDS = st.sampled_from(("BAD", "user", "assistant", "tool", "text", "human", "image", "fine"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.just("BAD thing"), inner, max_size=5),
    max_leaves=14,
)


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_a_marked_text_anywhere_in_a_record_is_judged_or_said_not_to_be(data: Any) -> None:
    guard: Guard = FakeGuard({"BAD": "unsafe"})
    try:
        found = read_record(data)
    except ValueError:
        return  # an error on that record
    if "BAD" in repr(data) and not found.ignored:
        decisions = guard.decide_batch([entry.item for entry in found.judged])
        assert any(not d.judged or d.action.value == "block" for d in decisions)


PLAIN_KEYS = st.sampled_from(("text", "prompt", "instruction", "query", "content", "system", "metadata", "id", "data"))


@given(st.dictionaries(PLAIN_KEYS | KEYS | st.sampled_from(BEYOND), JSON, max_size=3))
@settings(max_examples=300, deadline=None)
def test_what_holds_no_key_of_a_shape_is_read_as_if_every_shape_had_been_asked(data: dict[str, Any]) -> None:
    def told(record: Any, **options: Any) -> Any:
        try:
            return read_record(record, **options)
        except ValueError as error:
            return str(error)

    found = told(data)
    assert told(UserDict(data)) == found  # a mapping that is no dict is asked of every shape
    if not isinstance(found, str):
        found = replace(found, ignored=())
    assert told(data, ignored=False) == found
