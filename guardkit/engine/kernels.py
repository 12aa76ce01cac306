"""Triton kernels of what surrounds attention in a layer, one launch each instead of a dozen.

`store`: norms of queries and keys, rotary positions, and the write of keys and values into the cache. `gate`: SiLU of
one half times the other. Numbers are float32 inside and rounded once; the plain way rounds after each operation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GATE_BLOCK = 1024


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
    _store[(n, heads + 2 * kv_heads)](
        qkv, norm, cos, sin, positions, rows, q, keys, values, eps, HEADS=heads, KV_HEADS=kv_heads, DIM=dim
    )
    return q


def gate(both: Tensor) -> Tensor:
    """[N, 2 I], gate and up side by side -> SiLU(gate) * up, [N, I]."""
    n, width = len(both), both.shape[1] // 2
    out = torch.empty((n, width), dtype=both.dtype, device=both.device)
    _gate[(n, triton.cdiv(width, GATE_BLOCK))](both, out, width, BLOCK=GATE_BLOCK)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _store(  # type: ignore[no-untyped-def]
    qkv, norm, cos, sin, positions, rows, q, keys, values, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(rows + token).to(tl.int64)
    dims = tl.arange(0, DIM)
    stays = dims < tl.where(row >= 0, DIM, 0)
    other = tl.where(dims < DIM // 2, dims + DIM // 2, dims - DIM // 2)
    base = qkv + token.to(tl.int64) * ((HEADS + 2 * KV_HEADS) * DIM) + head * DIM
    raw = tl.load(base + dims)
    if head >= HEADS + KV_HEADS:
        tl.store(values + (row * KV_HEADS + head - HEADS - KV_HEADS) * DIM + dims, raw, mask=stays)
    else:
        position = tl.load(positions + token)
        x = raw.to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, 0) / DIM + eps)
        x = x * scale * tl.load(norm + head * DIM + dims).to(tl.float32)
        y = tl.load(base + other).to(tl.float32) * scale * tl.load(norm + head * DIM + other).to(tl.float32)
        y = tl.where(dims < DIM // 2, -y, y)
        turned = x * tl.load(cos + position * DIM + dims).to(tl.float32)
        turned += y * tl.load(sin + position * DIM + dims).to(tl.float32)
        if head < HEADS:
            tl.store(q + (token.to(tl.int64) * HEADS + head) * DIM + dims, turned.to(raw.dtype))
        else:
            place = keys + (row * KV_HEADS + head - HEADS) * DIM + dims
            tl.store(place, turned.to(raw.dtype), mask=stays)


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _gate(both, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    g = tl.load(both + token * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(both + token * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + at, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=inside)
