"""A tiny backbone and the guards that were trained from it, once a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

import torch

from guardkit import Guard
from guardkit.training.run import Result, Settings, train
from tests.training.small import rows, write_base, write_rows


@dataclass(frozen=True)
class Made:
    folder: Path
    result: Result
    guard: Guard


def run(kind: str, root: Path, out: str, **settings: Any) -> Made:
    """Train from `root`/base on `root`/rows.jsonl, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    told: dict[str, Any] = {
        "base": str(root / "base"), "train": (root / "rows.jsonl",), "backbone": "full", "rate": 3e-3, "epochs": 4,
        "batch": 32, "dev_share": 0.1, "precision": "fp32", "cpu": True,
    }  # fmt: skip
    try:
        result = train(kind, Settings(out=root / out, **told | settings))
    finally:
        torch.set_num_threads(threads)
    return Made(result.out, result, Guard.load(result.out, device="cpu", dtype="float32", threads=1))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_base(folder / "base")
    write_rows(folder / "rows.jsonl", rows(800))
    return folder


@pytest.fixture(scope="session")
def stream(root: Path) -> Made:
    return run("stream", root, "stream")
