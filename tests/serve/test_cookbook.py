"""The cookbook's programs that need a server, run as they are: nano guards, a scripted model answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guardkit import Guard
from tests.leaks import cut
from tests.serve import scripted
from tests.serve.live import LiveUpstream, guarded

COOKBOOK = Path(__file__).resolve().parents[2] / "cookbook"
TEXT = "Dark soil, sun, and water in the morning."


def answer(protocol: str) -> Any:
    def answers(body: Any) -> Any:
        stage, text = ("tool_call", '{"city": "Bonn"}') if body.get("tools") else ("response", TEXT)
        if body.get("stream"):
            return scripted.events(protocol, cut(text, 6), stage)
        return scripted.whole(protocol, text, stage)

    return answers


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    upstream = LiveUpstream({scripted.PATHS[protocol]: answer(protocol) for protocol in scripted.PROTOCOLS})
    with Guard.load() as guard, guarded(guard, upstream) as (found, _):
        yield found


def run(name: str, address: str) -> list[str]:
    env = os.environ | {"GUARD_URL": address}
    found = subprocess.run([sys.executable, str(COOKBOOK / name)], env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


def test_serve_openai(address: str) -> None:
    assert run("serve_openai.py", address) == [TEXT, "[withheld]", """['{"city": "Bonn"}']""", "[False, True]"]


def test_serve_anthropic(address: str) -> None:
    assert run("serve_anthropic.py", address) == [f"{TEXT}[end_turn]", "[refusal]"]


def test_serve_langchain(address: str) -> None:
    assert run("serve_langchain.py", address) == [TEXT, "[withheld]"]


def test_serve_llama_index(address: str) -> None:
    pytest.importorskip("llama_index.llms.openai_like", reason="it takes openai < 3")
    assert run("serve_llama_index.py", address) == [TEXT, "[withheld]"]


def test_every_program_has_a_test() -> None:
    assert {f"test_{path.stem}" for path in COOKBOOK.glob("serve_*.py")} <= set(globals())
