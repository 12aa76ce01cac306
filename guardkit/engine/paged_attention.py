"""A Triton kernel for ragged paged attention: any number of sequences, each with any number of new tokens.

A program handles one tile of one sequence's new tokens under one key head, with the query heads that share it folded
into its rows, and walks the sequence's pages with a running softmax (Dao et al., FlashAttention-2). Long contexts of
few sequences are split among programs, whose parts a second kernel joins, so that a GPU is busy with one stream too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from guardkit.engine.cache import Run

FEW_ROWS, MANY_ROWS = 16, 64  # of a tile: query heads of one key head x new tokens; while decoding, and in prefills
PROGRAMS = 512  # enough to fill a large GPU; below, contexts are split
SPLIT = 512  # the fewest tokens of a context worth a program of their own


@dataclass(frozen=True)
class Plan:
    """What a step's layers share. tile_rows: rows of a tile; tiles [t, 4]: first row, tokens, position of the first,
    index of the page table; tables [sequences, pages]; splits: programs that share a context; parts, sums: scratch."""

    tile_rows: int
    tiles: Tensor
    tables: Tensor
    splits: int
    parts: Tensor
    sums: Tensor


def plan(runs: Sequence[Run], heads: int, kv_heads: int, dim: int, page: int, device: torch.device) -> Plan:
    """Cut a step into tiles."""
    groups = heads // kv_heads
    tile_rows = FEW_ROWS if max(run.n for run in runs) * groups <= FEW_ROWS else MANY_ROWS
    tile_rows = max(tile_rows, triton.next_power_of_2(groups))
    per_tile = tile_rows // groups
    tiles = [
        (run.row + at, min(per_tile, run.n - at), run.start + at, index)
        for index, run in enumerate(runs)
        for at in range(0, run.n, per_tile)
    ]
    width = max(-(-run.end // page) for run in runs)
    tables = [run.slot.pages[: -(-run.end // page)] for run in runs]
    filled = [table + [0] * (width - len(table)) for table in tables]
    longest = max(run.end for run in runs)
    splits = max(1, min(PROGRAMS // (len(tiles) * kv_heads), longest // SPLIT))
    rows = sum(run.n for run in runs)
    return Plan(
        tile_rows,
        torch.tensor(tiles, dtype=torch.int32, device=device),
        torch.tensor(filled, dtype=torch.int32, device=device),
        splits,
        torch.empty((splits, rows, heads, dim), dtype=torch.float32, device=device),
        torch.empty((splits, rows, heads), dtype=torch.float32, device=device),
    )


def attend(plan: Plan, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q [N, heads, D]; keys, values [pages, PAGE, kv_heads, D] of one layer -> [N, heads * D]."""
    rows, heads, dim = q.shape
    kv_heads, page = keys.shape[2], keys.shape[1]
    grid = (plan.tiles.shape[0], kv_heads, plan.splits)
    _attend[grid](
        q, keys, values, plan.tiles, plan.tables, plan.parts, plan.sums,
        dim**-0.5, q.stride(0), q.stride(1), plan.tables.stride(0), rows, heads, plan.splits,
        GROUPS=heads // kv_heads, ROWS=plan.tile_rows, PAGE=page, DIM=dim, KV_HEADS=kv_heads,
    )  # fmt: skip
    if plan.splits == 1:
        return plan.parts[0].to(q.dtype).view(rows, heads * dim)
    weights = torch.softmax(plan.sums, dim=0).unsqueeze(-1)
    return (plan.parts * weights).sum(0).to(q.dtype).view(rows, heads * dim)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q, keys, values, tiles, tables, parts, sums,
    scale, q_row, q_head, table_row, rows, heads, splits,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, KV_HEADS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    first = tl.load(tiles + tile * 4)
    n = tl.load(tiles + tile * 4 + 1)
    start = tl.load(tiles + tile * 4 + 2)
    table = tables + tl.load(tiles + tile * 4 + 3) * table_row

    row = tl.arange(0, ROWS)
    token = row // GROUPS
    head = kv_head * GROUPS + row % GROUPS
    real = token < n
    dims = tl.arange(0, DIM)
    query = tl.load(
        q + (first + token)[:, None] * q_row + head[:, None] * q_head + dims[None, :], mask=real[:, None], other=0.0
    )
    sees = start + token  # the last position that a row sees

    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, DIM], tl.float32)
    pages = (start + n + PAGE - 1) // PAGE
    share = (pages + splits - 1) // splits
    inside = tl.arange(0, PAGE)
    for at in range(split * share, tl.minimum((split + 1) * share, pages)):
        slot = tl.load(table + at).to(tl.int64) * PAGE + inside
        where = (slot[:, None] * KV_HEADS + kv_head) * DIM + dims[None, :]
        known = at * PAGE + inside < start + n
        key = tl.load(keys + where, mask=known[:, None], other=0.0)
        value = tl.load(values + where, mask=known[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        score = tl.where((at * PAGE + inside)[None, :] <= sees[:, None], score, float("-inf"))
        new_best = tl.maximum(best, tl.max(score, 1))
        shift = tl.where(new_best == float("-inf"), 0.0, new_best)  # a row that sees nothing of this part
        weight = tl.exp(score - shift[:, None])
        fade = tl.exp(best - shift)
        total = total * fade + tl.sum(weight, 1)
        found = found * fade[:, None] + tl.dot(weight.to(value.dtype), value)
        best = new_best
    empty = total == 0.0
    found = found / tl.where(empty, 1.0, total)[:, None]
    out = (split * rows + first + token) * heads + head
    tl.store(parts + out[:, None] * DIM + dims[None, :], found, mask=real[:, None])
    tl.store(sums + out, tl.where(empty, float("-inf"), best + tl.log(tl.where(empty, 1.0, total))), mask=real)
