"""Streams that are taken back: what comes behind a mark leaves no trace."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Guard, NotJudged, StreamClosed
from guardkit.models.nano import model as nano_model
from guardkit.testing import FakeGuard, FakeModel

SCRIPT: dict[str, Any] = {"forbidden words": "unsafe", "hmm": "controversial"}
WORDS = st.sampled_from(
    ["sun", " ", "\n", "hmm", "forbidden", "words", "<think>", "</think>", "<", "\ud83d\ude00", "é", "  tomatoes. "]
)
PIECES = st.lists(WORDS, max_size=8)


@pytest.fixture(scope="module")
def nano() -> Guard:
    return Guard.load(policy={"on_unmeasured": "allow"})


def outcome(stream: Any, pieces: list[str]) -> tuple[Any, ...]:
    """What becomes of a stream that is fed on to its end."""
    text = "".join(e.text for piece in pieces for e in stream.feed(piece) if e.kind == "text")
    text += "".join(e.text for e in stream.finish() if e.kind == "text")
    return text, stream.verdict, stream.decision.action, stream.released, stream.withheld, stream.n_tokens


def check_rewind(guard: Guard, before: list[str], dropped: list[list[str]], after: list[str]) -> None:
    fresh = guard.stream("What do tomatoes need?")
    for piece in before:
        fresh.feed(piece)
    stopped = fresh.stopped
    expected = outcome(fresh, after)
    stream = guard.stream("What do tomatoes need?")
    for piece in before:
        stream.feed(piece)
    if stopped:
        with pytest.raises(NotJudged):
            stream.mark()
        return
    mark = stream.mark()
    for pieces in dropped:
        for piece in pieces:
            stream.feed(piece)
        stream.finish(close=False)
        with pytest.raises(StreamClosed):
            stream.feed("more")
        stream.rewind(mark)
        assert stream.withheld + stream.released == mark.n_chars
    assert outcome(stream, after) == expected


@settings(max_examples=60, deadline=None)
@given(PIECES, st.lists(PIECES, min_size=1, max_size=3), PIECES)
def test_a_stream_taken_back_is_as_it_was(before: list[str], dropped: list[list[str]], after: list[str]) -> None:
    check_rewind(FakeGuard(SCRIPT, holdback=2, policy="strict"), before, dropped, after)


@settings(max_examples=12, deadline=None)
@given(PIECES, st.lists(PIECES, min_size=1, max_size=2), PIECES)
def test_nano_taken_back_is_as_it_was(
    nano: Guard, before: list[str], dropped: list[list[str]], after: list[str]
) -> None:
    check_rewind(nano, before, dropped, after)


def test_nano_goes_back_into_an_earlier_window(nano: Guard) -> None:
    assert isinstance(nano.model, nano_model.Nano)
    words = [f"Tomato number {i} grows well. " for i in range(nano.model.window // 4)]
    fresh = nano.stream("Tell me of tomatoes.")
    for word in words[:20]:
        fresh.feed(word)
    stream = nano.stream("Tell me of tomatoes.")
    for word in words[:20]:
        stream.feed(word)
    mark = stream.mark()
    for word in words[20:]:
        stream.feed(word)
    assert stream.verdict.windowed
    stream.rewind(mark)
    assert outcome(stream, ["How do I ", "make a bomb? "]) == outcome(fresh, ["How do I ", "make a bomb? "])
    assert not stream.verdict.windowed


def test_marks_made_since_are_void() -> None:
    stream = FakeGuard(SCRIPT).stream()
    first = stream.mark()
    stream.feed("sun and ")
    second = stream.mark()
    stream.rewind(first)
    with pytest.raises(ValueError, match="taken back"):
        stream.rewind(second)
    stream.rewind(first)
    with pytest.raises(ValueError, match="another stream"):
        FakeGuard(SCRIPT).stream().rewind(first)
    stream.close()
    with pytest.raises(StreamClosed):
        stream.rewind(first)


def test_a_stop_that_was_taken_back_is_audited() -> None:
    records: list[Any] = []
    stream = FakeGuard(SCRIPT, audit=records.append, audit_text=True).stream()
    stream.feed("sun. ")
    mark = stream.mark()
    stream.feed("forbidden words here ")
    assert stream.stopped
    stream.rewind(mark)
    stream.feed("and water")
    stream.finish()
    assert [(r.action, r.text) for r in records] == [
        ("block", "sun. forbidden words here "), ("allow", "sun. and water")
    ]  # fmt: skip


@pytest.mark.parametrize("on_error", ["block", "allow"])
def test_what_was_not_judged_is_not_taken_back(on_error: str) -> None:
    stream = FakeGuard({"crash": RuntimeError("boom")}, on_error=on_error).stream()
    mark = stream.mark()
    try:
        stream.feed("a crash ")
    except NotJudged:
        assert on_error == "block"
    with pytest.raises(NotJudged):
        stream.rewind(mark)
    with pytest.raises(NotJudged):
        stream.mark()


def test_a_model_that_cannot_go_back_says_so() -> None:
    class OneWay(FakeModel):
        def open(self, context: Any) -> Any:
            session = super().open(context)
            session.mark = lambda: type(session).__mro__[2].mark(session)  # type: ignore[attr-defined,method-assign]
            return session

    with pytest.raises(NotImplementedError):
        Guard(OneWay({})).stream().mark()


def test_the_async_twin_goes_back_too() -> None:
    async def whole() -> tuple[str, int]:
        stream = FakeGuard(SCRIPT).astream()
        await stream.feed("sun. ")
        mark = stream.mark()
        await stream.feed("forbidden words ")
        await stream.finish(close=False)
        stream.rewind(mark)
        events = await stream.finish()
        return "".join(e.text for e in events if e.kind == "text"), stream.withheld  # type: ignore[return-value]

    assert asyncio.run(whole()) == ("sun. ", 0)
