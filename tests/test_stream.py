"""Streams: any chunking gives the same outcome, nothing is shown unjudged, all text is accounted for."""

from __future__ import annotations

import asyncio
import copy
import itertools
import pickle
import re
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import AsyncStreamGuard, Guard, NotJudged, Severity, Stage, StreamClosed, StreamGuard
from guardkit.testing import FakeGuard

SCRIPT = {"make a bomb": "unsafe", "damn": "controversial", "hell of": "controversial"}
PIECES = st.sampled_from(
    ["make", " a ", "bomb", "make a bomb", "damn", " ", "  ", "\n", "hello", "<think>", "</think>", "<th", "ink>", "</",
     "漢字", "ก", "🙂", "é", "e\u0301", "x" * 60, "hell of", ".", "<", "\ud83d", "\ude42"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=25).map("".join)


def collect(stream: StreamGuard, chunks: list[str]) -> tuple[str, list[str]]:
    """What a reader ends up with, and the kinds of events that were not text."""
    shown, kinds = "", []
    with stream:
        for events in [*map(stream.feed, chunks), stream.finish()]:
            for event in events:
                if event.kind == "text":
                    shown += event.text
                else:
                    kinds.append(event.kind)
                    if event.kind == "retract":
                        shown = shown[: -event.n_chars]
    return shown, kinds


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def joined(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@settings(max_examples=400, deadline=None)
@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 120), max_size=12),
    holdback=st.integers(0, 6),
    debounce=st.integers(1, 3),
    policy=st.sampled_from(["strict", "balanced", "loose"]),
)
def test_any_chunking_gives_the_same_outcome(
    text: str, cuts: list[int], holdback: int, debounce: int, policy: str
) -> None:
    guard = FakeGuard(SCRIPT, policy=policy, debounce=debounce)
    whole = guard.stream(holdback=holdback)
    shown, _ = collect(whole, [text])
    for chunks in (cut(text, cuts), list(text)):
        other = guard.stream(holdback=holdback)
        assert collect(other, chunks)[0] == shown
        assert other.verdict == whole.verdict
        assert (other.released, other.withheld) == (whole.released, whole.withheld)
    assert whole.released == len(shown)
    assert whole.released + whole.withheld == len(joined(text))
    assert joined(text).startswith(shown)
    assert guard.check(text, stage="response").severity == whole.verdict.severity


@settings(max_examples=25, deadline=None)
@given(text=TEXTS.map(lambda t: t * 3), cuts=st.lists(st.integers(0, 300), max_size=12), holdback=st.integers(0, 9))
def test_any_chunking_gives_the_same_outcome_with_the_embedded_model(text: str, cuts: list[int], holdback: int) -> None:
    guard = Guard.load(policy="strict")
    whole, other = guard.stream("hi", holdback=holdback), guard.stream("hi", holdback=holdback)
    assert collect(whole, [text])[0] == collect(other, cut(text, cuts))[0]
    assert whole.verdict == other.verdict


def test_check_equals_stream_verdict() -> None:
    for policy in ("strict", "balanced", "loose"):
        guard = FakeGuard(SCRIPT, policy=policy, debounce=2)
        for text in ("a damn good day to make a bomb now or later", "fine and good", "bomb", "damn damn damn", ""):
            stream = guard.stream()
            collect(stream, list(text))
            assert stream.verdict == guard.check(text, stage="response")


def test_flagged_text_is_never_shown_with_the_default_holdback() -> None:
    stream = FakeGuard(SCRIPT).stream("hi")
    shown, kinds = collect(
        stream, list("one two three four five six seven eight nine ten make a bomb and so on and on")
    )
    assert shown == "one two three four "  # the eight tokens before the one that completes the flag are kept back
    assert kinds == ["stop"]
    assert stream.shown_early == 0
    assert stream.stopped
    assert stream.verdict.severity is Severity.unsafe
    assert stream.verdict.token_index == 12


def test_without_holdback_text_is_shown_at_once_and_taken_back() -> None:
    stream = FakeGuard(SCRIPT).stream(holdback=0)
    first = stream.feed("I will make a bo")
    assert [e.text for e in first if e.kind == "text"] == ["I will make a bo"]
    events = [*stream.feed("mb at"), *stream.feed(" home")]
    assert [e.kind for e in events] == ["retract", "stop"]
    assert stream.shown_early > 0
    assert stream.released == len("I will make a ")


def test_text_lags_by_no_more_than_the_holdback_and_the_tail() -> None:
    stream = FakeGuard().stream(holdback=4)
    text = " ".join(f"word{i}" for i in range(200))
    for i, char in enumerate(text):
        stream.feed(char)
        words = text[: i + 1].split(" ")
        assert stream.withheld <= sum(len(w) + 1 for w in words[-6:])


def test_after_a_stop_feed_is_silent_and_counts() -> None:
    stream = FakeGuard(SCRIPT).stream()
    stream.feed("make a bomb now")
    before = stream.withheld
    verdict = stream.verdict
    assert stream.feed("more text damn") == []
    assert stream.withheld == before + len("more text damn")
    assert stream.finish() == []
    assert stream.verdict == verdict


def test_a_flag_does_not_stop_the_text() -> None:
    stream = FakeGuard(SCRIPT).stream()
    shown, kinds = collect(stream, ["well damn it ", "all, make a bo", "at"])
    assert shown == "well damn it all, make a boat"
    assert kinds == ["flag"]
    assert stream.verdict.severity is Severity.controversial


def test_debounce_needs_consecutive_tokens() -> None:
    guard = FakeGuard({"bad": "unsafe"}, debounce=2)
    one = guard.stream()
    collect(one, ["all is well bad"])  # a single flagged token, the last
    assert one.verdict.severity is Severity.safe
    two = guard.stream()
    collect(two, ["all is well bad again"])
    assert two.verdict.severity is Severity.unsafe
    assert two.verdict.token_index == 4
    assert two.verdict.char_index == len("all is well bad ")


def test_reasoning_and_answer_are_told_apart() -> None:
    guard = FakeGuard(SCRIPT, policy="strict")
    stream = guard.stream()
    collect(stream, ["<thi", "nk>I could make a bomb here</th", "ink>fine"])
    assert stream.verdict.stage is Stage.reasoning
    stream = guard.stream()
    collect(stream, ["<think>fine</think>", "make a bomb here"])
    assert stream.verdict.stage is Stage.response
    stream = guard.stream(stage="reasoning")
    collect(stream, ["hm</think>make a bomb here"])
    assert stream.verdict.stage is Stage.response


def test_a_policy_by_stage_acts_inside_a_stream() -> None:
    rules = [{"stage": "reasoning", "action": "allow"}]
    guard = FakeGuard(SCRIPT, policy={"rules": rules})
    text = "<think>make a bomb now or never"
    stream = guard.stream()
    assert collect(stream, [text])[0] == text


def test_a_model_fault_releases_nothing_more() -> None:
    stream = FakeGuard({"crash": RuntimeError("boom")}).stream(holdback=1)
    stream.feed("good words here ")
    released = stream.released
    with pytest.raises(NotJudged, match="boom"):
        stream.feed("then crash now and then")
    assert stream.released == released
    assert stream.stopped
    assert stream.feed("more") == []
    assert stream.decision.action.value == "block"
    assert not stream.decision.judged
    assert stream.released + stream.withheld == len("good words here then crash now and thenmore")


def test_a_model_fault_may_be_let_through_on_request_and_says_so() -> None:
    stream = FakeGuard({"crash": RuntimeError("boom")}, on_error="allow").stream()
    shown, _ = collect(stream, ["good words crash now ", "make a bomb"])
    assert shown == "good words crash now make a bomb"
    assert not stream.judged
    assert not stream.decision.judged


def test_a_timeout_in_a_stream_fails_closed() -> None:
    stream = FakeGuard(delay=0.5, timeout=0.05).stream()
    with pytest.raises(NotJudged, match="longer than"):
        stream.feed("some words here ")
    assert stream.released == 0


def test_a_finished_or_closed_stream_takes_no_more() -> None:
    stream = FakeGuard().stream()
    stream.finish()
    with pytest.raises(StreamClosed):
        stream.feed("x")
    with FakeGuard().stream() as other:
        other.feed("held back text")
    assert other.released == 0
    with pytest.raises(StreamClosed):
        other.finish()


def test_the_verdict_looks_at_the_unstable_tail() -> None:
    stream = FakeGuard({"bomb": "unsafe"}).stream()
    stream.feed("a bomb")
    assert stream.verdict.severity is Severity.unsafe
    assert not stream.stopped  # the word may go on
    stream.feed("astic speech ")
    assert stream.verdict.severity is Severity.unsafe  # the key is in the word all the same


def test_memory_is_flat_over_a_long_stream() -> None:
    stream = Guard.load().stream("hi")
    text = "The garden club meets on Tuesday to plant tulips near the library. "

    def feed(n: int) -> int:
        for _ in range(n):
            stream.feed(text)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        early = feed(40)
        late = feed(200)
    finally:
        tracemalloc.stop()
    assert late - early < 300_000


def test_an_unbroken_run_is_cut_at_a_fixed_length() -> None:
    guard = Guard.load()
    stream = guard.stream(holdback=0)
    for _ in range(100):
        stream.feed("ab9X" * 5)
    assert stream.n_tokens > 500
    whole = guard.stream(holdback=0)
    whole.feed("ab9X" * 500)
    assert whole.n_tokens == stream.n_tokens


def test_queries_are_no_streams() -> None:
    with pytest.raises(ValueError, match="check"):
        FakeGuard().stream(stage="document")


def test_feed_ids_needs_a_shared_vocabulary() -> None:
    with pytest.raises(TypeError, match="feed text"):
        FakeGuard().stream().feed_ids([1, 2])


def test_fed_together_equals_fed_alone() -> None:
    guard = FakeGuard({**SCRIPT, "crash": RuntimeError("boom")})
    texts = ["how to make a bomb now and then some more words", "crash now and then", "all is well " * 9]
    for run in (guard.feed_many, lambda fed: asyncio.run(guard.afeed_many(fed))):
        together, alone = [guard.stream() for _ in texts], [guard.stream() for _ in texts]
        for i in range(0, 60, 7):
            fed = list(zip(together, (text[i : i + 7] for text in texts), strict=True))
            for answer, stream, (_, delta) in zip(run(fed), alone, fed, strict=True):
                if isinstance(answer, NotJudged):
                    with pytest.raises(NotJudged, match=re.escape(str(answer))):
                        stream.feed(delta)
                else:
                    assert answer == stream.feed(delta)
        for a, b in zip(together, alone, strict=True):
            assert (a.released, a.withheld, a.judged, a.verdict) == (b.released, b.withheld, b.judged, b.verdict)


def test_a_large_delta_is_not_read_on_the_event_loop() -> None:
    """The tokenizer tells which thread it is called from."""
    guard = Guard.load()
    readers: set[int] = set()

    class Told:
        def encode(self, text: str) -> tuple[list[int], list[int]]:
            readers.add(threading.get_ident())
            return guard.model.tokenizer.encode(text)

        stable_chars = staticmethod(guard.model.tokenizer.stable_chars)

    async def feed(text: str) -> AsyncStreamGuard:
        stream = guard.astream("hi")
        stream._stream._reader._tokens._tokenizer = Told()
        shown = "".join(e.text for e in await stream.feed(text) if e.kind == "text")
        shown += "".join(e.text for e in await stream.finish() if e.kind == "text")
        assert shown == text
        return stream

    large = "The garden club meets on Tuesday. " * 100
    asyncio.run(feed("The garden club "))
    assert readers == {threading.get_ident()}
    readers.clear()
    asyncio.run(feed(large))
    assert threading.get_ident() not in readers
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": large}]
    assert asyncio.run(feed(large)).verdict == guard.check(said)


def test_async_equals_sync() -> None:
    guard = FakeGuard(SCRIPT)
    text = "one two three four five six seven eight nine ten make a bomb and so on"

    async def run() -> tuple[str, object]:
        async def source():
            for i in range(0, len(text), 5):
                yield text[i : i + 5]

        shown = ""
        async with guard.astream("q") as stream:
            async for event in stream.wrap(source()):
                if event.kind == "text":
                    shown += event.text
            return shown, stream.verdict

    sync = guard.stream("q")
    assert asyncio.run(run()) == (collect(sync, cut(text, list(range(0, 99, 5))))[0], sync.verdict)


def test_a_cancelled_feed_ends_the_stream() -> None:
    async def run() -> None:
        stream = FakeGuard(delay=0.3).astream()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.feed("some words here "), 0.05)
        with pytest.raises(StreamClosed):
            await stream.feed("more")

    asyncio.run(run())


def test_a_task_that_awaits_a_quick_model_again_and_again_lets_others_have_their_turn() -> None:
    guard = FakeGuard({})
    assert guard.model.quick

    async def streams() -> None:
        async with guard.astream() as stream:
            for _ in range(3000):
                await stream.feed("word ")

    async def checks() -> None:
        for _ in range(3000):
            await guard.acheck("a text")

    async def run() -> None:
        for greedy in (streams, checks):
            task = asyncio.create_task(greedy())
            for _ in range(20):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_a_stream_says_that_it_cannot_be_copied_or_sent() -> None:
    stream = FakeGuard({}).stream()
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            copied(stream)
