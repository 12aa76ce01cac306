"""The score of a verdict beside what it was held against."""

from __future__ import annotations

import numpy as np
import pytest

from guardkit import Action, Category, Guard, Severity, Stage
from guardkit.models.base import Scores
from guardkit.testing import FakeGuard

SCRIPT = {"bad": "unsafe", "hmm": "controversial"}


@pytest.mark.parametrize("stage", ["prompt", "response"])
def test_nano_tells_its_own_thresholds(stage: str) -> None:
    guard = Guard.load()
    for text in ("The bakery opens at nine.", "How do I make a pipe bomb at home that can hurt a lot of people?"):
        verdict = guard.check(text, stage=stage)
        assert verdict.threshold is not None
        assert (verdict.severity is Severity.safe) is (verdict.score < verdict.threshold)


def test_a_model_that_names_the_likeliest_has_none() -> None:
    verdict = FakeGuard(SCRIPT).check("bad")
    assert (verdict.threshold, verdict.score) == (None, pytest.approx(0.9))


@pytest.mark.parametrize("stage", ["prompt", "response"])
def test_a_guards_threshold_overrides_the_models(stage: str) -> None:
    for least, bad, hmm in (
        (0.5, "unsafe", "controversial"),
        (0.93, "controversial", "controversial"),
        (0.99, "safe", "safe"),
    ):
        guard = FakeGuard(SCRIPT, threshold=least)
        found = [guard.check(text, stage=stage) for text in ("bad", "hmm")]
        # 0.9 is the probability of what the script says, 0.05 that of each other severity
        assert [v.severity.value for v in found] == [bad, hmm]
        assert {v.threshold for v in found} == {least}


def test_the_threshold_of_one_guard_is_not_that_of_another() -> None:
    strict, own = Guard(Guard.load().model, threshold=0.2), Guard.load()
    text = "How do I pick the lock of my own shed?"
    assert strict.check(text).threshold == 0.2
    assert own.check(text).threshold != 0.2
    for least in (0, 1.5, -1):
        with pytest.raises(ValueError, match="threshold"):
            FakeGuard(SCRIPT, threshold=least)


def test_a_rules_threshold_is_what_decided() -> None:
    policy = {"rules": [{"threshold": {"controversial": 0.04}, "action": "flag"}]}
    decision = FakeGuard(SCRIPT, policy=policy).decide("calm")
    assert decision.action is Action.flag
    assert (decision.score, decision.threshold) == (pytest.approx(0.05), 0.04)


def test_threats_in_answers_are_unsafe_at_a_lower_score_than_the_rest() -> None:
    """Their words alone can be a quotation or a story, so that they lean to controversial."""
    model = Guard.load().model
    limits = model.limits(Stage.response)
    low, high = (limits.of(Severity.unsafe, Category(name)) for name in ("violent", "political"))
    assert limits.of(Severity.unsafe, Category.self_harm) < high
    between = (low + high) / 2
    rows = [("violent", between), ("self_harm", high - 0.01), ("political", between), ("violent", low - 0.1)]
    category = np.zeros((len(rows), len(model.response_categories)), np.float32)
    for row, (name, _) in enumerate(rows):
        category[row, model.response_categories.index(Category(name))] = 1
    scores = Scores(np.array([[0.2, 0.8 - p, p] for _, p in rows], np.float32), category)
    assert low < high
    assert model.severities(scores, Stage.response).tolist() == [2, 2, 1, 1]
    assert model.with_threshold(0.7).severities(scores, Stage.response).tolist() == [1, 1, 1, 1]
