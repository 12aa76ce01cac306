# ruff: noqa: E501
"""Files of every format and encoding: read as what they are, or refused; never called safe unread."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import threading
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit.reading.json_values import JsonValues
from guardkit_cli.records import Reader, Source

LINES = "fine\nthis is BAD\nпривет, мир, и ещё слова\n"
COMPRESSIONS = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}  # fmt: skip


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def read(data: bytes, name: str = "test", cut: int = 1 << 18, **options) -> list:
    class Cut(io.BytesIO):
        def read(self, size=-1):
            return super().read(cut)

    source = Source(name, Cut(data))
    return [record for records in Reader(**options).read(source) for record in records]


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_compressed_files(cli, tmp_path, kind):
    data = COMPRESSIONS[kind](LINES.encode())
    result = cli("check", "--json", "--text", "--input", write(tmp_path / "app.log", data + data))
    assert [row["text"] for row in result.rows] == LINES.splitlines() * 2
    assert result.code == 1
    assert [r.text for r in read(data, cut=7)] == LINES.splitlines()
    cut_off = cli(
        "check",
        "--json",
        "--text",
        "--input",
        write(tmp_path / "cut", COMPRESSIONS[kind](os.urandom(9000).hex().encode())[:-40]),
    )
    assert cut_off.code == 3
    assert "too early" in cut_off.err
    damaged = cli("check", "--input", write(tmp_path / "damaged", data[:12] + b"\xff" * 9 + data[21:]))
    assert damaged.code == 3
    assert "Traceback" not in damaged.err


def test_a_compressed_binary_file_is_refused(cli, tmp_path):
    result = cli("check", "--input", write(tmp_path / "a.gz", gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(99))))
    assert (result.code, result.out) == (3, "")
    assert "a PNG image, no text" in result.err


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("text", [LINES, "слова и ещё слова\nBAD\n" * 9, "漢字の文章です\r\nBAD\r\nまた漢字\r\n" * 3])
def test_encodings_by_their_mark_or_pattern(encoding, text):
    data = text.encode(encoding)
    for cut in (1 << 18, 64, 5):
        if cut == 5 and "sig" not in encoding and encoding not in ("utf-16", "utf-32"):
            continue  # so little cannot show a pattern
        assert [r.text for r in read(data, cut=cut)] == text.splitlines()


def test_mixed_encodings_are_not_called_safe(cli, tmp_path):
    mixed = ("первые слова\n" * 9).encode("utf-16") + b"and then this is BAD in plain ASCII\n"
    result = cli("check", "--input", write(tmp_path / "mixed", mixed))
    assert result.code in (1, 3)
    assert "mixed encodings" in result.err
    lines = "слово\n".encode() + "caf\xe9 BAD\n".encode("latin-1")
    assert [r.text for r in read(lines)] == ["слово", "café BAD"]


def test_an_encoding_that_cannot_be_known_must_be_named(cli, tmp_path):
    path = write(tmp_path / "old.txt", "нехорошие слова, и BAD среди них\n".encode("cp1251"))
    result = cli("check", "--json", "--input", path)
    assert (result.code, result.rows[0]["severity"]) == (3, None)
    assert "--encoding" in result.err
    (row,) = cli("check", "--json", "--text", "--encoding", "cp1251", "--input", path).rows
    assert row["text"] == "нехорошие слова, и BAD среди них"
    for no_encoding in ("nonsense", "rot13", "base64", "hex"):
        assert cli("check", "--encoding", no_encoding, "--input", path).code == 2
    without_mark = cli("check", "--encoding", "utf-16", "--input", path)
    assert (without_mark.code, "not valid UTF-16" in without_mark.err) == (3, True)


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n", b"%PDF-1.7\n%\xe2\xe3", b"PK\x03\x04" + bytes(20), bytes(range(256)) * 4]
)
def test_binary_files_are_refused_and_the_others_judged(cli, tmp_path, data):
    result = cli("check", "--input", write(tmp_path / "x", data), "--input", write(tmp_path / "y", "fine\n"))
    assert result.code == 3
    assert "no text" in result.err
    assert [line.split()[0] for line in result.out.splitlines()] == ["allow"]
    assert cli("check", stdin=data).code == 3


def test_json_arrays_and_objects_over_several_lines(cli, tmp_path):
    rows = [
        {"prompt": "hi", "response": "BAD"},
        "fine",
        {"messages": [{"role": "user", "content": 'a "b" [c, {d}] \\'}]},
    ]
    for indent in (None, 2):
        for name in ("rows.json", "rows"):
            result = cli("check", "--json", "--input", write(tmp_path / name, json.dumps(rows, indent=indent)))
            assert [row["action"] for row in result.rows] == ["block", "allow", "allow"]
    result = cli("check", "--json", stdin=json.dumps({"text": "BAD"}, indent=1))
    assert [row["action"] for row in result.rows] == ["block"]
    many = "".join(json.dumps({"text": word}, indent=1) + "\n" for word in ("fine", "BAD"))
    rows = cli("check", "--json", "--format", "json", stdin=many).rows
    assert [(row["line"], row["action"]) for row in rows] == [(1, "allow"), (4, "block")]


@pytest.mark.parametrize(
    ("data", "actions", "code"),
    [
        ("[]", [], 0),
        ("[3]", ["block"], 3),
        ('[{"text": "fine"}, {oops}, {"text": "BAD"}]', ["allow", "block", "block"], 3),
        ('[{"text": "fine"}, {"text": "cut o', ["allow", "block"], 3),
        ('[{"text": "fine"}, ' + "[" * 100_000 + "]" * 100_000 + "]", ["allow", "block"], 3),
        ('[{"text": "a", "text": "b"}]', ["block"], 3),
    ],
)
def test_broken_json_files(cli, tmp_path, data, actions, code):
    result = cli("check", "--json", "--input", write(tmp_path / "x.json", data))
    assert ([row["action"] for row in result.rows], result.code) == (actions, code)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=6) | st.just('q"\\{['),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=4), st.integers(1, 9), st.sampled_from((None, 1)), st.booleans())
@settings(max_examples=100, deadline=None)
def test_json_values_do_not_depend_on_how_they_are_cut(values, size, indent, as_array):
    if as_array:
        source = json.dumps(values, indent=indent)
    else:
        values = [v for v in values if isinstance(v, dict)]
        source = "\n".join(json.dumps(v, indent=indent) for v in values)
    reader = JsonValues()
    found = [v for i in range(0, len(source), size) for v in reader.feed(source[i : i + size])] + reader.finish()
    assert [json.loads(text) for _, text in found] == values
    assert [line for line, _ in found] == sorted(line for line, _ in found)
    assert not reader.is_cut_off


def test_json_lines_are_found_out_and_other_lines_among_them_are_texts(cli):
    stdin = '{"msg": "fi\\u006ee", "n": 1}\nplain BAD\n{"msg": "\\u0042AD"}\n'
    result = cli("check", "--json", "--text", stdin=stdin)
    assert [row["action"] for row in result.rows] == ["allow", "block", "block"]
    assert cli("check", "--json", "--text", "--format", "text", stdin=stdin).rows[0]["text"] == stdin.splitlines()[0]
    assert cli("check", stdin='{"a": 1}\n{"text": "x", "text": "BAD"}\n').code == 3


def test_names_tell_the_format_also_of_compressed_files(cli, tmp_path):
    for name in ("x.jsonl", "X.NDJSON", "x.jsonl.gz"):
        data = b'{"prompt": "BAD", "response": "fine"}\n'
        (row,) = cli(
            "check", "--json", "--input", write(tmp_path / name, gzip.compress(data) if "gz" in name else data)
        ).rows
        assert (row["stage"], row["ignored"]) == ("response", ["prompt"])


def test_tables(cli, tmp_path):
    table = 'id,prompt,response\n1,hi,"fine, ""really""\nBAD"\n2,BAD,\n'
    path = write(tmp_path / "t.csv", table)
    rows = cli("check", "--json", "--input", path).rows
    assert [(row["line"], row["stage"], row["action"]) for row in rows] == [
        (2, "response", "block"),
        (4, "prompt", "block"),
    ]
    rows = cli("check", "--json", "--field", "id", "--input", path).rows
    assert [(row["action"], row["ignored"]) for row in rows] == [
        ("allow", ["prompt", "response"]),
        ("allow", ["prompt"]),
    ]
    assert cli("check", "--field", "nope", "--input", path).code == 3
    path = write(tmp_path / "t.tsv", "text\tnote\nBAD\tx\n")
    assert [row["action"] for row in cli("check", "--json", "--input", path).rows] == ["block"]
    assert [row["action"] for row in cli("check", "--json", "--format", "csv", stdin="text;b\nBAD;1\n").rows] == [
        "block"
    ]


def test_a_table_with_a_broken_quote(cli, tmp_path):
    path = write(tmp_path / "t.csv", 'text\nfine\n"never closed\nBAD\nBAD\n')
    result = cli("check", "--json", "--input", path)
    assert result.code == 3
    assert [row["action"] for row in result.rows] == ["allow", "block"]
    assert "a quote is never closed" in result.err
    path = write(tmp_path / "u.csv", 'text\n"a"b\nfine\n')
    assert [row["severity"] for row in cli("check", "--json", "--input", path).rows] == [None, "safe"]


PIECES = [
    {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
    for text in ("a B", "AD one")
]


def test_a_dump_of_server_sent_events_is_put_together(cli, tmp_path):
    events = "".join(f"data: {json.dumps(piece)}\r\n\r\n" for piece in PIECES)
    done = "data: [DONE]\n\n"
    for text in (events + done + events, f": comment\nevent: x\nid: 1\n{events}", f"retry: 10\n{events}{done}"):
        rows = cli("check", "--json", "--text", stdin=text).rows
        assert {row["text"] for row in rows} == {"a BAD one"}
        assert {(row["stage"], row["action"]) for row in rows} == {("response", "block")}
        assert len(rows) == 1 + (text == events + done + events)
    other = 'data: {"type": "error", "message": "it is BAD"}\n\nevent: BAD words here\n\ndata: BAD words\n\n'
    rows = cli("check", "--json", stdin=events + other).rows
    assert [(row["line"], row["action"]) for row in rows] == [(5, "block"), (7, "block"), (9, "block"), (1, "block")]
    path = write(tmp_path / "dump.sse", "HTTP/1.1 200 OK\n\n" + events)
    assert cli("trace", path).code == 1
    assert [row["action"] for row in cli("check", "--json", "--input", path).rows] == ["allow", "block"]


def test_a_piece_among_lines_of_text_is_not_called_safe(cli):
    result = cli("check", "--json", stdin=f"a line\ndata: {json.dumps(PIECES[0])}\ndata: other\n")
    assert [row["severity"] for row in result.rows] == ["safe", None, "safe"]
    assert (result.code, "--format sse" in result.err) == (3, True)


def test_pieces_in_lines_of_a_log_are_put_together_beside_the_lines(cli):
    log = "".join(f"12:00:0{i} DEBUG got {json.dumps(piece)}\n" for i, piece in enumerate(PIECES))
    rows = cli("check", "--json", "--text", stdin=f"start\n{log}end\n").rows
    assert [(row["line"], row["stage"], row["action"]) for row in rows] == [
        (1, "prompt", "allow"), (2, "prompt", "allow"), (3, "prompt", "allow"), (4, "prompt", "allow"),
        (2, "response", "block"),
    ]  # fmt: skip
    rows = cli("check", "--json", "--text", stdin='f:{"messageId":"m"}\n0:"a B"\n0:"AD one"\nd:{"x":1}\n').rows
    assert [row["text"] for row in rows if row["action"] == "block"] == ["a BAD one"]


def test_join(cli):
    log = (
        "start\nTraceback (most recent call last):\n  File 'a', line 1\n    f()\nValueError: BAD\n\n"
        "During handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n"
        "  File 'b'\nKeyError: 'k'\nINFO: next\none \\\ntwo\n\nException in thread\n\tat a.b(C.java)\nCaused by: x\nend\n"
    )
    rows = cli("check", "--json", "--text", "--join", stdin=log).rows
    assert "\n".join(row["text"] for row in rows) == log.rstrip("\n")
    assert [(row["line"], row["text"].split("\n")[0]) for row in rows] == [
        (1, "start"), (12, "INFO: next"), (13, "one \\"), (15, ""), (16, "Exception in thread"), (19, "end"),
    ]  # fmt: skip
    assert cli("check", "--join", "--jsonl", stdin="x").code == 2


def test_folders(cli, tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "two.log", "BAD\n")
    write(tmp_path / "a.log", "fine\n")
    write(tmp_path / "c.png", b"\x89PNG\r\n\x1a\n")
    assert cli("check", "--input", str(tmp_path)).code == 2
    result = cli("check", "--json", "-r", "--input", str(tmp_path), "--glob", "*.log")
    assert [(os.path.basename(row["input"]), row["action"]) for row in result.rows] == [
        ("a.log", "allow"),
        ("two.log", "block"),
    ]
    assert cli("check", "-r", "--input", str(tmp_path)).code == 3
    result = cli("check", "-r", "--input", str(tmp_path), "--glob", "nothing*")
    assert (result.code, "no file" in result.err) == (2, True)


def test_what_is_no_file_in_a_folder_is_told_and_does_not_hang(cli, tmp_path):
    os.mkfifo(tmp_path / "a pipe")
    write(tmp_path / "b.txt", "BAD\n")
    result = cli("check", "-r", "--input", str(tmp_path))
    assert result.code == 1
    assert "a pipe' is a pipe" in result.err


def test_a_document_that_is_read_by_lines_gets_a_hint(cli, tmp_path):
    paths = [write(tmp_path / name, "how do I do this\nBAD thing\n") for name in ("a.HTML", "b.md", "c.log")]
    given = [part for path in paths for part in ("--input", path)]
    assert cli("check", *given).err.count("--whole") == 1
    assert "--whole" not in cli("check", "--whole", *given).err + cli("check", "--input", paths[2]).err
    assert "--whole" not in cli("check", "--quiet", *given).err


def test_explain_input(cli, tmp_path):
    path = write(
        tmp_path / "x.jsonl.gz", gzip.compress(b'{"prompt": "asked", "response": "answered", "source": "s"}\n3\n')
    )
    result = cli("check", "--explain-input", path)
    assert result.code == 0
    assert cli.guards == []
    for shown in (
        "jsonl, gzip",
        "judged as response: answered",
        "context: user",
        "not judged itself: prompt, source",
        "got a number",
    ):
        assert shown in result.out
    assert "lines of text" in cli("check", "--explain-input", write(tmp_path / "log", "x\n")).out
    assert "no text" in cli("check", "--explain-input", write(tmp_path / "p", b"%PDF-1\n")).out
    assert cli("check", "--explain-input", str(tmp_path / "none")).code == 3


def test_what_is_not_judged_is_told(cli):
    stdin = (
        '{"messages": [{"role": "user", "content": "BAD"}, {"role": "assistant", "content": "no"}], "note": "x"}\n' * 2
    )
    result = cli("check", "--jsonl", "--json", stdin=stdin)
    assert [row["ignored"] for row in result.rows] == [["messages[0]", "note"]] * 2
    assert "not judged themselves: messages[], note" in result.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo(cli, tmp_path):
    path = str(tmp_path / "fifo.jsonl")
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: write(tmp_path / "fifo.jsonl", '{"text": "BAD"}\n'))
    writer.start()
    assert [row["action"] for row in cli("check", "--json", "--input", path).rows] == ["block"]
    writer.join()


ROW = {"id": 7, "prompt": "a question", "response": "an answer of some length " * 8}
FILES = {
    "x.log": lambda n: b"a line of some length, like those in a log\n" * (n * 5),
    "x.log.gz": lambda n: gzip.compress(b"a line of some length, like those in a log\n" * (n * 5)),
    "x.jsonl": lambda n: (json.dumps(ROW) + "\n").encode() * n,
    "x.json": lambda n: ("[" + ",\n".join([json.dumps(ROW)] * n) + "]").encode(),
    "x.csv": lambda n: b"id,prompt,response\n" + (b'1,q,"an answer, quoted, of some length"\n' * n),
    "u16.log": lambda n: ("слова в строке журнала\n" * (n * 2)).encode("utf-16"),
}  # fmt: skip


class Pieces(io.BytesIO):
    def read(self, size=-1):
        return super().read(1 << 12)


@pytest.mark.parametrize("name", FILES)
def test_memory_does_not_grow_with_the_file(name):
    def peak(n: int) -> int:
        source = Source(name, Pieces(FILES[name](n)))
        tracemalloc.start()
        count = sum(len(records) for records in Reader().read(source))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count >= n
        return found

    small, large = peak(400), peak(2_400)
    assert large < small * 1.5 + 500_000


def test_a_very_long_line_needs_little_more_than_itself():
    n = 8_000_000
    source = Source("x", io.BytesIO(b""))
    pieces = iter([b"a" * (1 << 16)] * (n >> 16) + [b""])
    source.read = lambda n_bytes=1 << 16: next(pieces, b"")
    tracemalloc.start()
    (record,) = [r for records in Reader().read(source) for r in records]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(record.text) == n >> 16 << 16
    assert peak < 3.2 * n
