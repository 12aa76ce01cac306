"""Attention near a text's beginning, by ONNX Runtime's `GroupQueryAttention`: for weights in 8 bits on a CPU.

It reads keys and values in place, and its threads share the heads. What it computes for a row does not depend on the
rows beside it, as long as there is one: a row that is alone gets one of zeros behind it, whose keys and values the next
row overwrites. That is tried at load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.config import Qwen3Config
from guardkit.engine.onnx_graph import Graph
from guardkit.engine.qwen3 import rotary

NEAR = 512  # positions for each thread: further on, to copy each head's keys and values costs more than it saves


def near_end(config: Qwen3Config, threads: int) -> int:
    """The first position that is no longer near."""
    return min(NEAR * threads, config.max_position_embeddings // 4 * 4)


def turns(config: Qwen3Config, threads: int) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, D / 2] of what is near, and of a row behind it."""
    tables = rotary(config, range(near_end(config, threads) + 2), torch.float32, torch.device("cpu"))
    cos, sin = (table[:, : config.head_dim // 2].contiguous() for table in tables)
    return cos, sin


class NearAttention:
    """end: the first position that it is not for; 0 where this CPU or this ONNX Runtime computes a row otherwise with
    other rows beside it."""

    def __init__(self, config: Qwen3Config, threads: int):
        self._config, c = config, config
        graph = Graph(c.rms_norm_eps)
        qkv = graph.input("qkv", "rows", (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim)
        norms, past = [graph.input(name, c.head_dim) for name in ("q_norm", "k_norm")], graph.past("past", c)
        out = graph.attention(qkv, norms, past, graph.at(*turns(c, threads)), c)
        self._outputs = [out, *(f"{name}.with" for name in past)]
        self._session = graph.session(self._outputs, threads)
        self.end = near_end(c, threads) if self._is_steady() else 0

    def __call__(self, qkv: Tensor, norms: Tensor, past: Sequence[Tensor], start: int) -> Tensor:
        """qkv [n, (heads + 2 kv_heads) * D] of positions from `start` on, norms [heads + kv_heads, D] -> [n, heads *
        D]. past: keys and values [kv_heads, room, D], which get the rows' own; room: at least start + max(n, 2)."""
        n = len(qkv)
        if n == 1:
            qkv = F.pad(qkv, (0, 0, 0, 1))
        out = np.empty((len(qkv), self._config.num_attention_heads * self._config.head_dim), np.float32)
        bound = self._session.io_binding()
        feed(bound, "qkv", qkv.numpy())
        feed(bound, "q_norm", norms[0].numpy())
        feed(bound, "k_norm", norms[-1].numpy())
        numbers = place(bound, start + len(qkv))
        for name, tensor in zip("kv", past, strict=True):
            share(bound, f"past.{name}", tensor.data_ptr(), (1, *tensor.shape))
        bound.bind_output(self._outputs[0], "cpu", 0, np.float32, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(bound)
        del numbers  # was read
        return torch.from_numpy(out)[:n]

    def _is_steady(self) -> bool:
        c, n = self._config, 24
        generator = torch.Generator().manual_seed(0)
        heads = c.num_attention_heads + 2 * c.num_key_value_heads
        qkv = torch.randn(n, heads * c.head_dim, generator=generator)
        norms = torch.ones(c.num_attention_heads + c.num_key_value_heads, c.head_dim)
        found = []
        try:
            for sizes in ([n], [1] * n, [5, 1, 7, 2, 3, 6], [n - 1, 1]):
                past, at, rows = torch.zeros(2, c.num_key_value_heads, n + 2, c.head_dim), 0, []
                for size in sizes:
                    rows.append(self(qkv[at : at + size], norms, past.unbind(), at))
                    at += size
                found.append(torch.cat(rows))
        except Exception:  # onnxruntime's errors share no base class; an older one may not know such rows
            return False
        return all(torch.equal(found[0], rows) for rows in found[1:])


def feed(bound: Any, name: str, array: np.ndarray[Any, Any]) -> None:
    """Let an input be read where it is; it must stay there until the run is over."""
    bound.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def place(bound: Any, end: int) -> np.ndarray[Any, Any]:
    """Say where the rows end, see `Graph.at`; what is given must live until the run is over."""
    numbers = np.array([end - 1, end], np.int32)
    feed(bound, "last", numbers[:1])
    feed(bound, "end", numbers[1:])
    return numbers


def share(bound: Any, name: str, address: int, shape: Sequence[int]) -> None:
    """Keys or values [1, kv_heads, room, D] that are read and written in place."""
    bound.bind_input(name, "cpu", 0, np.float32, shape, address)
    bound.bind_output(f"{name}.with", "cpu", 0, np.float32, shape, address)
