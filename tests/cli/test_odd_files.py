"""Odd files of many kinds: what is in them is judged, or it is said not to be; none of them passes unread."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from typing import Any

import pytest

T = "how do I do this BAD thing\n"
JAPANESE = "これは爆弾の作り方です。詳しく教えてください。\n" * 5
NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "metadata": {}, "source": ["# hi\n", "fine\n"]},
        {"cell_type": "code", "outputs": [{"output_type": "stream", "name": "stdout", "text": ["BAD out"]}]},
    ],
    "nbformat": 4,
}


def packed(mode: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = len(T)
        tar.addfile(info, io.BytesIO(T.encode()))
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.txt", T)
    return out.getvalue()


BLOCKED: dict[str, bytes] = {
    "utf16.txt": (T * 9).encode("utf-16"),
    "utf16le.txt": (T * 9).encode("utf-16-le"),
    "utf16be.txt": (T * 9).encode("utf-16-be"),
    "utf32le.txt": (T * 9).encode("utf-32-le"),
    "latin.txt": "café is BAD\n".encode("latin-1"),
    "twice.log.gz": gzip.compress(gzip.compress(T.encode())),
    "gzip of bzip2.log": gzip.compress(bz2.compress(T.encode())),
    "members.gz": gzip.compress(b"fine\n") + gzip.compress(T.encode()),
    "infinity.json": b'[{"text":"BAD","x":-Infinity}]',
    "nan.jsonl": b'{"text": "BAD", "score": NaN}\n',
    "deep.json": b'{"a":' * 150 + b'"BAD"' + b"}" * 150,
    "a.yaml": b"a: fine\nb: |\n  this is BAD\n",
    "a.xml": b"<?xml version='1.0'?><a><b>this is BAD</b></a>",
    "a.md": b"# t\n\n> this is BAD\n",
    "a.ipynb": json.dumps(NOTEBOOK, indent=1).encode(),
    "one line.ipynb": json.dumps(NOTEBOOK).encode(),
    "object.json": json.dumps({"text": "BAD"}, indent=2).encode(),
    "texts.json": b'["fine","BAD"]',
    "lists.json": json.dumps([[{"text": "BAD"}]]).encode(),
    "by name.json": json.dumps({"a": {"text": "BAD"}, "b": {"text": "fine"}}).encode(),
    "data.json": json.dumps({"data": [{"text": "fine"}, {"text": "BAD"}]}).encode(),
    "mark.jsonl": b'\xef\xbb\xbf{"text":"BAD"}\n',
    "mark.csv": b"\xef\xbb\xbftext\nBAD\n",
    "semicolons.csv": b"id;text\n1;BAD\n",
    "quotes.csv": b'id,text\n1,"a ""BAD"" b"\n',
    "longer row.csv": b"a,b\n1,2,BAD\n",
    "returns.txt": b"fine\rthis is BAD\rfine",
    "form feed.txt": b"fine\x0cBAD\n",
    "separator.txt": "fine\u2028BAD\n".encode(),
    "surrogate.jsonl": b'{"text":"\\ud83d BAD"}\n',
    "key.jsonl": b'{"this is BAD": 1}\n',
    "one row, no heading.csv": b"1,this is BAD\n",
    "excel.csv": b"sep=;\r\nid;text\r\n1;BAD\r\n",
    "blank lines first.csv": b"\n \nid,text\n1,BAD\n",
    "blank lines, then Excel's.csv": b"\r\nsep=;\r\nid;text\r\n1;BAD\r\n",
    "blank headings.csv": b"note,,\nfine,x,BAD\n",
    "latin.csv": "wo,text\nCaf\xe9,BAD\n".encode("latin-1"),
    "a.toml": b'[a]\nb = """\nthis is BAD\n"""\n',
    "a.vtt": b"WEBVTT\n\n00:01.000 --> 00:02.000\nthis is BAD\n",
}
RUSSIAN, CHINESE = "нехорошие слова, и их много", "如何製造炸彈殺人"
REFUSED: dict[str, bytes] = {
    "cp1251.csv": f"id;text\n1;{RUSSIAN}\n".encode("cp1251"),
    "gbk.csv": f"id,text\n1,{CHINESE}\n".encode("gbk"),
    "shift-jis.tsv": f"id\ttext\n1\t{JAPANESE}".encode("shift-jis"),
    "cp1251.json": f'[{{"text": "{RUSSIAN}"}}]'.encode("cp1251"),
    "cp1251, found out": f'[\n{{"text": "{RUSSIAN}"}}\n]'.encode("cp1251"),
    "few letters of big5.txt": CHINESE.encode("big5"),
    "koi8 in a long line.log": f"2026-11-26 INFO request of a user: {RUSSIAN[:15]} (from Firefox on Windows)\n".encode(
        "koi8-r"
    ),
    "utf-16 behind ascii.log": b"fine\n" * 9 + f"\n{RUSSIAN}\n".encode("utf-16-le")[:-1],
    "shift-jis.txt": JAPANESE.encode("shift-jis"),
    "euc-jp.txt": JAPANESE.encode("euc-jp"),
    "a.tar": packed("w"),
    "a.tar.gz": packed("w:gz"),
    "a.zip": zipped(),
    "a.zip.gz": gzip.compress(zipped()),
    "commas.ndjson": b'{"text": "this is BAD",}\n',
    "twice.jsonl": b'{"text": "BAD", "text": "fine"}\n',
    "deep.json": b'{"a":' * 3000 + b'"BAD"' + b"}" * 3000,
    "a.pickle": pickle.dumps({"t": "BAD"}),
    "a.parquet": b"PAR1" + bytes(50),
    "a.7z": b"7z\xbc\xaf\x27\x1c" + b"BAD" * 9,
    "numbers.json": b"[1,2]",
}


@pytest.mark.parametrize("name", BLOCKED)
def test_what_a_file_holds_is_judged(cli, tmp_path, name):
    (tmp_path / name).write_bytes(BLOCKED[name])
    result = cli("check", "--input", str(tmp_path / name))
    assert result.code == 1, result.out + result.err


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_said_not_to_be_judged(cli, tmp_path, name):
    (tmp_path / name).write_bytes(REFUSED[name])
    result = cli("check", "--input", str(tmp_path / name))
    assert result.code == 3, result.out + result.err


def test_rows_of_an_encoding_that_is_not_known_do_not_hide_the_others(cli, tmp_path):
    lines = ["id;text", f"1;{RUSSIAN}", "2;BAD"]
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode("cp1251"))
    result = cli("check", "--json", "--input", str(tmp_path / "a.csv"))
    assert [(row["line"], row["severity"]) for row in result.rows] == [(2, None), (3, "unsafe")]
    assert "--encoding" in result.err
    named = cli("check", "--json", "--text", "--encoding", "cp1251", "--input", str(tmp_path / "a.csv"))
    assert [row["text"] for row in named.rows] == [RUSSIAN, "BAD"]


def test_odd_bytes_in_a_table_are_told(cli, tmp_path):
    (tmp_path / "a.csv").write_bytes("id;text\n1;Café\n".encode("latin-1"))
    assert "1 line not valid UTF-8" in cli("check", "--input", str(tmp_path / "a.csv")).err


def test_the_line_that_tells_excel_the_delimiter_is_no_heading(cli, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"sep=;\r\nid;text\r\n1;BAD\r\n")
    (row,) = cli("check", "--json", "--field", "text", "--input", str(tmp_path / "a.csv")).rows
    assert (row["line"], row["action"]) == (3, "block")


def test_a_heading_alone_holds_no_record(cli, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,text\n")
    assert cli("check", "--json", "--input", str(tmp_path / "a.csv")).rows == []
