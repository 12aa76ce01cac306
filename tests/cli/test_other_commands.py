"""`guard models`, `guard policy`, `guard doctor`, help and version."""

from __future__ import annotations

import json

import pytest

from guardkit import Category, Policy, Severity, Stage, __version__
from guardkit_cli import doctor, loading, policy
from guardkit_cli.app import COMMANDS
from guardkit_cli.policy import parse_scores


def test_lists_written_out_for_speed_are_those_of_the_core():
    assert [s.value for s in Stage] == list(loading.STAGES)
    assert [s.value for s in Severity] == list(policy.SEVERITIES)
    assert [c.value for c in Category] == list(policy.CATEGORIES)


def test_models(cli):
    result = cli("models")
    assert result.code == 0
    assert result.out.splitlines()[0].split() == ["NAME", "KIND", "USABLE", "SIZE", "SOURCE"]
    assert "nano" in result.out
    rows = cli("models", "--json").rows
    assert {"name", "kind", "available", "size_mb", "source", "note"} <= set(rows[0])
    assert "nano" in [row["name"] for row in rows]


def test_policy_show_can_be_saved_and_loaded(cli, tmp_path):
    for name in ("strict", "balanced", "loose"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(cli("policy", "show", name).out)
        assert Policy.load(file) == Policy.load(name)
    assert cli("policy", "show").out == cli("policy", "show", "balanced").out
    assert cli("policy", "show", "nonsense").code == 2


def test_policy_validate(cli, tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("name: mine\nrules:\n  - category: pii\n    action: redact\n")
    bad.write_text("name: mine\nruels: []\n")
    result = cli("policy", "validate", str(good))
    assert (result.code, result.out) == (0, f"{good}: valid (policy 'mine')\n")
    result = cli("policy", "validate", str(bad), str(good))
    assert result.code == 2
    assert f"{bad}:2:" in result.err
    assert "rules" in result.err
    assert f"{good}: valid" in result.out
    assert cli("policy", "validate").code == 2


def test_policy_explain(cli, tmp_path):
    assert "action: flag" in cli("policy", "explain", "--severity", "controversial").out
    result = cli("policy", "explain", "--policy", "strict", "--severity", "controversial", "--category", "political")
    assert "action: block" in result.out
    assert "political" in result.out
    file = tmp_path / "p.yaml"
    file.write_text("rules:\n  - threshold: {unsafe: 0.3}\n    stage: document\n    action: block\n")
    options = ("policy", "explain", "--policy", str(file), "--severity", "safe", "--stage", "document", "--score")
    assert "action: block" in cli(*options, "unsafe=0.35").out
    assert "action: allow" in cli(*options, "unsafe=0.25").out


def test_policy_explain_judges_a_text(cli):
    assert "action: block" in cli("policy", "explain", "BAD").out
    assert "stage document" in cli("policy", "explain", "--stage", "document", "fine").out
    assert cli("policy", "explain", "BOOM").code == 3


@pytest.mark.parametrize(
    "options", [[], ["text", "--severity", "safe"], ["--severity", "unsafe", "--score", "2"], ["--severity", "bad"]]
)
def test_policy_explain_wrong_usage(cli, options):
    assert cli("policy", "explain", *options).code == 2


@pytest.mark.parametrize(
    ("given", "severity", "expected"),
    [
        ((), "unsafe", (0, 0, 1)),
        (("0.7",), "unsafe", (0.3, 0, 0.7)),
        (("0.7",), "safe", (0.7, 0, 0.3)),
        (("unsafe=0.4",), "safe", (0.6, 0, 0.4)),
        (("0.5", "unsafe=0.4"), "controversial", (0.1, 0.5, 0.4)),
    ],
)
def test_scores_of_options(given, severity, expected):
    found = parse_scores(given, Severity(severity))
    assert list(found) == ["safe", "controversial", "unsafe"]
    assert tuple(found.values()) == pytest.approx(expected)


def test_doctor_fails_loudly_when_the_model_cannot_tell(cli):
    result = cli("doctor")
    assert result.code == 3
    assert "FAIL" in result.out
    assert "do not rely on it" in result.err


def test_doctor_passes_a_model_that_can_tell(cli, monkeypatch):
    from guardkit.testing import FakeGuard

    script = dict.fromkeys(doctor.BAD, "unsafe")
    monkeypatch.setattr(loading, "load_guard", lambda *args, **kwargs: FakeGuard(script))
    result = cli("doctor")
    assert result.code == 0, result.out
    assert "14 of 14 passed" in result.out
    report = json.loads(cli("doctor", "--json").out)
    assert report["passed"]
    assert len(report["self_test"]) == 14
    assert {"python", "packages", "extras", "devices", "model"} <= set(report)


def test_doctor_with_a_fault_or_without_a_model(cli, monkeypatch):
    from guardkit import ModelLoadError
    from guardkit.testing import FakeGuard

    script = dict.fromkeys(doctor.BAD, "unsafe") | {doctor.GOOD[0]: RuntimeError("boom")}
    monkeypatch.setattr(loading, "load_guard", lambda *args, **kwargs: FakeGuard(script))
    assert cli("doctor").code == 3

    def missing(*args, **kwargs):
        raise ModelLoadError("weights are gone")

    monkeypatch.setattr(loading, "load_guard", missing)
    result = cli("doctor", "--json")
    assert result.code == 3
    assert "weights are gone" in json.loads(result.out)["error"]
    assert "weights are gone" in result.err


@pytest.mark.parametrize(
    "command", [*([c] for c in COMMANDS), ["policy", "show"], ["policy", "validate"], ["policy", "explain"], []]
)
def test_every_help_has_examples(cli, command):
    result = cli(*command, "--help")
    assert result.code == 0
    assert "Example" in result.out
    assert result.out == cli(*command, "-h").out


def test_version_help_and_unknown_commands(cli):
    assert cli("--version").out == f"guard, version {__version__}\n"
    assert "_GUARD_COMPLETE=bash_source guard" in cli("--help").out
    assert cli("nonsense").code == 2
    assert cli().code == 2
