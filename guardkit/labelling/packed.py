"""Bytes of text files: taken out of their compression and put back into it, and always UTF-8."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from guardkit.errors import LabelError, MissingExtra
from guardkit.reading.encodings import UNKNOWN, decoded_odd, is_unknown_encoding

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAGIC |= {bytes((0x50 + i, 0x2A, 0x4D, 0x18)): "zstd" for i in range(16)}  # a frame that is skipped
BOM = b"\xef\xbb\xbf"


def is_packed(path: Path) -> bool:
    """Whether a file is compressed."""
    with path.open("rb") as raw:
        head = raw.read(8)
    return any(head.startswith(magic) for magic in _MAGIC)


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], float]]]:
    """The bytes of a file, taken out of their compression, which is told by its first bytes; and a function that says
    how much of the file is read. Raises `LabelError` for what is damaged or no text."""
    with path.open("rb") as raw:
        size = max(path.stat().st_size, 1)
        head = raw.read(4096)
        raw.seek(0)
        kind = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
        if kind is None and b"\0" in head:
            raise LabelError(f"{path}: binary data, or text that is not UTF-8 (convert UTF-16 first)")
        try:
            file = cast(IO[bytes], raw if kind is None else _decompressed(kind, raw))
            yield file, lambda: min(1.0, raw.tell() / size)
        except (EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise LabelError(f"{path}: damaged {kind or 'data'}: {error}") from error
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("zlib", "_lzma", "lzma", "zstandard", "compression"):
                raise
            raise LabelError(f"{path}: damaged {kind} data: {error}") from error


def _decompressed(kind: str, raw: IO[bytes]) -> object:
    if kind == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=raw)
    if kind == "bz2":
        import bz2

        return io.BufferedReader(cast(Any, _Members(bz2.BZ2Decompressor, raw)))
    if kind == "xz":
        import lzma

        return io.BufferedReader(cast(Any, _Members(lzma.LZMADecompressor, raw)))
    zstd = _zstd("zstd data")
    if hasattr(zstd, "ZstdFile"):
        return zstd.ZstdFile(raw)
    return io.BufferedReader(cast(Any, _Members(lambda: zstd.ZstdDecompressor().decompressobj(), raw)))


class _Members(io.RawIOBase):
    """All members (frames, streams) of compressed data, one after another, with what may be padding between them. One
    that breaks off, or is no such data, is an error: Python's own readers end there, and tell nobody.

    begin: makes what takes one member out.
    """

    def __init__(self, begin: Callable[[], Any], raw: IO[bytes]):
        self._begin, self._raw = begin, raw
        self._member: Any = None
        self._out = memoryview(b"")
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._out:
            data = self._left or self._raw.read(1 << 16)
            self._left = b""
            if not data:
                if self._member is not None:
                    raise EOFError("it ends too early")
                return 0
            if self._member is None:
                data = data.lstrip(b"\0")
                if not data:
                    continue
                self._member = self._begin()
            # a small piece at a time, since not every library bounds its output
            data, self._left = data[:4096], data[4096:]
            self._out = memoryview(self._member.decompress(data))
            if self._member.eof:
                self._left = self._member.unused_data + self._left
                self._member = None
        n = min(len(into), len(self._out))
        into[:n] = self._out[:n]
        self._out = self._out[n:]
        return n


def _zstd(what: str) -> Any:
    from importlib import import_module

    for module in ("compression.zstd", "zstandard"):  # the first from Python 3.14 on
        try:
            return import_module(module)
        except ImportError:
            continue
    raise MissingExtra(what, "label")


@contextmanager
def compressing(kind: str | None, raw: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file that compresses into `raw`, the same for the same bytes (no time, no name)."""
    if kind is None:
        yield raw
    elif kind == "gzip":
        import gzip

        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed:
            yield cast(IO[bytes], packed)
    elif kind in ("bz2", "xz"):
        from importlib import import_module

        module = import_module("bz2" if kind == "bz2" else "lzma")
        with (module.BZ2File if kind == "bz2" else module.LZMAFile)(raw, "wb") as packed:
            yield packed
    else:
        zstd = _zstd("zstd data")
        if hasattr(zstd, "ZstdFile"):
            with zstd.ZstdFile(raw, "wb") as packed:
                yield packed
        else:
            with zstd.ZstdCompressor().stream_writer(raw, closefd=False) as packed:
                yield packed


class Misread(bytes):
    """A line of an encoding that is not known, as UTF-8 all the same: it is kept, and not judged."""

    ERROR = f"{UNKNOWN}: convert it to UTF-8"

    def rstrip(self, chars: Any = None) -> bytes:
        return Misread(super().rstrip(chars))


def settled(text: str) -> bytes:
    """A text whose bytes that are no UTF-8 are escaped, as UTF-8."""
    if text.isascii():
        return text.encode()
    read = decoded_odd(text).encode()
    return Misread(read) if is_unknown_encoding(text) else read


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def lines_of(file: IO[bytes], offset: int = 0) -> Iterator[bytes]:
    """Lines with their ends from a byte on, without a byte order mark; as UTF-8, whatever they were."""
    if offset:
        file.seek(offset)
    for number, line in enumerate(file):
        line = line.removeprefix(BOM) if number == 0 and not offset else line
        if line and not line.isascii() and not _is_utf8(line):
            line = settled(line.decode("utf-8", "surrogateescape"))
        if line:
            yield line
