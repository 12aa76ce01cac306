"""nano in torch, for training: the first layers of multilingual-e5-small with the heads of Qwen3Guard-Stream.

What stands before a judgement (a prompt; the context of a response) is read in both directions, as the
base encoder was trained; a response token by token sees only what came before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Severity and category ids of every output, in this order. The query heads have one category more: jailbreak.
SEVERITIES = ("safe", "controversial", "unsafe")
CATEGORIES = (
    "violent", "sexual", "self_harm", "political", "pii", "copyright", "non_violent_illegal", "unethical", "jailbreak",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden: int = 384
    layers: int = 8  # of the base's 12: the vectors behind them tell harm best across languages (log.md)
    frozen: int = 4  # of these: they and the embeddings are left as they are
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

    def forward(self, x: Tensor, mask: Tensor, dropout: float, rows: Tensor | None = None) -> Tensor:
        """x [B, T, H]; mask [B, 1, T, T]: -inf where a position must not see another, else 0. rows [N]: the only positions
        (of B * T) that are wanted; gives [N, H] then, else [B, T, H]."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Written out: on a CPU the backward pass of the fused kernel takes half of a whole training step.
        scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).add_(mask)
        attended = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(x.shape)
        if rows is not None:
            attended, x = attended.reshape(-1, width)[rows], x.reshape(-1, width)[rows]
        x = self.norm1(x + F.dropout(self.out(attended), dropout, self.training))
        return self.norm2(x + F.dropout(self.down(F.gelu(self.up(x))), dropout, self.training))


class Nano(nn.Module):
    """Token ids [B, T] and the length of each row's frame [B] -> hidden [N, H] of the positions `rows` [N] (of B * T);
    `response` and `query` turn hidden states into logits. Positions of a frame see each other; all others see what is
    before them."""

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
        for part in (self.words, self.positions, self.norm, *self.layers[: c.frozen]):
            part.requires_grad_(False)

    def forward(self, ids: Tensor, frame: Tensor, rows: Tensor, dropout: float = 0.0) -> Tensor:
        visible = sees(ids.shape[1], frame)
        mask = torch.zeros(visible.shape, device=ids.device).masked_fill(~visible, float("-inf"))
        frozen = self.config.frozen
        with torch.no_grad():
            x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
            for layer in self.layers[:frozen]:
                x = layer(x, mask, 0.0)
        for i, layer in enumerate(self.layers[frozen:], frozen + 1):
            x = layer(x, mask, dropout, rows if i == len(self.layers) else None)
        return x

    def response(self, hidden: Tensor) -> Tensor:
        return self.response_head(F.gelu(self.response_pre(hidden)))

    def query(self, hidden: Tensor) -> Tensor:
        return self.query_head(F.gelu(self.query_pre(hidden)))

    def kept(self) -> dict[str, Tensor]:
        """The weights, but for the embeddings: those are the base's."""
        return {name: tensor for name, tensor in self.state_dict().items() if name != "words.weight"}


def load(work: Path, weights: Path | None = None, **changes: int) -> Nano:
    """The base of WORK with new heads, and what `weights` holds of the rest."""
    base = torch.load(work / "base.pt", map_location="cpu", weights_only=True)
    config = Config(vocab_size=len(base["words.weight"]), **changes)
    model = Nano(config)
    base["positions.weight"] = base["positions.weight"][: config.positions]
    state = model.state_dict()
    state |= {name: tensor for name, tensor in base.items() if name in state}
    if weights:
        state |= torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(state)
    return model
