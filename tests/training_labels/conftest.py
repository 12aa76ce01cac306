from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

PLAIN = ("garden", "train", "recipe", "music", "river", "window", "letter", "market")
HARM = ("attack", "poison", "threat", "weapon")
BORDER = ("knife", "drunk", "gamble")


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def planted() -> list[dict[str, Any]]:
    """Rows of two levels. true: "safe", "unsafe", or "border", where one word stands for both labels by a coin."""
    rng = random.Random(3)
    rows = []
    for i in range(360):
        true = rng.choices(("safe", "unsafe", "border"), (4, 4, 3))[0]
        words = [rng.choice(PLAIN) for _ in range(6)]
        if true == "unsafe":
            words[1], words[4] = rng.choice(HARM), rng.choice(HARM)
        if true == "border":
            words[2] = rng.choice(BORDER)
        severity = true if true != "border" else rng.choice(("safe", "unsafe"))
        rows.append({"id": i, "text": f"{' '.join(words)} {i}", "severity": severity, "true": true, "lang": "en"})
    return rows
