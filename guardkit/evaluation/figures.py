"""All figures of one model on one data set, computed from the columns; as plain data for reports."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from guardkit.evaluation.columns import Columns, Frame, Mistake
from guardkit.evaluation.locations import Located, Stops
from guardkit.evaluation.metrics import (
    LEAST,
    MODES,
    RECALLS,
    Bools,
    CalibrationBin,
    Curve,
    Interval,
    Rates,
    average_precision_interval,
    calibration,
    ece,
    rate_intervals,
)
from guardkit.evaluation.rows import NO_LABEL, Vocabulary
from guardkit.verdict import SEVERITIES

RESAMPLES = 1000
HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class ModeFigures:
    """Figures of strict or loose mode. fpr_at: by recall. curve: (recall, precision). histogram: rows by score, from
    0 to 1 in equal bins, of safe and of unsafe rows. intervals: of f1, precision, recall, fpr, average_precision."""

    rates: Rates
    average_precision: float | None
    fpr_at: dict[str, float | None]
    ece: float | None
    calibration: list[CalibrationBin | None]
    curve: list[tuple[float, float]]
    histogram: tuple[list[int], list[int]]
    intervals: dict[str, Interval | None]


@dataclass(frozen=True)
class LanguageFigures:
    language: str
    n: int
    strict: Rates
    loose: Rates

    @property
    def best(self) -> Rates:
        return self.strict if (self.strict.f1 or 0.0) >= (self.loose.f1 or 0.0) else self.loose


@dataclass(frozen=True)
class CategoryFigures:
    """n: unsafe rows labelled with the category; flagged, flagged_loose: the share of them that was flagged; named:
    how well the category itself was named, over all rows that carry a category label or were flagged."""

    category: str
    n: int
    flagged: float | None
    flagged_loose: float | None
    named: Rates


@dataclass(frozen=True)
class RefusalFigures:
    """n_not_judged: rows with a label for which the model says nothing about refusal; they are not in `rates`."""

    rates: Rates
    n_not_judged: int


@dataclass(frozen=True)
class SetFigures:
    """One model on one data set. spec: the name of the data set that this is, None for a file of a user's own.
    n_left_out: records that the set's definition leaves out; they are not in n_rows. confusion: rows by
    [label][verdict], in the order of `SEVERITIES`."""

    model: str
    dataset: str
    spec: str | None
    title: str
    metric: str
    licence: str
    revision: str
    model_revision: str
    n_rows: int
    n_judged: int
    n_not_judged: int
    n_unread: int
    n_unlabelled: int
    n_left_out: int
    errors: dict[str, int]
    seconds: float
    n_cached: int
    strict: ModeFigures | None = None
    loose: ModeFigures | None = None
    best_f1: float | None = None
    best_mode: str | None = None
    best_interval: Interval | None = None
    confusion: list[list[int]] = field(default_factory=list)
    languages: list[LanguageFigures] = field(default_factory=list)
    categories: list[CategoryFigures] = field(default_factory=list)
    refusal: RefusalFigures | None = None
    stops: dict[str, Stops] = field(default_factory=dict)
    n_without_location: int = 0
    false_alarms: list[Mistake] = field(default_factory=list)
    misses: list[Mistake] = field(default_factory=list)

    def mode(self, name: str) -> ModeFigures | None:
        return self.strict if name == "strict" else self.loose

    def to_dict(self, *, with_text: bool = False) -> dict[str, Any]:
        """JSON-ready; the texts of mistakes only on request."""
        out = {k: v for k, v in vars(self).items() if k not in ("false_alarms", "misses")}
        for name in MODES:
            found = self.mode(name)
            out[name] = None if found is None else {**asdict(found), "rates": found.rates.to_dict()}
        out["best_interval"] = self.best_interval and asdict(self.best_interval)
        out["languages"] = [
            {"language": f.language, "n": f.n, "strict": f.strict.to_dict(), "loose": f.loose.to_dict()}
            for f in self.languages
        ]
        out["categories"] = [{**asdict(f), "named": f.named.to_dict()} for f in self.categories]
        out["refusal"] = self.refusal and {**self.refusal.rates.to_dict(), "n_not_judged": self.refusal.n_not_judged}
        out["stops"] = {mode: asdict(s) for mode, s in self.stops.items()}
        for name, mistakes in (("false_alarms", self.false_alarms), ("misses", self.misses)):
            out[name] = [
                {
                    "row": -m.number,
                    "label": SEVERITIES[m.gold].value,
                    "verdict": SEVERITIES[m.said].value,
                    "how_wrong": m.how_wrong,
                    "language": m.language,
                }
                | ({"text": m.text} if with_text else {})
                for m in mistakes
            ]
        return out


def compute(
    about: Mapping[str, Any], columns: Columns, located: Located | None, *, seed: int = 0, resamples: int = RESAMPLES
) -> SetFigures:
    """Every figure. about: the fields of `SetFigures` that say what was judged. Depends on rows and seed alone."""
    everything = columns.frame()
    frame = everything.where(everything.gold != NO_LABEL)
    counts = {
        "n_rows": columns.n_rows,
        "n_judged": len(everything.gold),
        "n_not_judged": columns.n_not_judged,
        "n_unread": columns.n_unread,
        "n_unlabelled": columns.n_unlabelled,
        "n_left_out": columns.n_left_out,
        "errors": dict(columns.errors),
    }
    found: dict[str, Any] = {"refusal": _refusal(everything)}
    if len(frame.gold):
        rng = np.random.default_rng([seed, zlib.crc32(str(about["dataset"]).encode())])
        intervals = rate_intervals(frame.gold, frame.said, rng, resamples)
        strict, loose = (_mode(frame, mode, intervals, rng, resamples) for mode in MODES)
        best = max((("strict", strict), ("loose", loose)), key=lambda m: m[1].rates.f1 or 0.0)
        confusion = np.bincount(frame.gold.astype(np.int64) * 3 + frame.said, minlength=9).reshape(3, 3).tolist()
        found |= {
            "strict": strict,
            "loose": loose,
            "best_f1": best[1].rates.f1,
            "best_mode": best[0],
            "best_interval": intervals.get("best.f1"),
            "confusion": confusion,
            "languages": _languages(frame, columns.languages),
            "categories": _categories(frame, columns.vocabulary),
            "false_alarms": columns.false_alarms,
            "misses": columns.misses,
        }
    if located is not None:
        found |= {"stops": {mode: located.figures(mode) for mode in MODES}, "n_without_location": located.n_without}
    return SetFigures(**{**about, **counts, **found})


def _positive(frame: Frame, mode: str) -> tuple[Bools, Bools]:
    return frame.said >= LEAST[mode], frame.gold >= LEAST[mode]


def _mode(
    frame: Frame, mode: str, intervals: Mapping[str, Interval | None], rng: np.random.Generator, resamples: int
) -> ModeFigures:
    said, true = _positive(frame, mode)
    scores = frame.scores(mode)
    curve, bins = Curve.of(scores, true), calibration(scores, true)
    own = {name.partition(".")[2]: v for name, v in intervals.items() if name.startswith(f"{mode}.")}
    own["average_precision"] = average_precision_interval(scores, true, rng, resamples)
    where = np.minimum((scores * HISTOGRAM_BINS).astype(np.int64), HISTOGRAM_BINS - 1)
    counted = [np.bincount(where[side], minlength=HISTOGRAM_BINS).tolist() for side in (~true, true)]
    return ModeFigures(
        rates=Rates.of(said, true),
        average_precision=curve.average_precision,
        fpr_at={f"{recall:g}": curve.fpr_at(recall) for recall in RECALLS},
        ece=ece(bins),
        calibration=bins,
        curve=curve.points(),
        histogram=(counted[0], counted[1]),
        intervals=own,
    )


def _languages(frame: Frame, languages: Mapping[str, int]) -> list[LanguageFigures]:
    """By language, most rows first; empty where there is only one."""
    out = []
    for name, code in languages.items():
        part = frame.where(frame.language == code)
        if len(part.gold):
            strict, loose = (Rates.of(*_positive(part, mode)) for mode in MODES)
            out.append(LanguageFigures(name, len(part.gold), strict, loose))
    return sorted(out, key=lambda f: (-f.n, f.language)) if len(out) > 1 else []


def _categories(frame: Frame, vocabulary: Vocabulary) -> list[CategoryFigures]:
    if not frame.gold_categories.any():
        return []
    said = np.where(frame.said > 0, frame.said_categories, 0)
    counts = (frame.gold_categories > 0) | (frame.said > 0)
    out = []
    for i, category in enumerate(vocabulary.categories):
        has, names = (frame.gold_categories >> i & 1).astype(bool), (said >> i & 1).astype(bool)
        rows = has & (frame.gold > 0)
        if not rows.any() and not (names & counts).any():
            continue
        levels = frame.said[rows]
        n = int(rows.sum())
        shares = [float((levels >= LEAST[mode]).mean()) if n else None for mode in MODES]
        named = Rates.of(names[counts], has[counts])
        out.append(CategoryFigures(category.value, n, shares[0], shares[1], named))
    return sorted(out, key=lambda f: -f.n)


def _refusal(frame: Frame) -> RefusalFigures | None:
    labelled = frame.gold_refusal != NO_LABEL
    if not labelled.any():
        return None
    judged = labelled & (frame.said_refusal >= 0)
    rates = Rates.of(frame.said_refusal[judged] == 1, frame.gold_refusal[judged] == 1)
    return RefusalFigures(rates, int(labelled.sum() - judged.sum()))
