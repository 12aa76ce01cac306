"""The early way out: a text of words that carry no evidence of harm needs no network.

Every token has a weight, the evidence of harm that it carries: never below zero, so no amount of harmless text makes up
for a harmful word. A text whose weights sum to little is settled as safe. A token that the training texts do not show
often enough to tell has the greatest weight, so what is unknown is always judged by the network. The weights are
integers, so a text's sum does not depend on what else is judged with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Screen:
    """weights [V]; limit: the greatest sum that is settled."""

    def __init__(self, weights: NDArray[np.uint8], limit: int):
        self._weights, self._limit = weights, limit

    def settles(self, ids: NDArray[np.int32]) -> bool:
        """Whether a window (ids with their frame) is clearly harmless."""
        return int(self._weights[ids].sum(dtype=np.int64)) <= self._limit
