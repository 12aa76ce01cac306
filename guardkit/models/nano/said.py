"""What a response came to so far: its tokens' logits as means, and the languages that they are of.

A single token's logits are noisy, and a refusal hardly shows where an answer has turned to other help: a response is
judged at each token by the mean of its logits so far, or by that of the last few tokens where those are clearly worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guardkit.models.base import Floats, Ints
from guardkit.models.nano.calibration import GROUPS

# The last tokens, and by how much (as logit of "safe") they must be worse than all so far: training/nano/log.md.
RECENT, BEHIND = 8, 2.0
# A first word says little: as if one token of this logit of "safe" stood before a response.
BEFORE = np.array([4.0, 0.0, 0.0])
LOGITS = 12
_ONE_GROUP = np.eye(len(GROUPS) + 1, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Said:
    """sums [<= RECENT, LOGITS]: of the logits so far, at the last tokens; count: tokens so far; spoken [GROUPS + 1]:
    those by group of languages, the last of none."""

    sums: NDArray[np.float64]
    count: int
    spoken: Ints

    def more(self, logits: Floats, groups: NDArray[np.uint8]) -> tuple[Said, Floats, Floats, Ints]:
        """What it is after N more tokens, of `logits` [N, LOGITS] and `groups` [N]. At each of them: the logits that
        the response is judged by [N, LOGITS], the mean of all so far [N, LOGITS], the group of languages [N].

        The sums are in double precision, each from the one before, and means are differences of them: bit-equal
        however the tokens are cut into pieces."""
        n = len(logits)
        if not n:
            return self, logits, logits, np.zeros(0, np.int64)
        sums = np.cumsum(np.concatenate((self.sums[-1:], logits)), axis=0, dtype=np.float64)
        sums = np.concatenate((self.sums[:-1], sums))
        ends = np.arange(len(sums) - n, len(sums))
        counts = self.count + np.arange(1, n + 1)
        mean = (sums[ends] / counts[:, None]).astype(np.float32)
        so_far = mean.copy()
        so_far[:, :3] = (sums[ends, :3] + BEFORE) / (counts[:, None] + 1)
        recent = np.minimum(counts, RECENT)
        last = ((sums[ends] - sums[ends - recent]) / recent[:, None]).astype(np.float32)
        last[:, 0] += BEHIND
        worse = softmax(last[:, :3])[:, :1] < softmax(so_far[:, :3])[:, :1]
        spoken = self.spoken + np.cumsum(_ONE_GROUP[groups], axis=0)
        after = Said(sums[-RECENT:], self.count + n, spoken[-1])
        return after, np.where(worse, last, so_far), mean, spoken[:, : len(GROUPS)].argmax(1)


NOTHING = Said(np.zeros((1, LOGITS)), 0, np.zeros(len(GROUPS) + 1, np.int64))


def softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
