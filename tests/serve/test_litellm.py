"""LiteLLM's proxy, the real one, with the guard beside it (its Generic Guardrail API) and behind it (as a model).

python -m venv v && v/bin/pip install 'litellm[proxy]' && GUARDKIT_TEST_LITELLM=v/bin/litellm pytest tests/serve/...
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import yaml

from tests.leaks import BAD, FLAGGED_MARK, SAFE, make_guard
from tests.serve.live import RUDE, LiveUpstream, guarded

PROGRAM = os.environ.get("GUARDKIT_TEST_LITELLM") or shutil.which("litellm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="no litellm: GUARDKIT_TEST_LITELLM names the program in a venv of its own"),
]
WAYS = {"incremental": {"streaming_transform_mode": "incremental_diff", "streaming_sampling_rate": 1},
        "buffered": {"streaming_buffer_until_moderated": True}}  # fmt: skip
KEY = f"sk-{secrets.token_hex(16)}"  # the proxy does not start without one
EARLY: dict[str, dict[str, Any]] = {"default": {}}
TOOL: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def upstream() -> LiveUpstream:
    return LiveUpstream(RUDE)


@pytest.fixture(scope="module")
def proxy(upstream: LiveUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy's address. Models: `plain` asks the upstream, `guarded` asks the guard's server in front of it."""
    assert PROGRAM
    folder = tmp_path_factory.mktemp("litellm")
    with guarded(make_guard(), upstream) as (address, behind):
        models = {"plain": behind, "guarded": address}
        config = {
            "model_list": [
                {"model_name": name, "litellm_params": {"model": "openai/m", "api_base": f"{base}/v1", "api_key": "k"}}
                for name, base in models.items()
            ],
            "guardrails": [
                {
                    "guardrail_name": name,
                    "litellm_params": {
                        "guardrail": "generic_guardrail_api", "mode": ["pre_call", "post_call"], "api_base": address,
                        "unreachable_fallback": "fail_closed", **way,
                    },
                }
                for name, way in {**WAYS, **EARLY}.items()
            ],
            "litellm_settings": {"num_retries": 0},
        }  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = os.environ | {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "DISABLE_ADMIN_UI": "True",
            "LITELLM_MASTER_KEY": KEY,
        }
        with (folder / "log").open("wb") as log:
            command = [
                PROGRAM,
                "--config",
                "config.yaml",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--telemetry",
                "False",
            ]
            server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
            try:
                _wait(f"http://127.0.0.1:{port}/health/liveliness", server, folder / "log")
                yield f"http://127.0.0.1:{port}"
            finally:
                server.terminate()
                server.wait(30)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 240
    while True:
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert server.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)


def asked(proxy: str, text: str, way: str | None, model: str = "plain", **more: Any) -> Any:
    client = openai.OpenAI(base_url=proxy, api_key=KEY, max_retries=0, timeout=60)
    extra = {"guardrails": [way]} if way else {}
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], extra_body=extra, **more
    )


def streamed(proxy: str, text: str, way: str | None, model: str = "plain", **more: Any) -> tuple[str, list[Any]]:
    """All that a client sees of a stream, and its chunks; an error frame in it is raised behind them."""
    seen, chunks = "", []
    try:
        for chunk in asked(proxy, text, way, model, stream=True, **more):
            chunks.append(chunk)
            seen += chunk.model_dump_json()
    except openai.APIError as error:
        seen += str(error)
        chunks.append(error)
    return seen, chunks


def text_of(chunks: list[Any]) -> str:
    found = [c for c in chunks if not isinstance(c, Exception) and c.choices]
    return "".join(chunk.choices[0].delta.content or "" for chunk in found)


@pytest.mark.parametrize("way", WAYS)
def test_whole_answers(proxy: str, upstream: LiveUpstream, way: str) -> None:
    assert asked(proxy, "hello", way).choices[0].message.content == SAFE
    with pytest.raises(openai.APIError) as caught:
        asked(proxy, "answer rudely", way)
    assert FLAGGED_MARK not in str(caught.value.body)
    n_asked = len(upstream.requests)
    with pytest.raises(openai.APIError) as caught:
        asked(proxy, BAD, way)
    assert FLAGGED_MARK not in str(caught.value.body)
    assert len(upstream.requests) == n_asked, "a blocked prompt never reaches the model"


@pytest.mark.parametrize("way", WAYS)
def test_streams(proxy: str, way: str) -> None:
    seen, chunks = streamed(proxy, "hello", way)
    assert text_of(chunks) == SAFE
    assert len(chunks) > 3
    seen, chunks = streamed(proxy, "answer rudely", way)
    assert FLAGGED_MARK not in seen
    assert SAFE.startswith(text_of(chunks))
    assert isinstance(chunks[-1], Exception), "the client learns that it was stopped"


def test_tool_calls(proxy: str) -> None:
    assert asked(proxy, "hello", "buffered", tools=[TOOL]).choices[0].message.tool_calls
    with pytest.raises(openai.APIError):
        asked(proxy, "answer rudely", "buffered", tools=[TOOL])
    seen, _ = streamed(proxy, "answer rudely", "buffered", tools=[TOOL])
    assert FLAGGED_MARK not in seen


def test_anthropics_messages(proxy: str) -> None:
    client = anthropic.Anthropic(base_url=proxy, api_key=KEY, max_retries=0, timeout=60)

    def ask(text: str, way: str) -> str:
        more: Any = {"model": "plain", "max_tokens": 100, "messages": [{"role": "user", "content": text}]}
        seen = ""
        try:
            with client.messages.stream(**more, extra_body={"guardrails": [way]}) as stream:
                for event in stream:
                    seen += event.to_json()
        except anthropic.APIError as error:
            seen += str(error)
        return seen

    assert SAFE in ask("hello", "buffered")
    assert FLAGGED_MARK not in ask("answer rudely", "buffered")
    for way in ("incremental", *EARLY):
        assert FLAGGED_MARK in ask("answer rudely", way), "incremental is for chat completions alone"


@pytest.mark.parametrize(("way", "tools"), [("default", False), ("default", True), ("incremental", True)])
def test_what_litellm_shows_before_it_asks(proxy: str, way: str, tools: bool) -> None:
    """By its default, and of tool calls in its incremental mode: what the docs say not to use."""
    more: Any = {"tools": [TOOL]} if tools else {}
    seen, _ = streamed(proxy, "answer rudely", way, **more)
    assert FLAGGED_MARK in seen


@pytest.mark.parametrize("tools", [False, True])
def test_the_guard_as_its_model(proxy: str, tools: bool) -> None:
    more: Any = {"tools": [TOOL]} if tools else {}
    whole = asked(proxy, "hello", None, "guarded", **more).choices[0].message
    assert (whole.tool_calls[0].function.arguments if tools else whole.content).count(SAFE) == 1
    seen, chunks = streamed(proxy, "hello", None, "guarded", **more)
    if not tools:
        assert text_of(chunks) == SAFE
    assert len(chunks) > 10, "it streams"
    seen, chunks = streamed(proxy, "answer rudely", None, "guarded", **more)
    assert FLAGGED_MARK not in seen
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert asked(proxy, BAD, None, "guarded").choices[0].finish_reason == "content_filter"


@pytest.mark.parametrize("streams", [False, True])
def test_reasoning(proxy: str, streams: bool) -> None:
    """LiteLLM shows a guardrail no reasoning; the guard's server as the model judges it. `incremental_diff` leaves it
    out of streams."""
    left_out = ("incremental",) if streams else ()
    ways: list[tuple[str, str | None, bool]] = [("plain", way, way not in left_out) for way in (*WAYS, *EARLY)]
    for model, way, leaks in [*ways, ("guarded", None, False)]:
        if streams:
            seen, _ = streamed(proxy, "think rudely", way, model)
        else:
            seen = asked(proxy, "think rudely", way, model).model_dump_json()
        assert (FLAGGED_MARK in seen) == leaks, model
