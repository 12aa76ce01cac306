"""Stream's heads as the classifiers of cross-annotation: a `Trainer` over `guardkit.training`. Extra `train`."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardkit.guard import Guard
from guardkit.labelling.rows import Item
from guardkit.training.annotators import GuardTeacher, Predictor
from guardkit.verdict import Severity, Stage


class Heads:
    """Trains a guard on a backbone, and asks it.

    base, kind ("stream", "gen"), settings: as for `guardkit.training.run.train` and its `Settings`. load: of the guard.
    Weights become repeats: a row that weighs twice the least is there twice (fractions by a coin, the same each time).
    Trained guards are not kept.
    """

    def __init__(self, base: str, kind: str = "stream", *, load: dict[str, Any] | None = None, **settings: Any):
        self._base, self._kind, self._settings, self._load = base, kind, settings, load or {}

    def __call__(self, items: Sequence[Item], levels: Sequence[Severity], weights: Sequence[float]) -> Predictor:
        from guardkit.training.run import Settings, train

        folder = tempfile.TemporaryDirectory(prefix="guardkit-")  # lives as long as its guard does
        source = Path(folder.name) / "rows.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for item, level, n in zip(items, levels, repeats(weights), strict=True):
                file.write(n * (json.dumps(_record(item, level)) + "\n"))
        told = {"dev_share": 0.0, "weights": "none", **self._settings}
        result = train(self._kind, Settings(base=self._base, train=(source,), out=Path(folder.name) / "guard", **told))
        teacher = GuardTeacher.of([Guard.load(result.out, **self._load)], ["heads"])

        def predict(items: Sequence[Item], _: object = folder) -> list[Any]:
            return teacher(items)

        return predict


def repeats(weights: Sequence[float]) -> list[int]:
    least = min((w for w in weights if w > 0), default=1.0)
    rng = random.Random(0)
    return [int(w / least) + (rng.random() < w / least % 1) for w in weights]


def _record(item: Item, level: Severity) -> dict[str, Any]:
    if isinstance(item, str):
        return {"prompt": item, "severity": level.value}
    last, before = item[-1], "\n".join(m.said for m in item[:-1])
    if last.stage is Stage.response:
        return {"prompt": before, "response": last.said, "severity": level.value}
    return {"prompt": last.said, "severity": level.value}
