"""The Triton kernel, run by Triton's interpreter on the CPU, against attention over contiguous buffers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton", reason="the GPU kernel's test needs triton")

PROGRAM = """
import sys
import torch
from guardkit.engine import paged_attention
from guardkit.engine.cache import ContiguousCache, Run, Slot
from guardkit.engine.paged_cache import PagedCache
from guardkit.engine.config import Qwen3Config

def check(heads, kv_heads, dim, split):
    torch.manual_seed(0)
    paged_attention.SPLIT = split
    config = Qwen3Config(64, 96, 1, heads, kv_heads, 1000, 1e6, 4096, head_dim=dim)
    lengths = [1, 70, 130, 330]  # in pages of 64
    past = [(torch.randn(n, kv_heads, dim), torch.randn(n, kv_heads, dim)) for n in lengths]
    splits = set()
    for news in ([1, 1, 1, 1], [5, 1, 33, 2]):
        total = sum(news)
        q, k, v = torch.randn(total, heads, dim), torch.randn(total, kv_heads, dim), torch.randn(total, kv_heads, dim)
        found = []
        for kind in (PagedCache, ContiguousCache):
            cache = kind(config, torch.float32, torch.device("cpu"), 8192)
            slots, runs, row = [Slot() for _ in lengths], [], 0
            for slot, n, new, (keys, values) in zip(slots, lengths, news, past, strict=True):
                assert cache.reserve(slot, n + new)
                cache.begin([Run(slot, 0, 0, n)])
                cache.attend(0, torch.randn(n, heads, dim), keys, values)
                runs.append(Run(slot, row, n, new))
                row += new
            if kind is PagedCache:
                cache._kernel = paged_attention
            cache.begin(runs)
            found.append(cache.attend(0, q, k, v))
            if kind is PagedCache:
                splits.add(cache._plan.splits)
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert (max(splits) > 1) is (split < 330), splits

for shape in sys.argv[1:]:
    print(shape, file=sys.stderr)
    check(*map(int, shape.split()))
"""


# Heads, heads of keys and values, their width, the least tokens of a part of a context.
SHAPES = ("4 2 128 64", "8 2 128 128", "4 2 16 64", "64 2 16 4000")


def test_the_kernel_equals_plain_attention() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *SHAPES], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
