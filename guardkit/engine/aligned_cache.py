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
        size, groups = self.ALIGN, self.config.num_attention_heads // self.config.num_key_value_heads
        self._runs = runs
        last = torch.full((size, size), float("-inf"), dtype=self.dtype, device=self.device).triu(1).repeat(groups, 1)
        blocks = {at for run in runs for at in range(run.start // size, -(-run.end // size))}
        self._blocks = {at: F.pad(last, (at * size, 0)) for at in blocks}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        size, (_, heads, dim) = self.ALIGN, q.shape
        groups = heads // self.config.num_key_value_heads
        out = torch.empty((len(q), heads * dim), dtype=q.dtype, device=q.device)
        for run in self._runs:
            assert run.slot.buffer is not None  # reserved
            rows = slice(run.row, run.row + run.n)
            keys, values = run.slot.buffer[layer]
            keys[:, run.start : run.end] = k[rows].transpose(0, 1)
            values[:, run.start : run.end] = v[rows].transpose(0, 1)
            before = run.start % size
            whole = F.pad(q[rows], (0, 0, 0, 0, before, -run.end % size))
            first = run.start // size
            found = []
            for i in range(len(whole) // size):
                block, end = whole[i * size : (i + 1) * size], (first + i + 1) * size
                folded = block.view(size, -1, groups, dim).permute(1, 2, 0, 3).reshape(1, -1, groups * size, dim)
                one = F.scaled_dot_product_attention(
                    folded, keys[:, :end].unsqueeze(0), values[:, :end].unsqueeze(0), attn_mask=self._blocks[first + i]
                )
                found.append(one.view(-1, groups, size, dim).permute(2, 0, 1, 3).reshape(size, heads * dim))
            out[rows] = torch.cat(found)[before : before + run.n]
        return out
