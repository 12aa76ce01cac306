"""Bytes to records: any cut of the input gives the same lines, and no byte is lost."""

from __future__ import annotations

import io
import random

import pytest

from guardkit.reading import encodings
from guardkit_cli import formats
from guardkit_cli.records import Decoder, Reader, Source

CONTROLS = bytes([*range(9), *range(14, 32)])  # with many of them it is no text


class Dribble(io.RawIOBase):
    """Gives its data in the pieces that it was told."""

    def __init__(self, pieces: list[bytes]):
        self._pieces = [p for p in pieces if p]

    def read(self, size: int = -1) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    places = sorted(rng.choices(range(len(data) + 1), k=rng.randint(0, 12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def texts(pieces: list[bytes], **options: bool) -> list[str]:
    reader = Reader(**options)
    return [record.text for records in reader.read(Source("test", Dribble(pieces))) for record in records]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\nb", ["a", "b"]),
        (b"\n\n", ["", ""]),
        (b"a\r\nb\rc\r\n", ["a", "b\rc"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        (b"\xef\xbb", ["ï»"]),
        (b"\xef\xbb\xbf", []),
        (b"\xff\xfejunk\nBAD", ["ÿþjunk", "BAD"]),  # no UTF-16: its mark must not hide what follows
        (b"a\x00b\n\x93q\x94", ["a\x00b", "“q”"]),
    ],
)
def test_lines_do_not_depend_on_how_the_input_is_cut(data, expected):
    assert texts([data]) == expected
    assert texts([data[i : i + 1] for i in range(len(data))]) == expected
    rng = random.Random(0)
    for _ in range(50):
        assert texts(cut(data, rng)) == expected


def test_random_bytes_never_fail_and_never_lose_a_line():
    rng = random.Random(1)
    for _ in range(100):
        data = b"x" + rng.randbytes(rng.randint(0, 400)).translate(None, CONTROLS) + b"\n" * rng.randint(0, 2)
        found = texts(cut(data, rng))
        assert len(found) == data.count(b"\n") + (not data.endswith(b"\n"))
        assert found == texts([data])


def test_one_bad_byte_does_not_garble_the_rest_of_the_line():
    decoder = Decoder()
    assert decoder.decode("日本語".encode() + b"\xe9 caf\xe9") == "日本語é café"
    assert decoder.decode(bytes(range(256)))
    assert decoder.fallback_lines == 2
    assert decoder.decode("日本語".encode()) == "日本語"
    assert decoder.fallback_lines == 2


def test_line_numbers_go_on_across_reads():
    reader = Reader()
    pieces = [b"a\nb", b"b\nc", b"c"]
    found = [[(r.line, r.text) for r in records] for records in reader.read(Source("x", Dribble(pieces)))]
    assert found == [[(1, "a")], [(2, "bb")], [(3, "cc")]]


def test_a_long_line_in_many_pieces():
    assert [len(t) for t in texts([b"ab" * 5000] * 1000)] == [10_000_000]


@pytest.fixture
def least(monkeypatch):
    """The longest record that is held, made short, so that the test is."""
    for module in (encodings, formats):
        monkeypatch.setattr(module, "MAX_RECORD", 1 << 18)
    return 1 << 20


def test_a_line_that_is_too_long_to_hold_is_said_not_to_be_read(cli, tmp_path, least):
    path = tmp_path / "a.log"
    path.write_bytes(b"fine\n" + b"is BAD " * (least // 7) + b"\r\n" + b"so BAD\nfine")
    result = cli("check", "--json", "--input", str(path))
    assert (result.code, [row["action"] for row in result.rows]) == (3, ["allow", "block", "block", "allow"])
    assert result.rows[1]["error"] == encodings.TOO_LONG
    assert cli("check", "--whole", "--input", str(path)).code == 3


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.jsonl"])
def test_a_value_that_is_too_long_to_hold_is_said_not_to_be_read(cli, tmp_path, name, least):
    path = tmp_path / name
    begun = {"a.json": b'[{"text": "', "a.csv": b'text\n"', "a.jsonl": b'{"text": "'}[name]
    path.write_bytes(begun + b"is BAD " * (least // 7))
    result = cli("check", "--input", str(path))
    assert result.code == 3
    assert "longer than 64 MiB" in result.out + result.err


def test_an_argument_is_utf8_whatever_the_locale():
    told = Reader().argument(1, "größe 漢字".encode().decode("ascii", "surrogateescape"))
    assert [record.text for record in told] == ["größe 漢字"]
    (unknown,) = Reader().argument(1, "нехорошие слова".encode("cp1251").decode("utf-8", "surrogateescape"))
    assert unknown.item is None
    assert "--encoding" in (unknown.error or "")
