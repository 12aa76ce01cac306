"""On what do people split? A third model beside cross-annotation's strict and loose ones.

Where these two disagree, they are unsure of a row: because people split on its like, or because they learned too
little. A model that learns which rows' labels are contradicted by models of other rows tells the first from the second:
of what people split on, labels are contradicted half of the time, however well it is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from guardkit.errors import LabelError
from guardkit.labelling.rows import Item
from guardkit.training.annotators import Opinion, Trainer, asked
from guardkit.training.cross import Labelled, Step, at_once, balanced
from guardkit.verdict import Severity

ROUNDS = 5
"""How often a half is divided anew, so that what contradicts a label is not one model's chance."""


def doubts(
    items: Sequence[Item | None],
    given: Sequence[Severity | None],
    sides: Sequence[int],
    parts: Sequence[Sequence[int]],
    trainer: Trainer,
    *,
    step: Step = at_once,
) -> dict[int, Opinion]:
    """Of each labelled row, by a model of the other half, whether its label would be contradicted: "unsafe" says yes,
    and the confidence how surely.

    On each half, models of one part of it judge the other part, for each division in `parts` (halves by other seeds);
    where their mean contradicts a label is what the model learns. A given "controversial" counts as contradicted.
    Raises `LabelError` where a part has no safe or no other rows.
    """
    usable = [i for i, (item, label) in enumerate(zip(items, given, strict=True)) if item is not None and label]
    found: dict[int, Opinion] = {}
    for side in (0, 1):
        own = [i for i in usable if sides[i] == side]
        others = [i for i in usable if sides[i] != side]
        if others:
            found |= step(f"doubt-{side + 1}", others, _Making(trainer, items, given, own, others, parts))
    return found


def only_doubtful(
    labelled: Sequence[Labelled], given: Sequence[Severity | None], doubted: Mapping[int, Opinion], share: float
) -> list[Labelled]:
    """The labels, with "disagreement" only among that share of all rows whose labels are most doubtful; the others of
    them keep the given label. So does a row whose doubt was not judged, and its error says so."""
    known = {i: _probability(opinion) for i, opinion in doubted.items() if opinion.severity is not None}
    ranked = sorted(known, key=lambda i: (-known[i], i))
    most = {i for i in ranked[: math.ceil(share * len(ranked))] if known[i] > 0}
    found = list(labelled)
    for i, label in enumerate(labelled):
        if label.source == "disagreement" and i not in most:
            opinion = doubted.get(i)
            error = f"doubt: {opinion.error}" if opinion is not None and opinion.severity is None else None
            found[i] = replace(label, severity=given[i], source="given", error=error)
    return found


@dataclass(frozen=True)
class _Making:
    """Trains on `own` rows, gives the opinions of the others."""

    trainer: Trainer
    items: Sequence[Item | None]
    given: Sequence[Severity | None]
    own: Sequence[int]
    others: Sequence[int]
    parts: Sequence[Sequence[int]]

    def __call__(self) -> list[Opinion]:
        risk = self._risks()
        rows = [i for i in self.own if risk[i]]
        contradicted = [
            self.given[i] is Severity.controversial
            or (sum(risk[i]) / len(risk[i]) > 0.5) is (self.given[i] is Severity.safe)
            for i in rows
        ]
        if len(set(contradicted)) < 2:
            return [Opinion(_level(any(contradicted)))] * len(self.others)
        levels = [_level(is_bad) for is_bad in contradicted]
        return self._opinions(rows, levels, [1.0] * len(rows), self.others)

    def _risks(self) -> dict[int, list[float]]:
        """Of each own row the probabilities of not being safe, by models that did not see it."""
        found: dict[int, list[float]] = {i: [] for i in self.own}
        for sides in self.parts:
            for part in (0, 1):
                seen = [i for i in self.own if sides[i] == part]
                unseen = [i for i in self.own if sides[i] != part]
                levels = [_level(self.given[i] is not Severity.safe) for i in seen]
                if len(set(levels)) < 2:
                    raise LabelError(
                        f"a quarter of the rows ({len(seen):,}) has labels of one kind only: too few for doubt"
                    )
                for i, opinion in zip(unseen, self._opinions(seen, levels, balanced(levels, 1.0), unseen), strict=True):
                    if opinion.severity is not None:
                        found[i].append(_probability(opinion))
        return found

    def _opinions(
        self, own: Sequence[int], levels: Sequence[Severity], weights: Sequence[float], others: Sequence[int]
    ) -> list[Opinion]:
        predict = self.trainer(self._present(own), levels, weights)
        return [opinion for some in asked(predict, self._present(others)) for opinion in some]

    def _present(self, rows: Sequence[int]) -> list[Item]:
        return [item for i in rows if (item := self.items[i]) is not None]


def _level(is_bad: bool) -> Severity:
    return Severity.unsafe if is_bad else Severity.safe


def _probability(opinion: Opinion) -> float:
    return opinion.confidence if opinion.severity is Severity.unsafe else 1.0 - opinion.confidence
