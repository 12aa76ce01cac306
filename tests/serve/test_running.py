"""`guard serve` as a program: the line that says it is ready, signals, workers, config files and their mistakes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from guardkit import PolicyError
from guardkit_serve.plan import Plan, read_config
from tests.leaks import SAFE, cut
from tests.serve import scripted
from tests.serve.live import LiveUpstream, running

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, str(ROOT / "tests" / "cli" / "fake_guard_program.py"), "serve", "--port", "0"]


class Serving:
    """A program under way. lines: of its standard error, as they come."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], program: list[str] = PROGRAM):
        paths = os.pathsep.join([str(ROOT), str(ROOT / "cli"), str(ROOT / "serve")])
        plain = {k: v for k, v in os.environ.items() if not k.startswith("GUARDKIT_")}
        plain |= {"PYTHONPATH": paths, "XDG_CONFIG_HOME": os.devnull, **env}
        self.process = subprocess.Popen([*program, *args], env=plain, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()

    def wait_for(self, text: str, n: int = 1) -> str:
        with self._news:
            assert self._news.wait_for(lambda: sum(text in line for line in self.lines) >= n, 60), self.lines
            return next(line for line in self.lines if text in line)

    @property
    def address(self) -> str:
        return self.wait_for("guardkit is ready on ").split(" on ")[1]

    def end(self, sig: int = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        code = self.process.wait(60)
        self._reader.join(60)
        return code


def test_a_head_without_an_end_is_refused_and_a_large_body_is_not(serve: Callable[..., Serving]) -> None:
    """A client that needs no key must not fill the memory."""
    server = serve("--no-access-log")
    host, port = server.address.removeprefix("http://").split(":")
    beginnings = (b"GET /health HTTP/1.1\r\nx-a: ", b"GET /", b"GET /health HTTP/1.1\r\n" + b"x-a: b\r\n" * 100)
    for beginning in beginnings:
        with socket.create_connection((host, int(port)), timeout=60) as wire:
            with contextlib.suppress(ConnectionError):
                wire.sendall(beginning)
                for _ in range(256):
                    wire.sendall(b"a" * 4096)
            said = b""
            with contextlib.suppress(ConnectionError):
                while piece := wire.recv(65536):
                    said += piece
            assert said == b"" or said.startswith(b"HTTP/1.1 400 ")
    with httpx.Client() as http:
        for _ in range(3):  # on one connection
            assert http.post(f"{server.address}/v1/check", json={"text": "fine " * 100_000}).status_code == 200
            assert http.get(f"{server.address}/health").status_code == 200


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def start(*args: str, **env: str) -> Serving:
        started.append(Serving(args, env))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_it_says_when_it_is_ready_and_ends_at_a_signal(serve: Callable[..., Serving]) -> None:
    one, two = serve(), serve("--no-access-log")
    assert one.address.startswith("http://127.0.0.1:")
    assert httpx.get(f"{one.address}/ready").status_code == 200
    assert httpx.post(f"{one.address}/v1/check", json={"text": "BAD"}).json()["action"] == "block"
    assert httpx.post(f"{two.address}/v1/check", json={"text": "fine"}).json()["action"] == "allow"
    assert one.end() == 0
    assert two.end(signal.SIGINT) == 130
    logged = [json.loads(line) for line in one.lines if line.startswith("{")]
    assert [line["path"] for line in logged] == ["/ready", "/v1/check"]
    assert "BAD" not in "".join(one.lines)
    assert len(two.lines) == 1


def test_streams_under_way_come_to_their_end(serve: Callable[..., Serving], tmp_path: Path) -> None:
    """At SIGTERM a stream that ends in time is whole, and one that does not is ended in its protocol."""
    go_on = threading.Event()
    events = scripted.chat_events(cut(SAFE, 4))

    def answer(body: Any) -> Iterator[bytes | None]:
        yield from events[:6]
        if body["model"] == "endless":
            yield None
        go_on.wait(60)
        yield from events[6:]

    with running(LiveUpstream({"/v1/chat/completions": answer})) as behind:
        config = tmp_path / "guard.yaml"
        config.write_text(f"grace_s: 2\nupstreams: {{one: '{behind}'}}\n")
        server = serve("--config", str(config), "--holdback", "1")
        url = f"{server.address}/v1/chat/completions"
        bodies: dict[str, bytes] = {}
        begun = {model: threading.Event() for model in ("endless", "short")}

        def call(model: str) -> None:
            body = {**scripted.ASKS["chat"], "model": model, "stream": True}
            with httpx.stream("POST", url, json=body, timeout=60) as reply:
                parts = []
                for part in reply.iter_bytes():
                    parts.append(part)
                    begun[model].set()
                bodies[model] = b"".join(parts)

        threads = [threading.Thread(target=call, args=(model,)) for model in begun]
        for thread, model in zip(threads, begun, strict=True):  # in this order: the short one's upstream waits
            thread.start()
            assert begun[model].wait(60)
        server.process.send_signal(signal.SIGTERM)
        go_on.set()
        for thread in threads:
            thread.join(60)
        assert server.process.wait(60) == 0
    assert b"shutting_down" in bodies["endless"]
    assert bodies["endless"].endswith(b"data: [DONE]\n\n")
    assert bodies["short"] in (b"".join(events), bodies["endless"])


def test_several_workers_count_together(serve: Callable[..., Serving]) -> None:
    server = serve("--workers", "2", "--no-access-log")
    for _ in range(12):  # a connection each, so that both workers get some
        httpx.post(f"{server.address}/v1/check", json={"text": "BAD"})
    counted = 'guardkit_serve_requests_total{action="block",route="/v1/check",status="200"} 12.0'
    end = time.monotonic() + 60
    while counted not in httpx.get(f"{server.address}/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert server.end() == 0


def test_several_workers_share_an_address(serve: Callable[..., Serving]) -> None:
    server = serve("--workers", "2")
    address = server.address
    for _ in range(6):
        assert httpx.post(f"{address}/v1/check", json={"text": "fine"}).status_code == 200
    assert server.end() == 0
    assert sum("guardkit is ready" in line for line in server.lines) == 1


def test_wrong_usage_is_said_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    from guardkit_cli import run

    with socket.create_server(("127.0.0.1", 0)) as taken:
        for code, said, args in (
            (2, "give both", ["--api-key-env", "X"]),
            (2, "X should hold an upstream's key", ["--api-key-env", "X", "--upstream", "http://127.0.0.1:1"]),
            (2, "http(s) address", ["--upstream", "localhost:8000"]),
            (2, "no policy", ["--policy", "stricter"]),
            (3, "", ["--port", str(taken.getsockname()[1])]),
        ):
            assert run(["serve", *args]) == code
            err = capsys.readouterr().err
            assert said in err
            assert err


def test_open_to_others_without_a_key_is_said(serve: Callable[..., Serving]) -> None:
    server = serve("--host", "0.0.0.0")
    server.wait_for("guardkit is ready")
    assert "warning" in server.lines[0]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_the_config_file_is_read_again_at_sighup(serve: Callable[..., Serving], tmp_path: Path) -> None:
    config = tmp_path / "guard.yaml"
    key = hashlib.sha256(b"sk-one").hexdigest()
    config.write_text("policies: {balanced: balanced}\naccess_log: false\n")
    server = serve("--config", str(config))
    ask = lambda **headers: httpx.post(f"{server.address}/v1/check", json={"text": "HMM"}, headers=headers)  # noqa: E731
    assert ask().json()["action"] == "flag"
    config.write_text(f"policies: {{strict: strict}}\naccess_log: false\nkeys: [{{name: one, sha256: {key}}}]\n")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("reloaded")
    assert ask().status_code == 401
    assert ask(authorization="Bearer sk-one").json()["action"] == "block"
    config.write_text("policies: {strict: strict}\nkeys: [{name: one}]\n")
    server.process.send_signal(signal.SIGHUP)
    assert f"{config}:2: an entry of 'keys' needs 'sha256'" in server.wait_for("not reloaded")
    assert ask(authorization="Bearer sk-one").status_code == 200
    assert server.end() == 0


# ------------------------------------------------------------------------------------------------- the config file

WHOLE = """
host: 0.0.0.0
port: 9000
hosts: [guard.local]
on_violation: replace
message: Not this.
holdback: 4
judge_s: 5
grace_s: 10
on_error: block
audit: audit.jsonl
workers: 2
models:
  nano: nano
  large: {model: Qwen/Qwen3Guard-Gen-4B, device: cuda, quantize: int8}
  far: {model: "http://127.0.0.1:8000/v1", served: Qwen/Qwen3Guard-Gen-0.6B}
policies:
  balanced: balanced
  kids: kids.yaml
upstreams:
  openai: {url: "https://api.openai.com/v1", key_env: OPENAI_API_KEY, read_s: 60}
  local: http://127.0.0.1:8000/v1
routes:
  - {model: "llama-*", upstream: local}
keys:
  - {name: app, sha256: HASH, policy: kids, policies: [balanced], per_minute: 60, model: large}
"""
HASH = hashlib.sha256(b"sk").hexdigest()


def config_at(folder: Path, text: str) -> Plan:
    (folder / "kids.yaml").write_text("name: kids\nextends: strict\n")
    path = folder / "guard.yaml"
    path.write_text(text.replace("HASH", HASH))
    return read_config(path)


def test_a_config_file_says_all(tmp_path: Path) -> None:
    plan = config_at(tmp_path, WHOLE)
    settings = plan.settings
    assert [model.name for model in plan.models] == ["nano", "large", "far"]
    assert plan.models[1].source == "Qwen/Qwen3Guard-Gen-4B"
    assert [model.has_weights for model in plan.models] == [False, True, False]
    assert [model.is_shared for model in plan.shared(tmp_path).models] == [False, True, False]
    told = config_at(tmp_path, "models: {a: {model: nano, process: true}, b: {model: x/y, process: false}}")
    assert [model.is_shared for model in told.models] == [True, False]
    assert [model.is_shared for model in told.shared(tmp_path).models] == [True, False]
    assert list(plan.load_policies()) == ["balanced", "kids"]
    assert settings.upstream("llama-3") == settings.upstreams[1]
    assert settings.upstream("gpt-5") == settings.upstream(None) == settings.upstreams[0]
    assert settings.upstreams[0].key_env == "OPENAI_API_KEY"
    key = settings.key_of("sk")
    assert key is not None
    assert (key.name, key.policies, key.per_minute) == ("app", ("balanced",), 60)
    assert (settings.port, settings.holdback, settings.message, plan.workers) == (9000, 4, "Not this.", 2)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (2, "port: 1\nprot: 2\n"),
        (1, "port: many\n"),
        (1, "port: true\n"),
        (2, "port: 1\non_violation: shout\n"),
        (2, "\njudge_s: 0\n"),
        (3, "models:\n  nano:\n    devcie: cpu\n"),
        (2, "policies:\n  mine: nowhere.yaml\n"),
        (2, "upstreams:\n  one: ftp://x\n"),
        (2, "upstreams:\n  one: {url: 'http://x', read_s: soon}\n"),
        (3, "upstreams: {one: 'http://x'}\nroutes:\n  - {model: a, upstream: two}\n"),
        (2, "keys:\n  - {name: a, sha256: sk-not-hashed}\n"),
        (2, "keys:\n  - {name: a, sha256: HASH, policy: other}\n"),
        (3, "keys:\n  - {name: a, sha256: HASH}\n  - {name: a, sha256: HASH}\n"),
        (2, "keys:\n  - sk\n"),
        (1, "- a list\n"),
        (2, "a: 1\n b: ]\n"),
        (1, "hosts: one\n"),
    ],
)
def test_a_mistake_in_it_is_named_with_its_line(tmp_path: Path, line: int, text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        config_at(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'guard.yaml'}:{line}: ")
    assert "sk-not-hashed" not in str(caught.value)


def test_what_a_server_has_loaded_is_set_aside_from_the_collector_in_its_own_process_alone() -> None:
    program = (
        "import gc, threading; from guardkit_serve.running import _settle\n"
        "thread = threading.Thread(target=_settle); thread.start(); thread.join(); print(gc.get_freeze_count())\n"
        "_settle(); print(gc.get_freeze_count() > 1000)\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli"), str(ROOT / "serve")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "True"]
