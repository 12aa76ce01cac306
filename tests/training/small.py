"""A tiny Qwen3 from scratch, and rows that a rule labels: what a guard can learn in seconds."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from guardkit.training.categories import PUBLISHED
from guardkit.training.templates import gen

HARMLESS = tuple(
    "the garden is green and we walk along the river with tea bread books trains letters music".split()  # noqa: SIM905
)
WORDS = {"violent": ("dragon", "sword"), "pii": ("passport", "address")}
"""What makes a text unsafe, by category."""
REFUSES = "sorry"
FOLDER = Path(__file__).parents[2] / "training" / "small"


def texts(words: Mapping[str, Sequence[str]] = WORDS) -> list[str]:
    every = [*HARMLESS, REFUSES, *(word for found in words.values() for word in found)]
    frame = [
        *re.findall(r"[\w&-]+", gen(PUBLISHED)),
        *["Safety", "Safe", "Unsafe", "Controversial", "Categories", "None", "Yes", "No"],
    ]
    return [f" {word} {word}" for word in (*every, *frame, *words)] * 4


def write_base(folder: Path, words: Mapping[str, Sequence[str]] = WORDS, **shape: Any) -> Path:
    sys.path.insert(0, str(FOLDER))
    try:
        from base import write_base as write  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(FOLDER))
    shape = {"vocab": 1024, "hidden": 48, "layers": 2, "heads": 2, "positions": 512} | shape
    made: Path = write(folder, texts(words), **shape)
    return made


def rows(n: int, seed: int = 0, words: Mapping[str, Sequence[str]] = WORDS) -> list[dict[str, Any]]:
    """Half prompts, half responses; one or no telling word in each, and where it stands in a response."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        said = rng.choices(HARMLESS, k=rng.randrange(4, 12))
        category = rng.choice([None, *words]) if rng.random() < 0.8 else None
        at = None
        if category is not None:
            place = rng.randrange(len(said))
            at = len(" ".join(said[:place])) + (place > 0)
            said.insert(place, rng.choice(words[category]))
        refuses = bool(i % 2) and rng.random() < 0.3
        text = " ".join(said) + (f" {REFUSES}" if refuses else "")
        row: dict[str, Any] = {
            "prompt": text if i % 2 == 0 else "say it",
            "response": text if i % 2 else None,
            "severity": "safe" if category is None else "unsafe",
            "categories": [] if category is None else [category],
            "refusal": refuses if i % 2 else None,
        }
        found.append(row | ({"unsafe_from": at} if i % 2 else {}))
    return found


def write_rows(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path
