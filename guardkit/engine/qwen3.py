"""The Qwen3 backbone, over a ragged batch: tokens of many sequences in one row, without padding.

The model knows nothing of sequences. It computes what a token needs on its own, and asks `attend` for what it needs of
the tokens before it; caches (`cache.py`) know who those are. Follows transformers' `Qwen3Model` operation by operation,
so that logits agree within rounding. Inference only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.config import Qwen3Config

POSITIONS = 1024  # whose rotations are computed at load on a CPU

Fused = Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, qkv [N, (heads + 2 kv_heads) * D], norms [heads + kv_heads, D], cos and sin [positions, D], positions [N],
eps) -> [N, heads * D]: norms and turns queries and keys too."""


class Attention(Protocol):
    """What a cache does in a step."""

    @property
    def fused(self) -> Fused | None: ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, heads, D], k and v [N, kv_heads, D] -> [N, heads * D]: stores k and v, and attends."""
        ...


class RowProduct(Protocol):
    """See `kernels.row_product`."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None = None,
        norm: Tensor | None = None,
        eps: float = 0.0,
        add: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor: ...


class Linear:
    """A matrix [out, in] without bias. On a CPU it is kept in oneDNN's blocked layout, which reads 1.4 to 2 times as
    fast at the few rows of a decoding step; elsewhere, or where the build lacks that, as it is. scale [out]: what each
    row of a weight in 8 bits is multiplied with."""

    scale: Tensor | None = None

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


def add_norm(x: Tensor, more: Tensor, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, more [N, H], norm [H] -> their sum, and its RMS norm, both [N, H]."""
    x = x + more
    return x, rms_norm(x, norm, eps)


def gated(both: Tensor) -> Tensor:
    """[N, 2 I], gate and up side by side -> SiLU(gate) * up, [N, I]."""
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


class FloatLayer:
    """A decoder layer in the dtype of its weights, cut where attention looks at other tokens. linear: how its products
    are computed; gate: see `gated`."""

    gate: Callable[[Tensor], Tensor] = staticmethod(gated)
    add_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = staticmethod(add_norm)

    def __init__(self, config: Qwen3Config, take: Callable[[str], Tensor], linear: Callable[[Tensor], Linear] = Linear):
        self._config = config
        self.input_norm = take("input_layernorm.weight")
        self.qkv = linear(torch.cat([take(f"self_attn.{n}_proj.weight") for n in "qkv"]))
        self.qk_norm = qk_norm(config, take)
        self.out = linear(take("self_attn.o_proj.weight"))
        self.post_norm = take("post_attention_layernorm.weight")
        self.gate_up = linear(torch.cat([take("mlp.gate_proj.weight"), take("mlp.up_proj.weight")]))
        self.down = linear(take("mlp.down_proj.weight"))

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, hidden_size], cos and sin [N, 1, D] -> queries and keys [N, heads + kv_heads, D], values
        [N, kv_heads, D]."""
        c = self._config
        qkv = self.qkv(rms_norm(x, self.input_norm, c.rms_norm_eps)).view(len(x), -1, c.head_dim)
        turned = c.num_attention_heads + c.num_key_value_heads
        qk = rms_norm(qkv[:, :turned], None, c.rms_norm_eps) * self.qk_norm
        return turn(qk, cos, sin), qkv[:, turned:]

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [N, hidden_size] and attention's output [N, heads * D] -> the next layer's x."""
        x, more = self.behind(x, attended)
        return x + more

    def behind(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """As `after`, in two parts that are yet to be added."""
        x, normed = self.add_norm(x, self.out(attended), self.post_norm, self._config.rms_norm_eps)
        return x, self.down(self.gate(self.gate_up(normed)))


def qk_norm(config: Qwen3Config, take: Callable[[str], Tensor]) -> Tensor:
    """The norm weights of queries and keys, one row a head: [heads + kv_heads, D]."""
    q, k = take("self_attn.q_norm.weight"), take("self_attn.k_norm.weight")
    return torch.cat([q.expand(config.num_attention_heads, -1), k.expand(config.num_key_value_heads, -1)])


class Embedding:
    """ids [N] -> their rows of `weight` [N, hidden_size]."""

    def __init__(self, weight: Tensor):
        self.weight, self.device = weight, weight.device

    def __call__(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Qwen3:
    """The backbone on one device, in one dtype: its embeddings, its layers, its last norm's weight."""

    def __init__(self, config: Qwen3Config, embed: Embedding, layers: Sequence[FloatLayer], norm: Tensor):
        self.config, self.embed, self.layers, self.norm = config, embed, layers, norm
        self.device, self.dtype = norm.device, norm.dtype
        # A GPU has room for all positions, and its recorded steps hold the tables; on a CPU they grow with the texts.
        most = config.max_position_embeddings
        there = most if self.device.type == "cuda" else min(POSITIONS, most)
        self.cos, self.sin = rotary(config, range(there), self.dtype, self.device)
        self.row_product: RowProduct | None = None  # for steps of one token, where layers are plain and fused

    @staticmethod
    def of(config: Qwen3Config, tensors: dict[str, Tensor]) -> Qwen3:
        """The backbone as it was saved. Takes its tensors out of `tensors`, so that no second copy stays."""
        embed = Embedding(tensors.pop("model.embed_tokens.weight"))
        layers = [
            FloatLayer(config, lambda name, i=i: tensors.pop(f"model.layers.{i}.{name}"))  # type: ignore[misc]
            for i in range(config.num_hidden_layers)
        ]
        return Qwen3(config, embed, layers, tensors.pop("model.norm.weight"))

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

    def forward(self, ids: Tensor, positions: Tensor, cache: Attention) -> Tensor:
        """ids, positions [N] -> hidden states [N, hidden_size] after the final norm. cache: `begin` told it whose they
        are."""
        if self.device.type != "cuda" and (most := int(positions.max())) >= len(self.cos):
            more = range(len(self.cos), max(most + 1, min(2 * len(self.cos), self.config.max_position_embeddings)))
            turned = zip((self.cos, self.sin), rotary(self.config, more, self.dtype, self.device), strict=True)
            self.cos, self.sin = (torch.cat(tables) for tables in turned)
        return self._through(self.embed(ids), positions, cache)

    def _through(self, x: Tensor, positions: Tensor, cache: Attention) -> Tensor:
        """x [N, hidden_size] -> hidden states after the final norm."""
        if cache.fused is not None:
            return self._through_fused(x, positions, cache.fused)
        wide = self.config.num_attention_heads
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        for i, layer in enumerate(self.layers):
            qk, v = layer.before(x, cos, sin)
            x = layer.after(x, cache.attend(i, qk[:, :wide], qk[:, wide:], v))
        return rms_norm(x, self.norm, self.config.rms_norm_eps)

    def _through_fused(self, x: Tensor, positions: Tensor, fused: Fused) -> Tensor:
        layers = self.layers
        norms = [*(layer.input_norm for layer in layers[1:]), self.norm]
        eps = self.config.rms_norm_eps
        if self.row_product is not None and len(x) == 1:
            product = self.row_product
            for i, layer in enumerate(layers):
                qkv = product(x, layer.qkv.weight, layer.qkv.scale, layer.input_norm, eps)
                attended = fused(i, qkv, layer.qk_norm, self.cos, self.sin, positions, eps)
                x = product(attended, layer.out.weight, layer.out.scale, add=x)
                gated = product(x, layer.gate_up.weight, layer.gate_up.scale, layer.post_norm, eps, gated=True)
                x = product(gated, layer.down.weight, layer.down.scale, add=x)
            return rms_norm(x, self.norm, eps)
        normed = rms_norm(x, layers[0].input_norm, eps)
        for i, (layer, norm) in enumerate(zip(layers, norms, strict=True)):
            attended = fused(i, layer.qkv(normed), layer.qk_norm, self.cos, self.sin, positions, eps)
            x, normed = layer.add_norm(*layer.behind(x, attended), norm, eps)
        return normed


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, heads, D], cos and sin [N, 1, D] -> x turned by its positions."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def rotary(config: Qwen3Config, span: range, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [len(span), head_dim] of the positions in `span`, computed in float32 and rounded once, as the
    reference does."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(span.start, span.stop, dtype=torch.float32), 1.0 / (config.rope_theta**exponents))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)
