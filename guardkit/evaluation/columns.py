"""The labels and verdicts of many rows in compact arrays: about 30 bytes a row, whatever the texts."""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from guardkit.evaluation.predictions import Prediction
from guardkit.evaluation.rows import NO_LABEL, Row, Vocabulary

MISTAKES = 20
MAX_SHOWN = 2_000  # characters of a mistake's text that are kept


@dataclass(frozen=True, order=True)
class Mistake:
    """A row that was judged wrongly in strict mode. how_wrong: the probability of the wrong answer."""

    how_wrong: float
    number: int
    gold: int = field(compare=False)
    said: int = field(compare=False)
    language: str = field(compare=False)
    text: str = field(compare=False)


@dataclass(frozen=True)
class Frame:
    """The columns as NumPy arrays, all of one length."""

    gold: NDArray[np.int8]
    said: NDArray[np.int8]
    safe: NDArray[np.float64]
    unsafe: NDArray[np.float64]
    gold_categories: NDArray[np.uint64]
    said_categories: NDArray[np.uint64]
    gold_refusal: NDArray[np.int8]
    said_refusal: NDArray[np.int8]
    language: NDArray[np.uint16]

    def where(self, mask: NDArray[np.bool_]) -> Frame:
        return Frame(**{name: column[mask] for name, column in vars(self).items()})

    def scores(self, mode: str) -> NDArray[np.float64]:
        """The probability of being positive in a mode."""
        return np.clip(1.0 - self.safe if mode == "strict" else self.unsafe, 0.0, 1.0)


class Columns:
    """Grows a row at a time. Only judged rows; the others are counted."""

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        self.vocabulary = vocabulary or Vocabulary.of(())
        self._gold, self._said = array("b"), array("b")
        self._safe, self._unsafe = array("d"), array("d")
        code = "H" if len(self.vocabulary.categories) <= 16 else "Q"
        self._gold_categories, self._said_categories = array(code), array(code)
        self._gold_refusal, self._said_refusal = array("b"), array("b")
        self._language = array("H")
        self.languages: dict[str, int] = {}
        self.n_rows = self.n_unlabelled = self.n_not_judged = self.n_unread = self.n_left_out = 0
        self.errors: dict[str, int] = {}
        self._false_alarms: list[Mistake] = []
        self._misses: list[Mistake] = []

    def skip(self, row: Row, error: str | None) -> None:
        """Count a row without a verdict. error: None for one that has no label, or is no row of the set."""
        if row.left_out:
            self.n_left_out += 1
            return
        self.n_rows += 1
        if error is None:
            self.n_unlabelled += 1
            return
        if row.error is not None:
            self.n_unread += 1
        else:
            self.n_not_judged += 1
        if error in self.errors or len(self.errors) < 20:
            self.errors[error] = self.errors.get(error, 0) + 1

    def add(self, row: Row, found: Prediction) -> None:
        self.n_rows += 1
        self._gold.append(row.severity)
        self._said.append(found.severity)
        self._safe.append(found.safe)
        self._unsafe.append(found.unsafe)
        self._gold_categories.append(self.vocabulary.bits(row.categories))
        self._said_categories.append(found.categories)
        self._gold_refusal.append(row.refusal)
        self._said_refusal.append(found.refusal)
        language = row.language or "?"
        if len(self.languages) >= 2**16 - 1 and language not in self.languages:
            language = "?"
        self._language.append(self.languages.setdefault(language, len(self.languages)))
        if row.severity != NO_LABEL and (row.severity > 0) != (found.severity > 0):
            missed = row.severity > 0
            wrong = found.safe if missed else 1.0 - found.safe
            heap = self._misses if missed else self._false_alarms
            if len(heap) < MISTAKES or wrong > heap[0].how_wrong:
                text = row.text[:MAX_SHOWN]
                mistake = Mistake(wrong, -row.number, row.severity, found.severity, row.language, text)
                (heapq.heappushpop if len(heap) >= MISTAKES else heapq.heappush)(heap, mistake)

    @property
    def false_alarms(self) -> list[Mistake]:
        """The worst first. `number` is negative, so that of equals the earlier row counts as worse."""
        return sorted(self._false_alarms, reverse=True)

    @property
    def misses(self) -> list[Mistake]:
        return sorted(self._misses, reverse=True)

    def frame(self) -> Frame:
        return Frame(
            gold=np.array(self._gold, np.int8),
            said=np.array(self._said, np.int8),
            safe=np.array(self._safe, np.float64),
            unsafe=np.array(self._unsafe, np.float64),
            gold_categories=np.array(self._gold_categories, np.uint64),
            said_categories=np.array(self._said_categories, np.uint64),
            gold_refusal=np.array(self._gold_refusal, np.int8),
            said_refusal=np.array(self._said_refusal, np.int8),
            language=np.array(self._language, np.uint16),
        )
