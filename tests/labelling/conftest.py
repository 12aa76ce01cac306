from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guardkit.testing import FakeGuard
from guardkit_cli import loading, run

SCRIPT: dict[str, Any] = {"BAD": "unsafe", "HMM": "controversial", "BOOM": RuntimeError("boom")}


@dataclass
class Done:
    code: int
    err: str


class Label:
    """Runs `guard label` in this process. `scripts` is what the guards find, by the model's name; `guards` were
    loaded."""

    def __init__(self, capture: pytest.CaptureFixture[str]):
        self._capture = capture
        self.scripts: dict[str, dict[str, Any]] = {}
        self.guards: list[FakeGuard] = []

    def load(self, model: str, *, policy: str | None = None, on_error: str | None = None, **_: Any) -> FakeGuard:
        self.guards.append(FakeGuard(self.scripts.get(model, SCRIPT), policy=policy or "balanced", on_error=on_error))
        return self.guards[-1]

    def __call__(self, *args: str | Path) -> Done:
        code = run(["label", *map(str, args)])
        return Done(code, self._capture.readouterr().err)

    @property
    def calls(self) -> int:
        """How often the last guard's model was called."""
        model: Any = self.guards[-1].model
        return int(model.calls)


@pytest.fixture
def label(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Label:
    found = Label(capsys)
    monkeypatch.setattr(loading, "load_guard", found.load)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for name in ("GUARDKIT_MODEL", "GUARDKIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return found


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Texts of which every seventh is unsafe and every eleventh controversial; each twice."""
    return [{"id": i, "text": f"row {i // 2}{' BAD' * (i % 7 == 0)}{' HMM' * (i % 11 == 0)}"} for i in range(5000)]
