# ruff: noqa: E501
"""Messages and blocks of every API: each text at its stage, media listed, identifiers passed over."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Message, MessageError, Stage
from tests.reading.shapes import SHAPES, T, assistant, user


@pytest.mark.parametrize(("source", "stage"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_a_text_in_every_shape_is_judged_at_its_stage(source: dict[str, Any], stage: Stage) -> None:
    message = Message.of(source)
    assert message.unjudgeable == ()
    assert stage in [part.stage for part in message.parts() if T in (part.text or "")]


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}, "image_url"),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}, "image"),
        ({"type": "document", "source": {"type": "base64", "media_type": "a/pdf", "data": "JVBE"}}, "document"),
        ({"type": "input_file", "file_id": "file_1"}, "input_file"),
        ({"image": {"format": "png", "source": {"bytes": b"\x89PNG\x00"}}}, "image"),
        ({"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}, "inlineData"),
        ({"type": "image_generation_call", "result": "iVBORw0KGgo="}, "image_generation_call"),
    ],
)  # fmt: skip
def test_media_cannot_be_judged_and_the_texts_beside_them_are(block: dict[str, Any], kind: str) -> None:
    message = Message.of(user(block, {"type": "text", "text": T}))
    assert message.unjudgeable == (kind,)
    assert message.content == T
    assert T in [part.text for part in Message.of(user(block | {"title": T})).parts()]


@pytest.mark.parametrize(
    "more",
    [
        {"id": "msg_1", "status": "completed", "usage": {"input_tokens": 3}, "model": "Qwen/Qwen3Guard-Stream-0.6B"},
        {"cache_control": {"type": "ephemeral"}, "created_at": "2026-01-01T10:00:00Z", "weight": 0},
        {"tool_call_id": "call_1", "name": "weather", "is_error": False},
        {"response_metadata": {"model_name": "gpt-4o-2024-08-06", "finish_reason": "stop", "token_usage": {"n": 1}}},
        {"logprobs": {"content": [{"token": " Hi", "logprob": -0.1, "bytes": [32, 72]}]}},
    ],
)
def test_positions_without_text_are_passed_over(more: dict[str, Any]) -> None:
    assert [part.text for part in Message.of({"role": "assistant", "content": "Hi"} | more).parts()] == ["Hi"]


def test_arguments_with_a_key_twice_are_judged_as_they_stand() -> None:
    call = {"function": {"name": "run", "arguments": '{"c": "BAD", "c": "fine"}'}}
    assert "BAD" in Message.of(assistant(tool_calls=[call])).tool_calls[0]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"content": "x"}, "'role' is missing"),
        ({"role": "nobody", "content": "x"}, "unknown role"),
        ({"role": "user"}, "no 'content'"),
        ({"role": "user", "content": 3}, "'content' must be"),
        ("text", "expected a mapping"),
    ],
)
def test_what_is_no_message(source: Any, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        Message.of(source, 7)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "block",
    [
        {"type": "input_file", "filename": "a.json", "file_data": f"data:application/ld+json;base64,{b64(T.encode())}"},
        {"type": "file", "file": {"file_data": f"DATA:TEXT/PLAIN;charset=utf-16;base64,{b64(T.encode('utf-16'))}"}},
        {"type": "input_file", "file_data": "data:text/plain," + T.replace(" ", "%20")},
        {"type": "input_file", "file_data": "data:," + T.replace(" ", "%20")},
        {"inlineData": {"mimeType": "application/javascript", "data": b64(T.encode())}},
        {"inlineData": {"mimeType": "text/x-python; charset=latin-1", "data": b64("é ".encode("latin-1") + T.encode())}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/atom+xml", "data": base64.encodebytes(T.encode() * 9).decode()}},
        {"type": "file", "mediaType": "message/rfc822", "data": base64.urlsafe_b64encode(f"{T}?>?>".encode()).decode().rstrip("=")},
        {"type": "file", "mediaType": "application/x-yaml", "data": T},
        {"type": "text-plain", "mime_type": "text/plain", "base64": b64(T.encode())},
        {"type": "resource", "resource": {"uri": "file:///a", "mimeType": "text/plain", "blob": b64(T.encode())}},
        {"block_type": "document", "data": b64(T.encode()), "document_mimetype": "text/plain", "title": "a"},
        {"document": {"format": "md", "name": "a", "source": {"bytes": b64(T.encode())}}},
        {"document": {"format": "txt", "name": "a", "source": {"bytes": T.encode()}}},
    ],
)  # fmt: skip
def test_files_that_are_texts_are_read(block: dict[str, Any]) -> None:
    message = Message.of(user(block))
    assert message.unjudgeable == ()
    assert Stage.document in [part.stage for part in message.parts() if T in (part.text or "")]


def test_a_picture_of_text_is_read_and_still_a_picture() -> None:
    drawing = b64(f"<svg><text>{T}</text></svg>".encode())
    message = Message.of(user({"type": "image_url", "image_url": {"url": f"data:image/svg+xml;base64,{drawing}"}}))
    assert message.unjudgeable == ("image_url",)
    assert any(T in (part.text or "") for part in message.parts())


KEYS = st.sampled_from((
    "type", "id", "role", "name", "text", "content", "source", "data", "input", "output", "metadata", "title", "url",
    "value", "tool_calls", "thinking", "summary", "citations", "parts", "image_url", "toolResult", "json", "x",
))  # fmt: skip
KINDS = st.sampled_from(("text", "image", "tool_result", "tool_use", "document", "thinking", "reasoning", "made_up"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | KINDS | st.just(T),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.just(T), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.sampled_from(("block", "content", "extra", "result", "call", "message")))
@settings(max_examples=200, deadline=None)
def test_a_marked_text_anywhere_in_a_message_is_judged_or_said_not_to_be(value: Any, place: str) -> None:
    source: dict[str, Any] = {
        "block": user(value),
        "content": {"role": "tool", "content": value},
        "extra": {"role": "assistant", "content": "x", "made_up": value},
        "result": user({"type": "tool_result", "content": value}),
        "call": assistant(content=[{"type": "tool_use", "name": "f", "input": value}]),
        "message": {"role": "user", "content": "x"} | (value if isinstance(value, dict) else {"more": value}),
    }[place]
    try:
        message = Message.of(source)
    except MessageError:
        return  # not judged, and said so
    if T in repr(source):
        assert message.unjudgeable or any(T in (part.text or "") for part in message.parts())
