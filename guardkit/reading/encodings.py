"""Bytes of a file to bytes of UTF-8 text: decompressed, transcoded; what is no text is refused.

Recognised by content: gzip, bzip2, xz and zstd by their magic numbers; UTF-8, UTF-16 and UTF-32 by their marks or,
where there is none, by their pattern. Everything streams: memory does not grow with the file.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

MAX_RECORD = 1 << 26  # bytes of one line, value or text that is held; what is longer is said not to be read
UNKNOWN = "not UTF-8, and too many other bytes to be windows-1252"
GARBLED = "binary data, or text of another encoding"
TOO_LONG = f"longer than {MAX_RECORD >> 20} MiB: nothing of it was judged; cut it into records"
SAMPLE = 1 << 14  # bytes of the beginning that decide
MAX_OUT = 1 << 16  # decompressed at once
BOM = b"\xef\xbb\xbf"
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
"""Endings of the names of such files."""
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
          (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))  # fmt: skip
_BINARY = {
    b"\x89PNG\r\n": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image", b"%PDF-": "a PDF",
    b"PK\x03\x04": "a ZIP archive (or an office document)", b"PK\x05\x06": "a ZIP archive", b"\x7fELF": "a program",
    b"MZ\x90\x00": "a program", b"PAR1": "a Parquet file", b"SQLite format 3\x00": "a SQLite database",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!\x1a\x07": "a RAR archive", b"\xca\xfe\xba\xbe": "a class file",
    b"\x04\x22\x4d\x18": "LZ4 data", b"\x1f\x9d": "compress data", b"OggS": "an Ogg file", b"ID3": "an MP3 file",
    b"\x00asm": "a WebAssembly module", b"Obj\x01": "an Avro file", b"ARROW1": "an Arrow file",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an office document", b"RIFF": "a RIFF file", b"%!PS-": "a PostScript file",
}  # fmt: skip
_CONTROLS = bytes([*range(0, 9), *range(14, 27), *range(28, 32)])
_CONTROLS_BUT_NUL = _CONTROLS[1:]  # NULs between letters are left out by the view
_ODD = re.compile("[\udc80-\udcff]+")
_WINDOWS = {
    0xDC00 + byte: bytes([byte]).decode("cp1252", "replace").replace("\ufffd", chr(byte)) for byte in range(128, 256)
}
_LETTER = rb"[\t\n\r A-Za-z,.']"  # pairs of them are rare in UTF-16, Chinese and Japanese included
_LETTERS = re.compile(rb"(?:" + _LETTER + rb"{2})+")
_LETTER_RUN = re.compile(_LETTER + rb"{20,}")


class NotText(OSError):
    """The input is no text, or not wholly readable as one."""


def is_suspicious(first: bytes) -> bool:
    """Whether the beginning of an input may be anything but UTF-8 text without a mark."""
    return not first.isascii() or first.translate(None, _CONTROLS) != first or first.startswith((*_BINARY, b"BZh"))


def text_chunks(
    chunks: Iterable[bytes], encoding: str | None = None, told: Callable[[str], None] = lambda what: None
) -> Iterator[bytes]:
    """The text of an input as UTF-8 without a mark. `told` is called with what was recognised ("gzip", "utf-16-le").

    Raises `NotText` for binary data, a damaged or truncated file, and mixed encodings; what came before is yielded.
    """
    first, rest = _beginning(iter(chunks))
    for magic, name in COMPRESSIONS.items():
        if first.startswith(magic) and (name != "bzip2" or first[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
            told(name)
            yield from text_chunks(_decompressed(name, chain([first], rest)), encoding, told)
            return
    if encoding is None:
        encoding = wide_encoding(first)
        if encoding is None and (what := binary_kind(first)) is not None:
            raise NotText(f"{what}, no text")
        if encoding is not None:
            told(encoding)
    if encoding is None:
        yield from chain([first.removeprefix(BOM)], rest)
    else:
        yield from _transcoded(encoding, chain([first], rest))


def _beginning(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """What is there at first; more only where so little cannot tell what it is."""
    first = next(chunks, b"")
    while (
        (0 < len(first) < 4 and (not first.isascii() or b"\0" in first))
        or (first.startswith(b"BZh") and len(first) < 10)
    ) and (more := next(chunks, b"")):
        first += more
    return first, chunks


# ------------------------------------------------------------------------------------------------------- encodings


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32, by the mark or the pattern; None where the text reads otherwise whatever the mark says."""
    sample = data[:SAMPLE]
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name if _is_wide(sample[len(mark) :], name, marked=True) else None
    if b"\0" not in sample:
        return None
    return next((n for n in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be") if _is_wide(sample, n, False)), None)


def _is_wide(sample: bytes, encoding: str, marked: bool) -> bool:
    """A mark is believed unless what follows is ASCII all the same; without one the pattern must be plain."""
    width = 4 if "32" in encoding else 2
    sample = sample[: len(sample) // width * width]
    n_units = len(sample) // width
    if not n_units:
        return marked
    if width == 2:
        n_ascii = sum(len(found[0]) // 2 for found in _LETTERS.finditer(sample))
        if n_ascii > 0.5 * n_units:
            return False
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError as error:
        if error.end < len(sample) - 4 or not error.start:
            return marked and width == 2  # an odd unit in a marked text
        text = sample[: error.start].decode(encoding)
    if marked:
        return True
    odd = sum(not (c.isprintable() or c in "\t\n\r\f\ufeff") for c in text)
    high, low = (sample[1::2], sample[::2]) if encoding.endswith("le") else (sample[::2], sample[1::2])
    if width == 4:
        return odd <= 0.03 * len(text)
    zeros = high.count(0)
    return odd <= 0.03 * len(text) and zeros > 0.02 * n_units and low.count(0) <= 0.05 * zeros


def _transcoded(encoding: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    name = "utf-32" if encoding.startswith("utf-32") else "utf-16" if encoding.startswith("utf-16") else encoding
    is_wide = encoding.startswith("utf-16-")
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass" if name in ("utf-16", "utf-32") else "strict")
    tail, at_start = b"", True
    try:
        for data in chunks:
            if is_wide:  # Latin text among UTF-16 would come out as harmless-looking Chinese
                if _LETTER_RUN.search(tail + data):
                    raise NotText(f"mixed encodings: 8-bit text inside {name.upper()}")
                tail = data[-19:]
            text = decoder.decode(data)
            if text:
                yield (text.removeprefix("\ufeff") if at_start else text).encode("utf-8", "surrogatepass")
                at_start = False
        yield decoder.decode(b"", True).encode("utf-8", "surrogatepass")
    except UnicodeError as error:
        raise NotText(f"not valid {name.upper()}: {getattr(error, 'reason', error)}") from None


def binary_kind(data: bytes) -> str | None:
    """What kind of binary data this is the beginning of; None for text."""
    for magic, kind in _BINARY.items():
        if data.startswith(magic):
            return kind
    if data[257:262] == b"ustar":
        return "a tar archive"
    sample = data[:SAMPLE]
    n_controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if n_controls > 0.05 * len(sample) and (n_controls >= 8 or n_controls > 0.3 * len(sample) >= 3):
        return "binary data"
    return None


def decoded_odd(text: str) -> str:
    """A text whose bytes that are no UTF-8 are escaped (`surrogateescape`): with windows-1252 for them, byte by byte,
    since one stray byte must not garble, and so hide, a line of good UTF-8."""
    return text.translate(_WINDOWS)


def is_unknown_encoding(text: str) -> bool:
    """Whether a text, its bytes that are no UTF-8 escaped, has more of them than windows-1252 would explain: many, or
    whole words of them."""
    runs = _ODD.findall(text)
    n_odd = sum(map(len, runs))
    if n_odd < 4 or len(set("".join(runs))) < 3:  # also rules and boxes that are drawn with one sign
        return False
    return n_odd > (0.3 if n_odd >= 16 else 0.45) * len(text) or any(len(r) > 3 and len(set(r)) > 2 for r in runs)


def is_garbled(raw: bytes) -> bool:
    """Whether a line is no text that could be read: a piece of UTF-16 behind ASCII, or binary data."""
    sample = raw[:SAMPLE]
    n_controls = len(sample) - len(sample.translate(None, _CONTROLS_BUT_NUL))
    return n_controls >= 3 and n_controls > 0.3 * len(sample)


# ----------------------------------------------------------------------------------------------------- compression


class _Gzip:
    """zlib's object in the manner of the other modules."""

    def __init__(self) -> None:
        import zlib

        self._inner = zlib.decompressobj(31)
        self._left = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._left

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        out = self._inner.decompress(self._left + data, max(max_length, 0))
        self._left = self._inner.unconsumed_tail
        return out


def _decompressed(name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """All members of a compressed input, a bounded piece at a time."""
    make, faults = _codec(name)
    codec = make()
    try:
        for data in chunks:
            while data or not (codec.needs_input or codec.eof):
                if codec.eof:
                    if not data.strip(b"\0"):  # padding
                        break
                    codec = make()
                if out := codec.decompress(data, MAX_OUT):
                    yield out
                data = codec.unused_data if codec.eof else b""
    except faults as error:
        raise NotText(f"damaged {name} data: {error}") from None
    if not codec.eof:
        raise NotText(f"the {name} data ends too early: it is truncated")


def _codec(name: str) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    if name == "gzip":
        import zlib

        return _Gzip, (zlib.error,)
    if name == "bzip2":
        import bz2

        return bz2.BZ2Decompressor, (OSError, EOFError)
    if name == "xz":
        import lzma

        return lzma.LZMADecompressor, (lzma.LZMAError, EOFError)
    return _zstd()


def _zstd() -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    from importlib import import_module

    for module in ("compression.zstd", "backports.zstd"):  # the first from Python 3.14 on
        try:
            found: Any = import_module(module)
        except ImportError:
            continue
        return found.ZstdDecompressor, (found.ZstdError, EOFError)
    try:
        zstandard: Any = import_module("zstandard")
    except ImportError:
        raise NotText("zstd data: reading it needs: pip install zstandard") from None

    class Zstd:
        """A small piece of input at a time, since this module does not bound its output."""

        def __init__(self) -> None:
            self._inner = zstandard.ZstdDecompressor().decompressobj()
            self._left = b""

        @property
        def eof(self) -> bool:
            return bool(self._inner.eof)

        @property
        def needs_input(self) -> bool:
            return not self._left

        @property
        def unused_data(self) -> bytes:
            return bytes(self._inner.unused_data) + self._left

        def decompress(self, data: bytes, max_length: int = -1) -> bytes:
            data = self._left + data
            self._left = data[1024:]
            return bytes(self._inner.decompress(data[:1024]))

    return Zstd, (zstandard.ZstdError,)
