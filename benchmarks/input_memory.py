"""Memory of `guard check` on large inputs of each format, and on a single line that is longer than any record may be.

    python benchmarks/input_memory.py [--mb 100] [--line-gb 1] [--formats jsonl,csv]

Each input is made in a temporary folder and checked by a program of its own around a scripted guard, so this is the
memory of reading. MiB: the program's peak, less that of the same program on an empty file. Of the long line nothing is
judged; the exit status is 3, and the message says why.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import importlib
import json
import lzma
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from common import header, sentence, table

RECORD = 2_000  # characters of one, about
CHILD = """
import resource, sys
from guardkit.testing import FakeGuard
from guardkit_cli import loading, run
loading.load_guard = lambda *_, **__: FakeGuard({})
code = run(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def texts(n_bytes: int) -> Iterator[str]:
    rng = random.Random(1)
    base = [" ".join(sentence(rng) for _ in range(RECORD // 60)) for _ in range(50)]
    made = 0
    while made < n_bytes:
        text = f"{made} {rng.choice(base)}"
        made += len(text) + 12
        yield text


def as_array(items: Iterator[str], indent: int | None) -> Iterator[str]:
    yield "["
    for i, text in enumerate(items):
        yield (",\n" if i else "\n") + json.dumps({"text": text}, indent=indent)
    yield "\n]\n"


def as_table(items: Iterator[str], delimiter: str) -> Iterator[str]:
    yield f"id{delimiter}text\n"
    for i, text in enumerate(items):
        yield f'{i}{delimiter}"{text}"\n'


def as_events(items: Iterator[str]) -> Iterator[str]:
    """Answers in pieces of a few sentences, so that most of the file is text."""
    for text in items:
        for at in range(0, len(text), 200):
            delta = {"content": text[at : at + 200]}
            piece = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
            yield f"data: {json.dumps(piece)}\n\n"
        yield "data: [DONE]\n\n"


FORMATS: dict[str, tuple[str, Callable[[Iterator[str]], Iterator[str]], tuple[str, ...]]] = {
    "lines of text": ("a.log", lambda t: (f"{x}\n" for x in t), ()),
    "JSON lines": ("a.jsonl", lambda t: (json.dumps({"text": x}) + "\n" for x in t), ()),
    "JSON array": ("a.json", lambda t: as_array(t, None), ()),
    "JSON array, indented": ("b.json", lambda t: as_array(t, 2), ()),
    "CSV": ("a.csv", lambda t: as_table(t, ","), ("--field", "text")),
    "TSV": ("a.tsv", lambda t: as_table(t, "\t"), ("--field", "text")),
    "gzip": ("a.jsonl.gz", lambda t: (json.dumps({"text": x}) + "\n" for x in t), ()),
    "bzip2": ("a.jsonl.bz2", lambda t: (json.dumps({"text": x}) + "\n" for x in t), ()),
    "xz": ("a.jsonl.xz", lambda t: (json.dumps({"text": x}) + "\n" for x in t), ()),
    "zstd": ("a.jsonl.zst", lambda t: (json.dumps({"text": x}) + "\n" for x in t), ()),
    "UTF-16": ("utf16.log", lambda t: (f"{x}\n" for x in t), ()),
    "server-sent events": ("a.sse", as_events, ()),
    "joined lines": ("j.log", lambda t: (f"{x}\n  {x}\n" for x in t), ("--join",)),
}


def opened(path: Path) -> IO[str] | None:
    """A file to write text into, compressed and encoded as its name says; None where that needs a package."""
    match path.suffix:
        case ".gz":
            return cast(IO[str], gzip.open(path, "wt", compresslevel=1))
        case ".bz2":
            return cast(IO[str], bz2.open(path, "wt", compresslevel=1))
        case ".xz":
            return cast(IO[str], lzma.open(path, "wt", preset=0))
        case ".zst":
            try:
                zstandard: Any = importlib.import_module("zstandard")
            except ImportError:
                return None
            return cast(IO[str], zstandard.open(path, "wt"))
    return path.open("w", encoding="utf-16" if path.name.startswith("utf16") else "utf-8")


def check(path: Path, *options: str) -> tuple[int, float, float, str]:
    """Exit status, peak in MiB, seconds, and the last message of `guard check`."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "check", "--quiet", "--input", str(path), *options],
        capture_output=True,
        text=True,
    )
    *said, peak = done.stderr.strip().splitlines() or [""]
    return done.returncode, float(peak.split()[-1]) / 1024, time.perf_counter() - start, (said or [""])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=100, help="of text in each file")
    parser.add_argument("--line-gb", type=float, default=1, help="of the long line; 0: none")
    parser.add_argument("--formats", help="only these, with commas between")
    options = parser.parse_args()
    header("Memory of reading")
    wanted = options.formats.split(",") if options.formats else [*FORMATS]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty")
        empty.write_bytes(b"")
        base = check(empty)[1]
        for name in wanted:
            file, written, more = FORMATS[name]
            path = Path(folder, file)
            out = opened(path)
            if out is None:
                continue
            with out:
                for piece in written(texts(int(options.mb * 1e6))):
                    out.write(piece)
            code, peak, seconds, _ = check(path, *more)
            rows.append([name, f"{path.stat().st_size / 1e6:.0f}", str(code), f"{peak - base:.0f}", f"{seconds:.1f}"])
            path.unlink()
        if options.line_gb:
            path = Path(folder, "line.log")
            with path.open("wb") as raw:
                for _ in range(int(options.line_gb * 1000)):
                    raw.write(b"all is well " * 83_334)
            code, peak, seconds, said = check(path)
            size = f"{path.stat().st_size / 1e6:.0f}"
            rows.append(["one line", size, str(code), f"{peak - base:.0f}", f"{seconds:.1f}"])
            print(f"one line: {said}\n")
    table(["format", "MB", "exit status", "MiB", "s"], rows)
    print(f"The program alone: {base:.0f} MiB.")


if __name__ == "__main__":
    main()
