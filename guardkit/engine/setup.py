"""From a checkpoint to a running engine: device, dtype, weights, the size of the cache."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from guardkit.engine import int8
from guardkit.engine.cache import GROW, Cache, ContiguousCache
from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.engine import Engine, Head, Limits
from guardkit.engine.graphs import recorded
from guardkit.engine.host_memory import give_back, use_large_pages
from guardkit.engine.onnx_qwen3 import OnnxCache
from guardkit.engine.paged_cache import PagedCache
from guardkit.engine.qwen3 import Embedding, Qwen3
from guardkit.errors import GuardkitError, ModelLoadError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GIB = 1 << 30
LARGE_MODEL = 1 << 25  # weights, from which on they are moved into large pages
SMALL_MODEL = 1 << 22  # weights of all layers, up to which a step is too short to be shared by threads
KEPT = GIB  # bytes of closed sequences that a cache in host memory keeps for others that begin alike


@dataclass(frozen=True)
class Options:
    """How to run a checkpoint.

    device: "cpu", "cuda", "cuda:1", "mps"; None: CUDA where there is one, else the CPU.
    dtype: "bfloat16", "float16" or "float32"; None: bfloat16 where the device computes in it, else float16 (a GPU) or
    float32.
    cache_gib: memory for keys and values, in GiB; None: most of what a GPU has left, a third of the free host memory.
    max_streams: streams that may be open at a time. threads: CPU threads; None: one for a small model, else torch's
    own choice.
    gpu_share: the most of a GPU's memory for this model, weights and cache together, so that another fits beside it.
    quantize: "int8" keeps the weights in 8 bits (`int8.py`); None: as `dtype` says.
    """

    device: str | None = None
    dtype: str | None = None
    cache_gib: float | None = None
    max_streams: int = 4096
    threads: int | None = None
    quantize: str | None = None
    gpu_share: float = 1.0


def build(
    checkpoint: Checkpoint,
    shapes: Mapping[str, tuple[int, ...]],
    heads: Callable[[dict[str, Tensor], Embedding], Mapping[str, Head]],
    options: Options,
) -> Engine:
    """Load the backbone and the tensors of `shapes`; `heads` makes the heads of them and of the embeddings."""
    device = pick_device(options.device)
    if not 0 < options.gpu_share <= 1:
        raise GuardkitError(f"gpu_share must be above 0 and at most 1, not {options.gpu_share}")
    others = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    sizes = {name: math.prod(shape) for name, shape in Qwen3.shapes(checkpoint.config).items()}
    layers = sum(size for name, size in sizes.items() if name.startswith("model.layers."))
    threads = options.threads or (1 if device.type == "cpu" and layers <= SMALL_MODEL else None)
    if options.quantize is None:
        dtype = pick_dtype(options.dtype, device)
        tensors = checkpoint.load({**Qwen3.shapes(checkpoint.config), **shapes}, dtype=dtype, device=device)
        own = {name: tensors.pop(name) for name in shapes}
        model = Qwen3.of(checkpoint.config, tensors)
    else:
        dtype = _int8_dtype(options, device)
        own = checkpoint.load(shapes, dtype=dtype, device=device)
        model = int8.load(checkpoint, dtype, device, threads)
    made = heads(own, model.embed)
    if device.type == "cpu":
        give_back()
        if sum(sizes.values()) > LARGE_MODEL:
            use_large_pages()
    cache = _cache(checkpoint, dtype, device, options, others)
    on_gpu, token_bytes = device.type == "cuda", cache.bytes_per_token(checkpoint.config, dtype)
    limits = Limits(
        step_tokens=8192 if on_gpu else 512,
        mixed_tokens=512 if on_gpu else 64,
        max_sequences=options.max_streams,
        # A pool is there anyway; on a CPU what is kept is memory that others could have.
        kept_tokens=cache.capacity if on_gpu else min(cache.capacity // 4, KEPT // token_bytes),
        host_tokens=_free_host_memory() // 4 // token_bytes if on_gpu else 0,
        threads=threads,
    )
    engine = Engine(model, made, cache, limits)
    if on_gpu:
        _warm_up(engine, model, cache)
    return engine


def _warm_up(engine: Engine, model: Qwen3, cache: Cache) -> None:
    """Compile the kernels and record the steps now: the first text should not wait for it."""
    if model.dtype is torch.float32:
        torch.set_float32_matmul_precision("highest")  # TF32 keeps 10 bits: scores would not be those of float32
    if isinstance(cache, PagedCache) and cache.fused is not None:
        kernels = importlib.import_module("guardkit.engine.kernels")
        for layer in model.layers:
            layer.gate, layer.add_norm = kernels.gate, kernels.add_norm
        model.row_product = kernels.row_product
        engine.graphs = recorded(model, cache)
    sequence = engine.open(counted=False)
    for n in (64, 1, 600, 2048, 5):
        if sequence.length + n <= engine.max_tokens:
            engine.submit(sequence, [1] * n, next(iter(engine.heads)), read_from=n - 1).result()
    engine.close(sequence)


def pick_device(name: str | None) -> torch.device:
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise GuardkitError(f"device '{name}' cannot be used ({reason}); try device='cpu'") from error
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name is not None and name != "auto":
        if name.removeprefix("torch.") not in DTYPES:
            raise GuardkitError(f"dtype '{name}' is not supported; known: {', '.join(DTYPES)}")
        return DTYPES[name.removeprefix("torch.")]
    if device.type == "cuda":
        return dtype_of_gpu(torch.cuda.get_device_capability(device))
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def dtype_of_gpu(capability: tuple[int, int]) -> torch.dtype:
    """bfloat16 where the hardware has it; what has it not (T4, V100) emulates it, slowly, and Triton's kernels not at
    all: torch's own answer to the question counts the emulation."""
    return torch.bfloat16 if capability >= (8, 0) else torch.float16


def _int8_dtype(options: Options, device: torch.device) -> torch.dtype:
    """What weights in 8 bits are multiplied with."""
    if options.quantize != "int8":
        raise GuardkitError(f"quantize='{options.quantize}' is not supported; known: int8")
    if device.type != "cpu":
        return pick_dtype(options.dtype, device)
    if options.dtype not in (None, "auto") and pick_dtype(options.dtype, device) is not torch.float32:
        raise GuardkitError(f"quantize='int8' computes in float32 on a CPU: leave dtype='{options.dtype}' out")
    return torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 itself; where it does not, float32 is faster."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def _cache(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, options: Options, others: int) -> Cache:
    """others: bytes that this process had on the device before."""
    config, gib = checkpoint.config, options.cache_gib
    kind: type[Cache] = PagedCache if device.type == "cuda" else ContiguousCache
    if device.type == "cpu" and options.quantize is not None:
        kind = OnnxCache
    if gib is not None:
        free = int(gib * GIB)
    elif device.type == "cuda":
        torch.cuda.empty_cache()  # what loading left behind
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_allocated(device) - others
        # A step's activations, and the recorded steps, need room too.
        free = max(0, min(int(free * 0.9), int(total * options.gpu_share) - own) - 2 * GIB)
    else:
        free = _free_host_memory() // 3
    capacity = free // kind.bytes_per_token(config, dtype) // GROW * GROW
    if capacity < 2 * GROW:
        raise ModelLoadError(
            f"{checkpoint.folder}: {free / GIB:.2f} GiB for keys and values hold {capacity} tokens only; "
            "free some memory, raise cache_gib, or take a smaller model"
        )
    return kind(config, dtype, device, capacity)


def _free_host_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not everywhere
        return 4 * GIB
