"""Which labels a record has: in the columns of a set's authors, in guardkit's own, and where nothing says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from guardkit.evaluation import rows, sources
from guardkit.evaluation.runner import Settings, evaluate
from guardkit.evaluation.sources import Source
from guardkit.evaluation.specs import DatasetSpec, Fields, Labels, load_table
from guardkit.testing import FakeGuard

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TEXTS = {"prompt": "q", "response": "a"}
LOCATED = {"message": CHAT, "label": "Unsafe", "unsafe_start_index": 13, "unsafe_end_index": 13.0}
WILD = {"prompt_harm_label": "harmful", "response_harm_label": "unharmful", "response_refusal_label": "refusal"}
FLAGS = dict.fromkeys(("S", "H", "V", "HR", "SH", "S3", "H2", "V2"), 0)
VOTES = {
    f"labels_{i}": label for i, label in enumerate(("Safe", "Needs Caution", "Hate/Identity Hate", "Violence", ""))
}
SAFETY = {"prompt_label": "unsafe", "response_label": "safe"}
SAFERLHF = {"response_0": "a", "response_1": "b", "is_response_0_safe": True, "is_response_1_safe": False}

# One record of each hub's, and the (severity, refusal) of its rows.
ORIGINALS: dict[str, tuple[dict[str, Any], list[tuple[int, int]]]] = {
    "toxicchat": ({"user_input": "q", "toxicity": 1, "human_annotation": True}, [(2, -1)]),
    "openai_moderation": ({"prompt": "q", **FLAGS, "V": 1}, [(2, -1)]),
    "aegis": ({"text": "q", "text_type": "user_message", **VOTES}, [(2, -1)]),
    "aegis2": ({**TEXTS, **SAFETY, "reconstruction_id_if_redacted": None}, [(2, -1)]),
    "aegis2_responses": ({**TEXTS, **SAFETY, "reconstruction_id_if_redacted": float("nan")}, [(0, -1)]),
    "simple_safety_tests": ({"id": "1", "prompt": "q"}, [(2, -1)]),
    "harmbench_prompts": ({"Behavior": "q", "FunctionalCategory": "standard"}, [(2, -1)]),
    "wildguardtest": ({**TEXTS, **WILD}, [(2, -1)]),
    "wildguardtest_responses": ({**TEXTS, **WILD}, [(0, 1)]),
    "saferlhf": ({"prompt": "q", **SAFERLHF}, [(0, -1), (2, -1)]),
    "beavertails": ({**TEXTS, "is_safe": False}, [(2, -1)]),
    "xstest_prompts": ({"prompt": "q", "label": "safe"}, [(0, -1)]),
    "xstest_responses": ({**TEXTS, "label": "harmful"}, [(2, -1)]),
    "xstest_refusal": ({**TEXTS, "label": "refusal"}, [(-1, 1)]),
    "polyguard_prompts": ({**TEXTS, **WILD, "language": "German"}, [(2, -1)]),
    "polyguard_responses": ({**TEXTS, **WILD, "language": "German"}, [(0, 1)]),
    "orbench_hard": ({"prompt": "q", "category": "x"}, [(0, -1)]),
    "orbench_toxic": ({"prompt": "q", "category": "x"}, [(2, -1)]),
    "strongreject": ({"forbidden_prompt": "q", "category": "x"}, [(2, -1)]),
    "qwen3guardtest_thinking": ({"message": CHAT, "label": "Controversial"}, [(1, -1)]),
    "qwen3guardtest_thinking_loc": (LOCATED, [(2, -1)]),
    "qwen3guardtest_response_loc": (LOCATED, [(2, -1)]),
}


def read(path: Path, spec: DatasetSpec | None, *records: dict[str, Any]) -> list[rows.Row]:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return list(Source("set", spec, path, spec.local if spec else Fields()).rows())


@pytest.mark.parametrize("name", [s.name for s in load_table().datasets.values() if s.hub])
def test_a_record_of_every_hub(name, monkeypatch, tmp_path):
    spec, (record, expected) = load_table().datasets[name], ORIGINALS[name]
    monkeypatch.setattr(sources, "hub_revision", lambda spec: spec.hub.revision)
    monkeypatch.setattr(sources, "hub_records", lambda _: iter([record]))
    for found in (list(Source(name, spec).rows()), read(tmp_path / "a.jsonl", spec, record)):
        assert [(r.severity, r.refusal, r.error, r.left_out) for r in found] == [(*e, None, False) for e in expected]
        assert {r.text for r in found} <= {"q", "a", "b"}


def test_a_column_of_refusals_that_is_called_label():
    fields = Fields(refusal=Labels(column="label"))
    row = rows.row_of(1, {**TEXTS, "label": "compliance"}, fields)
    assert (row.error, row.severity, row.refusal) == (None, -1, 0)
    both = rows.row_of(1, {**TEXTS, "label": "compliance", "severity": "unsafe"}, fields)
    assert (both.severity, both.refusal) == (2, 0)


@pytest.mark.parametrize(
    ("name", "record", "severity"),
    [
        ("openai_moderation", {"prompt": "x"}, -1),
        ("openai_moderation", {"prompt": "x", **dict.fromkeys(FLAGS)}, -1),
        ("openai_moderation", {"prompt": "x", "S": 0}, 0),
        ("rtp_lx", {"prompt": "x", "meta": {"annotations": {}}}, -1),
        ("rtp_lx", {"prompt": "x", "meta": {"annotations": {"Bias": None, "Insult": float("nan")}}}, -1),
        ("rtp_lx", {"prompt": "x", "meta": {"annotations": {"Bias": None, "Insult": 1}}}, 0),
        ("toxicchat", {"prompt": "x"}, -1),
    ],
)
def test_no_label_is_not_safe(name, record, severity, tmp_path):
    (row,) = read(tmp_path / "a.jsonl", load_table().datasets[name], record)
    assert (row.severity, row.error, row.left_out) == (severity, None, False)


@pytest.mark.parametrize("name", [n for n in ORIGINALS if n != "xstest_refusal"])
@pytest.mark.parametrize("label", ["severity", "label"])
def test_a_local_row_in_guardkits_own_words(name, label, tmp_path):
    spec = load_table().datasets[name]
    texts = {"messages": CHAT} if spec.has_locations or "thinking" in name else TEXTS
    (row,) = read(tmp_path / "a.jsonl", spec, {**texts, label: "controversial"})
    assert (row.severity, row.error) == (1, None)


@pytest.mark.parametrize("name", ["xstest_refusal", "wildguardtest_responses", "polyguard_responses"])
def test_a_local_row_with_a_refusal_alone(name, tmp_path):
    (row,) = read(tmp_path / "a.jsonl", load_table().datasets[name], {**TEXTS, "refusal": True})
    assert (row.severity, row.refusal, row.error) == (-1, 1, None)


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("beavertails", {**TEXTS, "is_safe": 1}, [0]),
        ("beavertails", {**TEXTS, "is_safe": 0.0}, [2]),
        ("saferlhf", {"prompt": "q", **SAFERLHF, "is_response_0_safe": 1, "is_response_1_safe": 0}, [0, 2]),
    ],
)
def test_a_flag_that_is_a_number_is_not_turned_round(name, record, expected, tmp_path):
    assert [r.severity for r in read(tmp_path / "a.jsonl", load_table().datasets[name], record)] == expected


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        (Labels(column="y", map={"true": "safe", "false": "unsafe"}), "1"),
        (Labels(column="y", map={"good": "safe"}), "harmful"),
        (Labels(columns=("y",)), "maybe"),
    ],
)
def test_a_value_that_the_table_does_not_name_is_an_error(labels, value):
    row = rows.row_of(1, {"prompt": "x", "y": value}, Fields(severity=labels))
    assert f"unknown label '{value}'" in str(row.error)


def test_what_a_set_leaves_out_is_counted(tmp_path):
    spec = load_table().datasets["aegis2"]
    path = tmp_path / "aegis2_test_prompts.jsonl"
    redacted = {"prompt": "REDACTED", "prompt_label": "unsafe", "reconstruction_id_if_redacted": "1234.0"}
    kept = {"prompt": "x", "prompt_label": "safe", "reconstruction_id_if_redacted": ""}
    found = read(path, spec, redacted, kept, redacted, kept, kept)
    assert Counter(r.left_out for r in found) == {False: 3, True: 2}
    figures = evaluate(FakeGuard(), "fake", "1", Source(spec.name, spec, path, limit=2), Settings(resamples=0))
    assert (figures.n_rows, figures.n_judged, figures.n_left_out) == (2, 2, 2), "what is left out fills no limit"
    assert figures.to_dict()["n_left_out"] == 2


# ------------------------------------------------------------------------------------------------------ odd records


@pytest.mark.parametrize(
    "odd",
    [
        {"span": [3]},
        {"span": [1, 2, 3]},
        {"span": {"start": 3, "end": 9}},
        {"span": [0, float("inf")]},
        {"span": [-1, 2]},
        {"span": "from 3 to 9"},
        {"start_token": float("inf"), "end_token": 3},
        {"start_token": 1, "end_token": float("nan")},
        {"stage": ["prompt"]},
        {"messages": [{"role": "robot", "content": "no such role"}]},
        {"messages": [{"role": "assistant", "content": 3}]},
    ],
)
def test_an_odd_record_is_one_row_that_is_not_read(odd, tmp_path):
    path = tmp_path / "a.jsonl"
    read(path, None, {**TEXTS, "severity": "safe", **odd}, {**TEXTS, "severity": "safe"})
    figures = evaluate(FakeGuard(), "fake", "1", Source("set", None, path), Settings(resamples=0))
    assert (figures.n_unread, figures.n_judged) == (1, 1)


def test_the_span_of_a_csv(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,response,severity,span\nq,abc,unsafe,"[1, 2]"\nq,abc,unsafe,"0,3"\n')
    assert [r.span for r in Source("set", None, tmp_path / "a.csv").rows()] == [(1, 2), (0, 3)]


# --------------------------------------------------------------------------------------------------------- revisions


def test_the_commit_is_looked_up_once_and_is_what_is_loaded(monkeypatch):
    asked, loaded = [], []

    def look_up(spec):
        asked.append(spec.name)
        return "c0ffee"

    monkeypatch.setattr(sources, "hub_revision", look_up)
    monkeypatch.setattr(sources, "hub_records", lambda spec: loaded.append(spec.hub.revision) or iter([]))
    source = Source("toxicchat", load_table().datasets["toxicchat"])
    assert list(source.rows()) == []
    assert source.revision() == f"c0ffee, table version {load_table().datasets['toxicchat'].version}"
    assert (loaded, asked) == (["c0ffee"], ["toxicchat"])


def test_a_record_with_a_key_twice_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"prompt": "BAD", "prompt": "fine", "label": "safe"}\n', encoding="utf-8")
    (row,) = Source("twice", path=path).rows()
    assert row.item is None
    assert "given twice" in (row.error or "")
