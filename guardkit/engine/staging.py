"""Whole numbers on their way to a device, and what was read off a step on its way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Event(Protocol):
    """`torch.cuda.Event`, as far as it is used here."""

    def record(self) -> object: ...

    def synchronize(self) -> object: ...


def _event_of(device: torch.device) -> Callable[[], Event] | None:
    """What makes events on a device that copies beside the host; None: copies are over when they are made."""
    return torch.cuda.Event if device.type == "cuda" else None


class Staging:
    """Pinned buffers that stay and take turns, and one copy a call, which the host does not wait for. A buffer is
    written again when its copy, which stands behind the work before it, is over: with `TURNS` of them the calls of one
    step do not wait for the step before."""

    TURNS = 4

    def __init__(self, device: torch.device, event: Callable[[], Event] | None = None):
        self._device, self._pinned = device, device.type == "cuda"
        self._event = event or _event_of(device)
        self._hosts = [torch.zeros(0, dtype=torch.int64)] * self.TURNS
        self._copied: list[Event | None] = [None] * self.TURNS
        self._at = 0

    def put(self, *columns: Sequence[int]) -> list[Tensor]:
        """Each column as int64 on the device."""
        there = self._copy(self._fill(columns), None)
        return list(there.split([len(column) for column in columns]))

    def put_into(self, there: Tensor, column: Sequence[int]) -> None:
        """The same into a tensor that stays."""
        self._copy(self._fill((column,)), there)

    def _fill(self, columns: Sequence[Sequence[int]]) -> Tensor:
        size = sum(map(len, columns))
        self._at = at = (self._at + 1) % self.TURNS
        if (copied := self._copied[at]) is not None:
            copied.synchronize()
        if size > len(self._hosts[at]):
            self._hosts[at] = torch.zeros(max(2 * size, 1024), dtype=torch.int64, pin_memory=self._pinned)
        numbers = self._hosts[at].numpy()
        begin = 0
        for column in columns:
            numbers[begin : begin + len(column)] = column
            begin += len(column)
        return self._hosts[at][:size]

    def _copy(self, numbers: Tensor, there: Tensor | None) -> Tensor:
        if there is None:
            there = torch.empty(len(numbers), dtype=torch.int64, device=self._device)
        there.copy_(numbers, non_blocking=self._pinned)
        if self._event is not None:
            copied = self._copied[self._at] = self._copied[self._at] or self._event()
            copied.record()
        return there


class Results:
    """Pinned buffers, each for what one step found, until that is waited for: any number of steps may be under way."""

    def __init__(self, device: torch.device, event: Callable[[], Event] | None = None):
        self._pinned = device.type == "cuda"
        self._event = event or _event_of(device)
        self._free: list[Tensor] = []

    def fetch(self, there: Tensor) -> Callable[[], NDArray[np.float32]]:
        """Begin to copy a float32 tensor [n] to the host; what waits for it, and gives it. To be called once."""
        if self._event is None:
            return lambda: np.asarray(there.cpu().numpy(), np.float32)
        buffer = self._free.pop() if self._free else torch.zeros(0)
        if len(there) > len(buffer):
            buffer = torch.zeros(max(2 * len(there), 1 << 14), pin_memory=self._pinned)
        host = buffer[: len(there)]
        host.copy_(there, non_blocking=self._pinned)
        copied = self._event()
        copied.record()

        def wait() -> NDArray[np.float32]:
            copied.synchronize()
            found = np.array(host.numpy(), np.float32)
            self._free.append(buffer)
            return found

        return wait
