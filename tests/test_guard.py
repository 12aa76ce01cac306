"""Guard: batches, stages, policies, failures, audit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from guardkit import (
    Action,
    AuditRecord,
    Category,
    Guard,
    GuardkitError,
    GuardViolation,
    Message,
    MessageError,
    MissingExtra,
    ModelLoadError,
    NotJudged,
    Severity,
    Stage,
    UnknownModel,
    Verdict,
)
from guardkit.testing import FakeGuard

SCRIPT = {"bomb": "unsafe", "damn": "controversial", "crash": RuntimeError("boom")}


def test_batch_equals_one_by_one_and_keeps_order() -> None:
    guard = FakeGuard(SCRIPT)
    items = [
        "a", "damn", "a bomb", "", [{"role": "user", "content": "bomb"}],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a bomb here"}],
    ]  # fmt: skip
    assert guard.check_batch(items) == [guard.check(i) for i in items]
    assert [v.severity.value for v in guard.check_batch(items)] == [
        "safe", "controversial", "unsafe", "safe", "unsafe", "unsafe",
    ]  # fmt: skip
    assert guard.check_batch([]) == []


def test_async_equals_sync() -> None:
    guard = FakeGuard(SCRIPT)
    assert asyncio.run(guard.acheck("a bomb")) == guard.check("a bomb")
    assert asyncio.run(guard.adecide("damn")).action is Action.flag
    with pytest.raises(GuardViolation):
        asyncio.run(guard.aenforce("a bomb"))


@pytest.mark.parametrize(
    ("role", "stage"), [("user", Stage.prompt), ("assistant", Stage.response), ("tool", Stage.tool_output)]
)
def test_the_last_message_is_judged_at_its_stage(role: str, stage: Stage) -> None:
    verdict = FakeGuard(SCRIPT).check([{"role": "user", "content": "bomb"}, {"role": role, "content": "fine"}])
    assert (verdict.stage, verdict.severity) == (stage, Severity.safe)


def test_the_worst_part_of_a_message_counts_and_says_its_stage() -> None:
    guard = FakeGuard(SCRIPT)
    message = {
        "role": "assistant",
        "reasoning_content": "hm, damn",
        "content": "sure",
        "tool_calls": [{"function": {"name": "buy", "arguments": '{"what": "bomb parts"}'}}],
    }
    verdict = guard.check([message])
    assert (verdict.severity, verdict.stage) == (Severity.unsafe, Stage.tool_call)
    blocks = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "a bomb"}, {"type": "text", "text": "no"}],
    }
    assert guard.check([blocks]).stage is Stage.reasoning


@pytest.mark.parametrize("text", ["<think>a bomb</think>no", "a bomb</think>no", "<think>a bomb"])
def test_reasoning_inside_text_is_judged_as_reasoning(text: str) -> None:
    verdict = FakeGuard(SCRIPT).check([Message("assistant", text)])
    assert verdict.stage is Stage.reasoning
    assert verdict.severity is Severity.unsafe


def test_images_are_never_dropped_in_silence() -> None:
    guard = FakeGuard(SCRIPT)
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]}
    with pytest.raises(NotJudged, match="image_url"):
        guard.check([message])
    decision = guard.decide([message])
    assert not decision.judged
    assert decision.action is Action.block
    assert FakeGuard(SCRIPT, on_error="allow").decide([message]).action is Action.allow
    message["content"][0]["text"] = "a bomb"  # type: ignore[index]
    assert FakeGuard(SCRIPT, on_error="allow").decide([message]).action is Action.block


def test_a_model_error_is_not_judged() -> None:
    guard = FakeGuard(SCRIPT)
    with pytest.raises(NotJudged) as caught:
        guard.check("a crash")
    assert isinstance(caught.value.__cause__, RuntimeError)
    decision = guard.decide("a crash")
    assert (decision.judged, decision.verdict, decision.action) == (False, None, Action.block)
    assert FakeGuard(SCRIPT, on_error="allow").decide("crash").action is Action.allow


def test_a_poisoned_row_fails_alone() -> None:
    guard = FakeGuard(SCRIPT)
    for stage in ("prompt", "response"):
        decisions = guard.decide_batch(["good", "a crash", "a bomb"], stage=stage)
        assert [(d.judged, d.action.value) for d in decisions] == [(True, "allow"), (False, "block"), (True, "block")]


def test_a_timeout_is_not_judged() -> None:
    decision = FakeGuard(delay=0.5, timeout=0.05).decide("hi")
    assert not decision.judged
    assert decision.action is Action.block
    assert decision.error is not None
    assert "longer than" in decision.error


def test_enforce_carries_the_verdict() -> None:
    with pytest.raises(GuardViolation) as caught:
        FakeGuard(SCRIPT).enforce("secret bomb plan", stage="document")
    assert caught.value.stage is Stage.document
    assert caught.value.verdict is not None
    assert caught.value.verdict.severity is Severity.unsafe
    assert "secret" not in str(caught.value)
    assert FakeGuard(SCRIPT).enforce("damn").action is Action.flag


def test_verdicts_compare_without_latency_and_serialise() -> None:
    guard = FakeGuard(SCRIPT)
    a, b = guard.check("damn"), guard.check("damn")
    assert a == b
    assert hash(a) == hash(b)
    data = json.loads(json.dumps(a.to_dict()))
    assert data["severity"] == "controversial"
    assert data["categories"] == ["violent"]
    assert data["stage"] == "prompt"
    assert sum(data["scores"].values()) == pytest.approx(1)
    with pytest.raises(AttributeError):
        a.severity = Severity.safe  # type: ignore[misc]


def test_severities_are_ordered_and_categories_labelled() -> None:
    assert Severity.safe < Severity.controversial < Severity.unsafe
    assert max(Severity) is Severity.unsafe
    assert Category.sexual.label == "Sexual Content or Sexual Acts"
    assert isinstance(Verdict(Severity.safe).to_dict(), dict)


def test_audit_tells_the_truth(tmp_path: Path) -> None:
    records: list[AuditRecord] = []
    guard = FakeGuard(SCRIPT, audit=records.append)
    guard.decide("fine")
    guard.decide("a crash")
    with guard.stream() as stream:
        stream.feed("a bomb here")
        stream.finish()
    assert [(r.judged, r.action, r.surface) for r in records] == [
        (True, "allow", "check"), (False, "block", "check"), (True, "block", "stream"),
    ]  # fmt: skip
    assert records[1].severity is None
    assert "boom" in (records[1].error or "")
    assert all(r.text is None for r in records)
    path = tmp_path / "audit.jsonl"
    FakeGuard(SCRIPT, audit=path, audit_text=True).decide("a bomb")
    line = json.loads(path.read_text())
    assert line["text"] == "a bomb"
    assert line["action"] == "block"
    assert line["characters"] == 6


@pytest.mark.parametrize(
    "bad", [[], [{"content": "x"}], [{"role": "wizard", "content": "x"}], [3], 3, [{"role": "user", "content": 5}]]
)
def test_messages_that_cannot_be_read(bad: object) -> None:
    guard = FakeGuard(SCRIPT)
    with pytest.raises(MessageError):
        guard.check(bad)  # type: ignore[arg-type]
    assert not guard.decide(bad).judged  # type: ignore[arg-type]


def test_unknown_names_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="nano"):
        Guard.load("nanno")
    with pytest.raises(GuardkitError, match="tool_output"):
        FakeGuard().check("x", stage="tool")
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        Guard.load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelLoadError, match="LlamaForCausalLM"):
        Guard.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="JSON"):
        Guard.load(str(tmp_path))
    with pytest.raises((MissingExtra, ModelLoadError), match=r"guardkit|HF_HUB_OFFLINE"):
        Guard.load("Qwen/Qwen3Guard-Gen-4B")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="timeout"):
        FakeGuard(timeout=0)
    with pytest.raises(ValueError, match="on_error"):
        FakeGuard(on_error="ignore")
    with pytest.raises(ValueError, match="holdback"):
        FakeGuard().stream(holdback=-1)


@pytest.mark.parametrize("name", [None, 3, b"nano", ["nano"]])
def test_a_model_is_named_by_a_string_or_a_path(name: object) -> None:
    with pytest.raises(GuardkitError, match="a string or a path"):
        Guard.load(name)  # type: ignore[arg-type]
