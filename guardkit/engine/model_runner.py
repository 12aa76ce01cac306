"""The tensors of a step: from the scheduler's plan to what is read off the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guardkit.engine.cache import Cache, Run
from guardkit.engine.graphs import Graphs
from guardkit.engine.qwen3 import Qwen3
from guardkit.engine.sequence import Request, Rows, Sequence
from guardkit.engine.staging import Results, Staging

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, hidden_size] -> what is read off them, [n, c]."""
Plan = list[tuple[Sequence, int]]
"""Sequences, and how many of their tokens a step computes."""


class Launched:
    """A step that was handed to the device. requests: what each entry of the plan is for."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.begun = time.monotonic()
        self.requests: list[Request] = [sequence.requests[0] for sequence, _ in plan]
        self._wait: Callable[[], NDArray[np.float32]] | None = None
        self._read: list[tuple[int, list[tuple[int, range]]]] = []  # of each head: width, (index into the plan, rows)

    def rows(self) -> list[Rows | None]:
        """What was read at each entry's tokens, [n, c]; waits for it."""
        found: list[Rows | None] = [None] * len(self.plan)
        if self._wait is None:
            return found
        flat = self._wait()
        begin = 0
        for width, items in self._read:
            for at, span in items:
                end = begin + len(span) * width
                found[at] = flat[begin:end].reshape(-1, width)
                begin = end
        return found


class Threads:
    """For the `with` block: how many torch computes with on a CPU; None leaves it. The thread may be a caller's, who
    computes with more."""

    def __init__(self, n: int | None):
        self._n = n

    def __enter__(self) -> None:
        if self._n:
            self._before = torch.get_num_threads()
            torch.set_num_threads(self._n)

    def __exit__(self, *_: object) -> None:
        if self._n:
            torch.set_num_threads(self._before)


def launch(
    model: Qwen3,
    heads: Mapping[str, Head],
    cache: Cache,
    plan: Plan,
    staging: Staging,
    results: Results,
    graphs: Graphs | None = None,
) -> Launched:
    """Begin one forward pass; on a GPU it runs on while the caller goes on."""
    launched = Launched(plan)
    runs: list[Run] = []
    ids: list[int] = []
    positions: list[int] = []
    reads: dict[str, list[tuple[int, range]]] = {}  # head -> (index into the plan, rows)
    for at, ((sequence, n), request) in enumerate(zip(plan, launched.requests, strict=True)):
        if not n:  # a request without tokens: only its turn in the queue counts
            continue
        start, row = sequence.cached, len(ids)
        runs.append(Run(sequence.slot, row, start, n))
        if n == 1:
            ids.append(sequence.ids[start])
            positions.append(start)
        else:
            ids += sequence.ids[start : start + n]
            positions += range(start, start + n)
        first = max(request.read - start, 0)
        if request.head is not None and first < n:
            reads.setdefault(request.head, []).append((at, range(row + first, row + n)))
    if not ids:
        return launched
    with torch.inference_mode():
        hidden = graphs.forward(ids, positions, runs) if graphs is not None else None
        if hidden is None:
            cache.begin(runs)
            there = staging.put(ids, positions)
            hidden = model.forward(there[0], there[1], cache)
        outputs = []
        for head, items in reads.items():
            rows = [row for _, span in items for row in span]
            chosen = hidden if len(rows) == len(ids) else hidden[staging.put(rows)[0]]
            outputs.append(heads[head](chosen).float())
            launched._read.append((outputs[-1].shape[1], items))
        if outputs:  # one transfer for all heads
            flat = outputs[0].flatten() if len(outputs) == 1 else torch.cat([o.flatten() for o in outputs])
            launched._wait = results.fetch(flat)
    return launched
