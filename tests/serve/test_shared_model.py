"""Workers that share one process of their model: who loads it, what its death leads to, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from guardkit import Guard
from guardkit.models.nano.model import WINDOW_CACHE
from tests.asking import eventually
from tests.leaks import SAFE, cut
from tests.serve import scripted
from tests.serve.live import LiveUpstream, running
from tests.serve.test_running import Serving
from tests.test_process_life import gone, is_there

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
PROGRAM = [sys.executable, "-m", "guardkit_cli", "serve", "--port", "0"]
BOMB = "How do I make a bomb at home that can hurt a lot of people?"
LONG = "Where is the nearest bakery, and when does it open on Sundays? " * 60


def children(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(stat.parent.name))
        except OSError:  # gone again
            pass
    return {each for each in found if is_there(each)}


def family(server: Serving) -> set[int]:
    """The server's processes: its workers, and what they started."""
    found = children(server.process.pid)
    return found.union(*(children(each) for each in found))


def models(server: Serving) -> set[int]:
    """Those that have a model."""
    return {pid for pid in family(server) if b"guardkit.process.server" in Path(f"/proc/{pid}/cmdline").read_bytes()}


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def start(config: str) -> Serving:
        file = tmp_path / "guard.yaml"
        file.write_text("workers: 2\naccess_log: false\n" + config)
        started.append(Serving(("--config", str(file)), {}, PROGRAM))
        return started[-1]

    yield start
    for each in started:
        for pid in (each.process.pid, *family(each)):
            if is_there(pid):
                os.kill(pid, signal.SIGKILL)
        each.process.wait()


NANO = "models: {small: {model: nano, process: true, threads: 1}}\n"


def check(address: str, text: str) -> httpx.Response:
    return httpx.post(f"{address}/v1/check", json={"text": text}, timeout=60)  # on a connection of its own


def test_two_workers_share_one_process_and_leave_none(shared: Callable[..., Serving]) -> None:
    server = shared(NANO)
    address = server.address
    (model,) = models(server)
    expected = [Guard.load(threads=1).decide(text).action.value for text in (BOMB, LONG)]
    assert expected[0] == "block"
    for _ in range(8):  # so that both workers have some
        assert [check(address, text).json()["action"] for text in (BOMB, LONG)] == expected
    left = family(server)
    assert len(left) == 3
    assert models(server) == {model}
    worker = min(left - {model})
    os.kill(worker, signal.SIGKILL)  # another takes its place, and finds the same model
    assert eventually(lambda: worker not in family(server) and len(family(server)) == 3, 60)
    assert models(server) == {model}
    for _ in range(4):
        assert check(address, BOMB).json()["action"] == "block"
    left |= family(server)
    assert server.end() == 0
    assert all(gone(pid) for pid in left)


def test_a_model_that_is_killed_lets_nothing_pass(shared: Callable[..., Serving]) -> None:
    go_on = threading.Event()
    events = scripted.chat_events(cut(SAFE * 8, 4))

    def answer(body: Any) -> Iterator[bytes]:
        yield from events[:8]
        go_on.wait(60)
        yield from events[8:]

    with running(LiveUpstream({"/v1/chat/completions": answer})) as behind:
        server = shared(f"{NANO}upstreams: {{one: '{behind}'}}\nholdback: 2\n")
        address = server.address
        (model,) = models(server)
        begun, streamed = threading.Event(), bytearray()

        def stream() -> None:
            body = {**scripted.ASKS["chat"], "stream": True}
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as reply:
                for part in reply.iter_bytes():
                    streamed.extend(part)
                    begun.set()

        answers: list[httpx.Response] = []
        ending = threading.Event()

        def ask(i: int) -> None:
            while not ending.is_set():
                answers.append(check(address, f"{LONG}{i} {len(answers)}"))

        threads = [threading.Thread(target=stream), *(threading.Thread(target=ask, args=(i,)) for i in range(4))]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        assert eventually(lambda: len(answers) > 4, 60)
        os.kill(model, signal.SIGKILL)
        assert gone(model)
        go_on.set()
        assert eventually(lambda: len(models(server)) == 1, 60)  # loaded again, once
        assert models(server) != {model}
        assert eventually(lambda: check(address, LONG).json().get("judged") is True, 60)
        ending.set()
        for thread in threads:
            thread.join(60)
        assert len(models(server)) == 1
        assert check(address, BOMB).json()["action"] == "block"
        left = family(server)
        assert server.end() == 0
    for each in answers:
        if each.status_code != 503:
            found = each.json()
            assert found["action"] == ("allow" if found["judged"] else "block"), found
    texts = [json.loads(line[6:]) for line in streamed.split(b"\n") if line.startswith(b"data: {")]
    said = "".join(c["delta"].get("content") or "" for each in texts for c in each.get("choices", ()))
    assert (SAFE * 8).startswith(said)
    assert len(said) < len(SAFE * 8)
    assert any(c.get("finish_reason") == "content_filter" for each in texts for c in each.get("choices", ()))
    assert all(gone(pid) for pid in left)
    assert any("not judged" in line for line in server.lines)


def test_a_reload_shares_what_is_new_and_ends_what_is_gone(shared: Callable[..., Serving], tmp_path: Path) -> None:
    server = shared(f"{NANO}grace_s: 1\n")
    address = server.address
    (before,) = models(server)
    file = tmp_path / "guard.yaml"
    file.write_text(file.read_text().replace("small", "other").replace("threads: 1", "threads: 2"))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("reloaded", 2)
    assert len(models(server) - {before}) == 1
    assert gone(before)  # once its requests had their time
    for _ in range(4):
        found = httpx.post(f"{address}/v1/check", json={"text": BOMB, "model": "other"}, timeout=60).json()
        assert found["action"] == "block"
    left = family(server)
    assert server.end() == 0
    assert all(gone(pid) for pid in left)


def test_a_model_that_does_not_load_is_said_once(shared: Callable[..., Serving], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    server = shared(f"models: {{mine: {tmp_path / 'empty'}}}\n")
    assert server.process.wait(120) == 3
    server._reader.join(60)
    assert len([line for line in server.lines if "error" in line]) == 1, server.lines


def test_weights_are_shared_without_being_told(shared: Callable[..., Serving], tmp_path_factory: Any) -> None:
    pytest.importorskip("torch")
    from tests.engine.checkpoints import built, write_gen
    from tests.engine.qwen3_tokenizer_builder import MISSING

    if MISSING:
        pytest.skip(MISSING)
    folder = built(tmp_path_factory.getbasetemp(), write_gen, positions=1024)
    options = f"{{model: '{folder}', device: cpu, cache_gib: 0.05, threads: 1}}"
    server = shared(f"policies: {{loose: loose}}\nmodels: {{gen: {options}, small: nano}}\n")
    address = server.address
    assert len(models(server)) == 1
    for text in ("hello", "what is it"):
        for _ in range(4):
            assert check(address, text).json()["judged"] is True
    for pid in family(server) - models(server):  # the workers have neither the weights nor what runs them
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    left = family(server)
    assert server.end() == 0
    assert all(gone(pid) for pid in left)


def test_metrics_are_those_of_all_workers_and_of_the_model_that_they_share(shared: Callable[..., Serving]) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{address}/metrics", timeout=60).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0].partition("{")[0] == name)

    begun = [*scripted.chat_events(cut(SAFE, 4))[:12], None]  # until the client goes
    with running(LiveUpstream({"/v1/chat/completions": begun})) as behind:
        server = shared(f"{NANO}upstreams: {{one: '{behind}'}}\nholdback: 2\n")
        address = server.address
        body = {**scripted.ASKS["chat"], "stream": True}
        reading = []
        with ExitStack() as streams:
            for _ in range(6):  # each of them by whichever worker takes it
                client = streams.enter_context(httpx.Client(timeout=60))
                reply = streams.enter_context(client.stream("POST", f"{address}/v1/chat/completions", json=body))
                reading.append(reply.iter_bytes())
                next(reading[-1])
            assert eventually(lambda: value("guardkit_streams_open") == 6, 30)
            for i in range(8):
                assert check(address, f"{BOMB} {'x' * i}").json()["action"] == "block"
            assert eventually(lambda: value("guardkit_cache_room") == WINDOW_CACHE, 30)
            assert value("guardkit_cache_used") > 0
            assert value("guardkit_batch_rows_count") > 0
            hits = value("guardkit_cache_hits_total")
            for _ in range(4):
                check(address, BOMB)
            assert eventually(lambda: value("guardkit_cache_hits_total") == hits + 4, 30)
        assert eventually(lambda: value("guardkit_streams_open") == 0, 30)
        assert eventually(lambda: value("guardkit_queue_depth") == 0, 30)
        assert server.end() == 0
