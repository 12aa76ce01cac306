"""Texts without what the policy stops."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit.testing import FakeGuard

REDACT = {"rules": [{"severity": "unsafe", "action": "redact"}]}
SCRIPT = {"bad": "unsafe", "one. two": "unsafe", "boom": RuntimeError("boom")}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("All is well.", "All is well."),
        ("All is well. This is bad. Bye.", "All is well. [redacted] Bye."),
        ("bad. Well. Bad!", "[redacted] Well. [redacted]"),
        ("Hi. It is one. Two of them. Bye.", "Hi. [redacted] Bye."),  # harm that takes two sentences
        ("Hi. boom.", "[redacted]"),  # not judged
    ],
)
@pytest.mark.parametrize("stage", [None, "document", "response"])
def test_every_sentence_that_is_stopped_is_replaced(text: str, left: str, stage: str | None) -> None:
    guard = FakeGuard(SCRIPT, policy=REDACT)
    found = guard.redact(text, stage=stage)
    if stage == "response" and "one" in text:
        assert not guard.decide(found, stage=stage).action.stops
    else:
        assert found == left


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["Well. ", "bad ", "one. ", "Two ", "\n", "[redacted] "]), max_size=12))
def test_what_is_left_passes(pieces: list[str]) -> None:
    guard = FakeGuard(SCRIPT, policy=REDACT)
    left = guard.redact("".join(pieces))
    assert left == "[redacted]" or not guard.decide(left).action.stops


def test_a_decision_replaces_its_own_place() -> None:
    guard = FakeGuard(SCRIPT, policy=REDACT)
    assert guard.decide("Hi. This is bad. Bye.").redacted("###") == "Hi. ### Bye."
    assert guard.decide("Hi.").redacted() == "Hi."
    assert guard.decide("boom").redacted() == "[redacted]"


def test_redacting_leaves_no_records_of_its_own() -> None:
    records: list[object] = []
    FakeGuard(SCRIPT, policy=REDACT, audit=records.append).redact("Hi. This is bad.")
    assert records == []
