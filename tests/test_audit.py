"""Audit records: the text where it is asked for, and a file that may be moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guardkit import AuditRecord, GuardkitError, Message, PolicyError
from guardkit.guard import Guard
from guardkit.testing import FakeGuard

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
