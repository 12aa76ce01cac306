"""A small Stream checkpoint in the published layout, loaded once; skipped where the engine's packages are absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from guardkit import Guard
from tests.engine.checkpoints import built, write_stream
from tests.engine.qwen3_tokenizer_builder import MISSING

POSITIONS = 8192


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MISSING:
        pytest.skip(MISSING)
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def folder(root: Path) -> Path:
    return built(root, write_stream, positions=POSITIONS)


@pytest.fixture(scope="session")
def model(folder: Path) -> Any:
    return Guard.load(str(folder), device="cpu", dtype="float32").model


@pytest.fixture(scope="session")
def short(root: Path) -> Any:
    """The same with 256 positions, so that windows are soon reached."""
    return Guard.load(str(built(root, write_stream, positions=256)), device="cpu", dtype="float32").model
