"""Keys and values in pages of one pool, and a GPU's kernels over them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from guardkit.engine.cache import Cache, Run, Slot
from guardkit.engine.config import Qwen3Config
from guardkit.engine.qwen3 import Fused
from guardkit.engine.staging import Staging

PAGE = 64  # tokens


class PagedCache(Cache):
    """A pool [layers, 2, pages, PAGE, kv_heads, D]; a sequence's pages lie anywhere in it."""

    def __init__(self, config: Qwen3Config, dtype: torch.dtype, device: torch.device, capacity: int):
        super().__init__(config, dtype, device, capacity // PAGE * PAGE)
        shape = (config.num_hidden_layers, 2, capacity // PAGE, PAGE, config.num_key_value_heads, config.head_dim)
        self.pool = torch.empty(shape, dtype=dtype, device=device)
        self._free = list(range(capacity // PAGE))[::-1]
        self._holders = [0] * (capacity // PAGE)  # slots of open sequences that have a page in their table
        self._keepers = [0] * (capacity // PAGE)  # and kept ones
        self._tables: list[Tensor] = []
        self._rows: Tensor | None = None
        self._kernel = _load("paged_attention", device, config.head_dim)
        if self._kernel is not None and dtype is torch.float32 and _shared_memory(device) < self._kernel.SHARED:
            self._kernel = None
        self._fused = _load("kernels", device, config.head_dim)
        self._device_tables: Tensor | None = None  # [slots, pages]: of each slot that was in a step
        self._free_rows: list[int] = []
        self._staging = Staging(device)
        self._plan: Any = None
        self._side: Any = None  # the stream that evicted pages leave on

    def reserve(self, slot: Slot, n_tokens: int, write_from: int | None = None) -> bool:
        missing = max(-(-n_tokens // PAGE) - len(slot.pages), 0)
        first = len(slot.pages) if write_from is None else write_from // PAGE
        shared = [i for i in range(first, len(slot.pages)) if self._is_shared(slot.pages[i])]
        if missing + len(shared) > len(self._free):
            return False
        for i in shared:  # others read what would be written over: a page of its own
            page, own = slot.pages[i], self._take()
            if i == first:
                self._copy(page, own)
            slot.pages[i] = own
            slot.known = min(slot.known, i)
            self._let_go(page)
        slot.pages += [self._take() for _ in range(missing)]
        slot.held = len(slot.pages) * PAGE
        return True

    def _copy(self, page: int, own: int) -> None:
        if self._fused is not None:
            self._fused.copy_page(self.pool, page, own)
        else:
            self.pool[:, :, own] = self.pool[:, :, page]

    def is_reserved(self, slot: Slot, write_from: int, n_tokens: int) -> bool:
        if n_tokens > slot.held:
            return False
        return not any(map(self._is_shared, slot.pages[write_from // PAGE :]))

    def _is_shared(self, page: int) -> bool:
        return self._holders[page] + self._keepers[page] > 1

    def _take(self) -> int:
        page = self._free.pop()
        self._hold(page)
        return page

    def _hold(self, page: int) -> None:
        self.used += 0 if self._holders[page] else PAGE
        self._holders[page] += 1

    def _let_go(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page]:
            self.used -= PAGE
            if not self._keepers[page]:
                self._free.append(page)

    def release(self, slot: Slot) -> None:
        for page in slot.pages:
            if not slot.kept:
                self._let_go(page)
                continue
            self._keepers[page] -= 1
            if not self._keepers[page]:
                self.kept -= PAGE
                if not self._holders[page]:
                    self._free.append(page)
        slot.pages, slot.held, slot.kept = [], 0, False
        self._give_row_back(slot)

    def _give_row_back(self, slot: Slot) -> None:
        if slot.row >= 0:
            self._free_rows.append(slot.row)
        slot.row, slot.known = -1, 0

    def keep(self, slot: Slot) -> None:
        slot.kept = True
        self._give_row_back(slot)
        for page in slot.pages:
            self.kept += 0 if self._keepers[page] else PAGE
            self._keepers[page] += 1
            self._let_go(page)

    def share(self, source: Slot, slot: Slot, n_tokens: int) -> int:
        # In place; whoever writes into a page that others have gets one of his own first.
        slot.pages = source.pages[: -(-n_tokens // PAGE)]
        for page in slot.pages:
            self._hold(page)
        slot.held = len(slot.pages) * PAGE
        return n_tokens

    def save(self, slot: Slot, n_tokens: int) -> Callable[[], None]:
        saved = self._to_host(self.pool[:, :, torch.tensor(slot.pages[: -(-n_tokens // PAGE)], device=self.device)])

        def put_back() -> None:
            host = saved()
            pages = torch.tensor(slot.pages[: host.shape[2]], device=self.device)
            self.pool[:, :, pages] = host[:, :, : len(pages)].to(self.device)  # fewer where the end was cut off since

        return put_back

    def _to_host(self, gathered: Tensor) -> Callable[[], Tensor]:
        """A copy in host memory, once it is asked for; on a GPU beside the steps that follow."""
        if self.device.type != "cuda":
            return lambda: gathered
        self._side = self._side or torch.cuda.Stream(self.device)
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            host = torch.empty(gathered.shape, dtype=gathered.dtype, pin_memory=True)
            host.copy_(gathered, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._side)
        gathered.record_stream(self._side)

        def there() -> Tensor:
            copied.synchronize()
            return host

        return there

    def begin(self, runs: Sequence[Run]) -> None:
        rows = self._places(runs)
        if self._kernel is None:
            self._rows = torch.tensor(rows, device=self.device)  # [N]: where each token's keys go in the pool
            super().begin(runs)
            self._tables = [torch.tensor(run.slot.pages[: -(-run.end // PAGE)], device=self.device) for run in runs]
            return
        c, kernel = self.config, self._kernel
        tables = self._table_of(runs)
        height, tiles = kernel.tiles_of(runs, c.num_attention_heads // c.num_key_value_heads)
        self._rows, flat = self._staging.put(rows, list(chain.from_iterable(tiles)))
        splits = kernel.splits_for(len(tiles), c.num_key_value_heads, max(run.end for run in runs))
        self._plan = kernel.Plan.of(
            height, flat.view(-1, 4), tables, splits, len(rows), c.num_attention_heads, c.head_dim
        )  # fmt: skip

    def _places(self, runs: Sequence[Run]) -> list[int]:
        places: list[int] = []
        for slot, _, start, n in runs:
            pages = slot.pages
            if n == 1:  # nearly always, where there are many
                places.append(pages[start // PAGE] * PAGE + start % PAGE)
            else:
                places += [pages[at // PAGE] * PAGE + at % PAGE for at in range(start, start + n)]
        return places

    def _table_of(self, runs: Sequence[Run]) -> Tensor:
        """The page tables on the device, with what they lack of these runs."""
        if self._device_tables is None:
            n_slots = len(self._holders)  # each has a page at least
            width = -(-self.config.max_position_embeddings // PAGE)
            self._device_tables = torch.zeros((n_slots, width), dtype=torch.int64, device=self.device)
            self._free_rows = list(range(n_slots))[::-1]
        width = self._device_tables.shape[1]
        places: list[int] = []
        pages: list[int] = []
        for slot in (run.slot for run in runs):
            if slot.row < 0:
                slot.row, slot.known = self._free_rows.pop(), 0
            elif slot.known == len(slot.pages):
                continue
            places += range(slot.row * width + slot.known, slot.row * width + len(slot.pages))
            pages += slot.pages[slot.known :]
            slot.known = len(slot.pages)
        if places:
            where, what = self._staging.put(places, pages)
            self._device_tables.view(-1).index_copy_(0, where, what)
        return self._device_tables

    def place(self, is_long: bool, runs: Sequence[Run], n: int, n_tiles: int) -> list[int]:
        """For a recorded step of `n` tokens: where each token's keys go, and the tiles, both padded. is_long: whether
        its tiles are those of long pieces."""
        self._table_of(runs)
        rows = self._places(runs)
        flat = list(chain.from_iterable(self._kernel.few_tiles(runs, self.tokens_of_a_tile(is_long))))
        return [*rows, *[-1] * (n - len(rows)), *flat, *[0] * (4 * n_tiles - len(flat))]

    def set_place(self, is_long: bool, rows: Tensor, tiles: Tensor) -> None:
        """The next forward pass reads these tensors: rows [n], tiles [n_tiles, 4] as `place` gives them."""
        c = self.config
        splits = self._kernel.splits_for(len(tiles), c.num_key_value_heads, c.max_position_embeddings)
        self._rows = rows
        self._plan = self._kernel.Plan.of(
            self._tile_rows(is_long), tiles, self._table_of(()), splits, len(rows), c.num_attention_heads, c.head_dim
        )

    def tokens_of_a_tile(self, is_long: bool) -> int:
        return self._tile_rows(is_long) // (self.config.num_attention_heads // self.config.num_key_value_heads)

    def _tile_rows(self, is_long: bool) -> int:
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        rows = int(self._kernel.MANY_ROWS if is_long else self._kernel.FEW_ROWS)
        return max(rows, 1 << (groups - 1).bit_length())

    @property
    def fused(self) -> Fused | None:
        return self._attend_fused if self._fused is not None and self._kernel is not None else None

    def _attend_fused(
        self, layer: int, qkv: Tensor, norm: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, eps: float
    ) -> Tensor:
        keys, values = self.pool[layer]
        q = self._fused.store(qkv, norm, cos, sin, positions, self._rows, keys, values, eps)
        return self._kernel.attend(self._plan, q, keys, values)

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


def _load(name: str, device: torch.device, head_dim: int) -> Any:
    """A module of Triton kernels, where there is a CUDA device and Triton."""
    if device.type != "cuda" or head_dim & (head_dim - 1):
        return None
    try:
        return importlib.import_module(f"guardkit.engine.{name}")
    except ImportError:
        return None


def _shared_memory(device: torch.device) -> int:
    """Bytes that one program may have; T4: 64 KiB, V100: 96, RTX 3090, L4 and the like: 99."""
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 1 << 20))
