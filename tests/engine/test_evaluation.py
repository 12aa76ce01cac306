"""`guard eval` of a model on the engine: rows share its steps, and the figures are those of rows judged one by one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from guardkit import Guard
from guardkit.evaluation.figures import SetFigures
from guardkit.evaluation.runner import Settings, evaluate
from guardkit.evaluation.sources import Source
from guardkit.evaluation.specs import Fields, load_table

ROWS = 24


def score(guard: Guard, path: Path, located: bool, **settings: Any) -> tuple[SetFigures, int]:
    """The figures, and how many steps they took."""
    spec = load_table().datasets["qwen3guardtest_response_loc"] if located else None
    before = guard.model.engine.counters.steps  # type: ignore[attr-defined]
    found = evaluate(guard, "m", "1", Source("set", spec, path, Fields()), Settings(resamples=50, **settings))
    return found, guard.model.engine.counters.steps - before  # type: ignore[attr-defined]


def same(left: Any, right: Any, where: str = "") -> None:
    """Equal but for rounding, which what else is in a step may change."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for name in left.keys() - {"seconds"}:
            same(left[name], right[name], f"{where}.{name}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, pair in enumerate(zip(left, right, strict=True)):
            same(*pair, f"{where}[{i}]")
    else:
        assert left == (pytest.approx(right, abs=1e-4) if isinstance(left, float) else right), where


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    words = ["soil", "water", "sun", "seed", "root", "leaf", "bird", "stone", "cloud", "rain"]
    rows = []
    for i in range(ROWS):
        answer = " ".join(words[(i + j * (i % 3 + 1)) % len(words)] for j in range(5 + i))
        answered = {"messages": [{"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": answer}]}
        rows.append({**answered, "severity": ("safe", "unsafe")[i % 2], "span": [2, 9]})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("located", [False, True], ids=["verdicts", "locations"])
def test_rows_share_steps_and_figures_are_those_of_each_alone(folder: Path, texts: Path, located: bool) -> None:
    with Guard.load(folder, device="cpu", dtype="float32", policy="loose") as guard:
        together, n_steps = score(guard, texts, located)
        alone, n_alone = score(guard, texts, located, batch=1)
    assert together.n_judged == ROWS
    assert 0 < together.loose.rates.tp + together.loose.rates.fp < ROWS  # the model tells rows apart
    same(asdict(together), asdict(alone))
    assert n_steps <= n_alone / 4


def test_figures_do_not_depend_on_the_number_of_threads(folder: Path, texts: Path) -> None:
    found = []
    for threads in (1, 2):
        with Guard.load(folder, device="cpu", dtype="float32", policy="loose", threads=threads) as guard:
            found.append(score(guard, texts, False)[0])
    same(asdict(found[0]), asdict(found[1]))
