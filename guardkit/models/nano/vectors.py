"""Texts as nano sees them, for classifiers of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from guardkit.models.base import Floats, Query
from guardkit.models.nano.model import Nano
from guardkit.models.nano.pace import BATCH_TOKENS

MAX_WINDOWS = 4  # of a text that are read


def vectors(model: Nano, texts: Sequence[str]) -> Floats:
    """[N, D]: of each text the mean over its tokens of the last layer's keys and values, and the query heads' logits.

    Of a long text the first `MAX_WINDOWS` windows are read. Columns are of different scales: standardise them. Vectors
    do not depend on the batch; of no texts D is 0. Keeps nothing, so it needs no turn.
    """
    windows = [(n, ids) for n, text in enumerate(texts) for ids in _first_windows(model, text)]
    windows.sort(key=lambda entry: len(entry[1]))
    counts = np.bincount([n for n, _ in windows], minlength=len(texts))
    sums: Floats = np.zeros((len(texts), 0), np.float32)
    at = 0
    while at < len(windows):
        some = windows[at : at + 1]
        while at + len(some) < len(windows) and (len(some) + 1) * len(windows[at + len(some)][1]) <= BATCH_TOKENS:
            some.append(windows[at + len(some)])
        logits, new = model.read([ids for _, ids in some])
        if not at:
            sums = np.zeros((len(texts), new.shape[-1] + logits.shape[1] - 12), np.float32)
        for row, (n, ids) in enumerate(some):
            values = new[row, : len(ids), -1].astype(np.float32).mean(axis=0)
            sums[n] += np.concatenate((values, logits[row, 12:]))
        at += len(some)
    return np.asarray(sums / np.maximum(counts, 1)[:, None], np.float32)


def _first_windows(model: Nano, text: str) -> list[list[int]]:
    return [ids for ids, *_ in islice(model.windows(Query(text)), MAX_WINDOWS)]
