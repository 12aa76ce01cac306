"""A Triton kernel for ragged paged attention: any number of sequences, each with any number of new tokens.

A program handles one tile of one sequence's new tokens under one key head, with the query heads that share it folded
into its rows, and walks the sequence's pages with a running softmax (Dao et al., FlashAttention-2). Long contexts are
split among programs, each sequence's by its own length, so that a GPU is busy with one stream too; a second kernel
joins the parts. Tiles without tokens cost next to nothing, so a launch may be padded to a fixed size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from guardkit.engine.cache import Run

FEW_ROWS, MANY_ROWS = 16, 64  # of a tile: query heads of one key head x new tokens; while decoding, and in prefills
PROGRAMS = 512  # enough to fill a large GPU; below, contexts are split
SPLIT = 64  # the fewest tokens of a context worth a program of their own
MOST_SPLITS = 32
WARPS = 4
SHARED = 96 * 1024  # bytes that float32 takes on a multiprocessor; 16 bits take at most 64 KiB

Tile = tuple[int, int, int, int]
"""First row, tokens, position of the first, row of the page tables."""


@dataclass(frozen=True)
class Plan:
    """What a step's layers share. tile_rows: rows of a tile; tiles [t, 4]: see `Tile`; tables [rows, pages]; splits:
    the most programs that share a context, a power of two; parts, sums: scratch for them, None where it is 1."""

    tile_rows: int
    tiles: Tensor
    tables: Tensor
    splits: int
    parts: Tensor | None
    sums: Tensor | None

    @classmethod
    def of(
        cls, tile_rows: int, tiles: Tensor, tables: Tensor, splits: int, rows: int, heads: int, dim: int
    ) -> Plan:  # fmt: skip
        if splits == 1:
            return cls(tile_rows, tiles, tables, 1, None, None)
        parts = torch.empty((splits, rows, heads, dim), dtype=torch.float32, device=tiles.device)
        sums = torch.empty((splits, rows, heads), dtype=torch.float32, device=tiles.device)
        return cls(tile_rows, tiles, tables, splits, parts, sums)


def tiles_of(runs: Sequence[Run], groups: int) -> tuple[int, list[Tile]]:
    """Cut a step into tiles; their rows first."""
    rows = FEW_ROWS if max(run.n for run in runs) * groups <= FEW_ROWS else MANY_ROWS
    rows = max(rows, triton.next_power_of_2(groups))
    return rows, few_tiles(runs, rows // groups)


def few_tiles(runs: Sequence[Run], per_tile: int) -> list[Tile]:
    """Tiles of at most `per_tile` tokens."""
    tiles: list[Tile] = []
    for slot, row, start, n in runs:
        if n <= per_tile:
            tiles.append((row, n, start, slot.row))
        else:
            tiles += [(row + at, min(per_tile, n - at), start + at, slot.row) for at in range(0, n, per_tile)]
    return tiles


def splits_for(tiles: int, kv_heads: int, longest: int) -> int:
    """How many programs may share a context of `longest` tokens, where so many tiles are launched."""
    wanted = max(1, min(PROGRAMS // (tiles * kv_heads), longest // SPLIT, MOST_SPLITS))
    return int(triton.next_power_of_2(wanted))


def attend(plan: Plan, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q [N, heads, D]; keys, values [pages, PAGE, kv_heads, D] of one layer -> [N, heads * D]."""
    rows, heads, dim = q.shape
    kv_heads, page = keys.shape[2], keys.shape[1]
    out = torch.empty((rows, heads * dim), dtype=q.dtype, device=q.device)
    parts, sums = (out, out) if plan.parts is None or plan.sums is None else (plan.parts, plan.sums)
    _attend[(plan.tiles.shape[0], kv_heads, plan.splits)](
        q, keys, values, plan.tiles, plan.tables, parts, sums,
        dim**-0.5, q.stride(0), q.stride(1), plan.tables.stride(0), rows, heads, SPLIT,
        plan.splits, GROUPS=heads // kv_heads, ROWS=plan.tile_rows, PAGE=page, DIM=dim, KV_HEADS=kv_heads,
        IS_SPLIT=plan.splits > 1, num_warps=WARPS, **launched_with(q.dtype),
    )  # fmt: skip
    if plan.splits > 1:
        _join[(rows, heads)](parts, sums, out, rows, heads, plan.splits, MOST=MOST_SPLITS, DIM=dim)
    return out


def launched_with(dtype: torch.dtype) -> dict[str, Any]:
    """Two stages are the fastest of 9 settings on an H200, for tiles of any height; in float32 they take more shared
    memory than most GPUs have."""
    exact = dtype is torch.float32
    return {"PRECISION": "ieee" if exact else "tf32", "num_stages": 1 if exact else 2}


@triton.jit(do_not_specialize=["q_row", "q_head", "table_row", "rows", "heads", "least", "splits"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q, keys, values, tiles, tables, parts, sums,
    scale, q_row, q_head, table_row, rows, heads, least, splits,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, KV_HEADS: tl.constexpr,
    IS_SPLIT: tl.constexpr, PRECISION: tl.constexpr,
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
    pages = tl.where(n > 0, (start + n + PAGE - 1) // PAGE, 0)
    used = tl.minimum(splits, tl.maximum(1, (start + n) // least))  # programs that share this sequence's context
    share = (pages + used - 1) // used
    inside = tl.arange(0, PAGE)
    for at in range(split * share, tl.minimum((split + 1) * share, pages)):
        slot = tl.load(table + at).to(tl.int64) * PAGE + inside
        where = (slot[:, None] * KV_HEADS + kv_head) * DIM + dims[None, :]
        known = at * PAGE + inside < start + n
        key = tl.load(keys + where, mask=known[:, None], other=0.0)
        value = tl.load(values + where, mask=known[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        score = tl.where((at * PAGE + inside)[None, :] <= sees[:, None], score, float("-inf"))
        new_best = tl.maximum(best, tl.max(score, 1))
        shift = tl.where(new_best == float("-inf"), 0.0, new_best)  # a row that sees nothing of this part
        weight = tl.exp(score - shift[:, None])
        fade = tl.exp(best - shift)
        total = total * fade + tl.sum(weight, 1)
        found = found * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        best = new_best
    empty = total == 0.0
    found = found / tl.where(empty, 1.0, total)[:, None]
    out = (split.to(tl.int64) * rows + first + token) * heads + head
    there = real & (total > 0.0) if IS_SPLIT else real
    tl.store(parts + out[:, None] * DIM + dims[None, :], found.to(parts.dtype.element_ty), mask=there[:, None])
    if IS_SPLIT:
        tl.store(sums + out, tl.where(empty, float("-inf"), best + tl.log(tl.where(empty, 1.0, total))), mask=real)


@triton.jit(do_not_specialize=["rows", "heads", "splits"])  # type: ignore[untyped-decorator]
def _join(  # type: ignore[no-untyped-def]
    parts, sums, out, rows, heads, splits, MOST: tl.constexpr, DIM: tl.constexpr
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * heads + tl.program_id(1)
    dims = tl.arange(0, DIM)
    split = tl.arange(0, MOST)
    at = split.to(tl.int64) * rows * heads + place
    sum_of = tl.load(sums + at, mask=split < splits, other=float("-inf"))
    best = tl.max(sum_of, 0)
    best = tl.where(best == float("-inf"), 0.0, best)  # a padded row
    weight = tl.exp(sum_of - best)
    part = tl.load(parts + at[:, None] * DIM + dims[None, :], mask=(weight > 0.0)[:, None], other=0.0)
    total = tl.sum(weight, 0)
    found = tl.sum(weight[:, None] * part, 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + place * DIM + dims, found.to(out.dtype.element_ty))
