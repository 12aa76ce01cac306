"""Scores of Qwen3Guard-Stream's heads, read no further than somebody asks."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from guardkit.models.base import Floats, Ints, Scores, are_finite


class Logits(Scores):
    """Scores that are still logits: of most tokens nobody asks for more than the likeliest risk. order: which column
    is which severity."""

    def __init__(self, rows: Floats, order: Ints, windowed: bool = False):
        vars(self).update(
            rows=rows, order=order, refusal=None, named=None, windowed=np.full(len(rows), True) if windowed else None
        )

    rows: Floats
    order: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def check(self, rows: int) -> None:
        if len(self.rows) != rows:
            raise ValueError(f"the model gave scores for {len(self.rows)} of {rows} positions")
        if not are_finite(self.rows):
            raise ValueError("the model gave scores that are not finite")

    @property
    def likeliest(self) -> Ints:
        return self.rows.take(self.order, 1).argmax(1)  # type: ignore[no-any-return]

    @cached_property
    def risks(self) -> Floats:
        return self.rows.take(self.order, 1)

    @cached_property
    def severity(self) -> Floats:
        return _softmax(self.risks)

    @cached_property
    def category(self) -> Floats:
        return _softmax(self.rows[:, len(self.order) :])


def _softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
