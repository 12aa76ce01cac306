"""Where keys and values live, and attention over them.

A cache holds the keys and values of many sequences. A step names its `Run`s, the next tokens of one sequence each;
`attend` then stores their keys and values layer by layer and lets each token see its own sequence up to itself.
Rolling back is a length change: what lies behind a sequence's length is overwritten, never read.

* `ContiguousCache` (CPU): one growing buffer a sequence. Attention reads it in place.
* `PagedCache` (GPU): one pool of pages, a page table a sequence; no memory is lost to growth.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from guardkit.engine.config import Qwen3Config

GROW = 64  # tokens; the smallest buffer, and what buffers are rounded up to
PAGE = 64  # tokens


@dataclass(eq=False)
class Slot:
    """One sequence's place in the cache. `held`: tokens that memory is reserved for."""

    held: int = 0
    buffer: Tensor | None = None
    pages: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """Rows [row, row + n) of a step are tokens [start, start + n) of the sequence in `slot`."""

    slot: Slot
    row: int
    start: int
    n: int

    @property
    def end(self) -> int:
        return self.start + self.n


class Cache(ABC):
    """Room for `capacity` tokens (of all sequences together)."""

    def __init__(self, config: Qwen3Config, dtype: torch.dtype, device: torch.device, capacity: int):
        self.config, self.dtype, self.device, self.capacity = config, dtype, device, capacity
        self.used = 0
        self._runs: Sequence[Run] = ()
        self._masks: list[Tensor | None] = []

    @staticmethod
    def bytes_per_token(config: Qwen3Config, dtype: torch.dtype) -> int:
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * int(dtype.itemsize)

    @abstractmethod
    def reserve(self, slot: Slot, n_tokens: int) -> bool:
        """Make room for the first `n_tokens` tokens of a sequence. False, and nothing changed, where it is full."""

    @abstractmethod
    def release(self, slot: Slot) -> None:
        """Give a slot's memory back. Safe to call twice."""

    @abstractmethod
    def share(self, source: Slot, slot: Slot, n_tokens: int) -> int:
        """Let an empty slot start with another's first tokens; how many of `n_tokens` it has then (0 if full)."""

    def save(self, slot: Slot, n_tokens: int) -> Callable[[], None] | None:
        """Copy a sequence to host memory. Gives what puts it back once room is reserved; None where a copy would save
        nothing, as in a cache that is in host memory itself."""
        return None

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store and attend for the current step, see `qwen3.Attend`."""

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

    def reserve(self, slot: Slot, n_tokens: int) -> bool:
        if n_tokens <= slot.held:
            return True
        wanted = -(-max(n_tokens, min(slot.held * 3 // 2, self.config.max_position_embeddings)) // GROW) * GROW
        if self.used + wanted - slot.held > self.capacity:
            wanted = -(-n_tokens // GROW) * GROW  # room to grow is a convenience, room for the tokens is not
            if self.used + wanted - slot.held > self.capacity:
                return False
        c = self.config
        shape = (c.num_hidden_layers, 2, c.num_key_value_heads, wanted, c.head_dim)
        buffer = torch.empty(shape, dtype=self.dtype, device=self.device)
        if slot.buffer is not None:
            buffer[:, :, :, : slot.held] = slot.buffer
        self.used += wanted - slot.held
        slot.buffer, slot.held = buffer, wanted
        return True

    def release(self, slot: Slot) -> None:
        self.used -= slot.held
        slot.buffer, slot.held = None, 0

    def share(self, source: Slot, slot: Slot, n_tokens: int) -> int:
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


class PagedCache(Cache):
    """A pool [layers, 2, pages, PAGE, kv_heads, D]; a sequence's pages lie anywhere in it."""

    def __init__(self, config: Qwen3Config, dtype: torch.dtype, device: torch.device, capacity: int):
        super().__init__(config, dtype, device, capacity // PAGE * PAGE)
        shape = (config.num_hidden_layers, 2, capacity // PAGE, PAGE, config.num_key_value_heads, config.head_dim)
        self.pool = torch.empty(shape, dtype=dtype, device=device)
        self._free = list(range(capacity // PAGE))[::-1]
        self._holders = [0] * (capacity // PAGE)  # slots that have a page in their table
        self._tables: list[Tensor] = []
        self._rows: Tensor | None = None
        self._kernel = _load_kernel(device, config.head_dim)
        self._plan: Any = None

    def reserve(self, slot: Slot, n_tokens: int) -> bool:
        missing = -(-n_tokens // PAGE) - len(slot.pages)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            slot.pages.append(self._free.pop())
            self._holders[slot.pages[-1]] = 1
        slot.held = len(slot.pages) * PAGE
        self.used = self.capacity - len(self._free) * PAGE
        return True

    def release(self, slot: Slot) -> None:
        for page in slot.pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)
        slot.pages, slot.held = [], 0
        self.used = self.capacity - len(self._free) * PAGE

    def share(self, source: Slot, slot: Slot, n_tokens: int) -> int:
        # Whole pages, in place: nobody writes behind the start of what is his own.
        slot.pages = source.pages[: n_tokens // PAGE]
        for page in slot.pages:
            self._holders[page] += 1
        slot.held = len(slot.pages) * PAGE
        return slot.held

    def save(self, slot: Slot, n_tokens: int) -> Callable[[], None]:
        pages = torch.tensor(slot.pages[: -(-n_tokens // PAGE)], device=self.device)
        saved = self.pool[:, :, pages].to("cpu")

        def put_back() -> None:
            pages = torch.tensor(slot.pages[: saved.shape[2]], device=self.device)
            self.pool[:, :, pages] = saved[:, :, : len(pages)].to(self.device)  # fewer where the end was cut off since

        return put_back

    def begin(self, runs: Sequence[Run]) -> None:
        rows = [run.slot.pages[at // PAGE] * PAGE + at % PAGE for run in runs for at in range(run.start, run.end)]
        self._rows = torch.tensor(rows, device=self.device)  # [N]: where each token's keys go in the pool
        if self._kernel is not None:
            self._runs = runs
            c = self.config
            self._plan = self._kernel.plan(
                runs, c.num_attention_heads, c.num_key_value_heads, c.head_dim, PAGE, self.device
            )
            return
        super().begin(runs)
        self._tables = [torch.tensor(run.slot.pages[: -(-run.end // PAGE)], device=self.device) for run in runs]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.pool[layer]
        keys.flatten(0, 1).index_copy_(0, self._rows, k)
        values.flatten(0, 1).index_copy_(0, self._rows, v)
        if self._kernel is not None:
            return self._kernel.attend(self._plan, q, keys, values)
        out = []
        for i, (run, table) in enumerate(zip(self._runs, self._tables, strict=True)):
            own_keys = keys[table].flatten(0, 1)[: run.end].transpose(0, 1)
            own_values = values[table].flatten(0, 1)[: run.end].transpose(0, 1)
            out.append(self._sdpa(i, q[run.row : run.row + run.n], own_keys, own_values))
        return out[0] if len(out) == 1 else torch.cat(out)


def _load_kernel(device: torch.device, head_dim: int) -> Any:
    """The Triton kernel for ragged paged attention, where there is a CUDA device and Triton."""
    if device.type != "cuda" or head_dim & (head_dim - 1):
        return None
    try:
        return importlib.import_module("guardkit.engine.paged_attention")
    except ImportError:
        return None
