"""A cache on a CPU whose sums do not depend on the pieces that a text came in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.cache import ContiguousCache, Run


class _Piece(NamedTuple):
    """What a block has of a run. rows: of the step; place: in the block; mask [1, groups * ALIGN, end]; keys
    [kv_heads, D, end] and values [kv_heads, end, D] of each layer."""

    rows: slice
    place: slice
    mask: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class AlignedCache(ContiguousCache):
    """A `ContiguousCache` whose sums do not depend on how a text was cut, to the last bit: attention is computed for
    `ALIGN` positions at a time, in blocks that begin at the same places whatever came when.

    Of products over so few rows torch makes no tasks for other threads, which would go on looking for more and take
    their cores from the weights' products."""

    ALIGN = 4

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)  # what is behind the end is read, times zero

    def begin(self, runs: Sequence[Run]) -> None:
        c, size = self.config, self.ALIGN
        groups = c.num_attention_heads // c.num_key_value_heads
        # Views of all layers at once: to take them one by one costs as much as small products do.
        self._runs = runs
        self._new_keys = [_buffer(run)[:, 0, :, run.start : run.end].unbind() for run in runs]
        self._new_values = [_buffer(run)[:, 1, :, run.start : run.end].unbind() for run in runs]
        self._pieces = [piece for run in runs for piece in self._cut(run, groups)]
        self._queries = torch.zeros(
            (c.num_key_value_heads, groups, size, c.head_dim), dtype=self.dtype, device=self.device
        )

    def _cut(self, run: Run, groups: int) -> Iterator[_Piece]:
        size = self.ALIGN
        last = torch.full((size, size), float("-inf"), dtype=self.dtype, device=self.device).triu(1).repeat(groups, 1)
        for begin in range(run.start // size * size, run.end, size):
            first, stop, end = max(begin, run.start), min(begin + size, run.end), begin + size
            buffer = _buffer(run)[:, :, :, :end]
            yield _Piece(
                slice(run.row + first - run.start, run.row + stop - run.start),
                slice(first - begin, stop - begin),
                F.pad(last, (begin, 0)).unsqueeze(0),
                buffer[:, 0].transpose(2, 3).unbind(),
                buffer[:, 1].unbind(),
            )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, folded = self._queries, self._queries.flatten(1, 2)
        kv_heads, groups, _, dim = queries.shape
        q = q.view(len(q), kv_heads, groups, dim)
        for run, keys, values in zip(self._runs, self._new_keys, self._new_values, strict=True):
            rows = slice(run.row, run.row + run.n)
            keys[layer].copy_(k[rows].transpose(0, 1))
            values[layer].copy_(v[rows].transpose(0, 1))
        out = torch.zeros_like(q)
        for piece in self._pieces:
            queries[:, :, piece.place] = q[piece.rows].permute(1, 2, 0, 3)
            scores = torch.baddbmm(piece.mask, folded, piece.keys[layer], alpha=dim**-0.5)
            found = torch.bmm(scores.softmax(-1), piece.values[layer]).view(queries.shape)
            out[piece.rows] = found[:, :, piece.place].permute(2, 0, 1, 3)
        return out.view(len(q), -1)


def _buffer(run: Run) -> Tensor:
    assert run.slot.buffer is not None  # reserved
    return run.slot.buffer
