"""Defaults from the environment and the config file; help, suggestions, completion; the generated reference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guardkit import Policy
from guardkit_cli import loading
from guardkit_cli.app import COMMANDS
from guardkit_cli.reference import reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(cli, tmp_path):
    path = tmp_path / "config" / "guardkit" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


def test_the_policy_comes_from_option_environment_file_and_program_in_this_order(cli, config, monkeypatch):
    assert cli("check", "HMM").code == 0
    config.write_text('policy = "strict"\n')
    assert cli("check", "HMM").code == 1
    monkeypatch.setenv("GUARDKIT_POLICY", "loose")
    assert "allow" in cli("check", "HMM").out
    assert cli("check", "--policy", "strict", "HMM").code == 1
    assert Policy.load("loose").to_yaml() == cli("policy", "show").out


def test_the_model_too(cli, config, monkeypatch):
    seen = []
    load = loading.load_guard

    def load_guard(model, **settings):
        seen.append(model)
        return load(model, **settings)

    monkeypatch.setattr(loading, "load_guard", load_guard)
    config.write_text('model = "one"\n')
    cli("check", "x")
    monkeypatch.setenv("GUARDKIT_MODEL", "two")
    cli("check", "x")
    cli("stream", stdin="x")
    cli("check", "--model", "three", "x")
    assert seen == ["one", "two", "two", "three"]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('model = "nano\n', 1, "not valid TOML"),
        ('# mine\nmodel = "nano"\npolcy = "strict"\n', 3, "unknown key 'polcy'; known: model, policy"),
        ("\nmodel = 3\n", 2, "'model' must be a string"),
        ('model = "a"\nmodel = "b"\n', 2, "not valid TOML"),
        ("[model]\nname = 3\n", 1, "'model' must be a string"),
    ],
)
def test_a_broken_config_names_file_and_line(cli, config, text, line, says):
    config.write_text(text)
    for command in (["check", "x"], ["doctor"], ["policy", "show"]):
        result = cli(*command)
        assert result.code == 2
        assert f"{config}:{line}:" in result.err.replace("\n", "")
        assert says in result.err
    assert cli("--help").code == 0


def test_doctor_shows_the_defaults_and_where_they_come_from(cli, config, monkeypatch):
    config.write_text('policy = "strict"\n')
    monkeypatch.setenv("GUARDKIT_MODEL", "nano")
    out = cli("doctor").out
    assert f"policy         strict ({config})" in out
    assert "model          nano (GUARDKIT_MODEL)" in out
    found = cli("doctor", "--json").rows[0]
    assert found["config"] == str(config)
    assert found["defaults"]["model"] == {"value": "nano", "source": "GUARDKIT_MODEL"}


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["chek", "x"], "check"),
        (["help", "polcy"], "policy"),
        (["policy", "shwo"], "show"),
        (["check", "--jsn", "x"], "--json"),
        (["check", "--policy", "balancd", "x"], "balanced"),
    ],
)
def test_what_is_mistyped_gets_a_suggestion(cli, args, meant):
    result = cli(*args)
    assert result.code == 2
    assert f"'{meant}'" in result.err


def test_models_and_hub_ids_too():
    from guardkit import ModelError
    from guardkit.models.registry import load_model

    for name, meant in (
        ("nan0", "nano"),
        ("Nano", "nano"),
        ("Qwen3Guard-Gen-4b", "Qwen/Qwen3Guard-Gen-4B"),
    ):
        with pytest.raises(ModelError, match=f"did you mean '{meant}'"):
            load_model(name)
    with pytest.raises(ModelError) as caught:
        load_model("something else")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("names", [[], *([name] for name in COMMANDS), ["policy", "show"]])
def test_guard_help_is_the_help_of_the_command(cli, names):
    result = cli("help", *names)
    assert result.code == 0
    assert result.out == cli(*names, "--help").out


def test_the_version(cli):
    assert cli("-V").out == cli("--version").out != ""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("guard check --policy st", "strict"),
        ("guard check --model na", "nano"),
        ("guard stream --model Qwen/Qwen3Guard-G", "Qwen/Qwen3Guard-Gen-0.6B"),
        ("guard check --stage do", "document"),
        ("guard policy show lo", "loose"),
        ("guard help po", "policy"),
    ],
)
def test_values_are_completed(environment, words, found):
    env = environment | {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_GUARD_COMPLETE": "bash_complete",
    }
    code = "from guardkit_cli.app import app; app(prog_name='guard', complete_var='_GUARD_COMPLETE')"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert f"plain,{found}" in run.stdout.splitlines(), run


@pytest.mark.parametrize("name", ["strict", "balanced", "loose"])
def test_a_shown_policy_works_as_it_stands(cli, tmp_path, name):
    text = cli("policy", "show", name).out
    file = tmp_path / "p.yaml"
    file.write_text(text)
    loaded = Policy.load(str(file))
    assert loaded.rules == Policy(name).rules
    assert "severity: unsafe" in text
    assert loaded.to_yaml() == text
    file.write_text(text.replace("action: flag", "action: redact").replace("name: ", "name: my-"))
    if name == "balanced":
        assert any("redact" in str(rule) for rule in Policy.load(str(file)).rules)


def test_a_closed_input_is_named(start):
    for command in (["stream"], ["check"], ["trace"]):
        process = start(*command, stdin=None, preexec_fn=_close_input)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (2, 3)
        assert b"standard input is closed" in err, command
        assert b"standard output" not in err
        assert b"Traceback" not in err


def _close_input() -> None:
    import os

    os.close(0)


def test_no_exception_reaches_a_user_as_a_traceback(cli, monkeypatch):
    def broken(*_, **__):
        raise KeyError("oops")

    monkeypatch.setattr(loading, "load_guard", broken)
    for command in (["check", "x"], ["trace"], ["stream"], ["doctor"], ["policy", "explain", "x"]):
        result = cli(*command, stdin="x")
        assert result.code == 3
        assert "Traceback" not in result.err
        assert "a bug in guard" in result.err
        assert "KeyError" in result.err
    monkeypatch.setenv("GUARDKIT_DEBUG", "1")
    assert "Traceback" in cli("check", "x").err


def test_tables_fit_a_narrow_terminal(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for command in (["models"], ["doctor"], ["trace"]):
        out = cli(*command, stdin="<think>BAD</think>" + "All is well here. BAD. " * 20).out
        assert out
        assert max(map(len, out.splitlines())) <= 40, command


def test_the_reference_is_up_to_date():
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference()
