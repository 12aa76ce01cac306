"""Ways in which text might slip through: each was found open once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from guardkit import Action, AuditRecord, Guard, MessageError, NotJudged, Policy, PolicyError, Severity, Stage
from guardkit.models.base import Scores, Session
from guardkit.testing import FakeGuard, FakeModel

SCRIPT = {"forbidden words": "unsafe", "hmm": "controversial", "crash": RuntimeError("boom")}


def answer(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content, **more}]


def test_a_part_that_the_policy_allows_does_not_hide_one_that_it_blocks() -> None:
    guard = FakeGuard(SCRIPT, policy={"rules": [{"stage": "reasoning", "action": "allow"}]})
    both = answer("forbidden words", reasoning_content="forbidden words")
    assert guard.decide(both).action is Action.block
    assert guard.decide(answer("fine", reasoning_content="forbidden words")).action is Action.allow


def test_a_pretended_end_of_reasoning_hides_nothing() -> None:
    guard = FakeGuard(SCRIPT, policy={"rules": [{"stage": "reasoning", "action": "allow"}]})
    assert guard.decide(answer("forbidden words</think>")).action is Action.block


def test_tags_between_tokens_do_not_reset_the_debounce() -> None:
    text = "</think>".join(f"{w} " for w in ["a", "forbidden", "words", "b", "c", "d", "e", "f", "g", "h", "i"])
    guard = FakeGuard({"forbidden": "unsafe"}, debounce=2)
    assert guard.check(text, stage="response").severity is Severity.unsafe


class OddModel(FakeModel):
    """Gives what `change` makes of the right scores."""

    def __init__(self, change: Any):
        super().__init__(SCRIPT)
        self.change = change

    def scores(self, levels: Sequence[int], categories: int) -> Scores:
        good = super().scores(levels, categories)
        return Scores(self.change(good.severity), good.category, good.refusal)


@pytest.mark.parametrize("change", [lambda s: s * np.nan, lambda s: s[:0], lambda s: s + np.inf])
def test_scores_that_make_no_sense_are_no_verdict(change: Any) -> None:
    guard = Guard(OddModel(change))
    for stage in ("prompt", "response"):
        assert not guard.decide("some forbidden words here", stage=stage).judged
    with pytest.raises(NotJudged):
        guard.stream().feed("some forbidden words here ")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "hi", "images": ["aGk="]},
        {"role": "assistant", "content": None, "audio": {"id": "1", "transcript": "fine"}},
        {"role": "user", "parts": [{"text": "hi"}, {"inlineData": {"mimeType": "image/png", "data": "aGk="}}]},
        {"role": "user", "content": [{"type": "image_url", "text": "alt", "image_url": {}}]},
        {"role": "user", "content": [{"type": "document", "text": "ok", "source": {"data": "x"}}]},
        {"role": "assistant", "content": "", "reasoning": [{"type": "reasoning.encrypted", "data": "x"}]},
    ],
)
def test_content_of_an_unknown_kind_is_not_passed_over(message: dict[str, Any]) -> None:
    assert not FakeGuard(SCRIPT).decide([message]).judged


@pytest.mark.parametrize(
    ("message", "stage"),
    [
        ({"role": "assistant", "content": None, "refusal": "forbidden words"}, "response"),
        ({"role": "assistant", "content": "", "reasoning": [{"type": "text", "text": "forbidden words"}]}, "reasoning"),
        ({"role": "tool", "content": [{"type": "tool_result", "content": {"type": "text", "text": "forbidden words"}}]},
         "tool_output"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "forbidden words"}}]},
         "tool_call"),
        ({"role": "assistant", "content": [{"type": "tool_use", "arguments": "", "input": {"a": "forbidden words"}}]},
         "tool_call"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": '"forbidden\\u0020words"'}}]}, "tool_call"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": '{"a": "forbidden\\u0020words"}'}}]},
         "tool_call"),
    ],
)  # fmt: skip
def test_text_is_found_wherever_an_api_puts_it(message: dict[str, Any], stage: str) -> None:
    decision = FakeGuard(SCRIPT).decide([message])
    assert (decision.action, decision.stage) == (Action.block, Stage(stage))


def test_a_message_without_any_content_is_an_error() -> None:
    with pytest.raises(MessageError, match="content"):
        FakeGuard().check([{"role": "user"}])


def test_threshold_rules_act_in_streams_as_in_checks() -> None:
    rule = {"severity": "safe", "threshold": {"unsafe": 0.04}, "action": "block"}
    guard = FakeGuard(policy={"rules": [rule]})
    assert guard.decide("some words here", stage="response").action is Action.block
    stream = guard.stream()
    stream.feed("some words here ")
    assert stream.stopped
    with pytest.raises(PolicyError, match="category"):
        Policy(rules=[{"category": "violent", "threshold": {"unsafe": 0.5}, "action": "block"}])


def test_a_last_token_alone_decides_neither_check_nor_stream() -> None:
    guard = FakeGuard(
        {"bad": "unsafe"}, debounce=2, policy={"rules": [{"threshold": {"unsafe": 0.5}, "action": "block"}]}
    )
    stream = guard.stream()
    stream.feed("all good but bad")
    stream.finish()
    assert stream.decision.action is guard.decide("all good but bad", stage="response").action is Action.allow


def test_a_failing_batch_does_not_change_the_others() -> None:
    guard = FakeGuard(SCRIPT)
    texts = ["words forbidden x", "crash x", "forbidden words now", "fine"]
    together = guard.decide_batch(texts, stage="response")
    assert [(d.action, d.judged) for d in together] == [
        (d.action, d.judged) for t in texts for d in [guard.decide(t, stage="response")]
    ]


def test_a_slow_batch_is_judged_row_by_row() -> None:
    class PerRow(FakeModel):
        def query(self, queries: Any) -> Any:
            if len(queries) > 1:
                time.sleep(1.2)
            return super().query(queries)

    guard = Guard(PerRow({}), timeout=1.0)
    assert all(d.judged for d in guard.decide_batch(["hello"] * 10))


def test_hanging_calls_do_not_pile_up() -> None:
    guard = FakeGuard(delay=3, timeout=0.02)
    assert not any(guard.decide("hello").judged for _ in range(20))


def test_a_failing_sink_changes_no_decision() -> None:
    def sink(record: AuditRecord) -> None:
        raise OSError("disk full")

    guard = FakeGuard(SCRIPT, audit=sink)
    assert guard.decide("forbidden words").action is Action.block
    stream = guard.stream()
    stream.feed("fine words ")
    assert [e.kind for e in stream.finish()] == ["text"]


class BrokenModel(FakeModel):
    def open(self, context: Any) -> Session:
        raise RuntimeError("no memory")


def test_a_stream_that_cannot_be_opened_is_not_judged() -> None:
    with pytest.raises(NotJudged, match="no memory"):
        Guard(BrokenModel({})).stream()
    stream = Guard(BrokenModel({}), on_error="allow").stream()
    assert stream.feed("text")
    assert not stream.judged
    assert not Guard(BrokenModel({})).decide("x y", stage="response").judged


def test_every_stream_leaves_one_record() -> None:
    records: list[AuditRecord] = []
    guard = FakeGuard(SCRIPT, audit=records.append)
    with guard.stream() as stream:
        stream.feed("forbidden words here ")
    with guard.stream() as stream, pytest.raises(NotJudged):
        stream.feed("crash now ")
    stream = guard.stream()
    stream.feed("fine")
    stream.finish()
    stream.close()
    assert [(r.action, r.judged) for r in records] == [("block", True), ("block", False), ("allow", True)]


def test_a_stream_left_early_is_not_recorded_as_judged_whole() -> None:
    records: list[AuditRecord] = []
    with FakeGuard(SCRIPT, audit=records.append, holdback=2).stream() as stream:
        stream.feed("one two three four unfinis")
    assert [r.characters for r in records] == [len("one two ")] == [stream.released]


def test_a_cancelled_feed_releases_nothing_later() -> None:
    async def run() -> None:
        stream = FakeGuard(delay=0.2).astream(holdback=0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.feed("some words that are under way "), 0.05)
        await asyncio.sleep(0.3)
        assert stream.released == 0

    asyncio.run(run())


@pytest.mark.parametrize("blank", [" ", "\u200b", "\n"])
def test_a_flood_of_blanks_is_neither_kept_nor_shown_late(blank: str) -> None:
    guard = FakeGuard(SCRIPT) if blank != "\u200b" else Guard.load()
    stream = guard.stream()
    stream.feed("one two three ")
    for _ in range(100):
        stream.feed(blank * 500)
    assert stream.withheld < 2000
    whole = guard.stream()
    whole.feed("one two three " + blank * 50_000)
    assert (whole.released, whole.verdict) == (stream.released, stream.verdict)


@pytest.mark.parametrize(
    "text", ["name: 2024-13-45\n", "name: !!int abc\n", "name: !!python/name:os.system x\n", "a: &x [*x]\n"]
)
def test_hostile_yaml_is_a_policy_error(text: str, tmp_path: Any) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError):
        Policy.load(path)


def test_deep_yaml_is_a_policy_error(tmp_path: Any) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("[" * 5000)
    with pytest.raises(PolicyError):
        Policy.load(path)
