"""Bytes to records: any cut of the input gives the same lines, and no byte is lost."""

from __future__ import annotations

import io
import random

import pytest

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
