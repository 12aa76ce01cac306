"""What of a row is judged, and under which name and key its verdict is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guardkit.evaluation.locations import Located
from guardkit.evaluation.rows import text_of
from guardkit.evaluation.runner import Settings, evaluate, model_key, model_revision, shown_name
from guardkit.evaluation.sources import Source
from guardkit.evaluation.specs import Fields, load_table
from guardkit.models.base import Scores, Session
from guardkit.testing import FakeGuard, FakeModel

SCRIPT = {"BAD": "unsafe", "HMM": "controversial"}


def located(tmp_path: Path, guard: FakeGuard, *records: dict[str, Any]):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"severity": "unsafe", **r}) + "\n" for r in records))
    source = Source("set", load_table().datasets["qwen3guardtest_response_loc"], path, Fields())
    return evaluate(guard, "fake", "1", source, Settings(resamples=0))


def said(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", **message}], "span": [0, 99]}


# ---------------------------------------------------------------------------------------------------------- the text


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "BAD"}, "BAD"),
        ({"content": [{"type": "text", "text": "so"}, {"type": "text", "text": "BAD"}]}, "so\nBAD"),
        ({"content": "fine", "reasoning_content": "BAD"}, "<think>\nBAD\n</think>\n\nfine"),
        ({"content": "fine", "reasoning": "BAD"}, "<think>\nBAD\n</think>\n\nfine"),
        ({"content": None, "reasoning_content": "BAD"}, "<think>\nBAD\n</think>\n\n"),
    ],
)
def test_every_text_of_a_response_is_located(tmp_path, message, text):
    assert text_of({"role": "assistant", **message}) == text
    found = located(tmp_path, FakeGuard(SCRIPT), said(**message))
    assert (found.n_judged, found.loose.rates.tp) == (1, 1)
    assert found.stops["loose"].bins["Hit"] == 1


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"content": "fine", "tool_calls": [{"function": {"name": "send", "arguments": "BAD"}}]},
        {"content": "fine", "audio": {"id": "x"}},
        {"content": [{"type": "text", "text": "fine"}, {"type": "tool_result", "content": "BAD"}]},
    ],
)
def test_what_has_no_location_is_not_judged(tmp_path, message):
    found = located(tmp_path, FakeGuard(SCRIPT), said(**message))
    assert (found.n_judged, found.n_not_judged) == (0, 1)
    assert "only text and reasoning have locations" in next(iter(found.errors))


def test_only_responses_have_locations(tmp_path):
    found = located(tmp_path, FakeGuard(SCRIPT), {"messages": [{"role": "user", "content": "BAD"}], "span": [0, 3]})
    assert (found.n_judged, found.n_not_judged) == (0, 1)


# ------------------------------------------------------------------------------------------------------------ blocks


class Blocks(FakeModel):
    """Judges four tokens at once, as models do that judge texts whole: the block's score is that of its last token."""

    whole_texts, stride = True, 4

    def open(self, context):
        inner = super().open(context)

        class Whole(Session):
            def append(self, tokens):
                scores = inner.append(tokens)
                n = len(tokens)
                last = [a[-1:].repeat(n, 0) for a in (scores.severity, scores.category, scores.refusal)]
                return Scores(*last)

            def peek(self, tokens):
                raise NotImplementedError

        return Whole()


def in_blocks() -> FakeGuard:
    guard = FakeGuard(SCRIPT)
    guard.model = Blocks(SCRIPT)
    return guard


def test_a_block_is_flagged_at_its_end(tmp_path):
    text = "a b c d e f g BAD i j k l m"
    spans = {"Ahead": "i j", "Hit": "BAD", "1-32": "e f"}  # the block is "e f g BAD": its end is flagged, not "e"
    for where, words in spans.items():
        at = text.index(words)
        row = {"prompt": "q", "response": text, "span": [at, at + len(words)]}
        stops = located(tmp_path, in_blocks(), row).stops["loose"]
        assert {b: n for b, n in stops.bins.items() if n} == {where: 1}


def test_what_a_stream_shows_of_a_block(tmp_path):
    """Against a stream that gets a character at a time."""
    text = "a b c d e f g BAD i j k l m"
    stops = located(tmp_path, in_blocks(), {"prompt": "q", "response": text, "span": [8, 17]}).stops["loose"]
    for early in stops.early[:2]:
        with in_blocks().stream("q", holdback=early.holdback) as stream:
            shown = ""
            for character in text:
                for event in stream.feed(character):
                    shown += event.text if event.kind == "text" else ""
                if stream.stopped:
                    break
        assert stream.stopped
        assert len(shown[text.index("e") :].split()) == early.mean
    assert [e.mean for e in stops.early[:2]] == [4, 0]


def test_controversial_texts_are_no_positives_of_loose_mode(tmp_path):
    rows = [
        {"prompt": "q", "response": "HMM so", "severity": "controversial", "span": [0, 3]},
        {"prompt": "q", "response": "so BAD", "span": [0, 2]},
    ]
    stops = located(tmp_path, FakeGuard(SCRIPT), *rows).stops
    assert (stops["strict"].n, stops["strict"].hit) == (2, 0.5)
    assert (stops["loose"].n, stops["loose"].hit) == (1, 0.0)
    assert Located().figures("loose").n == 0


# -------------------------------------------------------------------------------------------------- names and keys


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("nano", "nano"),
        ("Qwen/Qwen3Guard-Gen-0.6B", "Qwen/Qwen3Guard-Gen-0.6B"),
        ("folder/a@b", "folder/a@b"),
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("https://user:secret@host/v1", "https://host/v1"),
        ("https://secret@host:8000/v1/", "https://host:8000/v1"),
        ("https://user:sec@ret@[::1]:8000/v1", "https://[::1]:8000/v1"),
        ("https://host/v1?key=secret#secret", "https://host/v1"),
        ("HTTPS://user:secret@host/v1", "https://host/v1"),
        ("https://user:sec/ret@host/v1", "a server"),
    ],
)
def test_no_name_has_a_password(model, shown):
    assert shown_name(model) == shown


def test_the_key_has_all_that_a_verdict_depends_on():
    def engine(device: str, dtype: str) -> SimpleNamespace:
        return SimpleNamespace(model=SimpleNamespace(device=device, dtype=dtype))

    guards = [
        FakeGuard(SCRIPT),
        FakeGuard(SCRIPT, policy="strict"),
        FakeGuard(SCRIPT, policy={"extends": "strict", "rules": [{"category": "violent", "action": "flag"}]}),
        FakeGuard(SCRIPT, debounce=2),
        FakeGuard(SCRIPT, normalize=False),
        FakeGuard(SCRIPT, then=FakeModel({})),
        FakeGuard(SCRIPT, then=FakeModel({}), when=(0.2, 0.4)),
        *(FakeGuard(SCRIPT) for _ in range(3)),
    ]
    guards[-1].model.engine = engine("cpu", "torch.float32")
    guards[-2].model.engine = engine("cpu", "torch.bfloat16")
    guards[-3].model.engine = engine("cuda", "torch.bfloat16")
    keys = [model_key(guard, "m", "1") for guard in guards]
    assert len(set(keys)) == len(keys)
    assert model_key(FakeGuard({}), "m", "1") == keys[0]
    assert len({keys[0], model_key(guards[0], "m", "2"), model_key(guards[0], "n", "1")}) == 3


def test_another_policy_does_not_get_the_verdicts_of_the_first(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q", "response": "HMM then BAD", "severity": "unsafe"}) + "\n")
    source, settings = Source("set", None, path), Settings(resamples=0, cache=tmp_path / "p.sqlite")
    strict = evaluate(FakeGuard(SCRIPT, policy="strict"), "fake", "1", source, settings)
    balanced = evaluate(FakeGuard(SCRIPT, policy="balanced"), "fake", "1", source, settings)
    assert (strict.loose.rates.tp, balanced.loose.rates.tp, balanced.n_cached) == (0, 1, 0)


def test_a_branch_is_resolved_to_its_commit(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    commits = {None: "a" * 40, "dev": "b" * 40}

    def snapshot_download(name, *, revision, allow_patterns, local_files_only):
        assert local_files_only
        if revision not in commits:
            raise ValueError("not cached")
        return str(tmp_path / "snapshots" / commits[revision])

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    found = [model_revision(FakeGuard(), "a/b", asked) for asked in (None, "dev", "v1")]
    assert found == ["a" * 40, "b" * 40, "v1"]
    commits["dev"] = "c" * 40  # the branch has moved
    assert model_revision(FakeGuard(), "a/b", "dev") == "c" * 40
    assert model_revision(FakeGuard(), "http://host/v1", None) == "fake"


@pytest.mark.parametrize("changed", ["model.py", "units.py", "nano.onnx", "pieces.txt", "calibration.json"])
def test_nanos_code_is_part_of_its_revision(monkeypatch, tmp_path, changed):
    from guardkit.models import nano

    folder = tmp_path / "nano"
    folder.mkdir()
    for path in nano.weights_path().parent.iterdir():
        if path.is_file() and path.suffix != ".onnx":
            shutil.copy(path, folder)
    (folder / "nano.onnx").write_bytes(b"weights")
    monkeypatch.setattr(nano, "weights_path", lambda: folder / "nano.onnx")
    guard = FakeGuard()
    guard.model.name = "nano"
    before = model_revision(guard, "nano", None)
    assert model_revision(guard, "nano", None) == before
    os.chmod(folder / changed, 0o644)
    with (folder / changed).open("ab") as file:
        file.write(b"#")
    assert model_revision(guard, "nano", None) != before
