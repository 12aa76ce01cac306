"""Two models: the small one settles the clear cases, the other one the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from guardkit import Guard, Message, NotJudged, Severity
from guardkit.models.base import Query, QueryScores, Session
from guardkit.testing import FakeModel


class Unsure(FakeModel):
    """Gives the probability of "unsafe" that stands in the text; a text without a number is an error."""

    name = "small"

    def query(self, queries: Sequence[Query]) -> list[list[QueryScores]]:
        self.called()
        found = []
        for query in queries:
            p = float(query.text.split()[-1])
            scores = self.scores([0], 9)
            severity = np.array([[1 - p, 0.0, p]], np.float32)
            found.append([QueryScores(type(scores)(severity, scores.category))])
        return found

    def open(self, context: Sequence[Message]) -> Session:
        return super().open(context)


class Large(FakeModel):
    name = "large"


@pytest.fixture
def guard() -> Guard:
    return Guard(Unsure({}), then=Large({"harm": "unsafe"}), when=(0.2, 0.8))


def test_the_second_model_judges_what_the_first_is_unsure_of(guard: Guard) -> None:
    texts = ["harm 0.1", "harm 0.3", "fine 0.7", "fine 0.9", "harm 0.5"]
    verdicts = guard.check_batch(texts)
    assert [v.model for v in verdicts] == ["small", "large", "large", "small", "large"]
    assert [v.severity for v in verdicts] == [
        Severity.safe, Severity.unsafe, Severity.safe, Severity.unsafe, Severity.unsafe,
    ]  # fmt: skip
    assert verdicts == [guard.check(text) for text in texts]


def test_clear_cases_cost_the_second_model_nothing(guard: Guard) -> None:
    guard.check_batch(["a 0.01", "b 0.99"])
    assert guard.then is not None
    assert guard.then.calls == 0  # type: ignore[attr-defined]


def test_the_second_model_judges_where_the_first_fails(guard: Guard) -> None:
    verdict = guard.check("harm without a number")
    assert (verdict.model, verdict.severity) == ("large", Severity.unsafe)


def test_where_both_fail_nothing_is_judged() -> None:
    guard = Guard(Unsure({}), then=Large({"harm": RuntimeError("down")}), when=(0.2, 0.8))
    with pytest.raises(NotJudged, match="down"):
        guard.check("harm 0.5")
    assert not guard.decide("harm 0.5").judged
    assert guard.decide("harm 0.5").action.value == "block"


def test_a_band_must_be_two_probabilities() -> None:
    for when in ((0.8, 0.2), (-0.1, 0.5), (0.5, 1.5)):
        with pytest.raises(ValueError, match="probabilities"):
            Guard(Large({}), then=Large({}), when=when)
