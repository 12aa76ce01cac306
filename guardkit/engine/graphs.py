"""Recorded steps (CUDA graphs): a decoding step is some hundred launches, and a host that makes them one by one is
slower than the GPU. A step of few tokens is padded to the next size of `SIZES`, for which everything was launched once
at load; later one call launches it all again. What changes from step to step lies in tensors that stay where they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guardkit.engine.cache import PAGE, PagedCache, Run, Slot
from guardkit.engine.qwen3 import Qwen3
from guardkit.engine.staging import Staging

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # tokens of a step
SHORT = 16  # a step with a longer piece is no decoding step: its tiles would be too small
Replay = Callable[[], Tensor]
Record = Callable[[Replay], Replay]
"""Takes a function that launches a step; gives one that launches the same again and returns the same tensor."""


class Graphs:
    """Recorded steps of one model over one cache. record: how one is recorded."""

    def __init__(self, model: Qwen3, cache: PagedCache, record: Record, sizes: Sequence[int] = SIZES):
        self._model, self._cache = model, cache
        self._staging = Staging(cache.device)
        self._steps: dict[int, tuple[Tensor, Replay]] = {}
        for n in sorted(sizes, reverse=True):  # the largest first: the others fit into its memory
            numbers = torch.zeros(7 * n, dtype=torch.int64, device=cache.device)
            numbers[2 * n : 3 * n] = -1
            self._steps[n] = numbers, record(self._launch(n, numbers))
        self._sizes = sorted(self._steps)

    def _launch(self, n: int, numbers: Tensor) -> Replay:
        ids, positions, rows, tiles = numbers.split([n, n, n, 4 * n])

        def launch() -> Tensor:
            self._cache.set_place(rows, tiles.view(n, 4))
            return self._model.forward(ids, positions, self._cache.attend, self._cache.fused)

        return launch

    def forward(self, ids: Sequence[int], positions: Sequence[int], runs: Sequence[Run]) -> Tensor | None:
        """As `Qwen3.forward` behind `Cache.begin`; None where no recorded step fits. Valid until the next call."""
        n = next((size for size in self._sizes if size >= len(ids)), None)
        if n is None or max(run.n for run in runs) > SHORT:
            return None
        numbers, replay = self._steps[n]
        pad = [0] * (n - len(ids))
        self._staging.put_into(numbers, [*ids, *pad, *positions, *pad, *self._cache.place(runs, n)])
        return replay()[: len(ids)]

    def agree(self) -> bool:
        """Whether a recorded step gives what the same step gives unrecorded, tried on a sequence of its own."""
        slot = Slot()
        n = min(7, self._sizes[-1])
        if not self._cache.reserve(slot, PAGE):
            return True
        try:
            ids, positions, runs = list(range(1, n + 1)), list(range(n)), [Run(slot, 0, 0, n)]
            self._cache.begin(runs)
            there = self._staging.put(ids, positions)
            plain = self._model.forward(there[0], there[1], self._cache.attend, self._cache.fused).clone()
            found = self.forward(ids, positions, runs)
            return found is not None and torch.allclose(found.float(), plain.float(), rtol=5e-2, atol=5e-2)
        finally:
            self._cache.release(slot)


def recorded(model: Qwen3, cache: PagedCache) -> Graphs | None:
    """The recorded steps on a CUDA device; None, with a warning, where they cannot be or are wrong."""
    log = logging.getLogger("guardkit")
    pool = torch.cuda.graph_pool_handle()

    def record(launch: Replay) -> Replay:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # compiles kernels and lets libraries take their workspaces
                launch()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            out = launch()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    try:
        with torch.inference_mode():
            graphs = Graphs(model, cache, record)
            if graphs.agree():
                return graphs
        log.warning("recorded steps differ from plain ones on this GPU: steps are launched one kernel at a time")
    except Exception as error:
        torch.cuda.synchronize()
        log.warning("steps cannot be recorded on this GPU (%s): they are launched one kernel at a time", error)
    return None
