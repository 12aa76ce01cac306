"""How many threads a step computes with, and how long those of OpenMP look for more work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from guardkit import Guard
from guardkit.engine.setup import SMALL_MODEL
from tests.engine.checkpoints import built, write_stream


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_in(guard: Guard) -> set[int]:
    """What torch's heads saw while a text was judged."""
    engine: Any = guard.model.engine  # type: ignore[attr-defined]
    seen = set()

    def watched(head: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def read(hidden: Any) -> Any:
            seen.add(torch.get_num_threads())
            return head(hidden)

        return read

    engine.heads = {name: watched(head) for name, head in engine.heads.items()}
    guard.check("a text")
    return seen


@pytest.mark.parametrize(("options", "expected"), [({}, 1), ({"threads": 2}, 2)])
def test_a_small_model_takes_one_thread_and_leaves_its_caller_his(
    folder: Path, options: dict[str, int], expected: int
) -> None:
    with Guard.load(folder, device="cpu", dtype="float32", **options) as guard:
        assert threads_in(guard) == {expected}
    assert torch.get_num_threads() == 3


def test_a_larger_model_takes_as_many_as_torch(root: Path) -> None:
    sizes = {"hidden": 256, "layers": 3, "intermediate": 2048, "vocab": 151936}
    in_layers = 3 * 3 * sizes["hidden"] * sizes["intermediate"]
    assert in_layers > SMALL_MODEL
    with Guard.load(built(root, write_stream, **sizes), device="cpu", dtype="float32") as guard:
        assert threads_in(guard) == {3}


@pytest.mark.parametrize(
    ("own", "bounded"), [({}, True), ({"OMP_WAIT_POLICY": "active"}, False)], ids=["default", "told"]
)
def test_the_command_bounds_how_long_threads_look_for_work(folder: Path, own: dict[str, str], bounded: bool) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    told = subprocess.run(
        [sys.executable, "-c", "import guardkit_cli; guardkit_cli.main()", "check", "--model", str(folder), "a text"],
        capture_output=True, text=True, env=kept | own | {"OMP_DISPLAY_ENV": "verbose"}, check=False,
    ).stderr  # fmt: skip
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("torch has another OpenMP than GNU's here")
    assert ("GOMP_SPINCOUNT = '4000'" in told) == bounded
