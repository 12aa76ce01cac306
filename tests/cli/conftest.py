from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guardkit.testing import FakeGuard
from guardkit_cli import loading, run

ROOT = Path(__file__).resolve().parents[2]
FAKE_PROGRAM = [sys.executable, str(Path(__file__).with_name("fake_guard_program.py"))]
REAL_PROGRAM = [sys.executable, "-m", "guardkit_cli"]
SETTINGS = ("NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "GUARDKIT_MODEL", "GUARDKIT_POLICY", "GUARDKIT_DEBUG")
SCRIPT = {"BAD": "unsafe", "HMM": "controversial", "BOOM": RuntimeError("boom")}


@dataclass
class Result:
    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def rows(self) -> list[dict[str, Any]]:
        import json

        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Cli:
    """Runs `guard` in this process with a scripted guard. `guards` are those that commands have loaded."""

    monkeypatch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[bytes]
    guards: list[FakeGuard]

    def __call__(self, *args: str, stdin: bytes | str = b"") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = run(list(args))
        captured = self.capture.readouterr()
        return Result(code, captured.out, captured.err.decode())


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Cli:
    guards: list[FakeGuard] = []

    def load_guard(model: str, *, policy: str | None = None, on_error: str | None = None, **_: Any) -> FakeGuard:
        guards.append(FakeGuard(SCRIPT, policy=policy or "balanced", on_error=on_error))
        return guards[-1]

    monkeypatch.setattr(loading, "load_guard", load_guard)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Cli(monkeypatch, capsysbinary, guards)


@pytest.fixture
def environment() -> dict[str, str]:
    """For child processes: the packages of this checkout, and no settings of the person who runs the tests."""
    plain = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    return (
        plain
        | {"XDG_CONFIG_HOME": os.devnull}
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli"), str(ROOT / "serve")])}
    )


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(environment: dict[str, str]) -> Any:
    """Start a program with pipes; what still runs at the end of the test is killed."""
    running: list[subprocess.Popen[bytes]] = []

    def popen(*args: str, real: bool = False, env: dict[str, str] | None = None, **pipes: Any) -> Any:
        for name in ("stdin", "stdout", "stderr"):
            pipes.setdefault(name, subprocess.PIPE)
        command = [*(REAL_PROGRAM if real else FAKE_PROGRAM), *args]
        process = subprocess.Popen(command, env=environment | (env or {}), **pipes)
        running.append(process)
        return process

    yield popen
    for process in running:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
