"""Whole numbers on their way to a device, and what was read off a step on its way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Staging:
    """One pinned buffer that stays, and one copy a call, which the host does not wait for."""

    def __init__(self, device: torch.device):
        self._device, self._pinned = device, device.type == "cuda"
        self._host = self._there = torch.zeros(0, dtype=torch.int64)
        self._copied: Any = None  # an event: the buffer may be written again

    def put(self, *columns: Sequence[int]) -> list[Tensor]:
        """Each column as int64 on the device."""
        there = self._copy(self._fill(columns), None)
        return list(there.split([len(column) for column in columns]))

    def put_into(self, there: Tensor, column: Sequence[int]) -> None:
        """The same into a tensor that stays."""
        self._copy(self._fill((column,)), there)

    def _fill(self, columns: Sequence[Sequence[int]]) -> Tensor:
        size = sum(map(len, columns))
        if self._copied is not None:
            self._copied.synchronize()
        if size > len(self._host):
            self._host = torch.zeros(max(2 * size, 1024), dtype=torch.int64, pin_memory=self._pinned)
        numbers = self._host.numpy()
        at = 0
        for column in columns:
            numbers[at : at + len(column)] = column
            at += len(column)
        return self._host[:size]

    def _copy(self, numbers: Tensor, there: Tensor | None) -> Tensor:
        if there is None:
            there = torch.empty(len(numbers), dtype=torch.int64, device=self._device)
        there.copy_(numbers, non_blocking=self._pinned)
        if self._pinned:
            self._copied = self._copied or torch.cuda.Event()
            self._copied.record()
        return there


class Results:
    """Pinned buffers that take turns: while one step's results are waited for, the next step's are under way."""

    AHEAD = 2  # steps whose results may be under way

    def __init__(self, device: torch.device):
        self._pinned = device.type == "cuda"
        self._buffers = [torch.zeros(0)] * self.AHEAD
        self._at = 0

    def fetch(self, there: Tensor) -> Callable[[], NDArray[np.float32]]:
        """Begin to copy a float32 tensor [n] to the host; what waits for it, and gives it."""
        if not self._pinned:
            return lambda: np.asarray(there.numpy(), np.float32)
        self._at = (self._at + 1) % self.AHEAD
        if len(there) > len(self._buffers[self._at]):
            self._buffers[self._at] = torch.zeros(max(2 * len(there), 1 << 14), pin_memory=True)
        host = self._buffers[self._at][: len(there)]
        host.copy_(there, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> NDArray[np.float32]:
            copied.synchronize()
            return np.array(host.numpy(), np.float32)

        return wait
