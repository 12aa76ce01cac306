"""`guard check`: rows, JSON, exit codes, and what it says to people."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from guardkit import UnknownModel
from guardkit_cli import loading

PLACE = ["char_start", "char_end", "threshold"]
KEYS = ["index", "line", "severity", "categories", "scores", "refusal", "stage", "action", "model", "latency_ms"]


def test_json_has_exactly_the_keys_of_the_contract(cli):
    rows = cli("check", "--json", stdin="hello\nthis is BAD\n").rows
    assert [list(row) for row in rows] == [KEYS, [*KEYS, *PLACE]]
    assert [(r["index"], r["line"], r["severity"], r["action"]) for r in rows] == [
        (0, 1, "safe", "allow"),
        (1, 2, "unsafe", "block"),
    ]
    assert rows[1]["categories"] == ["violent"]
    assert sum(rows[1]["scores"].values()) == pytest.approx(1)


def test_text_is_in_the_json_only_when_asked_for(cli):
    assert [list(row) for row in cli("check", "--json", "--text", "hi").rows] == [[*KEYS, "text"]]
    assert cli("check", "--text", "hi").code == 2


def test_a_record_that_was_not_judged(cli):
    result = cli("check", "--json", stdin="fine\nBOOM\nalso fine")
    assert [row["severity"] for row in result.rows] == ["safe", None, "safe"]
    assert list(result.rows[1]) == [*KEYS, "error"]
    assert "boom" in result.rows[1]["error"]
    assert result.rows[1]["action"] == "block"
    assert result.code == 3
    assert "line 2" in result.err


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [
        ("fine", [], 0),
        ("HMM", [], 0),
        ("HMM", ["--policy", "strict"], 1),
        ("BAD", [], 1),
        ("BAD", ["--policy", "loose"], 1),
        ("BAD", ["--quiet"], 1),
        ("BAD", ["--only-flagged"], 1),
        ("BOOM", [], 3),
        ("BOOM\nBAD", [], 3),
        ("BOOM", ["--on-error", "block"], 3),
        ("BOOM", ["--on-error", "allow"], 0),
        ("BOOM\nBAD", ["--on-error", "allow"], 1),
        ("", [], 0),
        ("fine", ["--stage", "nonsense"], 2),
        ("fine", ["--batch-size", "0"], 2),
        ("fine", ["--nonsense"], 2),
        ("fine", ["--whole", "--jsonl"], 2),
    ],
)
def test_exit_codes(cli, text, options, code):
    assert cli("check", *options, stdin=text).code == code


def test_on_error_allow_warns(cli):
    result = cli("check", "--on-error", "allow", "BOOM", "fine")
    assert "1 record not judged and let through" in result.err
    assert result.out.startswith("allow  not judged")


def test_each_argument_is_a_record_and_stdin_is_left_alone(cli):
    rows = cli("check", "--json", "--text", "one\ntwo", "BAD", "", stdin="never read").rows
    assert [row["text"] for row in rows] == ["one\ntwo", "BAD", ""]


def test_a_dash_is_standard_input_in_its_place(cli):
    rows = cli("check", "--json", "--text", "first", "-", "last", stdin="a\nb\n").rows
    assert [(row["index"], row["line"], row["text"]) for row in rows] == [
        (0, 1, "first"),
        (1, 1, "a"),
        (2, 2, "b"),
        (3, 3, "last"),
    ]


def test_an_argument_that_names_a_file_gets_a_hint(cli, tmp_path):
    file = tmp_path / "app.log"
    file.write_text("BAD\n")
    result = cli("check", str(file))
    assert result.code == 0
    assert f"--input {file}" in result.err
    assert "--input" not in cli("check", "x\0y", "x" * 5000).err


def test_input_files(cli, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a\nBAD\n")
    two.write_text("c")
    result = cli("check", "--json", "--input", str(one))
    assert [list(row) for row in result.rows] == [KEYS, [*KEYS, *PLACE]]
    rows = cli("check", "--json", "--input", str(one), "--input", str(two)).rows
    assert [(r["index"], Path(r["input"]).name, r["line"]) for r in rows] == [
        (0, "one", 1),
        (1, "one", 2),
        (2, "two", 1),
    ]
    assert f"{one}:2" in cli("check", "-i", str(one), "-i", str(two)).out
    assert cli("check", "--json", "--input", "-", stdin="x").rows[0]["line"] == 1


def test_inputs_that_cannot_be_read(cli, tmp_path, monkeypatch):
    for path in (tmp_path / "nowhere", tmp_path):
        result = cli("check", "--input", str(path))
        assert result.code == 2
        assert str(path) in result.err
    good = tmp_path / "good"
    good.write_text("fine\n")
    result = cli("check", "--input", "/proc/self/mem", "--input", str(good)) if sys.platform == "linux" else None
    if result is not None:  # fails while it is read: the rest is judged all the same
        assert result.code == 3
        assert "cannot read '/proc/self/mem'" in result.err
        assert "fine" in result.out


def test_whole(cli, tmp_path):
    rows = cli("check", "--json", "--text", "--whole", stdin="one\r\ntwo BAD\r\n").rows
    assert [(row["line"], row["text"], row["action"]) for row in rows] == [(1, "one\r\ntwo BAD", "block")]
    assert [row["severity"] for row in cli("check", "--json", "--whole").rows] == ["safe"]


def test_jsonl(cli):
    lines = [
        {"prompt": "BAD", "response": "I will not"},
        {"prompt": "hello", "response": "BAD"},
        {"prompt": None, "response": "BAD"},
        {"messages": [{"role": "user", "content": "BAD"}, {"role": "assistant", "content": "no"}]},
        {"messages": [{"role": "user", "content": "HMM"}]},
        {"text": "BAD"},
        {"prompt": "BAD"},
        "BAD",
    ]
    rows = cli("check", "--jsonl", "--json", stdin="\n".join(map(json.dumps, lines))).rows
    assert [(row["stage"], row["action"]) for row in rows] == [
        ("response", "allow"),
        ("response", "block"),
        ("response", "block"),
        ("response", "allow"),
        ("prompt", "flag"),
        ("prompt", "block"),
        ("prompt", "block"),
        ("prompt", "block"),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "got a list"),
        ("12", "got a number"),
        ("null", "got null"),
        ('{"other": 1}', "'other'"),
        ('{"text": 1}', "'text' must be a string, not a number"),
        ('{"prompt": "x", "response": null}', "'response' must be a string, not null"),
        ('{"messages": []}', "'messages' must be"),
        ('{"messages": [{"role": "nobody", "content": "x"}]}', "unknown role"),
        ("\udcff{", "not valid JSON"),
    ],
)
def test_a_broken_jsonl_line_is_reported_with_its_number_and_the_others_are_judged(cli, line, says):
    stdin = b'{"text": "fine"}\n' + line.encode("utf-8", "surrogateescape") + b'\n{"text": "BAD"}\n'
    result = cli("check", "--jsonl", "--json", stdin=stdin)
    assert [(row["index"], row["line"], row["severity"]) for row in result.rows] == [
        (0, 1, "safe"),
        (1, 2, None),
        (2, 3, "unsafe"),
    ]
    assert says in result.rows[1]["error"]
    assert says in result.err
    assert "line 2" in result.err
    assert result.code == 3
    assert cli("check", "--jsonl", "--on-error", "allow", stdin=stdin).code == 1


def test_blank_lines_of_jsonl_are_counted_aloud(cli):
    result = cli("check", "--jsonl", "--json", stdin='\n{"text": "a"}\n  \n{"text": "b"}\n\n')
    assert [(row["index"], row["line"]) for row in result.rows] == [(0, 2), (1, 4)]
    assert "3 blank lines" in result.err
    assert result.code == 0


def test_field(cli):
    stdin = '{"log": {"msg": "BAD"}}\n{"log.msg": "fine", "log": {"msg": "BAD"}}\n{"log": 3}\n'
    result = cli("check", "--field", "log.msg", "--json", stdin=stdin)
    assert [row["action"] for row in result.rows] == ["block", "allow", "block"]
    assert result.rows[2]["error"] == "no field 'log.msg'"


def test_many_broken_lines_do_not_flood_the_terminal(cli):
    result = cli("check", "--jsonl", "--json", stdin="x\n" * 500)
    assert len(result.rows) == 500
    assert "490 more" in result.err
    assert len(result.err.splitlines()) < 15


def test_stage_option(cli):
    rows = cli("check", "--json", "--stage", "document", stdin="fine\nBAD").rows
    assert {row["stage"] for row in rows} == {"document"}


def test_only_flagged_shows_what_is_not_allowed_or_not_judged(cli):
    stdin = "fine\nHMM\nBAD\nBOOM\nfine"
    rows = cli("check", "--json", "--only-flagged", stdin=stdin).rows
    assert [row["line"] for row in rows] == [2, 3, 4]
    rows = cli("check", "--json", "--only-flagged", "--on-error", "allow", stdin=stdin).rows
    assert [row["line"] for row in rows] == [2, 3, 4]


def test_quiet_leaves_only_the_exit_code_and_errors(cli):
    result = cli("check", "--quiet", "BAD")
    assert (result.code, result.out, result.err) == (1, "", "")
    assert "boom" in cli("check", "--quiet", "BOOM").err


def test_rows_for_people_are_one_line_aligned_and_free_of_escapes(cli):
    stdin = "fine\nBAD \x1b]0;pwned\x07 \x1b[31m \x9b31m \u202eevil\u2028x\nHMM\n" + "y" * 5000
    result = cli("check", stdin=stdin)
    lines = result.out.split("\n")[:-1]
    assert len(lines) == 4
    assert all(c.isprintable() for line in lines for c in line)
    assert r"\x1b]0;pwned\x07" in lines[1]
    assert lines[0].index("fine") == lines[1].index("[[BAD") == lines[2].index("[[HMM")
    assert len(lines[3]) < 200
    assert lines[3].endswith("…")
    assert "4 records: 1 flagged, 1 blocked, 0 not judged" in result.err


def test_json_cannot_carry_escapes_or_break_utf8(cli):
    line = json.dumps("a\x7f\x9b\u202e\ufeff \ud800 caf\u00e9 \U0001f600")
    result = cli("check", "--jsonl", "--json", "--text", stdin=line)
    assert "café 😀" in result.out
    assert all(c.isprintable() for c in result.out.rstrip("\n"))
    assert result.rows[0]["text"] == json.loads(line)


def test_colours(cli, monkeypatch):
    assert "\x1b[" not in cli("check", "BAD").out
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    assert "\x1b[31mblock" in cli("check", "BAD").out
    assert "\x1b[" not in cli("check", "--json", "BAD").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in cli("check", "BAD").out


def test_odd_bytes_are_judged_and_told_once(cli):
    result = cli("check", "--json", "--text", stdin=b"caf\xe9 BAD\r\n\x00\x01\xff\x81\n\xe6\x97\xa5\xff BAD\nfine")
    assert [row["text"] for row in result.rows] == ["café BAD", "\x00\x01ÿ\x81", "日ÿ BAD", "fine"]
    assert [row["action"] for row in result.rows] == ["block", "allow", "block", "allow"]
    assert result.err.count("windows-1252") == 1
    assert "3 lines not valid UTF-8" in result.err


def test_empty_lines_are_records(cli):
    rows = cli("check", "--json", "--text", stdin="\n\r\n  \nlast").rows
    assert [(row["line"], row["text"], row["severity"]) for row in rows] == [
        (1, "", "safe"),
        (2, "", "safe"),
        (3, "  ", "safe"),
        (4, "last", "safe"),
    ]


def test_repeated_lines_are_judged_once(cli):
    result = cli("check", "--json", stdin="same\n" * 5000 + "BAD\n" * 5000)
    assert len(result.rows) == 10_000
    assert [row["index"] for row in result.rows] == list(range(10_000))
    assert [row["action"] for row in result.rows] == ["allow"] * 5000 + ["block"] * 5000
    assert cli.guards[0].model.calls <= 2


def test_a_terminal_without_input_gets_a_hint_instead_of_a_hang(cli, monkeypatch):
    monkeypatch.setattr("guardkit_cli.check.is_terminal", lambda stream: True)
    result = cli("check")
    assert result.code == 2
    assert "--input" in result.err
    assert cli("check", "-", stdin="fine").code == 0


def test_a_model_that_does_not_load(cli, monkeypatch):
    def unknown(model, **options):
        raise UnknownModel(f"unknown model '{model}'")

    monkeypatch.setattr(loading, "load_guard", unknown)
    for command in (["check", "hi"], ["stream"], ["policy", "explain", "hi"]):
        result = cli(*command, "--model", "nope")
        assert (result.code, result.out) == (3, "")
        assert "unknown model 'nope'" in result.err


def test_a_broken_policy_names_file_and_line(cli, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: mine\nrules:\n  - actoin: block\n")
    result = cli("check", "--policy", str(policy), "hi")
    assert result.code == 2
    assert f"{policy}:3:" in result.err
    policy.write_text("name: [\n")
    assert cli("check", "--policy", str(policy), "hi").code == 2
    assert cli("check", "--policy", "nonsense", "hi").code == 2


def test_a_policy_file_may_let_errors_through(cli, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("on_error: allow\n")
    result = cli("check", "--policy", str(policy), "BOOM")
    assert result.code == 0
    assert "let through" in result.err
    assert cli("check", "--policy", str(policy), "--jsonl", "not json").code == 0


def test_a_bug_is_no_clean_exit(cli, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(loading, "load_guard", broken)
    result = cli("check", "hi")
    assert result.code == 3
    assert "ZeroDivisionError" in result.err
