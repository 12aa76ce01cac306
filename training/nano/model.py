"""nano in torch, for training: MiniLM-L6 with the heads of Qwen3Guard-Stream.

What stands before a judgement (a prompt; the context of a response) is read in both directions, as the
base encoder was trained; a response token by token sees only what came before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

# Severity and category ids of every output, in this order. The query heads have one category more: jailbreak.
SEVERITIES = ("safe", "controversial", "unsafe")
CATEGORIES = (
    "violent", "sexual", "self_harm", "political", "pii", "copyright", "non_violent_illegal", "unethical", "jailbreak",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    vocab_size: int = 30522
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    intermediate: int = 1536
    positions: int = 192
    guard_inner: int = 256
    eps: float = 1e-12


def sees(length: int, frame: Tensor) -> Tensor:
    """[B, 1, T, T]: whether a position (row) sees another (column), given each sequence's frame length [B]."""
    at = torch.arange(length, device=frame.device)
    return ((at <= at[:, None]) | (at < frame[:, None, None]))[:, None]


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.heads = c.heads
        self.qkv = nn.Linear(c.hidden, 3 * c.hidden)
        self.out = nn.Linear(c.hidden, c.hidden)
        self.norm1 = nn.LayerNorm(c.hidden, eps=c.eps)
        self.up = nn.Linear(c.hidden, c.intermediate)
        self.down = nn.Linear(c.intermediate, c.hidden)
        self.norm2 = nn.LayerNorm(c.hidden, eps=c.eps)

    def forward(self, x: Tensor, hidden: Tensor, dropout: float) -> Tensor:
        """x [B, T, H]; hidden [B, 1, T, T]: True where a position must not see another."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: on a CPU the backward pass of the fused kernel takes half of a whole training step.
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
        attended = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + F.dropout(self.out(attended), dropout, self.training))
        return self.norm2(x + F.dropout(self.down(F.gelu(self.up(x))), dropout, self.training))


class Nano(nn.Module):
    """Token ids [B, T] and the length of each row's frame [B] -> hidden [B, T, H]; `response` and `query` turn hidden
    states into logits. Positions of a frame see each other; all others see what is before them."""

    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        self.words = nn.Embedding(c.vocab_size, c.hidden)
        self.positions = nn.Embedding(c.positions, c.hidden)
        self.norm = nn.LayerNorm(c.hidden, eps=c.eps)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.response_pre = nn.Linear(c.hidden, c.guard_inner)
        self.response_head = nn.Linear(c.guard_inner, 3 + 8 + 1)  # severity, category, refusal
        self.query_pre = nn.Linear(c.hidden, c.guard_inner)
        self.query_head = nn.Linear(c.guard_inner, 3 + 9)  # severity, category

    def forward(self, ids: Tensor, frame: Tensor, dropout: float = 0.0) -> Tensor:
        hidden = ~sees(ids.shape[1], frame)
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        x = F.dropout(x, dropout, self.training)
        for layer in self.layers:
            x = layer(x, hidden, dropout)
        return x

    def response(self, hidden: Tensor) -> Tensor:
        return self.response_head(F.gelu(self.response_pre(hidden)))

    def query(self, hidden: Tensor) -> Tensor:
        return self.query_head(F.gelu(self.query_pre(hidden)))


def from_minilm(folder: Path, config: Config) -> Nano:
    """The base encoder's weights (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0) with new heads."""
    base = load_file(folder / "model.safetensors")
    base = {name.removeprefix("bert."): tensor for name, tensor in base.items()}
    model = Nano(config)
    state = model.state_dict()
    state["words.weight"] = base["embeddings.word_embeddings.weight"]
    kinds = base["embeddings.token_type_embeddings.weight"]
    state["positions.weight"] = base["embeddings.position_embeddings.weight"][: config.positions] + kinds[0]
    names = {"out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
             "down": "output.dense", "norm2": "output.LayerNorm"}  # fmt: skip
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = base[f"embeddings.LayerNorm.{part}"]
        for i in range(config.layers):
            at = f"encoder.layer.{i}."
            qkv = [base[f"{at}attention.self.{n}.{part}"] for n in ("query", "key", "value")]
            state[f"layers.{i}.qkv.{part}"] = torch.cat(qkv)
            for ours, theirs in names.items():
                state[f"layers.{i}.{ours}.{part}"] = base[f"{at}{theirs}.{part}"]
    model.load_state_dict(state)
    return model
