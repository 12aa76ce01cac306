"""Figures against scikit-learn, on random and on constructed data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit.evaluation.metrics import (
    LEAST,
    Curve,
    Rates,
    average_precision_interval,
    calibration,
    ece,
    rate_intervals,
)

sklearn = pytest.importorskip("sklearn.metrics")

rows = st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=1, max_size=60)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_rates(pairs):
    said, true = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    rates = Rates.of(said, true)
    tn, fp, fn, tp = sklearn.confusion_matrix(true, said, labels=[False, True]).ravel()
    assert (rates.tp, rates.fp, rates.fn, rates.tn) == (tp, fp, fn, tn)
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(
        true, said, labels=[True], average="binary", zero_division=np.nan
    )
    assert rates.f1 == pytest.approx(f1) if true.any() else rates.f1 is None
    assert rates.precision == pytest.approx(precision) if said.any() else rates.precision is None
    assert rates.recall == pytest.approx(recall) if true.any() else rates.recall is None
    assert rates.fpr == pytest.approx(fp / (fp + tn)) if (~true).any() else rates.fpr is None


@given(rows)
@settings(deadline=None)
def test_average_precision_with_many_ties(pairs):
    scores, true = np.array([p[0] / 10 for p in pairs]), np.array([p[1] for p in pairs])
    curve = Curve.of(scores, true)
    if not true.any():
        assert curve.average_precision is None
        return
    assert curve.average_precision == pytest.approx(sklearn.average_precision_score(true, scores))
    precision, recall, _ = sklearn.precision_recall_curve(true, scores)
    expected = set(zip(recall.round(9), precision.round(9), strict=True))
    assert {(round(r, 9), round(p, 9)) for r, p in curve.points()} <= expected


@given(rows, st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.95, 1.0]))
@settings(deadline=None)
def test_false_positives_at_a_recall(pairs, least):
    scores, true = np.array([p[0] / 10 for p in pairs]), np.array([p[1] for p in pairs])
    found = Curve.of(scores, true).fpr_at(least)
    if true.all() or not true.any():
        assert found is None
        return
    fpr, tpr, _ = sklearn.roc_curve(true, scores, drop_intermediate=False)
    assert found == pytest.approx(fpr[np.flatnonzero(tpr >= least - 1e-12)[0]])


def test_constructed_curves():
    perfect = Curve.of(np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False]))
    assert (perfect.average_precision, perfect.fpr_at(0.95)) == (1.0, 0.0)
    useless = Curve.of(np.full(4, 0.5), np.array([True, False, False, False]))
    assert (useless.average_precision, useless.fpr_at(0.8)) == (0.25, 1.0)
    empty = Curve.of(np.zeros(0), np.zeros(0, bool))
    assert (empty.average_precision, empty.fpr_at(0.9), empty.points()) == (None, None, [])


def test_large_curves_are_thinned_and_keep_their_ends():
    rng = np.random.default_rng(1)
    true = rng.random(20_000) < 0.3
    points = Curve.of(rng.random(20_000), true).points(100)
    assert len(points) <= 100
    assert points[-1][0] == 1.0


def test_calibration_against_scikit_learn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(2)
    scores = rng.random(5000)
    true = rng.random(5000) < scores**2
    bins = [b for b in calibration(scores, true, 10) if b is not None]
    share, mean = calibration_curve(true, scores, n_bins=10)
    assert [b.positive for b in bins] == pytest.approx(share)
    assert [b.score for b in bins] == pytest.approx(mean)
    assert ece(bins) == pytest.approx(sum(b.n * abs(s - m) for b, s, m in zip(bins, share, mean, strict=True)) / 5000)


def test_calibration_edges():
    bins = calibration(np.array([0.0, 1.0, 1.0]), np.array([False, True, False]), 5)
    assert [b.n if b else 0 for b in bins] == [1, 0, 0, 0, 2]
    assert ece(bins) == pytest.approx(2 / 3 * 0.5)
    assert ece([None]) is None


def _levels(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 3, n).astype(np.int8)
    return gold, np.where(rng.random(n) < 0.7, gold, rng.integers(0, 3, n)).astype(np.int8)


def test_intervals_depend_on_the_seed_alone():
    gold, said = _levels(300, 3)
    first, again, other = (rate_intervals(gold, said, np.random.default_rng(s), 500) for s in (1, 1, 2))
    assert first == again
    assert first != other
    scores = said / 2
    pair = [average_precision_interval(scores, gold > 0, np.random.default_rng(1), 200) for _ in range(2)]
    assert pair[0] == pair[1]


def test_intervals_equal_those_of_resampled_rows():
    gold, said = _levels(400, 4)
    rng = np.random.default_rng(5)
    found = rate_intervals(gold, said, rng, 4000)
    for mode, least in LEAST.items():
        drawn = []
        for _ in range(4000):
            at = rng.integers(0, 400, 400)
            drawn.append(Rates.of(said[at] >= least, gold[at] >= least).f1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        interval = found[f"{mode}.f1"]
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.01)
        assert interval.low < Rates.of(said >= least, gold >= least).f1 < interval.high


def test_the_interval_of_the_average_precision_equals_resampled_rows():
    rng = np.random.default_rng(6)
    scores = rng.random(300).round(2)
    true = rng.random(300) < scores
    found = average_precision_interval(scores, true, np.random.default_rng(7), 1500)
    drawn = []
    for _ in range(1500):
        at = rng.integers(0, 300, 300)
        drawn.append(sklearn.average_precision_score(true[at], scores[at]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.015)


def test_intervals_of_nothing():
    nothing = np.zeros(0, np.int8)
    assert rate_intervals(nothing, nothing, np.random.default_rng(0), 10) == {}
    safe = np.zeros(5, np.int8)
    assert rate_intervals(safe, safe, np.random.default_rng(0), 10)["strict.recall"] is None
    alarms = rate_intervals(safe, np.array([0, 0, 0, 2, 2], np.int8), np.random.default_rng(0), 10)
    assert (alarms["strict.f1"], alarms["best.f1"]) == (None, None)
    assert alarms["strict.fpr"] is not None
    assert average_precision_interval(np.zeros(5), safe > 0, np.random.default_rng(0), 10) is None
