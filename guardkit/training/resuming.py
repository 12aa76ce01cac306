"""A run that was ended goes on: from which checkpoint, and only as the run that it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guardkit.errors import TrainingError
from guardkit.training.rows import Tally

CHECKPOINTS = "checkpoints"
_ASKED = "run.json"  # beside them: what the run was told
_FREE = ("out", "train", "dev", "resume", "every", "checkpointing", "cpu")
"""Settings that may differ when a run goes on; of files the content counts."""


def asked(kind: str, settings: Mapping[str, Any], *read: Tally) -> dict[str, Any]:
    """What a run's result depends on, as JSON has it. read: of what it learns from, and of a dev split of its own."""
    told = {name: value for name, value in settings.items() if name not in _FREE}
    found = {"kind": kind, **told, "processes": processes(), "rows": [list(tally.files.values()) for tally in read]}
    return dict(json.loads(json.dumps(found, default=str)))


def remember(out: Path, asked: Mapping[str, Any]) -> None:
    """Keep it beside the checkpoints of the run in `out`."""
    if is_first():
        path = out / CHECKPOINTS / _ASKED
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        new.replace(path)  # whole, whenever the run is ended


def check(out: Path, asked: Mapping[str, Any]) -> None:
    """Raises `TrainingError` where the checkpoints in `out` are of a run with other settings or rows."""
    try:
        before: dict[str, Any] = json.loads((out / CHECKPOINTS / _ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if last(out) is None:  # nothing was begun
            return
        raise TrainingError(
            f"{out} holds checkpoints, but not what their run was told ({error}): name another folder"
        ) from error
    if others := [name for name in asked if before.get(name) != asked[name]]:
        told = ", ".join("other rows" if name == "rows" else f"{name} {before.get(name)!r}" for name in others)
        raise TrainingError(
            f"{out} holds checkpoints of another run ({told}): the same settings and rows go on with it, "
            "or name another folder"
        )


def last(out: Path) -> str | None:
    """The newest whole checkpoint."""
    found = sorted(
        (path for path in (out / CHECKPOINTS).glob("checkpoint-*") if _is_whole(path / "trainer_state.json")),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    return str(found[-1]) if found else None


def _is_whole(state: Path) -> bool:
    """Whether a checkpoint's state, which is written last, was written to its end."""
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process of a run that talks."""
    return os.environ.get("RANK", "0") == "0"
