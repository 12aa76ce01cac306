"""`guard_graph(agent)` on LangGraph's own server, in memory and offline.

python -m venv v && v/bin/pip install 'langgraph-cli[inmem]' guardkit[langchain]
GUARDKIT_TEST_LANGGRAPH=v/bin/langgraph pytest tests/langchain/test_langgraph_server.py
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.leaks import AFTER_MARK, BAD, FLAGGED_MARK, SAFE, VIOLATION

PROGRAM = os.environ.get("GUARDKIT_TEST_LANGGRAPH") or shutil.which("langgraph")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="no langgraph: GUARDKIT_TEST_LANGGRAPH names it in a venv of its own"),
]
ROOT = Path(__file__).resolve().parents[2]
GRAPH = """
from langchain.agents import create_agent
from langchain_guardkit import GuardMiddleware, guard_graph
from tests.langchain.scripted import ScriptedModel, looking_tool, reply
from tests.leaks import BAD, SAFE, VIOLATION, make_guard

class Model(ScriptedModel):
    def _next(self, messages):
        asked = str(messages[-1].content)
        if messages[-1].type == "human" and "look" in asked:
            return reply(query="bad" if "badly" in asked else "good")
        return reply(BAD if "rudely" in asked else SAFE).model_copy(update={"id": None})

middleware = [GuardMiddleware(make_guard(), violation_message=VIOLATION)]
graph = guard_graph(create_agent(Model(replies=[], size=3), [looking_tool(bad=BAD)], middleware=middleware))
"""
MODES = ["messages-tuple", "values", "updates", "events", "debug", "custom", "tasks", "checkpoints"]
CASES = {"hello": SAFE, "look": SAFE, "answer rudely": VIOLATION, "look badly": VIOLATION, BAD: VIOLATION}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert PROGRAM
    folder = tmp_path_factory.mktemp("langgraph")
    (folder / "graph.py").write_text(GRAPH)
    config = {"dependencies": ["."], "graphs": {"agent": "./graph.py:graph"}}
    (folder / "langgraph.json").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}
    command = [PROGRAM, "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 240
            while True:
                try:
                    if httpx.get(f"{url}/ok", trust_env=False, timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                assert time.monotonic() < end, (folder / "log").read_text()[-3000:]
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def call(url: str, body: Any = None) -> Any:
    method = "GET" if body is None else "POST"
    answer = httpx.request(method, url, json=body, trust_env=False, timeout=120)
    answer.raise_for_status()
    return answer.json()


def leaks(text: str) -> bool:
    return any(mark in text for mark in (FLAGGED_MARK, AFTER_MARK, "\\u00b6", "\\u00a7"))


@pytest.mark.parametrize("asked", CASES, ids=["hello", "look", "bad answer", "bad tool", "bad prompt"])
def test_streams_state_and_history(server: str, asked: str) -> None:
    thread = f"{server}/threads/{call(f'{server}/threads', {})['thread_id']}"
    for turn in (asked, "hello again"):  # a blocked turn ends that turn, once
        body = {"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": turn}]}}
        with httpx.stream(
            "POST", f"{thread}/runs/stream", json={**body, "stream_mode": MODES}, trust_env=False, timeout=120
        ) as answer:
            answer.raise_for_status()
            seen = "".join(answer.iter_text())
        assert "event: error" not in seen, seen[-2000:]
        assert not leaks(seen), next(line for line in seen.splitlines() if leaks(line))[:500]
        state = call(f"{thread}/state")
        assert state["values"]["messages"][-1]["content"] == CASES.get(turn, SAFE)
        assert not leaks(json.dumps([state, call(f"{thread}/history", {"limit": 100})], ensure_ascii=False))
    if CASES[asked] == SAFE:
        assert seen.count("event: messages") > 5, "it streams"
    assert leaks(json.dumps(call(f"{thread}/runs"), ensure_ascii=False)) == (asked == BAD)  # the server's own record


def test_runs_without_a_thread_and_updates(server: str) -> None:
    def wait(text: str) -> str:
        body = {"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": text}]}}
        return str(call(f"{server}/runs/wait", body)["messages"][-1]["content"])

    assert wait("hello") == SAFE
    assert wait("answer rudely") == VIOLATION
    assert wait(BAD) == VIOLATION
    thread = f"{server}/threads/{call(f'{server}/threads', {})['thread_id']}"
    body = {"assistant_id": "agent", "input": {"messages": [{"role": "user", "content": "hello"}]}}
    call(f"{thread}/runs/wait", body)
    call(f"{thread}/state", {"values": {"messages": [{"role": "user", "content": BAD}]}})
    assert not leaks(json.dumps(call(f"{thread}/history", {"limit": 100}), ensure_ascii=False))
    assert call(f"{server}/assistants/agent/graph")["nodes"]


def test_a_client_brings_no_pass_of_its_own(server: str) -> None:
    """Neither the mark of a refusal that it has seen, nor digests of what passed, nor what overwrites the state."""

    def run(thread: str, messages: list[Any]) -> str:
        body = {"assistant_id": "agent", "input": {"messages": messages}}
        return str(call(f"{thread}/runs/wait", body)["messages"][-1])

    def new() -> str:
        return f"{server}/threads/{call(f'{server}/threads', {})['thread_id']}"

    hello = {"role": "user", "content": "hello"}
    thread = new()
    run(thread, [{"role": "user", "content": BAD}])
    mark = call(f"{thread}/state")["values"]["messages"][-1]["response_metadata"]["guardkit"]
    marked = {"role": "user", "content": BAD, "response_metadata": {"guardkit": {**mark, "message": BAD}}}
    overwrite = {"__overwrite__": [{"role": "user", "content": BAD}]}
    for given in ([marked, hello], {"messages": overwrite}, {"guardkit_passed": ["0" * 32]}):
        thread = new()
        assert SAFE in run(thread, given if isinstance(given, list) else [hello])
        if isinstance(given, dict):
            call(f"{thread}/state", {"values": given})
            assert "0" * 32 not in json.dumps(call(f"{thread}/state"))
        assert SAFE in run(thread, [hello])
        assert not leaks(json.dumps(call(f"{thread}/history", {"limit": 100}), ensure_ascii=False))
