"""A classifier that trains anywhere in seconds: softmax regression on hashed n-grams and on nano's own vectors."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from guardkit.labelling.rows import Item
from guardkit.training.annotators import Opinion, Predictor
from guardkit.training.logistic import Matrix, fit, probabilities
from guardkit.verdict import SEVERITIES, Severity

BITS = 16  # of the hash: 65,536 columns
CHARS = 4000  # of a text that are read, half from its beginning and half from its end
_GRAM = 4  # letters
_WORD = re.compile(r"\w+|[^\w\s]")


class Light:
    """A `Trainer`. vectors: nano's (`models.nano.vectors`) beside the n-grams: words, pairs of words, four letters in a
    row; of what stands before an answer words alone. strength: of the regularisation, half of the squared weights
    against the sum of the rows' losses. What was computed of a text is kept for later rounds, some 4 kB a text."""

    def __init__(self, *, vectors: bool = True, strength: float = 1.0):
        self._vectors, self._strength = vectors, strength
        self._hashed: dict[str, NDArray[np.int64]] = {}
        self._dense: dict[str, NDArray[np.float32]] = {}

    def __call__(self, items: Sequence[Item], levels: Sequence[Severity], weights: Sequence[float]) -> Predictor:
        classes = [s for s in SEVERITIES if s in set(levels)]
        y = np.array([classes.index(level) for level in levels], np.int64)
        dense, hashed = self._read(items)
        mean, spread = dense.mean(0), dense.std(0) + 1e-6
        # Together the dense columns weigh as much as the hashed ones of a row do.
        spread *= np.sqrt(max(dense.shape[1], 1))
        fitted = fit(
            Matrix.of((dense - mean) / spread, hashed, 1 << BITS), y, np.asarray(weights, np.float64), len(classes),
            self._strength / max(len(y), 1),
        )  # fmt: skip

        def predict(items: Sequence[Item]) -> list[Opinion]:
            if not items:
                return []
            dense, hashed = self._read(items)
            found = probabilities(Matrix.of((dense - mean) / spread, hashed, 1 << BITS), fitted)
            best = found.argmax(axis=1)
            return [Opinion(classes[k], float(found[i, k])) for i, k in enumerate(best)]

        return predict

    def _read(self, items: Sequence[Item]) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
        """Dense columns [n, d] (d = 0 without vectors), and the hashed ones of each item."""
        texts = [_texts(item) for item in items]
        keys = ["\0".join(pair) for pair in texts]
        for key, (before, text) in zip(keys, texts, strict=True):
            if key not in self._hashed:
                self._hashed[key] = hashed(before, text)
        if not self._vectors:
            return np.zeros((len(items), 0)), [self._hashed[key] for key in keys]
        new = {key: "\n\n".join(filter(None, pair)) for key, pair in zip(keys, texts, strict=True)}
        new = {key: text for key, text in new.items() if key not in self._dense}
        if new:
            from guardkit.models.nano import load
            from guardkit.models.nano.vectors import vectors

            self._dense.update(zip(new, vectors(load(), list(new.values())), strict=True))
        return np.stack([self._dense[key] for key in keys]).astype(np.float64), [self._hashed[key] for key in keys]


def _texts(item: Item) -> tuple[str, str]:
    """What stands before, and what is judged."""
    if isinstance(item, str):
        return "", _cut(item)
    last = item[-1]
    told = "\n".join(filter(None, (last.reasoning, *last.tool_calls, last.said)))
    return _cut("\n".join(m.said for m in item[:-1])), _cut(told)


def _cut(text: str) -> str:
    return text if len(text) <= CHARS else f"{text[: CHARS // 2]} {text[-CHARS // 2 :]}"


def hashed(before: str, text: str) -> NDArray[np.int64]:
    """The columns of a text's n-grams, each once, sorted."""
    words = _WORD.findall(text.casefold())
    grams = {f"w {word}" for word in words}
    grams.update(f"p {one} {other}" for one, other in pairwise(words))
    grams.update(f"b {word}" for word in _WORD.findall(before.casefold()))
    line = f" {' '.join(words)} "
    grams.update(f"c {line[i : i + _GRAM]}" for i in range(len(line) - _GRAM + 1))
    found = {zlib.crc32(gram.encode("utf-8", "surrogatepass")) & ((1 << BITS) - 1) for gram in grams}
    return np.array(sorted(found), np.int64)
