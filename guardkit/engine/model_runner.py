"""The tensors of a step: from the scheduler's plan to what is read off the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from guardkit.engine.cache import Cache, Run
from guardkit.engine.graphs import Graphs
from guardkit.engine.qwen3 import Qwen3
from guardkit.engine.sequence import Rows, Sequence
from guardkit.engine.staging import Staging

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, hidden_size] -> what is read off them, [n, c]."""


def run_step(
    model: Qwen3,
    heads: Mapping[str, Head],
    cache: Cache,
    plan: list[tuple[Sequence, int]],
    staging: Staging,
    graphs: Graphs | None = None,
) -> list[Rows | None]:
    """One forward pass; for each sequence of the plan what was read at its tokens."""
    runs: list[Run] = []
    ids: list[int] = []
    positions: list[int] = []
    reads: dict[str, list[tuple[int, range]]] = {}  # head -> (index into the plan, rows)
    for at, (sequence, n) in enumerate(plan):
        if not n:  # a request without tokens: only its turn in the queue counts
            continue
        start, row = sequence.cached, len(ids)
        runs.append(Run(sequence.slot, row, start, n))
        ids += sequence.ids[start : start + n]
        positions += range(start, start + n)
        request = sequence.requests[0]
        first = max(request.read - start, 0)
        if request.head is not None and first < n:
            reads.setdefault(request.head, []).append((at, range(row + first, row + n)))
    found: list[Rows | None] = [None] * len(plan)
    if not ids:
        return found
    with torch.inference_mode():
        hidden = graphs.forward(ids, positions, runs) if graphs is not None else None
        if hidden is None:
            cache.begin(runs)
            there = staging.put(ids, positions)
            hidden = model.forward(there[0], there[1], cache.attend, cache.fused)
        outputs = []
        for head, items in reads.items():
            rows = [row for _, span in items for row in span]
            chosen = hidden if len(rows) == len(ids) else hidden[staging.put(rows)[0]]
            outputs.append(heads[head](chosen).float())
        # One transfer for all heads: it waits for the device.
        flat = torch.cat([o.flatten() for o in outputs]).cpu().numpy() if outputs else np.zeros(0, np.float32)
    begin = 0
    for output, items in zip(outputs, reads.values(), strict=True):
        width = output.shape[1]
        for at, span in items:
            end = begin + len(span) * width
            found[at] = flat[begin:end].reshape(-1, width)
            begin = end
    return found
