"""Recorded steps (CUDA graphs): a decoding step is some hundred launches, and a host that makes them one by one is
slower than the GPU. A step of few tokens is padded to the next size of `SIZES`, for which everything was launched once
at load; later one call launches it all again. What changes from step to step lies in tensors that stay where they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guardkit.engine.cache import Run, Slot
from guardkit.engine.paged_cache import PAGE, PagedCache
from guardkit.engine.qwen3 import Qwen3
from guardkit.engine.staging import Staging

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # tokens of a step of short pieces
SHORT = 16  # a longer piece has larger tiles
LONG_SIZES = (64, 128, 256, 512)  # tokens of a step with long pieces: prompts of a chat
LONG_RUNS = 16  # pieces of such a step, at the most
OFF = 0.1  # how far, of its length, a recorded hidden state may be from the plain one
Replay = Callable[[], Tensor]
Record = Callable[[Replay], Replay]
"""Takes a function that launches a step; gives one that launches the same again and returns the same tensor."""


class Graphs:
    """Recorded steps of one model over one cache. record: how one is recorded."""

    def __init__(
        self,
        model: Qwen3,
        cache: PagedCache,
        record: Record,
        sizes: Sequence[int] = SIZES,
        long_sizes: Sequence[int] = LONG_SIZES,
    ):
        self._model, self._cache = model, cache
        self._staging = Staging(cache.device)
        self._sizes = {False: sorted(sizes), True: sorted(long_sizes)}  # by whether there are long pieces
        self._steps: dict[tuple[bool, int], tuple[Tensor, Replay]] = {}
        wanted = [(is_long, n) for is_long, found in self._sizes.items() for n in found]
        for is_long, n in sorted(
            wanted, key=lambda step: -step[1]
        ):  # the largest first: the others fit into its memory
            n_tiles = self._n_tiles(is_long, n)
            numbers = torch.zeros(3 * n + 4 * n_tiles, dtype=torch.int64, device=cache.device)
            numbers[2 * n : 3 * n] = -1
            self._steps[is_long, n] = numbers, record(self._launch(is_long, n, n_tiles, numbers))

    def _n_tiles(self, is_long: bool, n: int) -> int:
        return n // self._cache.tokens_of_a_tile(True) + LONG_RUNS if is_long else n

    def _launch(self, is_long: bool, n: int, n_tiles: int, numbers: Tensor) -> Replay:
        ids, positions, rows, tiles = numbers.split([n, n, n, 4 * n_tiles])

        def launch() -> Tensor:
            self._cache.set_place(is_long, rows, tiles.view(n_tiles, 4))
            return self._model.forward(ids, positions, self._cache)

        return launch

    def forward(self, ids: Sequence[int], positions: Sequence[int], runs: Sequence[Run]) -> Tensor | None:
        """As `Qwen3.forward` behind `Cache.begin`; None where no recorded step fits. Valid until the next call."""
        is_long = max(run.n for run in runs) > SHORT
        n = next((size for size in self._sizes[is_long] if size >= len(ids)), None)
        if n is None or (is_long and len(runs) > LONG_RUNS):
            return None
        numbers, replay = self._steps[is_long, n]
        pad = [0] * (n - len(ids))
        place = self._cache.place(is_long, runs, n, self._n_tiles(is_long, n))
        self._staging.put_into(numbers, [*ids, *pad, *positions, *pad, *place])
        return replay()[: len(ids)]

    def agree(self) -> bool:
        """Whether recorded steps give what the same steps give unrecorded, tried on a sequence of its own."""
        slot = Slot()
        if not self._cache.reserve(slot, PAGE):
            return True
        try:
            return all(self._agrees(slot, n) for n in (1, 7, SHORT + 1))
        finally:
            self._cache.release(slot)

    def _agrees(self, slot: Slot, n: int) -> bool:
        ids, positions, runs = list(range(1, n + 1)), list(range(n)), [Run(slot, 0, 0, n)]
        self._cache.begin(runs)
        there = self._staging.put(ids, positions)
        plain = self._model.forward(there[0], there[1], self._cache).clone()
        found = self.forward(ids, positions, runs)
        if found is None:
            return True
        # Another size takes other products; bfloat16's rounding moves a row of 36 layers by 2% of its length, while a
        # wrong step is wrong altogether.
        away = (found.float() - plain.float()).norm(dim=1) / plain.float().norm(dim=1)
        return bool((away < OFF).all())


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
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads may use the device
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
