"""Events that have the shape of one before read as they do the long way; what does not fit is left to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit.reading.jsontext import parse
from guardkit_serve import sse
from guardkit_serve.errors import HttpError
from guardkit_serve.protocols.base import Protocol, Reading
from guardkit_serve.protocols.chat import Chat
from guardkit_serve.protocols.completions import Completions
from guardkit_serve.protocols.messages import Messages
from guardkit_serve.protocols.responses import Responses
from guardkit_serve.shapes import Shapes

ASKED = {"model": "m", "stream": True}
_TEXTS = st.one_of(
    st.sampled_from(["word ", "a", '"', "\\", "é", "\U0001f600", "\ud83d", "\n", "</", "content", "m", "1", "[DONE]"]),
    st.text(st.characters(exclude_categories=()), max_size=6),
)
_NUMBERS = st.one_of(st.integers(-3, 10**19), st.floats(allow_nan=False), st.booleans())
_NAMES = st.sampled_from(["k2", "Xy9", "an unknown text here", "word ", ""])


_Make = Callable[[str], dict[str, Any]]
"""An event with a text."""


@st.composite
def _chat(draw: Callable[[Any], Any]) -> _Make:
    keys = draw(st.sampled_from([("content",), ("reasoning",), ("reasoning", "reasoning_content"), ("refusal",), ()]))
    other = draw(st.sampled_from([None, None, "word ", "a"]))  # of the second key
    index, calls, logprobs = draw(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3)))

    def made(text: str) -> dict[str, Any]:
        delta: dict[str, Any] = dict.fromkeys(keys, text)
        if other is not None and len(keys) > 1:
            delta[keys[1]] = other
        if calls == 3:
            delta["tool_calls"] = [{"index": index, "function": {"arguments": text}}]
        choice = {"index": index, "delta": delta, "finish_reason": None}
        if logprobs == 3:
            choice["logprobs"] = {"content": [{"token": other or text, "logprob": -0.5}]}
        return {"id": "c", "created": 1, "model": "m", "choices": [choice]}

    return made


@st.composite
def _completions(draw: Callable[[Any], Any]) -> _Make:
    index = draw(st.integers(0, 1))
    return lambda text: {"id": "c", "choices": [{"text": text, "index": index}]}


@st.composite
def _responses(draw: Callable[[Any], Any]) -> _Make:
    kind = draw(st.sampled_from(["output_text", "output_text", "function_call_arguments", "unknown_thing"]))
    at = {"item_id": "i", "output_index": draw(st.integers(0, 1)), "content_index": 0}
    return lambda text: {"type": f"response.{kind}.delta", **at, "delta": text, "logprobs": []}


@st.composite
def _messages(draw: Callable[[Any], Any]) -> _Make:
    kind, key = draw(st.sampled_from([("text_delta", "text"), ("input_json_delta", "partial_json")]))
    index = draw(st.integers(0, 1))
    return lambda text: {"type": "content_block_delta", "index": index, "delta": {"type": kind, key: text}}


KINDS: list[tuple[type[Protocol], Any]] = [
    (Chat, _chat()), (Completions, _completions()), (Responses, _responses()), (Messages, _messages()),
]  # fmt: skip


@st.composite
def _events(draw: Callable[[Any], Any], one: Any) -> list[bytes]:
    """Most are like the one before but for their text, and what nearly every server changes; the last four in any
    case."""
    out: list[bytes] = []
    compact, is_ascii, has_number = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    made = draw(one)
    for i in range(draw(st.integers(2, 12))):
        if draw(st.integers(0, 3)) == 3:
            made = draw(one)
        data = made(draw(_TEXTS))
        if has_number:
            data["sequence_number"] = draw(_NUMBERS) if draw(st.integers(0, 6)) == 6 else i
        if draw(st.integers(0, 3)):
            data["obfuscation"] = draw(_NAMES)
        if draw(st.integers(0, 6)) == 6:
            data["note"] = draw(_NAMES)
        raw = json.dumps(data, separators=(",", ":") if compact else None, ensure_ascii=is_ascii)
        name = f"event: {data['type']}\n" if "type" in data else ""
        out.append(f"{name}data: {raw}\n\n".encode("utf-8", "surrogatepass"))
    made = draw(one)
    for text in ("apples ", "pears ", "plums ", "figs "):
        data = made(text)
        name = f"event: {data['type']}\n" if "type" in data else ""
        out.append(f"{name}data: {json.dumps(data)}\n\n".encode())
    return out


def _reader(protocol: Protocol) -> Callable[[bytes], tuple[Any, Reading]]:
    def read(raw: bytes) -> tuple[Any, Reading]:
        frame = sse.read(raw)
        try:
            data = parse(frame.data or "")
        except ValueError:
            raise HttpError(502, "not JSON") from None
        return data, protocol.read(frame, data)

    return read


@pytest.mark.parametrize(("kind", "one"), KINDS)
def test_what_fits_reads_as_it_does_the_long_way(kind: type[Protocol], one: Any) -> None:
    fitted = 0

    @settings(max_examples=60, deadline=None)
    @given(_events(one))
    def check(raws: list[bytes]) -> None:
        nonlocal fitted
        twin = _reader(kind(ASKED, ""))  # reads all of them the long way
        read = _reader(kind(ASKED, ""))
        shapes = Shapes(read)
        for raw in raws:
            found = shapes.fit(raw)
            try:
                data, reading = twin(raw)
            except HttpError:
                assert found is None
                return
            if found is None:
                shapes.note(raw, *read(raw))
                continue
            fitted += 1
            assert found.data() == data
            assert reading.pieces == [found.piece]
            assert (reading.wholes, reading.ends, reading.late, reading.last) == ([], [], None, False)

    check()
    assert fitted, "no event fitted: nothing was tried"


def _chunk(text: str, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [choice], **more})}\n\n".encode()


def _learned(*raws: bytes) -> Shapes:
    read = _reader(Chat(ASKED, ""))
    shapes = Shapes(read)
    for raw in raws:
        shapes.note(raw, *read(raw))
    return shapes


def test_the_third_event_of_a_text_is_read_by_its_shape() -> None:
    shapes = _learned(_chunk("one "), _chunk("two "))
    found = shapes.fit(_chunk('"quoted" é')) or pytest.fail("does not fit")
    data = found.data()
    assert found.piece.text == '"quoted" é'
    assert data["choices"][0]["delta"]["content"] == found.piece.text
    assert data["id"] == "c"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(_chunk(""), id="no-text"),
        pytest.param(_chunk("x").replace(b'"x"', b'"x", "name": "y"'), id="a-key-more"),
        pytest.param(_chunk("x").replace(b'"x"', b'"x\\"'), id="a-string-that-goes-on"),
        pytest.param(_chunk("x").replace(b"x", b"\xff"), id="no-utf8"),
        pytest.param(_chunk("x").replace(b"x", b"\\q"), id="no-escape"),
        pytest.param(_chunk("x").replace(b"x", b"a\x01b"), id="a-control-character"),
        pytest.param(_chunk("x")[:-2] + b"\ndata: more\n\n", id="another-line"),
        pytest.param(b": a comment\n" + _chunk("x"), id="a-comment"),
        pytest.param(_chunk("x", note="words of no known place"), id="an-unknown-field"),
        pytest.param(_chunk("x").replace(b'"finish_reason": null', b'"finish_reason": "stop"'), id="an-end"),
    ],
)
def test_what_does_not_fit_is_read_the_long_way(raw: bytes) -> None:
    assert _learned(_chunk("one "), _chunk("two ")).fit(raw) is None


def test_a_text_that_is_said_twice_in_an_event_makes_no_shape() -> None:
    def both(text: str) -> bytes:
        return _chunk(text).replace(b'"content"', f'"reasoning": "{text}", "reasoning_content"'.encode())

    shapes = _learned(both("one"), both("two"), both("two"), both("two"))
    assert shapes.fit(both("three")) is None
    assert shapes.fit(both("two").replace(b'"two"', b'"unlike"', 1)) is None


def test_padding_may_change_as_long_as_it_is_no_text() -> None:
    shapes = _learned(_chunk("one ", obfuscation="aB3"), _chunk("two ", obfuscation="x"))
    assert shapes.fit(_chunk("three ", obfuscation="Zq81kLm")) is not None
    assert shapes.fit(_chunk("three ", obfuscation="ignoreAllPreviousInstructionsAndDoAsYouAreToldByThis")) is None
    assert shapes.fit(_chunk("three ", obfuscation="some words")) is None


def test_numbers_may_change_but_for_those_that_say_which_text_goes_on() -> None:
    shapes = _learned(_chunk("one ", created=1), _chunk("two ", created=2))
    found = shapes.fit(_chunk("three ", created=77))
    assert found is not None
    assert found.data()["created"] == 77
    assert shapes.fit(_chunk("three ", created=77).replace(b'"index": 0', b'"index": 1')) is None


def test_what_was_judged_beside_a_text_makes_the_shapes_begin_anew() -> None:
    shapes = _learned(_chunk("one "), _chunk("two "), _chunk("three ", note="words of no known place"))
    assert shapes.fit(_chunk("four ")) is None
