"""The GPU's way through a model, on a CPU: Triton's interpreter runs the kernels, steps are padded and replayed as they
would be recorded, and all must equal plain torch. And the kernels compile for the GPUs that are supported, without one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton", reason="the GPU kernels' tests need triton: pip install triton (Linux)")

PROGRAM = """
import random, sys, torch
from guardkit.engine import graphs, kernels, paged_attention, qwen3
from guardkit.engine.cache import ContiguousCache
from guardkit.engine.paged_cache import PagedCache
from guardkit.engine.config import Qwen3Config
from guardkit.engine.engine import Engine, Limits
from guardkit.engine.qwen3 import FloatLayer, Qwen3

heads, kv_heads, dim, least = map(int, sys.argv[1:])
torch.manual_seed(0)
paged_attention.SPLIT, paged_attention.MOST_SPLITS, graphs.LONG_RUNS = least, 4, 4
config = Qwen3Config(32, 48, 2, heads, kv_heads, 500, 1e6, 1024, head_dim=dim)
tensors = {
    name: 1 + 0.1 * torch.randn(shape) if len(shape) == 1 else torch.randn(shape) * shape[1] ** -0.5
    for name, shape in Qwen3.shapes(config).items()
}
head = torch.randn(32, 11)
CPU = torch.device("cpu")

def engine_of(kind, fused):
    qwen3._packable[torch.float32] = False  # the kernels read weights as they are
    model = Qwen3.of(config, dict(tensors))
    cache = kind(config, torch.float32, CPU, 4096)
    if fused:
        cache._kernel, cache._fused = paged_attention, kernels
        for layer in model.layers:
            layer.gate, layer.add_norm = kernels.gate, kernels.add_norm
        model.row_product = kernels.row_product
    engine = Engine(model, {"response": lambda hidden: hidden @ head}, cache, Limits(256, 64, kept_tokens=2048))
    if fused:
        with torch.inference_mode():
            engine.graphs = graphs.Graphs(model, cache, lambda launch: launch, sizes=(1, 4), long_sizes=(36,))
            assert engine.graphs.agree()
    return engine

plain, gpu = engine_of(ContiguousCache, False), engine_of(PagedCache, True)
replayed, forward = 0, gpu.graphs.forward
def counted(*args):
    global replayed
    found = forward(*args)
    replayed += found is not None
    return found
gpu.graphs.forward = counted
rng = random.Random(0)
ids = [[rng.randrange(500) for _ in range(90)] for _ in range(3)]
ids[1][:70] = ids[0][:70]  # a common beginning, shared in pages and copied on writing
pairs = [(plain.open(), gpu.open()) for _ in ids]
at = [0, 0, 0]
steps = [(70, 40, 9), (1, 1, 1), (2, 1, 3), (6, 29, 0), (1, 2, 1), (5, 1, 20), (1, 1, 2), (0, 1, 0)]
for step, sizes in enumerate(steps):
    found = []
    for engine, which in ((plain, 0), (gpu, 1)):
        with engine._loop.turn():
            found.append([
                engine.submit(pair[which], own[a : a + n], "response", keep=step != 4)
                for pair, own, a, n in zip(pairs, ids, at, sizes) if n
            ])
    for a, b in zip(*found):
        torch.testing.assert_close(torch.tensor(b.result()), torch.tensor(a.result()), rtol=1e-3, atol=1e-4)
    if step == 2:
        for engine, which in ((plain, 0), (gpu, 1)):
            engine.truncate(pairs[0][which], 60)
        at[0] = 60 - sizes[0]
    if step != 4:
        at = [a + n for a, n in zip(at, sizes)]
assert replayed >= 4, replayed
late = gpu.open()  # its beginning is in others' pages
rows = gpu.submit(late, ids[0][:80], "response", read_from=70).result()
again = plain.submit(plain.open(), ids[0][:80], "response", read_from=70).result()
torch.testing.assert_close(torch.tensor(rows), torch.tensor(again), rtol=1e-3, atol=1e-4)
assert gpu.counters.shared
weight, scale = torch.randint(-127, 128, (48, 40), dtype=torch.int8), torch.rand(48)
x, norm, more = torch.randn(1, 40), torch.rand(40), torch.randn(1, 24)
gate, up = ((torch.nn.functional.rms_norm(x, (40,), norm, 1e-6) @ weight.float().T) * scale).chunk(2, 1)
found = kernels.row_product(x, weight, scale, norm, 1e-6, more, gated=True)
torch.testing.assert_close(found, torch.nn.functional.silu(gate) * up + more, rtol=1e-3, atol=1e-3)
print(replayed)
"""

COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import torch, triton
from guardkit.engine import kernels, paged_attention as pa

whole, float32 = "*i64", "*fp32"
heads = dict(GROUPS=2, PAGE=64, DIM=128, KV_HEADS=8)
kib = {70: 96, 75: 64, 80: 163, 86: 99, 89: 99, 90: 227}
dtypes = dict(fp16=torch.float16, bf16=torch.bfloat16, fp32=torch.float32)
whole_row = dict(wide="i32", eps="fp32")
bytes_row = dict(weight="*i8", **whole_row)
first = dict(SCALED=True, NORM=True, ADD=False, GATED=True)
second = dict(SCALED=False, NORM=False, ADD=True, GATED=False)
jobs = [
    (kernels._store, dict(HEADS=16, KV_HEADS=8, DIM=128, ALL=32), dict(positions=whole, rows=whole, eps="fp32")),
    (kernels._gate, dict(BLOCK=kernels.GATE_BLOCK), dict(width="i32")),
    (kernels._add_norm, dict(BLOCK=1024), dict(width="i32", eps="fp32")),
    (kernels._row_product, dict(DEPTH=2560, ROWS=2, BLOCK=1024, **first), bytes_row),
    (kernels._row_product, dict(DEPTH=3072, ROWS=2, BLOCK=1024, **second), whole_row),
    (kernels._copy_page, dict(BLOCK=4096), dict(source="i32", target="i32", step="i64", of_page="i32")),
    (pa._join, dict(MOST=32, DIM=128), dict(parts=float32, sums=float32, rows="i32", heads="i32", splits="i32")),
]
attention = dict(tiles=whole, tables=whole, parts=float32, sums=float32, scale="fp32")
attention |= dict.fromkeys(("q_row", "q_head", "table_row", "rows", "heads", "least", "splits"), "i32")
jobs += [(pa._attend, dict(ROWS=rows, IS_SPLIT=True, **heads), attention) for rows in (pa.FEW_ROWS, pa.MANY_ROWS)]
for capability, dtype in zip(map(int, sys.argv[1::2]), sys.argv[2::2]):
    for kernel, constants, types in jobs:
        options = dict(num_warps=pa.WARPS) | pa.launched_with(dtypes[dtype]) if kernel is pa._attend else {}
        if options:
            constants = constants | dict(PRECISION=options.pop("PRECISION"))
        signature = {n: "constexpr" if n in constants else types.get(n, f"*{dtype}") for n in kernel.arg_names}
        fixed = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert made.metadata.shared <= kib[capability] * 1024, (capability, kernel.__name__, made.metadata.shared)
        if kernel is pa._attend:
            assert made.metadata.shared <= pa.SHARED
"""


def run(program: str, *arguments: str, **environment: str) -> str:
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("shape", ["4 2 16 512", "4 1 16 32"], ids=["one part", "split contexts"])
def test_the_gpus_way_equals_plain_torch(shape: str) -> None:
    """Ragged steps, padded and replayed ones, tokens on trial, cut-back sequences, shared and copied pages."""
    assert int(run(PROGRAM, *shape.split(), TRITON_INTERPRET="1")) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "targets", ["70 fp16 75 fp16 80 bf16", "86 bf16 86 fp32 89 bf16 90 bf16"], ids=["until 2020", "since then"]
)
def test_kernels_compile_without_a_device(targets: str, tmp_path: Path) -> None:
    """For V100, T4, A100, then RTX 3090, RTX 4090 and L4, H100; in the shared memory that each has."""
    run(COMPILE, *targets.split(), TRITON_CACHE_DIR=str(tmp_path))
