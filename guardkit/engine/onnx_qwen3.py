"""The backbone with weights in 8 bits on a CPU, by ONNX Runtime.

Its product rounds each row's activations to 8 bits block by block, so that a row's result does not depend on the rows
beside it. Yet what differs in the last bit may be rounded to another of 256 steps, which later layers carry on. So
attention is computed in ways that do not depend on what came when (`AlignedCache`); and where a kernel sums a row that
is alone in another order than rows in pairs, which is tried at load, rows are computed in pairs.

A step of one sequence near its beginning is one graph, through all layers, without a way back to Python. Other steps
are a graph from one layer's attention to the next one's. Both share the weights. Activations, keys and values are
float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.aligned_cache import AlignedCache
from guardkit.engine.config import Qwen3Config
from guardkit.engine.near_attention import feed, place, share, turns
from guardkit.engine.onnx_graph import BLOCK, Graph, Matrix, in_8_bits
from guardkit.engine.qwen3 import Attention, Embedding, Qwen3, qk_norm

Take = Callable[[str], Tensor]


class _Layer(NamedTuple):
    input_norm: Tensor
    qkv: Matrix
    norms: Tensor  # of queries and keys, a row a head
    out: Matrix
    post_norm: Tensor
    gate_up: Matrix
    down: Matrix

    @staticmethod
    def of(config: Qwen3Config, take: Take) -> _Layer:
        return _Layer(
            take("input_layernorm.weight"),
            in_8_bits(torch.cat([take(f"self_attn.{n}_proj.weight") for n in "qkv"])),
            qk_norm(config, take),
            in_8_bits(take("self_attn.o_proj.weight")),
            take("post_attention_layernorm.weight"),
            in_8_bits(torch.cat([take("mlp.gate_proj.weight"), take("mlp.up_proj.weight")])),
            in_8_bits(take("mlp.down_proj.weight")),
        )


class OnnxQwen3(Qwen3):
    """take: a tensor of the checkpoint by its name; asked for once each, and no more than a layer's are at hand.
    in_pairs: whether rows are computed in pairs; None: if this CPU needs it."""

    def __init__(
        self, config: Qwen3Config, embed: Embedding, take: Take, threads: int | None, in_pairs: bool | None = None
    ):
        super().__init__(config, embed, [], take("model.norm.weight"))
        threads = threads or torch.get_num_threads()
        self._in_pairs = not alone_as_among_others(threads) if in_pairs is None else in_pairs
        layers = [
            _Layer.of(config, lambda name, i=i: take(f"model.layers.{i}.{name}"))  # type: ignore[misc]
            for i in range(config.num_hidden_layers)
        ]
        self._norms = [layer.norms for layer in layers]
        before, after = [None, *layers], [*layers, None]
        self._parts = [self._part(left, right, threads) for left, right in zip(before, after, strict=True)]
        self._whole = _Whole(config, layers, self.norm, threads)

    def _part(self, left: _Layer | None, right: _Layer | None, threads: int) -> Any:
        """From behind the attention of layer `left` to before that of `right`. None: there is no such layer."""
        c, graph = self.config, Graph(self.config.rms_norm_eps)
        x, outputs = graph.input("x", "rows", c.hidden_size), []
        norm = graph.constant(self.norm if right is None else right.input_norm)
        if left is None:
            normed = graph.norm(x, norm)
        else:
            attended = graph.input("attended", "rows", c.num_attention_heads * c.head_dim)
            normed, x = _behind(graph, left, x, attended, norm)
            outputs = [x]
        if right is None:
            return graph.session([normed], threads)
        return graph.session([*outputs, graph.product(normed, right.qkv)], threads)

    def _through(self, x: Tensor, positions: Tensor, cache: Attention) -> Tensor:
        assert isinstance(cache, AlignedCache)
        n = len(x)
        if n % 2 and (self._in_pairs or (n == 1 and cache.alone is not None)):  # a row of zeros behind the last one
            x = F.pad(x, (0, 0, 0, 1))
        if cache.alone is not None:
            return self._whole(x, cache.alone.start, cache.alone.slot.buffer)[:n]
        rows = x.numpy()
        (qkv,) = self._parts[0].run(None, {"x": rows})
        for i, part in enumerate(self._parts[1:]):
            attended = cache.fused(
                i, torch.from_numpy(qkv), self._norms[i], self.cos, self.sin, positions, self.config.rms_norm_eps
            )
            feeds = {"x": rows, "attended": attended.numpy()}
            if i < len(self._norms) - 1:
                rows, qkv = part.run(None, feeds)
            else:
                (rows,) = part.run(None, feeds)
        return torch.from_numpy(rows)[:n]


class _Whole:
    """All layers in one graph, for the rows of one sequence near its beginning."""

    def __init__(self, config: Qwen3Config, layers: list[_Layer], norm: Tensor, threads: int):
        c, graph, shared = config, Graph(config.rms_norm_eps), []
        x, at = graph.input("x", "rows", c.hidden_size), graph.at(*turns(c, threads))
        normed = graph.norm(x, graph.constant(layers[0].input_norm))
        for i, layer in enumerate(layers):
            past = graph.past(str(i), c)
            shared += past
            norms = [graph.constant(layer.norms[row].clone()) for row in (0, -1)]
            attended = graph.attention(graph.product(normed, layer.qkv), norms, past, at, c)
            after = layers[i + 1].input_norm if i + 1 < len(layers) else norm
            normed, x = _behind(graph, layer, x, attended, graph.constant(after))
        self._out, self._past, self._shape = normed, shared, (1, c.num_key_value_heads, -1, c.head_dim)
        self._session = graph.session([normed, *(f"{name}.with" for name in shared)], threads)
        self._bound: tuple[int, int, Any] = (0, 0, None)  # address and room of the keys and values that are bound

    def __call__(self, x: Tensor, start: int, buffer: Tensor | None) -> Tensor:
        """x [n, hidden_size], of positions from `start` on, n at least 2; buffer: see `ContiguousCache`."""
        assert buffer is not None  # reserved
        address, room = buffer.data_ptr(), buffer.shape[3]
        if self._bound[:2] != (address, room):  # a stream's tokens come one after another
            bound, size = self._session.io_binding(), buffer.stride(1) * buffer.itemsize
            for i, name in enumerate(self._past):
                share(bound, name, address + i * size, (*self._shape[:2], room, self._shape[3]))
            self._bound = address, room, bound
        bound, rows = self._bound[2], x.numpy()
        out = np.empty(rows.shape, np.float32)
        numbers = place(bound, start + len(rows))
        feed(bound, "x", rows)
        bound.bind_output(self._out, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(bound)
        del numbers  # was read
        return torch.from_numpy(out)


def _behind(graph: Graph, layer: _Layer, x: str, attended: str, norm: str) -> tuple[str, str]:
    """The rest of a layer behind its attention: its output normed by what comes next, and its output."""
    normed, x = graph.add_norm(x, graph.product(attended, layer.out), graph.constant(layer.post_norm))
    gated = graph.gated(graph.product(normed, layer.gate_up), layer.gate_up.n // 2)
    return graph.add_norm(x, graph.product(gated, layer.down), norm)


@functools.cache
def alone_as_among_others(threads: int) -> bool:
    """Whether this CPU's kernel gives a row that is alone, or the last of an odd number, the same bits as among others;
    tried once."""
    generator = torch.Generator().manual_seed(0)
    k, n, most = 4 * BLOCK, 96, 512
    graph = Graph(eps=0.0)
    product = graph.product(graph.input("x", "rows", k), in_8_bits(torch.randn(n, k, generator=generator)))
    session = graph.session([product], threads)
    x = torch.randn(most, k, generator=generator).numpy()
    (whole,) = session.run(None, {"x": x})
    sizes = (1, 1, 1, 2, 3, 5, 7, 8, 15, 33, 65)
    return all(
        (session.run(None, {"x": x[i : i + size]})[0] == whole[i : i + size]).all() for i, size in enumerate(sizes)
    )
