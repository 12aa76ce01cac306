"""Cross-annotation and repair: halves, who labels whom, and what comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st

from guardkit.errors import LabelError
from guardkit.labelling.agreement import cohen
from guardkit.labelling.rows import Item
from guardkit.messages import Message
from guardkit.models.nano import load
from guardkit.models.nano.vectors import vectors
from guardkit.testing import FakeGuard
from guardkit.training.annotators import GuardTeacher, Opinion, asked
from guardkit.training.confusion import Comparison
from guardkit.training.cross import Labelled, balanced, cross_annotate, disputed, repair, trained_teacher
from guardkit.training.halves import halves
from guardkit.training.light import Light
from guardkit.training.logistic import Matrix, fit, probabilities
from guardkit.verdict import Severity

SAFE, CONTROVERSIAL, UNSAFE = Severity.safe, Severity.controversial, Severity.unsafe


def says(severity: Severity) -> list[Opinion]:
    return [Opinion(severity)]


# ------------------------------------------------------------------------------------------------------------ halves


@settings(max_examples=40, deadline=None)
@over(st.lists(st.tuples(st.text(max_size=3), st.sampled_from([None, "g", "h", "i"])), max_size=12), st.randoms())
def test_equal_rows_and_groups_are_on_one_side_in_any_order(rows: list[tuple[str, str | None]], rng: Any) -> None:
    sides = halves([text for text, _ in rows], [group for _, group in rows])
    known: dict[str, int] = {}
    for (text, group), side in zip(rows, sides, strict=True):
        keys = [f"text {' '.join(text.casefold().split())}", *([f"group {group}"] if group else [])]
        assert all(known.setdefault(key, side) == side for key in keys)
    shuffled = list(enumerate(rows))
    rng.shuffle(shuffled)
    again = halves([text for _, (text, _) in shuffled], [group for _, (_, group) in shuffled])
    assert [sides[i] for i, _ in shuffled] == again


def test_halves_are_about_even_and_differ_by_seed() -> None:
    texts = [f"row {i}" for i in range(1000)]
    assert 420 < sum(halves(texts)) < 580
    assert halves(texts) != halves(texts, seed=1)
    answers = [[Message("user", "q"), Message("assistant", text)] for text in texts]
    assert 420 < sum(halves(answers)) < 580


# ------------------------------------------------------------------------------------------------------------- cross


def test_no_row_is_labelled_by_a_model_that_saw_it() -> None:
    texts: list[Item | None] = [f"Row  {i % 40}" if i < 80 else f"row {i}" for i in range(160)]
    labels: list[Severity | None] = [UNSAFE if i % 3 else SAFE for i in range(160)]
    fits = []

    def trainer(items: Sequence[Item], levels: Sequence[Severity], weights: Sequence[float]) -> Any:
        seen = {str(item).casefold().split()[1] for item in items}
        fits.append(len(items))

        def predict(items: Sequence[Item]) -> list[Opinion]:
            assert not seen & {str(item).casefold().split()[1] for item in items}
            return says(SAFE) * len(items)

        return predict

    found = cross_annotate(texts, labels, halves(texts), trainer)
    assert len(fits) == 4
    assert all(label.strict is SAFE and label.loose is SAFE for label in found)


@pytest.mark.parametrize(
    ("strict", "loose", "before", "severity", "source"),
    [
        (SAFE, SAFE, SAFE, SAFE, "given"),
        (SAFE, SAFE, UNSAFE, SAFE, "models"),
        (UNSAFE, UNSAFE, UNSAFE, UNSAFE, "given"),
        (UNSAFE, UNSAFE, SAFE, UNSAFE, "models"),
        (UNSAFE, SAFE, SAFE, CONTROVERSIAL, "disagreement"),
        (UNSAFE, SAFE, UNSAFE, CONTROVERSIAL, "disagreement"),
        (CONTROVERSIAL, CONTROVERSIAL, SAFE, CONTROVERSIAL, "disagreement"),
        (None, SAFE, UNSAFE, UNSAFE, "given"),
    ],
)
def test_agreement_labels_and_disagreement_is_controversial(
    strict: Severity | None, loose: Severity, before: Severity, severity: Severity, source: str
) -> None:
    # Strict models are told from loose ones by what their unsafe rows weigh.
    def trainer(items: Sequence[Item], levels: Sequence[Severity], weights: Sequence[float]) -> Any:
        unsafe = sum(weight for level, weight in zip(levels, weights, strict=True) if level is UNSAFE)
        said = strict if unsafe > sum(weights) / 2 else loose
        opinion = Opinion(said, 1.0, None if said else "out of memory")
        return lambda items: [opinion] * len(items)

    given = [SAFE, UNSAFE, SAFE, UNSAFE, before, before]
    found = cross_annotate([str(i) for i in range(6)], given, [0, 0, 1, 1, 0, 1], trainer)
    for label in found[4:]:
        assert (label.severity, label.source) == (severity, source)
        assert label.error == (None if strict else "out of memory")
    kept = cross_annotate([str(i) for i in range(6)], given, [0, 0, 1, 1, 0, 1], trainer, keep_given=True)
    assert kept[4].severity is (CONTROVERSIAL if source == "disagreement" else before)


def test_given_controversial_rows_are_unsafe_to_strict_models_and_safe_to_loose_ones() -> None:
    seen = []

    def trainer(items: Sequence[Item], levels: Sequence[Severity], weights: Sequence[float]) -> Any:
        by = Counter[Severity]()
        for level, weight in zip(levels, weights, strict=True):
            by[level] += weight  # type: ignore[assignment]
        seen.append((levels[2], by[UNSAFE] / by[SAFE]))
        return lambda items: says(SAFE) * len(items)

    given = [SAFE, UNSAFE, CONTROVERSIAL] * 2
    cross_annotate([str(i) for i in range(6)], given, [0, 0, 0, 1, 1, 1], trainer, weight=3.0)
    assert [level for level, _ in seen] == [UNSAFE, SAFE] * 2
    assert [ratio for _, ratio in seen] == pytest.approx([3, 1 / 3] * 2)


def test_rows_without_a_label_or_text_stay_as_they_are_and_empty_halves_are_an_error() -> None:
    def trainer(items: Sequence[Item], *_: Any) -> Any:
        assert "none" not in items
        return lambda items: says(SAFE) * len(items)

    items: list[Item | None] = ["a", "b", "none", None, "c", "d"]
    given = [SAFE, UNSAFE, None, UNSAFE, SAFE, UNSAFE]
    found = cross_annotate(items, given, [0, 0, 0, 0, 1, 1], trainer)
    assert found[2] == Labelled(None)
    assert found[3] == Labelled(UNSAFE, "given")
    with pytest.raises(LabelError, match="half 2 of the rows has 1 rows and no unsafe ones"):
        cross_annotate(items[:5], given[:5], [0, 0, 0, 0, 1], trainer)
    with pytest.raises(LabelError, match="at least 1"):
        cross_annotate(items, given, [0, 0, 0, 0, 1, 1], trainer, weight=0.5)


def test_planted_borderline_rows_are_found_better_than_chance(planted: list[dict[str, Any]]) -> None:
    texts = [row["text"] for row in planted]
    given = [Severity(row["severity"]) for row in planted]
    found = cross_annotate(texts, given, halves(texts), Light(vectors=False), weight=3.0)
    called = [row["true"] for row, label in zip(planted, found, strict=True) if label.severity is CONTROVERSIAL]
    border = sum(row["true"] == "border" for row in planted)
    assert called.count("border") / len(called) > 2 * border / len(planted)
    assert called.count("border") > border / 4


# ------------------------------------------------------------------------------------------------------------ repair


def test_a_teacher_repairs_planted_flips(planted: list[dict[str, Any]]) -> None:
    rows = [row for row in planted if row["true"] != "border"]
    true = [Severity(row["true"]) for row in rows]
    flipped = set(range(0, len(rows), 12))
    given = [(SAFE if t is UNSAFE else UNSAFE) if i in flipped else t for i, t in enumerate(true)]
    texts: list[Item | None] = [row["text"] for row in rows]
    labelled = cross_annotate(texts, given, halves(texts), Light(vectors=False))
    wanted = disputed(labelled, given)
    assert flipped <= set(wanted)
    guard = FakeGuard(dict.fromkeys(("attack", "poison", "threat", "weapon"), "unsafe"))
    opinions = [o for some in asked(GuardTeacher.of([guard]), [str(texts[i]) for i in wanted]) for o in some]
    repaired = repair(labelled, given, dict(zip(wanted, opinions, strict=True)))
    assert [label.severity for label in repaired] == true
    assert all(repaired[i].teacher is true[i] for i in flipped)

    # A trainer as the teacher, on other halves, asked about all rows.
    every = range(len(rows))
    own = trained_teacher(texts, given, halves(texts, seed=1), Light(vectors=False), every)
    again = repair([Labelled(label, "given") for label in given], given, own, confidence=0.6)
    wrong = sum(label.severity is not t for label, t in zip(again, true, strict=True))
    assert wrong < len(flipped) / 3


def test_a_teacher_that_is_unsure_or_fails_changes_nothing() -> None:
    labelled = [Labelled(CONTROVERSIAL, "disagreement", UNSAFE, SAFE), Labelled(UNSAFE, "models", UNSAFE, UNSAFE)] * 2
    given = [SAFE] * 4
    opinions = {0: Opinion(UNSAFE, 0.6), 1: Opinion(None, 0.0, "timeout"), 3: Opinion(SAFE, 0.9)}
    found = repair(labelled, given, opinions, confidence=0.7)
    assert (found[0].severity, found[0].source, found[0].teacher) == (CONTROVERSIAL, "disagreement", UNSAFE)
    assert (found[1].severity, found[1].source, found[1].error) == (SAFE, "given", "teacher: timeout")
    assert found[2] == labelled[2]
    assert (found[3].severity, found[3].source) == (SAFE, "given")


def test_guards_vote_and_faults_of_annotators_are_no_labels() -> None:
    guards = [
        FakeGuard({"x": "unsafe"}),
        FakeGuard({"x": "unsafe", "y": "unsafe"}),
        FakeGuard({"b": RuntimeError("no")}),
    ]
    teacher = GuardTeacher.of(guards, ["one", "two", "three"])
    found = teacher(["x", "y", "b", [Message("user", "x"), Message("assistant", "fine")]])
    assert [o.severity for o in found] == [UNSAFE, SAFE, None, SAFE]
    assert "three" in str(found[2].error)

    def broken(items: Sequence[Item]) -> list[Opinion]:
        raise ConnectionError("refused")

    assert [o.error for some in asked(broken, ["a", "b"]) for o in some] == ["refused"] * 2
    assert [o.severity for some in asked(lambda items: says(SAFE), ["a", "b"]) for o in some] == [None] * 2
    odd = [Opinion(SAFE, float("nan")), Opinion(None)]
    assert [o.severity for some in asked(lambda items: odd, ["a", "b"]) for o in some] == [None] * 2


# ----------------------------------------------------------------------------------------------- agreement, classifier


def test_kappa_equals_the_hand_computation() -> None:
    # 50 rows: 20 both safe, 15 both unsafe, 5 and 10 split. Agreed 0.7; by chance .5*.6 + .5*.4 = 0.5: kappa 0.4.
    table = Counter({("safe", "safe"): 20, ("unsafe", "unsafe"): 15, ("safe", "unsafe"): 5, ("unsafe", "safe"): 10})
    assert cohen(table) == pytest.approx((0.7, 0.4))
    assert cohen({("safe", "safe"): 3}) == (1.0, None)
    found = Comparison()
    for (one, other), n in table.items():
        for _ in range(n):
            found.add({"lang": one}, Severity(one), Labelled(Severity(other), "models"))
    found.add({"lang": "safe"}, None, Labelled(None, error="broken"))
    data = found.to_dict()
    assert data["given and final"]["kappa"] == pytest.approx(0.4)
    assert data["given and final"]["confusion"]["unsafe"] == {"safe": 10, "controversial": 0, "unsafe": 15}
    assert data["by"]["lang"]["safe"]["given and final"]["agree"] == pytest.approx(0.8)
    assert data["not_judged"] == 1
    assert "Cohen&#x27;s kappa 0.40" in found.html(["x"]) or "Cohen's kappa 0.40" in found.html(["x"])


def test_weights_balance_the_classes() -> None:
    weights = balanced([UNSAFE, SAFE, SAFE, SAFE], 4.0)
    assert weights[0] == pytest.approx(4 * sum(weights[1:]))
    assert sum(weights) == pytest.approx(4)


def test_the_regression_is_at_its_optimum_and_weights_count_as_repeats() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(60, 3))
    hashed = [np.unique(rng.integers(0, 16, 5)) for _ in range(60)]
    y = ((dense[:, 0] + rng.normal(size=60)) > 0).astype(np.int64)
    weight = rng.integers(1, 4, 60)
    one = fit(Matrix.of(dense, hashed, 16), y, weight.astype(float), 2, 1e-2)
    at = np.repeat(np.arange(60), weight)
    other = fit(Matrix.of(dense[at], [hashed[i] for i in at], 16), y[at], np.ones(len(at)), 2, 1e-2)
    x = Matrix.of(dense, hashed, 16)
    p = probabilities(x, one)
    assert np.allclose(p, probabilities(x, other), atol=1e-3)
    # The bias is free: weighted residuals sum to zero.
    assert abs(((p[:, 1] - y) * weight).sum()) < 1e-2 * weight.sum()
    assert (p.argmax(1) == y).mean() > 0.6


def test_nano_gives_vectors_that_do_not_depend_on_the_batch() -> None:
    texts = ["bread", "", "how do I kill a process", "word " * 900, "日本語のテキスト"]
    nano = load()
    found = vectors(nano, texts)
    assert found.shape[0] == 5
    assert np.array_equal(found, np.concatenate([vectors(nano, [text]) for text in texts]))
    assert vectors(nano, []).shape == (0, 0)
    trained = Light()(["bread and jam", "a bomb", "butter", "a gun"], [SAFE, UNSAFE] * 2, [1.0] * 4)
    assert [o.severity for o in trained(["bread", [Message("user", "x"), Message("assistant", "a bomb")]])] == [
        SAFE,
        UNSAFE,
    ]
