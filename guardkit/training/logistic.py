"""Softmax regression in NumPy: dense columns beside hashed ones, a weight a row, deterministic."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_MEMORY = 10  # pairs that L-BFGS keeps
_SUFFICIENT = 1e-4  # of the decrease that the gradient promises, at least


@dataclass(frozen=True)
class Matrix:
    """n rows: dense [n, d], and sparse rows of length 1 as in CSR: the columns `at` of row i are
    ``at[start[i]:start[i + 1]]``, all with the value ``value[i]``; of `width` columns."""

    dense: Array
    at: NDArray[np.int64]
    start: NDArray[np.int64]
    value: Array
    width: int

    @classmethod
    def of(cls, dense: Array, hashed: Sequence[NDArray[np.int64]], width: int) -> Matrix:
        sizes = np.array([len(h) for h in hashed], np.int64)
        at = np.concatenate(hashed) if len(hashed) else np.zeros(0, np.int64)
        value = 1 / np.sqrt(np.maximum(sizes, 1))
        return cls(dense, at, np.concatenate(([0], np.cumsum(sizes))), value, width)

    def __len__(self) -> int:
        return len(self.dense)

    @property
    def n_columns(self) -> int:
        return int(self.dense.shape[1]) + self.width + 1

    def times(self, weights: Array) -> Array:
        """[n, k] from weights [n_columns, k]; the last one is the bias."""
        d = self.dense.shape[1]
        picked = weights[d:-1][self.at]
        sums = np.concatenate((np.zeros((1, weights.shape[1])), np.cumsum(picked, axis=0)))
        found: Array = self.dense @ weights[:d] + weights[-1]
        found += (sums[self.start[1:]] - sums[self.start[:-1]]) * self.value[:, None]
        return found

    def transposed_times(self, rows: Array) -> Array:
        """[n_columns, k] from [n, k]."""
        spread = np.repeat(rows * self.value[:, None], np.diff(self.start), axis=0)
        sparse = [np.bincount(self.at, spread[:, k], self.width) for k in range(rows.shape[1])]
        return np.concatenate((self.dense.T @ rows, np.stack(sparse, axis=1), rows.sum(0)[None]))


def probabilities(x: Matrix, weights: Array) -> Array:
    """[n, k]."""
    logits = x.times(weights)
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def fit(x: Matrix, y: NDArray[np.int64], weight: Array, n_classes: int, l2: float, steps: int = 100) -> Array:
    """Weights [n_columns, n_classes] of the least weighted mean of the cross-entropy plus ``l2 / 2`` times their
    squares (the bias is free), by L-BFGS. y [n]: classes; weight [n]."""
    used = np.unique(x.at)  # the weights of hashed columns that no row has stay 0
    d = x.dense.shape[1]
    small = replace(x, at=np.searchsorted(used, x.at), width=len(used))
    found = np.zeros((x.n_columns, n_classes))
    found[np.concatenate((np.arange(d), d + used, [x.n_columns - 1]))] = _fit(small, y, weight, n_classes, l2, steps)
    return found


def _fit(x: Matrix, y: NDArray[np.int64], weight: Array, n_classes: int, l2: float, steps: int) -> Array:
    share = weight / weight.sum()
    truth = np.eye(n_classes)[y]
    penalty = np.full((x.n_columns, 1), l2)
    penalty[-1] = 0.0

    def loss(w: Array) -> tuple[float, Array]:
        p = probabilities(x, w)
        value = -float(share @ np.log(np.maximum(p[np.arange(len(y)), y], 1e-300)))
        gradient = x.transposed_times((p - truth) * share[:, None])
        return value + 0.5 * float((penalty * w * w).sum()), gradient + penalty * w

    w = np.zeros((x.n_columns, n_classes))
    value, gradient = loss(w)
    pairs: deque[tuple[Array, Array, float]] = deque(maxlen=_MEMORY)
    for _ in range(steps):
        direction = -_inverse(pairs, gradient)
        slope = float((direction * gradient).sum())
        if slope > -1e-12:
            break
        step = 1.0
        while True:
            new = w + step * direction
            new_value, new_gradient = loss(new)
            if new_value <= value + _SUFFICIENT * step * slope:
                break
            step /= 2
            if step < 1e-8:
                return w
        moved, turned = new - w, new_gradient - gradient
        curvature = float((moved * turned).sum())
        if curvature > 1e-12:
            pairs.append((moved, turned, 1 / curvature))
        done = value - new_value < 1e-7 * max(abs(value), 1e-3)
        w, value, gradient = new, new_value, new_gradient
        if done:
            break
    return w


def _inverse(pairs: deque[tuple[Array, Array, float]], gradient: Array) -> Array:
    """The inverse Hessian that the pairs tell of, times the gradient (two loops)."""
    found = gradient.copy()
    shares = []
    for moved, turned, rho in reversed(pairs):
        shares.append(rho * float((moved * found).sum()))
        found -= shares[-1] * turned
    if pairs:
        moved, turned, rho = pairs[-1]
        found /= rho * float((turned * turned).sum())
    for (moved, turned, rho), share in zip(pairs, reversed(shares), strict=True):
        found += (share - rho * float((turned * found).sum())) * moved
    return found
