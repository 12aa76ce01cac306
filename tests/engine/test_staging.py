"""Numbers on their way to a device that copies when it comes to it, as a GPU does, and not when it is told to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from guardkit.engine.setup import dtype_of_gpu
from guardkit.engine.staging import Results, Staging

CPU = torch.device("cpu")


class Device:
    """Makes events, and notes which of them, in order of their making, are waited for."""

    def __init__(self) -> None:
        self.made = 0
        self.waited: list[int] = []

    def event(self) -> Device.Event:
        self.made += 1
        return Device.Event(self, self.made)

    class Event:
        def __init__(self, device: Device, number: int):
            self._device, self._number = device, number

        def record(self) -> None: ...

        def synchronize(self) -> None:
            self._device.waited.append(self._number)


def test_results_stay_until_they_are_waited_for_whatever_comes_between() -> None:
    """As where a step fails while another is under way, and each of its sequences is tried alone."""
    results = Results(CPU, Device().event)
    first = results.fetch(torch.full((5,), 1.0))
    tried = [results.fetch(torch.full((7,), float(i)))() for i in range(2, 8)]
    second = results.fetch(torch.full((6,), 9.0))
    assert [found.tolist() for found in tried] == [[float(i)] * 7 for i in range(2, 8)]
    assert first().tolist() == [1.0] * 5
    assert second().tolist() == [9.0] * 6


def test_results_that_were_waited_for_do_not_change_any_more() -> None:
    results = Results(CPU, Device().event)
    kept = results.fetch(torch.full((3,), 1.0))()
    for i in range(5):
        results.fetch(torch.full((3,), 2.0 + i))()
    np.testing.assert_array_equal(kept, [1.0] * 3)
    assert len(results._free) == 1  # one buffer serves who waits for each


def test_results_come_from_devices_without_events() -> None:
    class Elsewhere:
        """A tensor that numpy cannot read, as on Apple's GPUs."""

        def cpu(self) -> torch.Tensor:
            return torch.full((3,), 1.0)

    assert Results(CPU).fetch(Elsewhere())().tolist() == [1.0] * 3  # type: ignore[arg-type]


def test_the_calls_of_a_step_do_not_wait_for_each_other() -> None:
    device = Device()
    staging = Staging(CPU, device.event)
    there = [staging.put([i], [i + 1, i + 2]) for i in range(Staging.TURNS)]
    assert device.waited == []
    assert [[column.tolist() for column in columns] for columns in there] == [
        [[i], [i + 1, i + 2]] for i in range(Staging.TURNS)
    ]
    staging.put_into(torch.zeros(2000, dtype=torch.int64), range(2000))
    assert device.waited == [1]  # a buffer is written again when its copy is over


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16")])
def test_a_gpu_without_bfloat16_computes_in_float16(capability: tuple[int, int], expected: str) -> None:
    assert dtype_of_gpu(capability) is getattr(torch, expected)
