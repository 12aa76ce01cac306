"""`guard stream`: bytes through as they came, until the first violation."""

from __future__ import annotations

import io
import json

import pytest

from guardkit_cli.stream import Bytes


def test_what_is_allowed_comes_out_byte_for_byte(cli):
    data = b"\xef\xbb\xbfcaf\xe9 \xff\xfe ok\r\n\xe6\x97\xa5\xe6\x9c\xac \x00\x01 \xf0\x9f\x98\x80 \xed\xa0\x80 end\xc3"
    result = cli("stream", stdin=data)
    assert result.raw == data
    assert result.code == 0
    assert "7 bytes not valid UTF-8" in result.err


def test_every_cut_gives_the_same_bytes():
    data = b"caf\xe9 \xe6\x97\xa5\xff\xf0\x9f\x98\x80\xe6\x97 x"
    for size in range(1, len(data)):
        pipe = Bytes()
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        text = "".join(pipe.decode(piece) for piece in pieces) + pipe.decode(b"", final=True)
        assert text == "café 日ÿ😀æ— x"
        out = b"".join(pipe.encode(text[i : i + 3]) for i in range(0, len(text), 3))
        assert out == data


def test_stops_at_the_violation(cli):
    result = cli("stream", stdin="this is fine and this too but BAD comes and then more\n" * 3)
    assert result.code == 1
    assert "BAD" not in result.out
    assert "this is fine and this too but ".startswith(result.out)
    assert "stopped: response is unsafe (Violent)" in result.err
    assert "withheld" in result.err


def test_only_what_the_policy_blocks_stops(cli):
    result = cli("stream", stdin="one HMM two")
    assert (result.code, result.out) == (0, "one HMM two")
    assert "flagged: response is controversial" in result.err
    assert cli("stream", "--policy", "strict", stdin="one HMM two").code == 1


def test_events_as_json(cli):
    result = cli("stream", "--json", stdin="HMM is the start of it, all fine until the BAD word comes along")
    kinds = [row["kind"] for row in result.rows]
    assert kinds[0] == "flag"
    assert kinds[-2:] == ["stop", "end"]
    end = result.rows[-1]
    assert end["verdict"]["severity"] == "unsafe"
    assert end["released"] == len("".join(row["text"] for row in result.rows if row["kind"] == "text"))
    assert end["released"] + end["withheld"] == 63
    assert result.rows[-2]["withheld"] == end["withheld"]


def test_without_holdback_a_retraction_is_reported(cli):
    result = cli("stream", "--json", "--holdback", "0", "--debounce", "2", stdin="so BAD it is, really and truly so\n")
    assert result.code == 1
    assert result.rows[-2]["kind"] == "stop"
    text = cli("stream", "--holdback", "0", stdin="all is fine").out
    assert text == "all is fine"


def test_a_model_fault_releases_nothing_more(cli):
    result = cli("stream", stdin="w " * 2000 + "BOOM " + "x " * 2000)
    assert result.code == 3
    assert set(result.out.split()) <= {"w"}
    assert "boom" in result.err
    rows = cli("stream", "--json", stdin="BOOM").rows
    assert rows[-1]["kind"] == "end"
    assert rows[-1]["verdict"] is None
    assert "boom" in rows[-1]["error"]


def test_a_model_fault_with_on_error_allow_lets_through_and_warns(cli):
    data = "w " * 2000 + "BOOM " + "x " * 2000 + "BAD"
    result = cli("stream", "--on-error", "allow", stdin=data)
    assert (result.code, result.out) == (0, data)
    assert "without being judged" in result.err


def test_empty_input(cli):
    assert (cli("stream").code, cli("stream").out) == (0, "")


def test_the_prompt_is_context_and_not_judged(cli):
    assert cli("stream", "--prompt", "BAD", stdin="fine").code == 0


@pytest.mark.parametrize("options", [["--stage", "prompt"], ["--holdback", "-1"], ["--debounce", "0"], ["file.txt"]])
def test_wrong_usage(cli, options):
    assert cli("stream", *options, stdin="x").code == 2


def test_a_terminal_gets_a_hint(cli, monkeypatch):
    monkeypatch.setattr("guardkit_cli.stream.is_terminal", lambda stream: isinstance(stream, io.TextIOBase))
    assert cli("stream").code == 2
    assert cli("stream", "-", stdin="fine").code == 0


def test_json_events_are_safe_lines(cli):
    result = cli("stream", "--json", stdin=b"a \x1b[31m \xc2\x9b \xff b")
    assert all(c.isprintable() for line in result.out.splitlines() for c in line)
    assert "".join(json.loads(line).get("text", "") for line in result.out.splitlines()) == "a \x1b[31m \x9b ÿ b"
