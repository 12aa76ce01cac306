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
    "a.toml": b'[a]\nb = """\nthis is BAD\n"""\n',
    "a.vtt": b"WEBVTT\n\n00:01.000 --> 00:02.000\nthis is BAD\n",
}
REFUSED: dict[str, bytes] = {
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
