"""What was fitted to nano's scores: temperatures, limits by stage and category, shifts by group of languages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from guardkit.models.base import Limits
from guardkit.verdict import Category, Stage

# Of the scripts that its pieces are of; a query belongs to the group that most of its pieces do. What has no letters
# (numbers, signs) goes with the first.
GROUPS = ("english", "latin", "european", "semitic", "indic", "east_asian")


@dataclass(frozen=True)
class Calibration:
    """Fitted on the dev split. temperature: by head; limits: by stage. shifts: by group of languages, what the logit of
    "safe" loses for a query in them. refusal: the mean logit from which on an answer counts as a refusal."""

    query_temperature: float
    response_temperature: float
    limits: dict[Stage, Limits]
    shifts: tuple[float, ...] = (0.0,) * len(GROUPS)
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
            tuple(float(data.get("shifts", {}).get(group, 0.0)) for group in GROUPS),
            float(data.get("refusal", 0.0)),
        )  # fmt: skip
