"""What was fitted to nano's scores: temperatures, limits by stage and category, shifts by group of languages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardkit.models.base import Floats, Limits
from guardkit.verdict import Category, Stage

# Of the scripts that its pieces are of. A text belongs to the group that most of its pieces do, a response at a token
# to that of most of its pieces so far. What has no letters (numbers, signs) goes with the first.
GROUPS = (
    "english", "latin", "european", "semitic", "indic", "south_east_asian", "chinese", "japanese", "korean",
)  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """Fitted on the dev split. temperature: by head; limits: by stage. shifts: by head and group of languages, what the
    logit of "safe" loses for a text in them. refusal: the mean logit from which on an answer counts as a refusal."""

    query_temperature: float
    response_temperature: float
    limits: dict[Stage, Limits]
    query_shifts: Floats
    response_shifts: Floats
    refusal: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Calibration:
        data = json.loads(path.read_text(encoding="utf-8"))
        limits = {
            Stage(stage): Limits(
                float(one["unsafe"]),
                float(one["flagged"]),
                {Category(name): float(least) for name, least in one.get("categories", {}).items()},
            )
            for stage, one in data["thresholds"].items()
        }
        return cls(
            float(data["temperature"]["query"]), float(data["temperature"]["response"]), limits,
            _shifts(data, "query"), _shifts(data, "response"),
            float(data.get("refusal", 0.0)),
        )  # fmt: skip


def _shifts(data: dict[str, Any], head: str) -> Floats:
    """[len(GROUPS)]"""
    by_group = data.get("shifts", {}).get(head, {})
    return np.array([by_group.get(group, 0.0) for group in GROUPS], np.float32)
