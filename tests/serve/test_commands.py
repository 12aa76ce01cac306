"""Clients that are commands, through the server: curl, and simonw's `llm`.

python -m venv v && v/bin/pip install llm && GUARDKIT_TEST_LLM_CLI=v/bin/llm pytest tests/serve/test_commands.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import BAD, FLAGGED_MARK, SAFE, make_guard
from tests.serve import scripted
from tests.serve.live import RUDE, LiveUpstream, guarded

CURL = shutil.which("curl")
LLM = os.environ.get("GUARDKIT_TEST_LLM_CLI") or shutil.which("llm")
needs_curl = pytest.mark.skipif(not CURL, reason="no curl")
needs_llm = pytest.mark.skipif(not LLM, reason="no llm: GUARDKIT_TEST_LLM_CLI names the program in a venv of its own")


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    with guarded(make_guard(), LiveUpstream(RUDE)) as found:
        yield found


def curl(url: str, body: Any = None) -> str:
    assert CURL
    given = ["-H", "content-type: application/json", "-d", json.dumps(body)] if body is not None else []
    command = [CURL, "-sSN", "--noproxy", "*", "--max-time", "120", *given, url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_curl
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("protocol", scripted.PROTOCOLS)
def test_curl(servers: tuple[str, str], protocol: str, streams: bool) -> None:
    ask = {**scripted.ASKS[protocol], "stream": streams}
    through, direct = (curl(address + scripted.PATHS[protocol], ask) for address in servers)
    assert through == direct
    assert SAFE[:4] in through
    bad = json.loads(json.dumps(ask).replace("hello", "answer rudely"))
    seen = curl(servers[0] + scripted.PATHS[protocol], bad)
    assert FLAGGED_MARK not in seen
    assert "\\u00b6" not in seen
    assert "content_filter" in seen or "refusal" in seen


@needs_curl
def test_curl_lists_models_and_checks(servers: tuple[str, str]) -> None:
    assert curl(f"{servers[0]}/v1/models") == curl(f"{servers[1]}/v1/models")
    assert json.loads(curl(f"{servers[0]}/v1/check", {"text": BAD}))["action"] == "block"


def llm(home: Path, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    assert LLM
    env = os.environ | {"LLM_USER_PATH": str(home), "NO_PROXY": "*"}
    return subprocess.run([LLM, *arguments], input=text or "", capture_output=True, text=True, env=env, timeout=180)


@needs_llm
@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--no-stream",), ("--responses",), ("--responses", "--no-stream")])
def test_llm(servers: tuple[str, str], tmp_path: Path, more: tuple[str, ...]) -> None:
    said = [llm(tmp_path, "openai", "endpoint", f"{url}/v1", "hello", "-m", "m", *more) for url in servers]
    assert said[0].stdout == said[1].stdout, said[0].stderr
    assert said[0].stdout.strip() == SAFE
    for text in ("answer rudely", BAD):
        seen = llm(tmp_path, "openai", "endpoint", f"{servers[0]}/v1", text, "-m", "m", *more)
        assert FLAGGED_MARK not in seen.stdout + seen.stderr
        assert SAFE.startswith(seen.stdout.strip()), seen.stdout


@needs_llm
@pytest.mark.slow
def test_llm_with_tools_pipes_and_its_model_list(servers: tuple[str, str], tmp_path: Path) -> None:
    """As a model of its own, named in its file; what it logs is what was shown."""
    url = f"{servers[0]}/v1"
    model = {"model_id": "guarded", "model_name": "m", "api_base": url, "supports_tools": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    assert llm(tmp_path, "openai", "endpoint", url, "--models").stdout.split() == ["m"]
    assert llm(tmp_path, "-m", "guarded", text="hello").stdout.strip() == SAFE
    tool = "def look_up(q: str) -> str:\n    print('ran')\n    return 'dark soil'"
    given = ("-m", "guarded", "--functions", tool)
    assert llm(tmp_path, *given, "look").stdout.strip() == f"ran\n{SAFE}"
    assert "ran" not in llm(tmp_path, *given, "look rudely").stdout
    logged = llm(tmp_path, "logs", "-n", "0", "--json").stdout
    assert SAFE in logged
    assert FLAGGED_MARK not in logged
    assert "\\u00b6" not in logged
