"""A cache on a CPU whose sums do not depend on the pieces that a text came in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.cache import ContiguousCache, Run
from guardkit.engine.config import Qwen3Config
from guardkit.engine.near_attention import NearAttention
from guardkit.engine.qwen3 import rms_norm, turn


class _Piece(NamedTuple):
    """What a block has of a run. rows: of the far ones; place: in the block; mask [1, groups * ALIGN, end]; keys
    [kv_heads, D, end] and values [kv_heads, end, D] of each layer."""

    rows: slice
    place: slice
    mask: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class AlignedCache(ContiguousCache):
    """A `ContiguousCache` whose sums do not depend on how a text was cut, to the last bit. How a position is computed
    depends on the position alone: near a text's beginning by `NearAttention`; further on, `ALIGN` positions at a time,
    in blocks that begin at the same places whatever came when.

    Of products over so few rows torch makes no tasks for other threads, which would go on looking for more and take
    their cores from the weights' products."""

    ALIGN = 4

    def __init__(
        self, config: Qwen3Config, dtype: torch.dtype, device: torch.device, capacity: int, threads: int | None = None
    ):
        super().__init__(config, dtype, device, capacity)
        self._near = NearAttention(config, threads or torch.get_num_threads())
        self._near_runs: list[Run] = []
        self._far: list[Run] = []
        self._far_rows: list[int] = []
        self._pieces: list[_Piece] = []
        self.alone: Run | None = None  # the step's only run, where all of it is near

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        layers, both, heads, held, dim = shape
        # One more, for the row behind one that would be alone. What is behind the end is read, times zero.
        return torch.zeros((layers, both, heads, held + 1, dim), dtype=self.dtype, device=self.device)

    def begin(self, runs: Sequence[Run]) -> None:
        end = self._near.end
        self.alone = runs[0] if len(runs) == 1 and runs[0].end <= end else None
        if self.alone is not None:
            return
        self._near_runs = [run._replace(n=min(run.n, end - run.start)) for run in runs if run.start < end]
        self._far = [_behind(run, end) for run in runs if run.end > end]
        self._far_rows = [row for run in self._far for row in range(run.row, run.row + run.n)]
        at, far = 0, []
        for run in self._far:
            far.append(run._replace(row=at))
            at += run.n
        # Views of all layers at once: to take them one by one costs as much as small products do.
        self._new_rows = [slice(run.row, run.row + run.n) for run in far]
        self._new_keys = [_buffer(run)[:, 0, :, run.start : run.end].unbind() for run in far]
        self._new_values = [_buffer(run)[:, 1, :, run.start : run.end].unbind() for run in far]
        self._pieces = [piece for run in far for piece in self._cut(run)]

    def _cut(self, run: Run) -> Iterator[_Piece]:
        size, groups = self.ALIGN, self.config.num_attention_heads // self.config.num_key_value_heads
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

    def fused(
        self, layer: int, qkv: Tensor, norms: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, eps: float
    ) -> Tensor:
        """See `qwen3.Fused`."""
        out = torch.zeros(len(qkv), self.config.num_attention_heads * self.config.head_dim)
        for run in self._near_runs:
            rows = slice(run.row, run.row + run.n)
            out[rows] = self._near(qkv[rows], norms, _buffer(run)[layer].unbind(), run.start)
        if self._far:
            at = positions[self._far_rows]
            out[self._far_rows] = self._attend_far(
                layer, qkv[self._far_rows], norms, cos[at].unsqueeze(1), sin[at].unsqueeze(1), eps
            )
        return out

    def _attend_far(self, layer: int, qkv: Tensor, norms: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        c, size = self.config, self.ALIGN
        kv_heads, groups, dim = c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads, c.head_dim
        heads = qkv.view(len(qkv), -1, dim)
        qk, v = heads.split([c.num_attention_heads + kv_heads, kv_heads], dim=1)
        qk = turn(rms_norm(qk, None, eps) * norms, cos, sin)
        q, k = qk.split([c.num_attention_heads, kv_heads], dim=1)
        for rows, keys, values in zip(self._new_rows, self._new_keys, self._new_values, strict=True):
            keys[layer].copy_(k[rows].transpose(0, 1))
            values[layer].copy_(v[rows].transpose(0, 1))
        q = q.reshape(len(q), kv_heads, groups, dim)
        queries = torch.zeros(kv_heads, groups, size, dim)
        folded, out = queries.flatten(1, 2), torch.empty_like(q)
        for piece in self._pieces:
            queries[:, :, piece.place] = q[piece.rows].permute(1, 2, 0, 3)
            scores = torch.baddbmm(piece.mask, folded, piece.keys[layer], alpha=dim**-0.5)
            found = torch.bmm(scores.softmax(-1), piece.values[layer]).view(queries.shape)
            out[piece.rows] = found[:, :, piece.place].permute(2, 0, 1, 3)
        return out.view(len(q), -1)


def _behind(run: Run, position: int) -> Run:
    """What of a run is at `position` or behind it."""
    skipped = max(position - run.start, 0)
    return Run(run.slot, run.row + skipped, run.start + skipped, run.n - skipped)


def _buffer(run: Run) -> Tensor:
    assert run.slot.buffer is not None  # reserved
    return run.slot.buffer
