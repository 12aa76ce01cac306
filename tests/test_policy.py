"""Policies: built-ins, rules, thresholds, files with line-numbered errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardkit import Action, Category, Policy, PolicyError, Severity, Stage, Verdict
from guardkit.testing import FakeGuard


def verdict(severity: str, *categories: str, stage: str = "prompt", unsafe: float = 0.0) -> Verdict:
    scores = {"safe": 1 - unsafe, "controversial": 0.0, "unsafe": unsafe}
    return Verdict(Severity(severity), tuple(Category(c) for c in categories), scores, None, Stage(stage))


@pytest.mark.parametrize(("policy", "controversial"), [("strict", "block"), ("balanced", "flag"), ("loose", "allow")])
def test_built_ins(policy: str, controversial: str) -> None:
    p = Policy.load(policy)
    assert p.decide(verdict("unsafe")).action is Action.block
    assert p.decide(verdict("controversial")).action.value == controversial
    assert p.decide(verdict("safe")).action is Action.allow


def test_rules_come_first_and_the_base_follows() -> None:
    p = Policy(rules=[
        {"stage": ["document", "tool_output"], "category": "jailbreak", "action": "block"},
        {"category": "political", "severity": "controversial", "action": "allow"},
        {"stage": "response", "threshold": {"unsafe": 0.3}, "action": "redact"},
    ])  # fmt: skip
    assert p.decide(verdict("controversial", "jailbreak", stage="document")).action is Action.block
    assert p.decide(verdict("controversial", "jailbreak")).action is Action.flag
    assert p.decide(verdict("unsafe", "political")).action is Action.allow
    assert p.decide(verdict("safe", stage="response", unsafe=0.31)).action is Action.redact
    assert p.decide(verdict("safe", unsafe=0.31)).action is Action.allow
    assert "rule 1" in p.decide(verdict("controversial", "jailbreak", stage="document")).rule


def test_a_threshold_acts_on_scores_in_streams_too() -> None:
    policy = {"rules": [{"stage": "response", "threshold": {"unsafe": 0.04}, "action": "block"}]}
    guard = FakeGuard(policy=policy)  # the fake gives every safe text 0.05
    stream = guard.stream()
    stream.feed("quite harmless words here ")
    assert stream.stopped
    assert stream.verdict.severity is Severity.safe


def test_a_file_means_what_it_says_and_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: mine\nextends: strict\non_error: allow\nrules:\n  - category: [political]\n    action: flag\n"
    )
    p = Policy.load(path)
    assert p.decide(verdict("unsafe", "political")).action is Action.flag
    assert p.decide(verdict("controversial")).action is Action.block
    assert p.on_error is Action.allow
    path.write_text(p.to_yaml())
    assert Policy.load(path) == p
    assert "rule 1" in p.explain(verdict("unsafe", "political"))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("name: x\nrulez: []\n", 2, "known: name, extends, on_error, on_unmeasured, rules"),
        ("rules:\n  - action: block\n    stages: prompt\n", 3, "known: stage, category"),
        ("rules:\n  - stage: prompt\n", 2, "needs an 'action'"),
        ("rules:\n  - action: block\n  - action: explode\n", 3, "known: allow, flag"),
        ("rules:\n  - action: block\n    category:\n      - violent\n      - rude\n", 5, "rude"),
        ("rules:\n  - action: block\n    threshold: {unsafe: 2}\n", 3, "0 to 1"),
        ("rules:\n  - action: block\n    threshold: {nasty: 0.2}\n", 3, "nasty"),
        ("extends: lax\n", 1, "known: strict"),
        ("on_error: flag\n", 1, "'block' or 'allow'"),
        ("name: [\n", 2, "YAML"),
        ("- a\n", 1, "mapping"),
        ("name: a\nname: b\n", 2, "twice"),
        ("rules: block\n", 1, "list"),
    ],
)
def test_a_broken_file_names_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    assert f"{path}:{line}:" in str(caught.value)
    assert says in str(caught.value)


def test_unknown_keywords_and_names() -> None:
    with pytest.raises(PolicyError, match="known: name"):
        Policy(rule=[])
    with pytest.raises(PolicyError, match="strict, balanced, loose"):
        Policy.load("stirct")
    with pytest.raises(PolicyError, match="unknown policy"):
        Policy(extends="nope")
