"""Who gives labels: classifiers that are trained here, and guards, local or on servers, one or several that vote.

def trainer(items, levels, weights):      # a `Trainer`: texts or conversations, their labels, a weight each
    model = ...
    return predict                        # a `Predictor`: items -> a list of `Opinion`
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from guardkit.errors import LabelError
from guardkit.guard import Guard
from guardkit.labelling.judging import Judge, Limit
from guardkit.labelling.rows import Item, Row
from guardkit.verdict import Severity

GUARD_BATCH = 256


@dataclass(frozen=True)
class Opinion:
    """What an annotator says of an item. severity: None where it could not judge, and `error` says why. confidence: the
    probability that it gives to that severity, from 0 to 1."""

    severity: Severity | None
    confidence: float = 1.0
    error: str | None = None


Predictor = Callable[[Sequence[Item]], Sequence[Opinion]]


class Trainer(Protocol):
    def __call__(self, items: Sequence[Item], levels: Sequence[Severity], weights: Sequence[float]) -> Predictor:
        """Train on `items`, each with its label and its weight in the loss (of mean 1)."""


@dataclass(frozen=True)
class GuardTeacher:
    """Guards as an annotator: one, or several that vote as in `guard label --vote` (all must judge). Of a vote, the
    confidence is that of the first guard that gave the chosen severity."""

    judge: Judge

    @classmethod
    def of(cls, guards: Sequence[Guard], names: Sequence[str] = (), limit: Limit | None = None) -> GuardTeacher:
        return cls(Judge(guards, names, limit=limit))

    def __call__(self, items: Sequence[Item]) -> list[Opinion]:
        rows = [Row(at, (item,), ("",)) for at, item in enumerate(items)]
        return [_opinion(label) for label in self.judge.labels(rows)]


def _opinion(label: dict[str, Any]) -> Opinion:
    if label["severity"] is None:
        return Opinion(None, 0.0, str(label["error"]))
    return Opinion(Severity(label["severity"]), float(label["scores"][label["severity"]]))


def asked(predict: Predictor, items: Sequence[Item], batch: int = GUARD_BATCH) -> Iterator[list[Opinion]]:
    """The opinions of a predictor, a batch at a time. One that raises, or gives too few or odd ones, did not judge."""
    for at in range(0, len(items), batch):
        some = items[at : at + batch]
        try:
            found = list(predict(some))
        except Exception as error:  # an annotator of anybody's: what it did not judge is said, and asked again later
            found = [Opinion(None, 0.0, str(error) or type(error).__name__)] * len(some)
        if len(found) != len(some):
            found = [Opinion(None, 0.0, f"{len(found)} opinions of {len(some)} items")] * len(some)
        yield [_checked(opinion) for opinion in found]


def _checked(opinion: Opinion) -> Opinion:
    if opinion.severity is not None and not math.isfinite(opinion.confidence):
        return Opinion(None, 0.0, "its confidence is no number")
    if opinion.severity is None and opinion.error is None:
        return Opinion(None, 0.0, "not judged")
    return opinion


def trainer_named(name: str) -> Trainer:
    """The built-in trainers ("light": nano's vectors and n-grams, "ngrams": n-grams alone, "heads:BASE": Stream's heads
    on a backbone), or MODULE:NAME. Raises `LabelError`."""
    if name in ("light", "ngrams"):
        from guardkit.training.light import Light

        return Light(vectors=name == "light")
    module, colon, attribute = name.partition(":")
    if module == "heads" and attribute:
        from guardkit.training.heads import Heads

        return Heads(attribute)
    if not colon:
        raise LabelError(f"--trainer {name}: light, ngrams, heads:BASE, or MODULE:NAME of a function of your own")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LabelError(f"--trainer {name}: {error}") from error
    if not callable(found):
        raise LabelError(f"--trainer {name}: cannot be called")
    return found  # type: ignore[no-any-return]
