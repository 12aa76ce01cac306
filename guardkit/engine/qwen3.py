"""The Qwen3 backbone, over a ragged batch: tokens of many sequences in one row, without padding.

The model knows nothing of sequences. It computes what a token needs on its own, and asks `attend` for what it needs of
the tokens before it; caches (`cache.py`) know who those are. Follows transformers' `Qwen3Model` operation by operation,
so that logits agree within rounding. Inference only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.config import Qwen3Config

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [N, heads, D], k and v [N, kv_heads, D]) -> [N, heads * D]: stores k and v, and attends."""


class Linear:
    """A matrix [out, in] without bias. On a CPU it is kept in oneDNN's blocked layout, which reads 1.4 to 2 times as
    fast at the few rows of a decoding step; elsewhere, or where the build lacks that, as it is."""

    def __init__(self, weight: Tensor):
        self.weight = weight
        self.packed = weight.device.type == "cpu" and _can_pack(weight.dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.packed:
            return F.linear(x, self.weight)
        # oneDNN compiles and keeps a product for every number of rows: a few sizes bound that memory and time.
        n = len(x)
        size = 1 << (n - 1).bit_length() if n <= 8 else -(-n // 8) * 8 if n <= 64 else -(-n // 32) * 32
        if size > n:
            x = F.pad(x, (0, 0, 0, size - n))
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")[:n]


_packable: dict[torch.dtype, bool] = {}


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this build's packed product exists for `dtype` and is right; tried once on a small matrix."""
    if dtype not in _packable:
        try:
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(48, 32, generator=generator).to(dtype)
            x = torch.randn(3, 32, generator=generator).to(dtype)
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
            found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
            _packable[dtype] = torch.allclose(found, F.linear(x, weight), rtol=2e-2, atol=2e-2)
        except (RuntimeError, NotImplementedError, AttributeError):
            _packable[dtype] = False
    return _packable[dtype]


class _Layer:
    def __init__(self, config: Qwen3Config, take: Callable[[str], Tensor]):
        self.input_norm = take("input_layernorm.weight")
        self.qkv = Linear(torch.cat([take(f"self_attn.{n}_proj.weight") for n in "qkv"]))
        q, k = take("self_attn.q_norm.weight"), take("self_attn.k_norm.weight")
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.qk_norm = torch.cat([q.expand(heads, -1), k.expand(kv_heads, -1)])  # [heads + kv_heads, D]
        self.out = Linear(take("self_attn.o_proj.weight"))
        self.post_norm = take("post_attention_layernorm.weight")
        self.gate_up = Linear(torch.cat([take("mlp.gate_proj.weight"), take("mlp.up_proj.weight")]))
        self.down = Linear(take("mlp.down_proj.weight"))


class Qwen3:
    """Weights on one device in one dtype. Takes its tensors out of `tensors`, so that no second copy stays."""

    def __init__(self, config: Qwen3Config, tensors: dict[str, Tensor]):
        self.config = config
        self.embedding = tensors.pop("model.embed_tokens.weight")
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        self.layers = []
        for i in range(config.num_hidden_layers):
            self.layers.append(_Layer(config, lambda name, i=i: tensors.pop(f"model.layers.{i}.{name}")))  # type: ignore[misc]
        self.norm = tensors.pop("model.norm.weight")
        self.cos, self.sin = _rotary(config, self.dtype, self.device)

    @staticmethod
    def shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
        """The tensors of the backbone, by name."""
        c, wide, narrow = config, config.num_attention_heads, config.num_key_value_heads
        layer = {
            "input_layernorm": (c.hidden_size,),
            "self_attn.q_proj": (wide * c.head_dim, c.hidden_size),
            "self_attn.k_proj": (narrow * c.head_dim, c.hidden_size),
            "self_attn.v_proj": (narrow * c.head_dim, c.hidden_size),
            "self_attn.q_norm": (c.head_dim,),
            "self_attn.k_norm": (c.head_dim,),
            "self_attn.o_proj": (c.hidden_size, wide * c.head_dim),
            "post_attention_layernorm": (c.hidden_size,),
            "mlp.gate_proj": (c.intermediate_size, c.hidden_size),
            "mlp.up_proj": (c.intermediate_size, c.hidden_size),
            "mlp.down_proj": (c.hidden_size, c.intermediate_size),
        }
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
        for i in range(c.num_hidden_layers):
            found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        return found | {"model.norm.weight": (c.hidden_size,)}

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """ids, positions [N] -> hidden states [N, hidden_size] after the final norm."""
        c = self.config
        wide = c.num_attention_heads
        turned = wide + c.num_key_value_heads
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)  # [N, 1, D]
        x = F.embedding(ids, self.embedding)
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(rms_norm(x, layer.input_norm, c.rms_norm_eps)).view(len(ids), -1, c.head_dim)
            qk = rms_norm(qkv[:, :turned], None, c.rms_norm_eps) * layer.qk_norm
            qk = qk * cos + _rotate_half(qk) * sin
            x = x + layer.out(attend(i, qk[:, :wide], qk[:, wide:], qkv[:, turned:]))
            gate, up = layer.gate_up(rms_norm(x, layer.post_norm, c.rms_norm_eps)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        return rms_norm(x, self.norm, c.rms_norm_eps)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def _rotary(config: Qwen3Config, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, head_dim], computed in float32 and rounded once, as the reference does."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(
        torch.arange(config.max_position_embeddings, dtype=torch.float32), 1.0 / (config.rope_theta**exponents)
    )
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)
