"""Where keys and values live, and attention over them.

A cache holds the keys and values of many sequences. A step names its `Run`s, the next tokens of one sequence each;
`attend` then stores their keys and values layer by layer and lets each token see its own sequence up to itself.
Rolling back is a length change: what lies behind a sequence's length is overwritten, never read.

* `ContiguousCache` (CPU): one growing buffer a sequence. Attention reads it in place.
* `PagedCache` (GPU, its own module): one pool of pages, a page table a sequence; no memory is lost to growth.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.config import Qwen3Config
from guardkit.engine.qwen3 import Fused

_T = TypeVar("_T")
GROW = 64  # tokens; the smallest buffer, and what buffers are rounded up to


@dataclass(eq=False)
class Slot:
    """One sequence's place in the cache. held: tokens that memory is reserved for; kept: whether its sequence is closed
    and only others may want it."""

    held: int = 0
    kept: bool = False
    buffer: Tensor | None = None
    pages: list[int] = field(default_factory=list)
    row: int = -1  # of the page tables on the device; -1: none yet
    known: int = 0  # pages of it that stand there


class Run(NamedTuple):
    """Rows [row, row + n) of a step are tokens [start, start + n) of the sequence in `slot`."""

    slot: Slot
    row: int
    start: int
    n: int

    @property
    def end(self) -> int:
        return self.start + self.n


class Cache(ABC):
    """Room for `capacity` tokens (of all sequences together). used: what open sequences take of it; kept: what closed
    ones do."""

    def __init__(self, config: Qwen3Config, dtype: torch.dtype, device: torch.device, capacity: int):
        self.config, self.dtype, self.device, self.capacity = config, dtype, device, capacity
        self.used = self.kept = 0
        self._runs: Sequence[Run] = ()
        self._masks: list[Tensor | None] = []

    @staticmethod
    def bytes_per_token(config: Qwen3Config, dtype: torch.dtype) -> int:
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * int(dtype.itemsize)

    @abstractmethod
    def reserve(self, slot: Slot, n_tokens: int, write_from: int | None = None) -> bool:
        """Make room for the first `n_tokens` tokens of a sequence, of which those from `write_from` on will be written
        (None: only what is new). False, and nothing changed, where it is full."""

    def is_reserved(self, slot: Slot, write_from: int, n_tokens: int) -> bool:
        """Whether `reserve` would have nothing to do."""
        return n_tokens <= slot.held

    @abstractmethod
    def release(self, slot: Slot) -> None:
        """Give a slot's memory back. Safe to call twice."""

    @abstractmethod
    def keep(self, slot: Slot) -> None:
        """The slot's sequence is closed: what it holds no longer counts as used, until it is released."""

    @abstractmethod
    def share(self, source: Slot, slot: Slot, n_tokens: int) -> int:
        """Let an empty slot start with another's first tokens; how many of `n_tokens` it has then (0 if full). What is
        kept may be moved instead, and the source be empty then."""

    def save(self, slot: Slot, n_tokens: int) -> Callable[[], None] | None:
        """Copy a sequence to host memory. Gives what puts it back once room is reserved; None where a copy would save
        nothing, as in a cache that is in host memory itself."""
        return None

    def saved(self, slot: Slot, n_tokens: int) -> Callable[[], bool] | None:
        """`save`, where there is memory for a copy. What puts it back says whether there was memory for that."""

        def tried(call: Callable[[], _T]) -> _T | None:
            try:
                return call()
            except RuntimeError as error:
                why = (str(error).splitlines() or ["no reason given"])[0]
                logging.getLogger("guardkit").warning("%d evicted tokens are computed again (%s)", n_tokens, why)
                return None

        put_back = tried(lambda: self.save(slot, n_tokens))
        return None if put_back is None else lambda: tried(lambda: (put_back(), True)) is not None

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store and attend for the current step, see `qwen3.Attention`."""

    @property
    def fused(self) -> Fused | None:
        """`attend` for queries, keys and values as the product gives them, where there are kernels for it."""
        return None

    def begin(self, runs: Sequence[Run]) -> None:
        """Start a step. Room for every run must be reserved."""
        self._runs = runs
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        self._masks = [_causal_mask(run, groups, self.dtype, self.device) for run in runs]

    def _sdpa(self, i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one run: q [n, heads, D]; k, v [kv_heads, end, D] -> [n, heads * D].

        The query heads that share a key head become further rows of it: nothing is repeated in memory.
        """
        n, heads, dim = q.shape
        groups = heads // k.shape[0]
        folded = q.view(n, -1, groups, dim).permute(1, 2, 0, 3).reshape(1, -1, groups * n, dim)
        out = F.scaled_dot_product_attention(folded, k.unsqueeze(0), v.unsqueeze(0), attn_mask=self._masks[i])
        return out.view(-1, groups, n, dim).permute(2, 0, 1, 3).reshape(n, heads * dim)


def _causal_mask(run: Run, groups: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """[groups * n, end], additive; None where every token of the run sees everything."""
    if run.n == 1:
        return None
    mask = torch.full((run.n, run.end), float("-inf"), dtype=dtype, device=device).triu(run.start + 1)
    return mask.repeat(groups, 1)


class ContiguousCache(Cache):
    """A buffer [layers, 2, kv_heads, held, D] for each sequence, grown by halves."""

    def reserve(self, slot: Slot, n_tokens: int, write_from: int | None = None) -> bool:
        if n_tokens <= slot.held:
            return True
        wanted = -(-max(n_tokens, min(slot.held * 3 // 2, self.config.max_position_embeddings)) // GROW) * GROW
        free = self.capacity - self.used - self.kept + slot.held
        if wanted > free:
            wanted = -(-n_tokens // GROW) * GROW  # room to grow is a convenience, room for the tokens is not
            if wanted > free:
                return False
        c = self.config
        shape = (c.num_hidden_layers, 2, c.num_key_value_heads, wanted, c.head_dim)
        buffer = self._new(shape)
        if slot.buffer is not None:
            buffer[:, :, :, : slot.held] = slot.buffer[:, :, :, : slot.held]
        self.used += wanted - slot.held
        slot.buffer, slot.held = buffer, wanted
        return True

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def release(self, slot: Slot) -> None:
        if slot.kept:
            self.kept -= slot.held
        else:
            self.used -= slot.held
        slot.buffer, slot.held, slot.kept = None, 0, False

    def keep(self, slot: Slot) -> None:
        self.used -= slot.held
        self.kept += slot.held
        slot.kept = True

    def share(self, source: Slot, slot: Slot, n_tokens: int) -> int:
        if source.kept and source.held <= n_tokens * 3 // 2:  # nearly all of it goes on, and nobody else is in it
            buffer, held = source.buffer, source.held
            self.release(source)
            slot.buffer, slot.held = buffer, held
            self.used += held
            return n_tokens
        # A copy: attention wants one buffer, and a few megabytes cost a CPU less than a token does.
        if source.buffer is None or not self.reserve(slot, n_tokens) or slot.buffer is None:
            return 0
        slot.buffer[:, :, :, :n_tokens] = source.buffer[:, :, :, :n_tokens]
        return n_tokens

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = []
        for i, run in enumerate(self._runs):
            rows = slice(run.row, run.row + run.n)
            assert run.slot.buffer is not None  # reserved
            keys, values = run.slot.buffer[layer]
            keys[:, run.start : run.end] = k[rows].transpose(0, 1)
            values[:, run.start : run.end] = v[rows].transpose(0, 1)
            out.append(self._sdpa(i, q[rows], keys[:, : run.end], values[:, : run.end]))
        return out[0] if len(out) == 1 else torch.cat(out)
