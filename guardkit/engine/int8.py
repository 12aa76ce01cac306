"""Weights in 8 bits: a quarter of float32's memory, and of the reading that a streamed token waits for.

Nothing is fitted to data, so any checkpoint can be loaded like this. A CPU has a backbone of its own
(`onnx_qwen3.py`), and its embeddings stay in the checkpoint's file (`stored_embedding.py`). Elsewhere only the weights
are rounded, a scale a row: on a GPU a kernel of ours multiplies single rows, more are multiplied with the weights put
back; other devices have torch's own kernel, where there is one. Embeddings are rounded like that too.

Heads stay as they are: they are small, and verdicts are read off them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.onnx_qwen3 import OnnxQwen3
from guardkit.engine.qwen3 import Embedding, FloatLayer, Linear, Qwen3
from guardkit.engine.stored_embedding import StoredEmbedding

ROWS = 8  # the most rows of torch's 8-bit product; beyond, it is slower than a product with the weights put back


def load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, threads: int | None) -> Qwen3:
    """The backbone of `checkpoint`, one layer after another: no more than one is ever at hand in full precision."""
    config = checkpoint.config

    def take(name: str) -> Tensor:
        return checkpoint.load({name: shapes[name]}, dtype=dtype, device=device)[name]

    shapes = Qwen3.shapes(config)
    checkpoint.check(shapes)
    name = "model.embed_tokens.weight"
    if device.type == "cpu":
        reads = hasattr(os, "pread")  # not on Windows
        embed = StoredEmbedding(checkpoint.tensors[name]) if reads else Int8Embedding(take(name))
        return OnnxQwen3(config, embed, take, threads)
    layers = []
    for i in range(config.num_hidden_layers):
        own: Callable[[str], Tensor] = lambda name, i=i: take(f"model.layers.{i}.{name}")  # type: ignore[misc]  # noqa: E731
        layers.append(FloatLayer(config, own, Int8Linear))
    return Qwen3(config, Int8Embedding(take(name)), layers, take("model.norm.weight"))


def _by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> int8 [N, K] and scales [N, 1], in the weight's dtype."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (weight.float() / scale).round_().to(torch.int8), scale.to(weight.dtype)


class Int8Embedding(Embedding):
    def __init__(self, weight: Tensor):
        super().__init__(torch.empty(weight.shape, dtype=torch.int8, device=weight.device))
        self._scale = torch.empty((len(weight), 1), dtype=weight.dtype, device=weight.device)
        for at in range(0, len(weight), 1 << 14):  # in pieces: a vocabulary is large
            rows = slice(at, at + (1 << 14))
            self.weight[rows], self._scale[rows] = _by_row(weight[rows])

    def __call__(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).to(self._scale.dtype) * self._scale[ids]


class Int8Linear(Linear):
    """A matrix without bias in 8 bits, a scale a row."""

    def __init__(self, weight: Tensor):
        self.weight, scale = _by_row(weight)
        self.scale: Tensor = scale[:, 0]
        # CUDA's kernel of that name takes ten times as long as the weights put back (H200).
        self._packed = weight.device.type != "cuda" and _has_product(weight.device, weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed and len(x) <= ROWS:
            return torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.weight, self.scale)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


_products: dict[tuple[str, torch.dtype], bool] = {}


def _has_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's 8-bit product exists here and is right; tried once on a small matrix."""
    key = (device.type, dtype)
    if key not in _products:
        try:
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(64, 64, generator=generator).to(device, dtype)
            x = torch.randn(ROWS, 64, generator=generator).to(device, dtype)
            rounded, scale = _by_row(weight)
            found = torch.ops.aten._weight_int8pack_mm(x, rounded, scale[:, 0])
            _products[key] = torch.allclose(found, F.linear(x, rounded.to(dtype) * scale), rtol=2e-2, atol=2e-1)
        except (RuntimeError, NotImplementedError, AttributeError):
            _products[key] = False
    return _products[key]
