"""A cache on a CPU whose sums do not depend on the pieces that a text came in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.cache import ContiguousCache, Run


class AlignedCache(ContiguousCache):
    """A `ContiguousCache` whose sums do not depend on how a text was cut, to the last bit: attention is computed for
    `ALIGN` positions at a time, in blocks that begin at the same places whatever came when."""

    ALIGN = 4

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)  # what is behind the end is read, times zero

    def begin(self, runs: Sequence[Run]) -> None:
        size, heads, kv_heads = self.ALIGN, self.config.num_attention_heads, self.config.num_key_value_heads
        self._runs, groups = runs, heads // kv_heads
        last = torch.full((size, size), float("-inf"), dtype=self.dtype, device=self.device).triu(1).repeat(groups, 1)
        blocks = {at for run in runs for at in range(run.start // size, -(-run.end // size))}
        self._blocks = {at: F.pad(last, (at * size, 0)) for at in blocks}
        self._queries = torch.zeros(
            (kv_heads, groups, size, self.config.head_dim), dtype=self.dtype, device=self.device
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv_heads, groups, size, dim = self._queries.shape
        out = q.new_zeros((len(q), kv_heads, groups, dim))
        for run in self._runs:
            assert run.slot.buffer is not None  # reserved
            keys, values = run.slot.buffer[layer]
            rows = slice(run.row, run.row + run.n)
            keys[:, run.start : run.end] = k[rows].transpose(0, 1)
            values[:, run.start : run.end] = v[rows].transpose(0, 1)
            asked = q[rows].view(run.n, kv_heads, groups, dim).permute(1, 2, 0, 3)
            for at in range(run.start // size, -(-run.end // size)):
                first, end = max(at * size, run.start), min((at + 1) * size, run.end)
                of_run, of_block = (slice(first - begin, end - begin) for begin in (run.start, at * size))
                self._queries[:, :, of_block] = asked[:, :, of_run]
                found = self._block(at, keys, values).view(kv_heads, groups, size, dim)[:, :, of_block]
                out[run.row + of_run.start : run.row + of_run.stop] = found.permute(2, 0, 1, 3)
        return out.view(len(q), -1)

    def _block(self, at: int, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of the queries at hand, as block `at` of a sequence: [kv_heads, groups * size, D]. Of products over
        so few rows torch makes no tasks for other threads, which would go on looking for more and take their cores from
        the weights' products."""
        end = (at + 1) * self.ALIGN
        queries = self._queries.flatten(1, 2)
        scores = torch.baddbmm(
            self._blocks[at].unsqueeze(0), queries, keys[:, :end].transpose(1, 2), alpha=self.config.head_dim**-0.5
        )
        return torch.bmm(scores.softmax(-1), values[:, :end])
