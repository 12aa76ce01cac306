"""Triton kernels of what surrounds attention in a layer, one launch each instead of a dozen.

`store`: norms of queries and keys, rotary positions, and the write of keys and values into the cache. `gate`: SiLU of
one half times the other. `add_norm`: the residual and the norm behind it. `row_product`: a product with one row, which
libraries compute at a third of the memory's speed, with what stands before and behind it. Numbers are float32 inside
and rounded once; the plain way rounds after each operation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GATE_BLOCK = 1024
ROW_BLOCK, ROW_ROWS = 1024, 2
COPY_BLOCK = 4096


def store(
    qkv: Tensor, norm: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, rows: Tensor, keys: Tensor, values: Tensor,
    eps: float,
) -> Tensor:  # fmt: skip
    """qkv [N, (heads + 2 kv_heads) * D] as the product gives it; norm [heads + kv_heads, D]; cos, sin [positions, D];
    positions [N]; rows [N]: where each token's keys and values go in keys and values [pages, PAGE, kv_heads, D] (below
    0: nowhere) -> the queries [N, heads, D], normed and turned."""
    n, (kv_heads, dim) = len(qkv), keys.shape[2:]
    heads = len(norm) - kv_heads
    q = torch.empty((n, heads, dim), dtype=qkv.dtype, device=qkv.device)
    rows_of_heads = triton.next_power_of_2(heads + 2 * kv_heads)
    _store[(n,)](
        qkv, norm, cos, sin, positions, rows, q, keys, values, eps, HEADS=heads, KV_HEADS=kv_heads, DIM=dim,
        ALL=rows_of_heads, num_warps=4 if rows_of_heads <= 32 else 8,
    )  # fmt: skip
    return q


def gate(both: Tensor) -> Tensor:
    """[N, 2 I], gate and up side by side -> SiLU(gate) * up, [N, I]."""
    n, width = len(both), both.shape[1] // 2
    out = torch.empty((n, width), dtype=both.dtype, device=both.device)
    _gate[(n, triton.cdiv(width, GATE_BLOCK))](both, out, width, BLOCK=GATE_BLOCK)
    return out


def add_norm(x: Tensor, more: Tensor, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, more [N, H], norm [H] -> their sum, and its RMS norm, both [N, H]."""
    n, width = x.shape
    total, normed = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _add_norm[(n,)](
        x, more, norm, total, normed, width, eps, BLOCK=block, num_warps=max(1, min(8, block // 512))
    )  # fmt: skip
    return total, normed


def row_product(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, norm: Tensor | None = None, eps: float = 0.0,
    add: Tensor | None = None, gated: bool = False,
) -> Tensor:  # fmt: skip
    """x [1, K], weight [M, K] -> their product, [1, M]. scale [M]: of the rows of a weight in 8 bits; norm [K]: the
    product with the RMS norm of x; add [1, M]: and that added; gated: the rows of `weight` are gate and up, and the
    result SiLU(gate) * up, [1, M / 2]."""
    wide, depth = weight.shape
    wide = wide // 2 if gated else wide
    block = min(ROW_BLOCK, triton.next_power_of_2(depth))
    out = torch.empty((1, wide), dtype=x.dtype, device=x.device)
    _row_product[(triton.cdiv(wide, ROW_ROWS),)](
        x, weight, x if scale is None else scale, x if norm is None else norm, x if add is None else add, out, wide,
        eps, DEPTH=depth, ROWS=ROW_ROWS, BLOCK=block, SCALED=scale is not None, NORM=norm is not None,
        ADD=add is not None, GATED=gated,
    )  # fmt: skip
    return out


def copy_page(pool: Tensor, source: int, target: int) -> None:
    """Keys and values of one page to another: pool [layers, 2, pages, ...]. torch would cut so large a pool into pieces
    that 32 bits can address, and launch a copy of each."""
    each, of_page = pool.shape[0] * 2, pool[0, 0, 0].numel()
    _copy_page[(each, triton.cdiv(of_page, COPY_BLOCK))](
        pool, source, target, pool.stride(1), of_page, BLOCK=COPY_BLOCK
    )  # fmt: skip


@triton.jit(do_not_specialize=["source", "target", "step", "of_page"])  # type: ignore[untyped-decorator]
def _copy_page(pool, source, target, step, of_page, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    layer = pool + tl.program_id(0).to(tl.int64) * step
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < of_page
    found = tl.load(layer + source.to(tl.int64) * of_page + at, mask=inside, other=0.0)
    tl.store(layer + target.to(tl.int64) * of_page + at, found, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _store(  # type: ignore[no-untyped-def]
    qkv, norm, cos, sin, positions, rows, q, keys, values, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    TURNED: tl.constexpr = HEADS + KV_HEADS
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token).to(tl.int64)
    position = tl.load(positions + token)
    head = tl.arange(0, ALL)[:, None]
    dims = tl.arange(0, DIM)[None, :]
    other = tl.where(dims < DIM // 2, dims + DIM // 2, dims - DIM // 2)
    base = qkv + token * ((HEADS + 2 * KV_HEADS) * DIM)
    raw = tl.load(base + head * DIM + dims, mask=head < HEADS + 2 * KV_HEADS, other=0.0)
    x = raw.to(tl.float32)
    y = tl.load(base + head * DIM + other, mask=head < TURNED, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
    x = x * scale * tl.load(norm + head * DIM + dims, mask=head < TURNED, other=0.0).to(tl.float32)
    y = y * scale * tl.load(norm + head * DIM + other, mask=head < TURNED, other=0.0).to(tl.float32)
    y = tl.where(dims < DIM // 2, -y, y)
    turned = x * tl.load(cos + position * DIM + dims).to(tl.float32)
    turned += y * tl.load(sin + position * DIM + dims).to(tl.float32)
    done = turned.to(raw.dtype)
    tl.store(q + (token * HEADS + head) * DIM + dims, done, mask=head < HEADS)
    key = (head >= HEADS) & (head < tl.where(row >= 0, TURNED, 0))
    tl.store(keys + (row * KV_HEADS + head - HEADS) * DIM + dims, done, mask=key)
    value = (head >= TURNED) & (head < tl.where(row >= 0, TURNED + KV_HEADS, 0))
    tl.store(values + (row * KV_HEADS + head - TURNED) * DIM + dims, raw, mask=value)


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _gate(both, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    g = tl.load(both + token * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(both + token * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + at, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _add_norm(x, more, norm, total, normed, width, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    a = tl.load(x + row + at, mask=inside, other=0.0)
    b = tl.load(more + row + at, mask=inside, other=0.0)
    both = (a.to(tl.float32) + b.to(tl.float32)).to(a.dtype)  # rounded first, as the next layers read it
    tl.store(total + row + at, both, mask=inside)
    y = both.to(tl.float32)
    scale = tl.rsqrt(tl.sum(y * y, 0) / width + eps)
    y = y * scale * tl.load(norm + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row + at, y.to(a.dtype), mask=inside)


@triton.jit(do_not_specialize=["wide"])  # type: ignore[untyped-decorator]
def _row_product(  # type: ignore[no-untyped-def]
    x, weight, scales, norm, add, out, wide, eps,
    DEPTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr, NORM: tl.constexpr,
    ADD: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = at < wide
    row = weight + at.to(tl.int64)[:, None] * DEPTH
    found = tl.zeros([ROWS, BLOCK], tl.float32)
    other = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in tl.static_range(0, DEPTH, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < DEPTH
        both = real[:, None] & inside[None, :]
        w = tl.load(row + k[None, :], mask=both, other=0).to(tl.float32)
        a = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += a * a
            a *= tl.load(norm + k, mask=inside, other=0.0).to(tl.float32)
        found += w * a[None, :]
        if GATED:
            up = tl.load(row + wide.to(tl.int64) * DEPTH + k[None, :], mask=both, other=0).to(tl.float32)
            other += up * a[None, :]
    y = tl.sum(found, 1)
    z = tl.sum(other, 1)
    if SCALED:
        y *= tl.load(scales + at, mask=real, other=0.0).to(tl.float32)
        if GATED:
            z *= tl.load(scales + wide + at, mask=real, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, 0) / DEPTH + eps)
        y *= scale
        z *= scale
    if GATED:
        y = y * tl.sigmoid(y) * z
    if ADD:
        y += tl.load(add + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=real)
