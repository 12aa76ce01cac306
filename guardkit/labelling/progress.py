"""The labels of one input, kept as they are made, so that a run that was killed goes on where it stopped.

    shards/<output>/input.json                what is labelled: its place, size and SHA-256
    shards/<output>/<first>-<stop>.labels     a block: the labels of rows in that range, gzipped lines of form and JSON
    shards/<output>/all.labels                all of them, when the output is written
    shards/<output>/done.json                 counts, and the output's size and SHA-256

Blocks may overlap, as two workers may label the same rows: labels of equal rows are equal. A block of a later round
(`--retry-errors`) wins over earlier ones.
"""

from __future__ import annotations

import gzip
import heapq
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

from guardkit.errors import LabelError
from guardkit.labelling.labels import Tally
from guardkit.labelling.store import Store

Kept = tuple[int, str, bytes]
"""A row's index, its form and its label's JSON."""
_NAME = re.compile(r"r(\d+)-(\d+)-(\d+)\.labels")
ALL = "all.labels"


@dataclass(frozen=True, order=True)
class Block:
    first: int
    stop: int
    round: int = 0

    @property
    def name(self) -> str:
        return f"r{self.round}-{self.first:012d}-{self.stop:012d}.labels"


class Progress:
    """What is known of one input. name: of its output."""

    def __init__(self, store: Store, folder: str, name: str):
        self.store, self.name = store, name
        self._folder = f"{folder}/shards/{name}"

    # -- what is labelled

    def begin(self, source: dict[str, Any]) -> None:
        """Remember what is labelled. Raises `LabelError` where labels of another input are here already."""
        self.store.tidy(self.name)
        self.store.tidy(f"{self._folder}/*")
        known = self._json("input.json")
        if known is None:
            self.store.write(f"{self._folder}/input.json", _dumped(source))
        elif known["sha256"] != source["sha256"]:
            raise LabelError(
                f"{source['path']}: changed since its labelling began: it had {known['size']:,} bytes (SHA-256 "
                f"{known['sha256'][:12]}…) and has {source['size']:,} ({source['sha256'][:12]}…); to label it anew, "
                f"remove {self.store}/{self._folder}"
            )

    def claim(self, place: dict[str, Any], other: Store) -> None:
        """Remember where dropped rows go, before the first time. Raises `LabelError` for a file that is there already
        and is not this run's: another one keeps its rows in it."""
        if self._json("dropped.json") == place:
            return
        if other.size(place["name"]) is not None:
            raise LabelError(
                f"--dropped {other}: {place['name']} is there already, and not of this run; take another place"
            )
        self.store.write(f"{self._folder}/dropped.json", _dumped(place))

    @property
    def input(self) -> dict[str, Any] | None:
        return self._json("input.json")

    @property
    def done(self) -> dict[str, Any] | None:
        return self._json("done.json")

    def finish(self, about: dict[str, Any]) -> None:
        """All is written: keep the counts, drop the blocks."""
        self.store.write(f"{self._folder}/done.json", _dumped(about))
        for block in self.blocks():
            self.store.remove(f"{self._folder}/{block.name}")

    def forget(self) -> None:
        """Drop the labels that are of no written output yet: they may be of rows that are not there any more."""
        for block in self.blocks():
            self.store.remove(f"{self._folder}/{block.name}")
        if not self.has_all:
            self.store.remove(f"{self._folder}/input.json")

    def reopen(self) -> None:
        """Labels will change: the output is to be written again."""
        self.store.remove(f"{self._folder}/done.json")

    def _json(self, name: str) -> dict[str, Any] | None:
        data = self.store.read(f"{self._folder}/{name}")
        if data is None:
            return None
        try:
            return cast(dict[str, Any], json.loads(data))
        except ValueError as error:
            raise LabelError(f"{self.store}/{self._folder}/{name} is damaged ({error}): remove the folder") from None

    # -- labels

    def blocks(self) -> list[Block]:
        found = map(_NAME.fullmatch, self.store.names(self._folder))
        return sorted(Block(int(m[2]), int(m[3]), int(m[1])) for m in found if m)

    @property
    def has_all(self) -> bool:
        return self.store.size(f"{self._folder}/{ALL}") is not None

    def add(self, block: Block, labels: Iterable[Kept]) -> None:
        self.store.write(f"{self._folder}/{block.name}", gzip.compress(b"".join(map(_line, labels)), 1, mtime=0))

    def ranges(self) -> Ranges:
        """The rows that need no judging any more."""
        return Ranges([(0, 1 << 62)] if self.has_all else [(b.first, b.stop) for b in self.blocks()])

    def labels(self) -> Iterator[Kept]:
        """All labels that are known, by row."""
        streams: list[tuple[int, int, str]] = [(b.first, b.round, b.name) for b in self.blocks()]
        if self.has_all:
            streams.append((0, -1, ALL))
        streams.sort()
        open_: list[tuple[int, int, int, Kept, Iterator[Kept]]] = []  # next row, later rounds first
        last, number = -1, 0
        while streams or open_:
            while streams and (not open_ or streams[0][0] <= open_[0][0]):
                _, round_, name = streams.pop(0)
                number += 1
                _push(open_, round_, number, self._stream(name))
            if not open_:
                continue
            index, negative, n, kept, rest = heapq.heappop(open_)
            if index > last:
                yield kept
                last = index
            _push(open_, -negative, n, rest)

    def _stream(self, name: str) -> Iterator[Kept]:
        with self.store.opened(f"{self._folder}/{name}") as file:
            try:
                for line in gzip.GzipFile(fileobj=file):
                    index, form, label = line.rstrip(b"\n").split(b" ", 2)
                    yield int(index), form.decode(), label
            except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
                raise LabelError(f"{self.store}/{self._folder}/{name} is damaged ({error}): remove it") from None

    def writing_all(self) -> Any:
        return self.store.writing(f"{self._folder}/{ALL}")


def _push(
    heap: list[tuple[int, int, int, Kept, Iterator[Kept]]], round_: int, number: int, stream: Iterator[Kept]
) -> None:
    kept = next(stream, None)
    if kept is not None:
        heapq.heappush(heap, (kept[0], -round_, number, kept, stream))


def _line(kept: Kept) -> bytes:
    return b"%d %b %b\n" % (kept[0], kept[1].encode(), kept[2])


class LabelFile:
    """Writes labels in the form of a block."""

    def __init__(self, raw: IO[bytes]):
        self._file = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=1)

    def add(self, labels: Iterable[Kept]) -> None:
        self._file.write(b"".join(map(_line, labels)))

    def close(self) -> None:
        self._file.close()


class Ranges:
    """Rows as ranges, of which many are asked for in ascending order."""

    def __init__(self, ranges: Sequence[tuple[int, int]]):
        self._ranges: list[tuple[int, int]] = []
        for first, stop in sorted(ranges):
            if self._ranges and first <= self._ranges[-1][1]:
                self._ranges[-1] = (self._ranges[-1][0], max(stop, self._ranges[-1][1]))
            elif first < stop:
                self._ranges.append((first, stop))

    def __contains__(self, index: int) -> bool:
        import bisect

        at = bisect.bisect_right(self._ranges, (index, 1 << 63)) - 1
        return at >= 0 and index < self._ranges[at][1]

    def covers(self, first: int, stop: int) -> bool:
        import bisect

        at = bisect.bisect_right(self._ranges, (first, 1 << 63)) - 1
        return at >= 0 and stop <= self._ranges[at][1]

    def gaps(self, stop: int) -> list[tuple[int, int]]:
        """What is missing below `stop`."""
        at, found = 0, []
        for first, end in self._ranges:
            if first > at:
                found.append((at, min(first, stop)))
            at = max(at, end)
            if at >= stop:
                break
        if at < stop:
            found.append((at, stop))
        return [gap for gap in found if gap[0] < gap[1]]


def _dumped(data: dict[str, Any]) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


def summed(progresses: Iterable[Progress]) -> Tally:
    """What was found in inputs whose outputs are written."""
    total = Tally()
    for progress in progresses:
        done = progress.done
        if done is not None:
            total.update(Tally.of(done["counts"]))
    return total
