"""`guard eval` as a command: exit codes, streams, resume after a kill."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import signal
import sys
import time

import pytest

from guardkit.errors import ModelLoadError
from guardkit_cli import loading

URL = "https://user:secret@host/v1"
ROWS = [
    {"prompt": "hello", "severity": "safe"},
    {"prompt": "BAD", "severity": "unsafe"},
    {"prompt": "quiet harm", "severity": "unsafe"},
    {"prompt": "HMM", "severity": "controversial"},
]


@pytest.fixture
def labels(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GUARDKIT_DATA", raising=False)

    def write(rows=ROWS, name="labels.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    return write


def test_a_file_with_labels(cli, labels, tmp_path):
    result = cli("eval", labels())
    assert (result.code, result.err) == (0, "")
    assert "labels" in result.out
    assert "best F1" in result.out
    assert (tmp_path / "cache" / "guardkit" / "predictions.sqlite").is_file()


def test_a_file_named_as_a_suite(cli, labels):
    file = labels()
    named, given = (json.loads(cli("eval", *args, file, "--json").out)["results"] for args in ((), ("--suite",)))
    assert [row["strict"] for row in named] == [row["strict"] for row in given]


def test_json(cli, labels):
    result = cli("eval", labels(), "--json", "--no-cache")
    (found,) = json.loads(result.out)["results"]
    assert found["strict"]["rates"]["tp"] == 2
    assert found["best_mode"] == "strict"
    assert "text" not in found["misses"][0]


def test_the_model_of_the_environment(cli, labels, monkeypatch):
    monkeypatch.setenv("GUARDKIT_MODEL", "from-the-environment")
    assert [r["model"] for r in json.loads(cli("eval", labels(), "--json").out)["results"]] == ["from-the-environment"]


FORMATS = {
    "a.json": lambda rows: json.dumps(rows).encode(),
    "a.json.bz2": lambda rows: bz2.compress("\n".join(json.dumps(r, indent=1) for r in rows).encode()),
    "a.ndjson.xz": lambda rows: lzma.compress("\n".join(json.dumps(r) for r in rows).encode("utf-16")),
    "a.csv.gz": lambda rows: gzip.compress(_table(rows, ",")),
    "a.tsv": lambda rows: _table(rows, "\t"),
}


def _table(rows, delimiter):
    return "".join(delimiter.join(r) + "\n" for r in [rows[0].keys(), *(r.values() for r in rows)]).encode()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(cli, labels, tmp_path, name):
    (tmp_path / name).write_bytes(FORMATS[name](ROWS))
    result = cli("eval", str(tmp_path / name), "--json", "--no-cache")
    (found,) = json.loads(result.out)["results"]
    assert (result.err, found["n_rows"], found["strict"]["rates"]["tp"]) == ("", 4, 2)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", gzip.compress(json.dumps(ROWS[0]).encode() * 9000)[:-9]),
        ("a.json", json.dumps(ROWS).encode()[:-5]),
        ("a.jsonl", b"\x89PNG\r\n" + bytes(99)),
    ],
)
def test_a_damaged_file_is_not_scored_in_silence(cli, labels, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    result = cli("eval", str(tmp_path / name), "--json", "--no-cache")
    assert result.code == 3
    assert "not judged" in result.err


def test_a_row_of_no_known_shape_needs_a_column(cli, labels):
    result = cli("eval", labels([{"q": "BAD", "verdict": "x", "severity": "unsafe"}]))
    assert (result.code, "name its text with --column" in result.err) == (3, True)


def test_reports(cli, labels, tmp_path):
    page, markdown = tmp_path / "r.html", tmp_path / "r.md"
    assert cli("eval", labels(), "--html", str(page), "--markdown", str(markdown)).code == 0
    assert page.read_text().startswith("<!doctype html>")
    assert "quiet harm" in page.read_text()
    assert "| labels |" in markdown.read_text()
    cli("eval", labels(), "--html", str(page), "--no-text")
    assert "quiet harm" not in page.read_text()


def test_models_side_by_side(cli, labels):
    result = cli("eval", labels(), "--model", "a", "--model", "b", "--json")
    assert [r["model"] for r in json.loads(result.out)["results"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("rows", "code", "said"),
    [
        ([*ROWS, {"prompt": "BOOM", "severity": "safe"}], 3, "1 of 5 rows not judged"),
        ([*ROWS, {"prompt": "x", "severity": "odd"}], 3, "unknown label 'odd'"),
        ([{"prompt": "x"}], 2, "no row has a label"),
        ([], 2, "no row has a label"),
    ],
)
def test_exit_codes_of_rows(cli, labels, rows, code, said):
    result = cli("eval", labels(rows))
    assert result.code == code
    assert said in result.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "nothing to score"),
        (["--suite", "nonsense"], "unknown suite 'nonsense'"),
        (["no-such-file.jsonl"], "does not exist"),
        (["LABELS", "--text"], "--text goes with --json"),
        (["LABELS", "--label", "x"], "VALUE=SEVERITY"),
        (["LABELS", "--label", "x=bad"], "is not safe"),
        (["LABELS", "--column", "colour=x"], "unknown field"),
        (["--column", "prompt=x"], "go with a FILE"),
        (["LABELS", "--published", "nobody"], "no figures of 'nobody'"),
        (["LABELS", "--html", "no/such/folder/r.html"], "there is no folder"),
        (["LABELS", "--limit", "0"], "limit"),
    ],
)
def test_wrong_usage(cli, labels, args, said):
    result = cli("eval", *(labels() if a == "LABELS" else a for a in args))
    assert result.code == 2
    assert said in result.err


def test_an_unknown_kind_of_file(cli, labels):
    assert cli("eval", labels(name="labels.txt")).code == 2


def test_a_set_that_is_not_at_hand(cli, labels, monkeypatch):
    from guardkit.evaluation import sources

    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    result = cli("eval", labels(), "--suite", "toxicchat")
    assert result.code == 3
    assert "toxicchat: not at hand" in result.err
    assert "labels" in result.out, "the rest is scored"
    assert cli("eval", "--suite", "toxicchat").code == 2


def test_a_folder(cli, labels, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("toxicchat_test.jsonl", "mine.jsonl"):
        (data / name).write_text(json.dumps(ROWS[1]) + "\n")
    found = json.loads(cli("eval", "--data", str(data), "--json").out)
    assert [r["dataset"] for r in found["results"]] == ["mine", "toxicchat"]
    assert found["published"]["toxicchat"][0]["value"] == 65.1
    limited = json.loads(cli("eval", "--data", str(data), "--json", "--limit", "1").out)
    assert limited["published"] == {}, "a part of a set is not the set"
    one = json.loads(cli("eval", "--data", str(data), "--suite", "toxicchat", "--json").out)
    assert [r["dataset"] for r in one["results"]] == ["toxicchat"]


def test_columns_and_labels_of_ones_own(cli, labels):
    rows = [{"q": "BAD", "verdict": "Bad"}, {"q": "hello", "verdict": "ok"}]
    args = ["--column", "prompt=q", "--column", "severity=verdict", "--label", "bad=unsafe", "--label", "ok=safe"]
    (found,) = json.loads(cli("eval", labels(rows), *args, "--json").out)["results"]
    assert (found["strict"]["rates"]["tp"], found["strict"]["rates"]["tn"]) == (1, 1)


def test_a_map_is_the_whole_truth(cli, labels):
    rows = [{"prompt": "BAD", "severity": "bad"}, {"prompt": "hello", "severity": "safe"}]
    found = json.loads(cli("eval", labels(rows), "--label", "bad=unsafe", "--json").out)["results"][0]
    assert (found["strict"]["rates"]["tp"], found["strict"]["rates"]["tn"]) == (1, 1), "severities keep their names"
    rows = [{"prompt": "hello", "severity": 1}]  # of a column that says whether a text is safe
    result = cli("eval", labels(rows), "--label", "true=safe", "--label", "false=unsafe")
    assert result.code == 3
    assert "unknown label '1'; known: safe, controversial, unsafe, true, false" in result.err


def test_a_column_of_refusals_of_ones_own(cli, labels):
    rows = [{"prompt": "q", "response": "no", "label": word} for word in ("refusal", "compliance")]
    result = cli("eval", labels(rows), "--column", "refusal=label", "--json")
    assert (result.code, result.err) == (0, "")
    (found,) = json.loads(result.out)["results"]
    assert (found["refusal"]["fn"], found["refusal"]["tn"], found["strict"]) == (1, 1, None)


def test_no_password_is_shown_or_kept(cli, labels, tmp_path):
    page, markdown, cache = tmp_path / "r.html", tmp_path / "r.md", tmp_path / "p.sqlite"
    args = ["--html", str(page), "--markdown", str(markdown), "--cache", str(cache), "--json"]
    result = cli("eval", labels([*ROWS, {"prompt": "BOOM", "severity": "safe"}]), "--model", URL, *args)
    assert json.loads(result.out)["results"][0]["model"] == "https://host/v1"
    for seen in (result.out, result.err, *(p.read_bytes().decode("latin-1") for p in (page, markdown, cache))):
        assert "host/v1" in seen
        assert "secret" not in seen


def test_files_of_one_name_in_a_folder(cli, labels, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "mine.csv").write_text("prompt,severity\nBAD,unsafe\n")
    for name in ("mine.jsonl", "beavertails.jsonl", "beavertails_test.jsonl"):
        (data / name).write_text(json.dumps({"prompt": "q", "response": name, "severity": "safe"}) + "\n")
    found = json.loads(cli("eval", "--data", str(data), "--json").out)["results"]
    sets = [(r["dataset"], r["spec"]) for r in found]
    assert sets == [("beavertails+", None), ("beavertails", "beavertails"), ("mine", None), ("mine+", None)]
    assert [r["strict"]["rates"]["tp"] for r in found] == [0, 0, 1, 0]


def test_a_set_that_is_asked_for_twice_is_scored_once(cli, labels, tmp_path):
    labels(name="toxicchat_test.jsonl")
    args = ["--data", str(tmp_path), "--suite", "toxicchat", "--suite", "toxicchat"]
    assert [r["dataset"] for r in json.loads(cli("eval", *args, "--json").out)["results"]] == ["toxicchat"]


def test_published_figures_are_not_shown_beside_a_file_of_ones_own(cli, labels):
    result = cli("eval", labels(name="toxicchat.jsonl"))
    assert "published:" not in result.out
    found = json.loads(cli("eval", labels(name="toxicchat.jsonl"), "--json").out)
    assert (found["results"][0]["dataset"], found["published"]) == ("toxicchat", {})


def test_a_set_that_cannot_be_read_does_not_end_the_others(cli, labels, tmp_path, monkeypatch):
    from guardkit.evaluation import sources

    data = tmp_path / "data"
    data.mkdir()
    (data / "a.parquet").write_bytes(b"")
    for name in ("b.jsonl", "c.jsonl"):
        (data / name).write_text(json.dumps(ROWS[1]) + "\n")
    opened = sources._open

    def refuse(path):
        if path.name == "b.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(sources, "_open", refuse)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    markdown = tmp_path / "r.md"
    result = cli("eval", "--data", str(data), "--json", "--markdown", str(markdown))
    assert result.code == 3
    assert "a: " in result.err
    assert "guardkit[eval]" in result.err
    assert "b: " in result.err
    assert "Permission denied" in result.err
    found = json.loads(result.out)
    assert ([r["dataset"] for r in found["results"]], found["missing"]) == (["c"], ["a", "b"])
    assert "| c |" in markdown.read_text()


def test_a_model_that_does_not_load_does_not_end_the_others(cli, labels, tmp_path, monkeypatch):
    load = loading.load_guard

    def load_guard(model, **options):
        if "host" in model:
            raise ModelLoadError("https://host/v1: no answer")
        return load(model, **options)

    monkeypatch.setattr(loading, "load_guard", load_guard)
    page = tmp_path / "r.html"
    args = ["--model", "a", "--model", URL, "--model", "c", "--json", "--html", str(page)]
    result = cli("eval", labels(), *args)
    assert result.code == 3
    found = json.loads(result.out)
    assert ([r["model"] for r in found["results"]], found["missing"]) == (["a", "c"], ["https://host/v1"])
    assert "https://host/v1: no answer" in result.err
    assert "https://host/v1" in page.read_text()
    assert "secret" not in result.out + result.err + page.read_text()
    assert cli("eval", labels(), "--model", URL).code == 3


def test_what_a_set_leaves_out_is_told(cli, labels, tmp_path):
    rows = [{"user_input": "x", "toxicity": 0, "human_annotation": False}]
    labels(rows, name="toxicchat_test.jsonl")
    result = cli("eval", "--data", str(tmp_path), "--suite", "toxicchat")
    assert "toxicchat: no row was scored (0 without a label, 1 that the set leaves out)" in result.err


def test_list(cli):
    result = cli("eval", "--list")
    assert result.code == 0
    assert "qwen3guardtest_thinking_loc" in result.out
    assert "suite prompts" in result.out
    assert "suite core" in result.out


def _figures(out: bytes):
    (found,) = json.loads(out)["results"]
    return {k: v for k, v in found.items() if k not in ("seconds", "n_cached")}, found["n_cached"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_run_again(start, labels, tmp_path, how):
    path = labels([{**r, "prompt": f"{r['prompt']} {i}"} for i in range(60) for r in ROWS])
    cache = tmp_path / "p.sqlite"
    args = ["eval", path, "--json", "--batch-size", "4", "--cache", str(cache)]
    process = start(*args, env={"SLOW_MS": "40"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _kept(cache) < 12:
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert b"Traceback" not in err
    kept = _kept(cache)
    assert 12 <= kept < 240
    out, err = start(*args).communicate(timeout=60)
    figures, n_cached = _figures(out)
    assert err == b"", "no progress in a pipe"
    assert n_cached == kept
    whole, _ = start("eval", path, "--json", "--no-cache").communicate(timeout=60)
    assert figures == _figures(whole)[0]


def _kept(cache) -> int:
    import sqlite3

    if not cache.exists():
        return 0
    try:
        return sqlite3.connect(cache).execute("SELECT count(*) FROM predictions").fetchone()[0]
    except sqlite3.Error:
        return 0


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
def test_progress_on_a_terminal(start, labels):
    import os
    import pty

    leader, follower = pty.openpty()
    path = labels([{**r, "prompt": f"{r['prompt']} {i}"} for i in range(10) for r in ROWS])
    process = start("eval", path, "--no-cache", "--batch-size", "4", stderr=follower, env={"SLOW_MS": "100"})
    os.close(follower)
    seen = b""
    try:
        while data := os.read(leader, 65536):
            seen += data
    except OSError:
        pass
    os.close(leader)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"nano, labels  " in seen
    assert b" rows  " in seen
    assert seen.endswith(b"\r\x1b[K"), "wiped at the end"
    assert b"\x1b" not in out
