"""Audit records: the text where it is asked for, and a file that may be moved."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from guardkit import Action, AuditRecord, GuardkitError, Message, PolicyError
from guardkit.guard import Guard
from guardkit.testing import FakeGuard
from guardkit.webhook import WebhookSink

IMAGE = "A" * 100_000


def _kept(*items: object) -> list[str]:
    records: list[AuditRecord] = []
    guard = FakeGuard({"bad": "unsafe"}, audit=records.append, audit_text=True)
    for item in items:
        guard.decide(item)  # type: ignore[arg-type]
    return [record.text or "" for record in records]


def test_a_streams_record_has_all_that_was_received() -> None:
    records: list[AuditRecord] = []
    guard = FakeGuard({"bad": "unsafe"}, audit=records.append, audit_text=True)
    with guard.stream("When?") as stream:
        for delta in ("All is ", None, "bad ", "and more."):
            stream.feed(delta)
        stream.finish()
    assert [r.text for r in records] == ["All is bad and more."]
    plain = FakeGuard({}, audit=records.append)
    with plain.stream() as stream:
        stream.feed("hello")
    assert records[-1].text is None


def test_messages_are_json_without_the_bytes_of_media() -> None:
    blocks = [
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + IMAGE}},
        {"type": "image", "source": {"type": "base64", "data": IMAGE}},
        {"type": "input_audio", "input_audio": {"data": IMAGE.encode(), "format": "wav"}},
    ]
    (text,) = _kept([{"role": "user", "content": blocks}])
    found = json.loads(text)
    assert len(text) < 1000
    assert found[0]["content"][0]["text"] == "hi"
    assert found[0]["content"][1]["image_url"]["url"] == "data:image/png;base64,[100,000 characters]"


def test_pictures_inside_texts_and_values_that_are_no_json() -> None:
    picture = f"![a cat](data:image/png;base64,{IMAGE})"
    when = datetime.date(2026, 11, 26)
    plain, messages = _kept(
        f"look {picture} there", [{"role": "user", "content": json.dumps({"page": picture}), "when": when}]
    )
    assert plain == "look ![a cat](data:image/png;base64,[100,000 characters]) there"
    assert len(messages) < 1000
    assert json.loads(messages)[0]["when"] == "2026-11-26"


def test_a_sink_must_be_one() -> None:
    with pytest.raises(TypeError, match="not int"):
        FakeGuard({}, audit=3)  # type: ignore[arg-type]


def test_words_are_never_taken_for_media() -> None:
    for content in ("x" * 5000, [{"type": "text", "text": "x" * 5000}]):
        (text,) = _kept([{"role": "user", "content": content}])
        assert "x" * 5000 in text
    plain, messages = _kept("as it is", [Message("user", "hello")])
    assert plain == "as it is"
    assert json.loads(messages) == [{"role": "user", "content": "hello"}]


def test_a_moved_file_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    guard = FakeGuard({}, audit=path)
    guard.decide("one")
    path.rename(tmp_path / "audit.jsonl.1")
    guard.decide("two")
    path.unlink()
    guard.decide("three")
    guard.decide("four")
    assert len((tmp_path / "audit.jsonl.1").read_text().splitlines()) == 1
    assert len(path.read_text().splitlines()) == 2


def test_paths_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    for name in (tmp_path / "models", "~/models", Path("~/models")):
        with pytest.raises(GuardkitError, match=r"config\.json|torch"):
            Guard.load(name)
    with pytest.raises(GuardkitError, match="unknown model"):
        Guard.load(tmp_path / "nano")
    (tmp_path / "policy.yaml").write_text("name: mine\n")
    guard = FakeGuard({}, policy="~/policy.yaml", audit="~/audit.jsonl")
    guard.decide("hello")
    assert guard.policy.name == "mine"
    assert (tmp_path / "audit.jsonl").is_file()
    with pytest.raises(PolicyError, match="no policy"):
        FakeGuard({}, policy="~/other.yaml")


# -- sinks that fail


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_changes_no_decision(caplog: pytest.LogCaptureFixture) -> None:
    guard = FakeGuard({"bad": "unsafe"}, audit="/dev/full")
    assert guard.decide("bad").action is Action.block
    assert guard.decide("fine").action is Action.allow
    with guard.stream() as stream:
        stream.feed("all is well ")
        assert [event.kind for event in stream.finish()] == ["text"]
    assert caplog.text.count("the audit sink failed") == 3


FULL = """
import json, resource, signal, sys
from guardkit.testing import FakeGuard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
guard = FakeGuard({}, audit=sys.argv[1])
guard.decide("one")
size = open(sys.argv[1]).seek(0, 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
guard.decide("two")  # there is room for a part of its record
guard.decide("three")  # and for none of this one
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
guard.decide("four, five")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_after_a_full_disk_records_begin_a_line_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    subprocess.run([sys.executable, "-c", FULL, str(file)], check=True, capture_output=True)
    first, torn, last = file.read_text().splitlines()
    assert [json.loads(line)["characters"] for line in (first, last)] == [3, 10]
    with pytest.raises(ValueError, match=r"Unterminated|Expecting|delimiter"):
        json.loads(torn)


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server: Any = self.server
        status = server.statuses.pop(0) if server.statuses else 200
        if status == 200:
            server.records += body["records"]
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def hook() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Hook)
    server.records, server.statuses = [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}/audit"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_the_records_in_order_and_without_texts(hook: Any) -> None:
    sink = WebhookSink(hook.url, retry_s=(0.01,))
    hook.statuses.append(503)  # tried again
    guard = FakeGuard({"bad": "unsafe"}, audit=sink)
    for text in ("bad", "a secret", "fine!"):
        guard.decide(text)
    sink.close()
    assert [record["characters"] for record in hook.records] == [3, 8, 5]
    assert [record["action"] for record in hook.records] == ["block", "allow", "allow"]
    assert "text" not in hook.records[0]
    assert sink.dropped == 0
    with pytest.raises(ValueError, match="closed"):
        sink(AuditRecord(0, "", "", "", True, "", "", None, (), None, None, None, 0, 0))


def test_a_guard_takes_a_webhooks_address(hook: Any) -> None:
    FakeGuard({}, audit=hook.url).decide("hello")
    end = time.monotonic() + 10
    while not hook.records:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("status", [400, 503, None])
def test_a_webhook_that_fails_changes_no_decision(hook: Any, status: int | None, caplog: Any) -> None:
    hook.statuses += [status] * 9 if status else []
    sink = WebhookSink(hook.url if status else "http://127.0.0.1:9/", retry_s=(0.01,))
    guard = FakeGuard({"bad": "unsafe"}, audit=sink)
    assert guard.decide("bad").action is Action.block
    sink.close()
    assert sink.dropped == 1
    assert "records were dropped" in caplog.text
    assert hook.records == []


def test_an_address_must_be_one() -> None:
    with pytest.raises(ValueError, match="begins with http"):
        WebhookSink("ftp://example/x")
