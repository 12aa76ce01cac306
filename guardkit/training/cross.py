"""Cross-annotation and label repair, as the report on Qwen3Guard describes them (arXiv 2510.14276, 3.3).

Two halves. On each a strict and a loose model are trained, by re-weighting safe against unsafe rows, and both label the
other half: where they agree that is the label, where they do not the row is controversial. Then a stronger teacher is
asked about labels that differ from the given ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from guardkit.errors import LabelError
from guardkit.labelling.rows import Item
from guardkit.training.annotators import Opinion, Trainer, asked
from guardkit.verdict import Severity

WEIGHT = 2.0
Step = Callable[[str, Sequence[int], Callable[[], Sequence[Opinion]]], Mapping[int, Opinion]]
"""Runs a step of the work: its name, the rows that it labels, and what makes their opinions. A step that was done
before may be taken from where it was kept."""


@dataclass(frozen=True)
class Labelled:
    """A row's label. severity: None where it has none. source: "given" (the models agree with the given label, or it
    was kept), "models" (both say otherwise), "disagreement", "teacher", or "" where there is no label. strict, loose,
    teacher: what each said. error: why one of them did not judge; the label is then the given one."""

    severity: Severity | None
    source: str = ""
    strict: Severity | None = None
    loose: Severity | None = None
    teacher: Severity | None = None
    error: str | None = None


def at_once(name: str, rows: Sequence[int], make: Callable[[], Sequence[Opinion]]) -> Mapping[int, Opinion]:
    """A `Step` that keeps nothing."""
    return dict(zip(rows, make(), strict=True))


def cross_annotate(
    items: Sequence[Item | None],
    given: Sequence[Severity | None],
    sides: Sequence[int],
    trainer: Trainer,
    *,
    weight: float = WEIGHT,
    keep_given: bool = False,
    step: Step = at_once,
) -> list[Labelled]:
    """The label of each row by the models of the other half.

    given: labels, None where a row has none; it is then neither trained on nor labelled. A given "controversial" counts
    as unsafe for strict models and as safe for loose ones. weight: of all unsafe rows together against all safe ones
    for the strict models, the inverse for the loose ones. keep_given: rows whose label both models contradict keep it.
    Raises `LabelError` where a half has no safe or no unsafe rows.
    """
    if weight < 1:
        raise LabelError(f"the weight is at least 1, not {weight:g}")
    usable = [i for i, (item, label) in enumerate(zip(items, given, strict=True)) if item is not None and label]
    said: dict[str, dict[int, Opinion]] = {"strict": {}, "loose": {}}
    for side in (0, 1):
        own = [i for i in usable if sides[i] == side]
        others = [i for i in usable if sides[i] != side]
        if not others:
            continue
        for kind, ratio in (("strict", weight), ("loose", 1 / weight)):
            levels = [_binary(given[i], kind) for i in own]
            if len(set(levels)) < 2:
                raise LabelError(
                    f"half {side + 1} of the rows has {len(own):,} rows and no {'un' * (Severity.safe in levels)}safe "
                    f"ones for its {kind} model: give more rows, another seed or other groups"
                )
            make = _Making(trainer, items, own, others, levels, balanced(levels, ratio))
            said[kind] |= step(f"{kind}-{side + 1}", others, make)
    return [_label(label, said["strict"].get(i), said["loose"].get(i), keep_given) for i, label in enumerate(given)]


@dataclass(frozen=True)
class _Making:
    """Trains on `own` rows, gives the opinions of the others."""

    trainer: Trainer
    items: Sequence[Item | None]
    own: Sequence[int]
    others: Sequence[int]
    levels: Sequence[Severity]
    weights: Sequence[float]

    def __call__(self) -> list[Opinion]:
        predict = self.trainer(_present(self.items, self.own), self.levels, self.weights)
        return [opinion for some in asked(predict, _present(self.items, self.others)) for opinion in some]


def _present(items: Sequence[Item | None], rows: Sequence[int]) -> list[Item]:
    return [item for i in rows if (item := items[i]) is not None]


def _binary(label: Severity | None, kind: str) -> Severity:
    is_bad = label is Severity.unsafe or (label is Severity.controversial and kind == "strict")
    return Severity.unsafe if is_bad else Severity.safe


def balanced(levels: Sequence[Severity], ratio: float) -> list[float]:
    """Weights of mean 1 by which all unsafe rows together weigh `ratio` times what all others do."""
    n = len(levels)
    bad = sum(level is Severity.unsafe for level in levels)
    one, other = ratio / (1 + ratio) * n / max(bad, 1), 1 / (1 + ratio) * n / max(n - bad, 1)
    return [one if level is Severity.unsafe else other for level in levels]


def _label(given: Severity | None, strict: Opinion | None, loose: Opinion | None, keep_given: bool) -> Labelled:
    if strict is None or loose is None:
        return Labelled(given, "given" if given else "")
    error = strict.error or loose.error
    if strict.severity is None or loose.severity is None:
        return Labelled(given, "given", strict.severity, loose.severity, error=error)
    bad = strict.severity is not Severity.safe, loose.severity is Severity.unsafe
    if bad[0] != bad[1]:
        return Labelled(Severity.controversial, "disagreement", strict.severity, loose.severity)
    agreed = Severity.unsafe if bad[0] else Severity.safe
    if agreed is given or keep_given:
        return Labelled(given, "given", strict.severity, loose.severity)
    return Labelled(agreed, "models", strict.severity, loose.severity)


def disputed(labelled: Sequence[Labelled], given: Sequence[Severity | None]) -> list[int]:
    """Rows whose models do not say what the given label says: what a teacher is asked about."""
    found = []
    for i, (label, before) in enumerate(zip(labelled, given, strict=True)):
        if before is None or label.strict is None or label.loose is None:
            continue
        bad = label.strict is not Severity.safe, label.loose is Severity.unsafe
        agreed = Severity.controversial if bad[0] != bad[1] else Severity.unsafe if bad[0] else Severity.safe
        if agreed is not before:
            found.append(i)
    return found


def repair(
    labelled: Sequence[Labelled],
    given: Sequence[Severity | None],
    opinions: Mapping[int, Opinion],
    *,
    confidence: float = 0.0,
) -> list[Labelled]:
    """The labels with a teacher's in place of them where it was asked and is at least so confident. Where it could not
    judge, the given label stays, and the error says so."""
    found = list(labelled)
    for i, opinion in opinions.items():
        if opinion.severity is None:
            found[i] = replace(found[i], severity=given[i], source="given", error=f"teacher: {opinion.error}")
        elif opinion.confidence < confidence or opinion.severity is found[i].severity:
            found[i] = replace(found[i], teacher=opinion.severity)
        else:
            source = "given" if opinion.severity is given[i] else "teacher"
            found[i] = replace(found[i], severity=opinion.severity, source=source, teacher=opinion.severity)
    return found


def trained_teacher(
    items: Sequence[Item | None], labels: Sequence[Severity | None], sides: Sequence[int], trainer: Trainer,
    wanted: Sequence[int], *, step: Step = at_once,
) -> dict[int, Opinion]:  # fmt: skip
    """A trainer as the teacher: on each half a model of all three levels, for the wanted rows of the other half."""
    found: dict[int, Opinion] = {}
    for side in (0, 1):
        own = [i for i, label in enumerate(labels) if label and items[i] is not None and sides[i] == side]
        others = [i for i in wanted if sides[i] != side]
        if others:
            levels = [label for i in own if (label := labels[i])]
            if len(set(levels)) < 2:
                raise LabelError(f"half {side + 1} has rows of one severity only: no teacher can be trained on it")
            make = _Making(trainer, items, own, others, levels, [1.0] * len(own))
            found |= step(f"teacher-{side + 1}", others, make)
    return found
