"""Figures from labels and verdicts, as NumPy arrays. What is undefined (no positives, no negatives) is None.

Levels are indexes into `SEVERITIES`. *Strict* counts controversial as positive, *loose* as negative, in labels and in
verdicts alike. The score is the probability of being positive: 1 - p(safe) in strict mode, p(unsafe) in loose mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Levels = NDArray[np.int8]

MODES = ("strict", "loose")
LEAST = {"strict": 1, "loose": 2}
"""The least level that is positive in a mode."""

ECE_BINS = 15
RECALLS = (0.8, 0.9, 0.95)
_AP_WORK = 20_000_000  # rows x resamples that the interval of the average precision may cost


@dataclass(frozen=True)
class Rates:
    """A binary confusion and what follows from it."""

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, said: Bools, true: Bools) -> Rates:
        tp, n_said, n_true = int((said & true).sum()), int(said.sum()), int(true.sum())
        return cls(tp, n_said - tp, n_true - tp, len(said) - n_said - n_true + tp)

    @property
    def precision(self) -> float | None:
        return _part(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return _part(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float | None:
        # Without positives it would be 0 after one false alarm, and undefined after none.
        return _part(2 * self.tp, 2 * self.tp + self.fp + self.fn) if self.tp + self.fn else None

    @property
    def fpr(self) -> float | None:
        return _part(self.fp, self.fp + self.tn)

    def to_dict(self) -> dict[str, float | int | None]:
        counts: dict[str, float | int | None] = {"tp": self.tp, "fp": self.fp, "fn": self.fn, "tn": self.tn}
        return counts | {"precision": self.precision, "recall": self.recall, "f1": self.f1, "fpr": self.fpr}


def _part(a: int, b: int) -> float | None:
    return a / b if b else None


# ------------------------------------------------------------------------------------------------------- thresholds


@dataclass(frozen=True)
class Curve:
    """Counts of positives and negatives at or above each distinct score, highest score first."""

    thresholds: Array
    tp: Array
    fp: Array

    @classmethod
    def of(cls, scores: Array, true: Bools) -> Curve:
        order = np.argsort(-scores, kind="stable")
        ranked, hits = scores[order], true[order]
        last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1) if len(ranked) else np.zeros(0, np.int64)
        tp = np.cumsum(hits, dtype=np.float64)[last]
        return cls(ranked[last], tp, last + 1.0 - tp)

    @property
    def positives(self) -> float:
        return float(self.tp[-1]) if len(self.tp) else 0.0

    @property
    def negatives(self) -> float:
        return float(self.fp[-1]) if len(self.fp) else 0.0

    @property
    def average_precision(self) -> float | None:
        """The area under the precision-recall curve, as steps: sum of (recall step x precision)."""
        if not self.positives:
            return None
        return _average_precision(self.tp, self.fp)

    def fpr_at(self, recall: float) -> float | None:
        """The false-positive rate at the highest threshold that reaches `recall`."""
        if not self.positives or not self.negatives:
            return None
        at = int(np.searchsorted(self.tp, recall * self.positives - 1e-9))
        return float(self.fp[at] / self.negatives)

    def points(self, most: int = 200) -> list[tuple[float, float]]:
        """(recall, precision) along the curve, thinned to at most about `most` points."""
        if not self.positives:
            return []
        keep = np.unique(np.linspace(0, len(self.tp) - 1, min(most, len(self.tp))).astype(np.int64))
        tp, fp = self.tp[keep], self.fp[keep]
        return [(float(r), float(p)) for r, p in zip(tp / self.positives, tp / (tp + fp), strict=True)]


def _average_precision(tp: Array, fp: Array) -> float:
    with np.errstate(invalid="ignore"):
        precision = np.where(tp + fp > 0, tp / (tp + fp), 0.0)
    return float(np.sum(np.diff(tp, prepend=0.0) * precision) / tp[-1])


# ------------------------------------------------------------------------------------------------------ calibration


@dataclass(frozen=True)
class CalibrationBin:
    """Rows whose score lies in one of equally wide bins: how many, their mean score, their share of positives."""

    n: int
    score: float
    positive: float


def calibration(scores: Array, true: Bools, bins: int = ECE_BINS) -> list[CalibrationBin | None]:
    """The bins, from low scores to high; None where no row falls. A score of 1 belongs to the last bin."""
    where = np.minimum((scores * bins).astype(np.int64), bins - 1)
    n = np.bincount(where, minlength=bins)
    score, hits = np.bincount(where, scores, bins), np.bincount(where, true, bins)
    return [
        CalibrationBin(int(n[i]), float(score[i] / n[i]), float(hits[i] / n[i])) if n[i] else None for i in range(bins)
    ]


def ece(found: Sequence[CalibrationBin | None]) -> float | None:
    """Expected calibration error: the mean distance of score and share of positives, weighted by rows."""
    full = [b for b in found if b is not None]
    total = sum(b.n for b in full)
    return sum(b.n * abs(b.score - b.positive) for b in full) / total if total else None


# -------------------------------------------------------------------------------------------------------- bootstrap


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval."""

    low: float
    high: float


def rate_intervals(
    gold: Levels, said: Levels, rng: np.random.Generator, resamples: int, confidence: float = 0.95
) -> dict[str, Interval | None]:
    """Intervals of "strict.f1", "loose.precision" and so on, and of "best.f1".

    Rows with equal (label, verdict) are exchangeable, so drawing the nine counts from a multinomial is the same as
    drawing rows with replacement, at a cost that does not depend on the number of rows.
    """
    n = len(gold)
    out: dict[str, Interval | None] = {}
    if not n or not resamples:
        return out
    cells = np.bincount(gold.astype(np.int64) * 3 + said, minlength=9)
    drawn = rng.multinomial(n, cells / n, size=resamples).reshape(-1, 3, 3).astype(np.float64)
    f1s = []
    for mode, least in LEAST.items():
        tp, fp = drawn[:, least:, least:].sum((1, 2)), drawn[:, :least, least:].sum((1, 2))
        fn, tn = drawn[:, least:, :least].sum((1, 2)), drawn[:, :least, :least].sum((1, 2))
        with np.errstate(invalid="ignore"):
            values = {
                "f1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
                "precision": tp / (tp + fp),
                "recall": tp / (tp + fn),
                "fpr": fp / (fp + tn),
            }
        f1s.append(values["f1"])
        out |= {f"{mode}.{name}": _interval(v, confidence) for name, v in values.items()}
    out["best.f1"] = _interval(np.fmax(*f1s), confidence)
    return out


def average_precision_interval(
    scores: Array, true: Bools, rng: np.random.Generator, resamples: int, confidence: float = 0.95
) -> Interval | None:
    """The interval of the average precision. Fewer resamples (at least 100) above 20,000 rows."""
    n = len(scores)
    if not n or not true.any() or not resamples:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], true[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), n - 1)
    found = []
    for _ in range(min(resamples, max(100, _AP_WORK // n))):
        weights = np.bincount(rng.integers(0, n, n), minlength=n)
        tp, total = np.cumsum(weights * hits, dtype=np.float64)[last], np.cumsum(weights, dtype=np.float64)[last]
        if tp[-1]:
            found.append(_average_precision(tp, total - tp))
    return _interval(np.asarray(found), confidence)


def _interval(values: Array, confidence: float) -> Interval | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
