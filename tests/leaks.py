"""The leak test's parts that belong to no framework: scripted texts, their cutting, and what an observer may see.

Every character of the flagged span is `FLAGGED_MARK` and every one after it `AFTER_MARK`, and neither occurs anywhere
else, so that one of them in what a consumer, a state or a checkpoint holds is a leak, however small the pieces are.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

from guardkit.testing import FakeGuard

FLAGGED_MARK, AFTER_MARK = "¶", "§"
FLAGGED = "¶¶¶¶ ¶¶¶"  # two tokens: the second completes the script's key
SAFE = "one fine word after another comes along here and nothing in them is wrong at all so they all may pass in peace"
BAD = f"{SAFE} {FLAGGED} §§ §§§§ §§ §§§"
CONTROVERSIAL = "hmm"
SCRIPT = {FLAGGED: "unsafe", CONTROVERSIAL: "controversial"}
SIZES = (1, 3, 7, len(BAD))  # characters a chunk: from one to the whole
VIOLATION = "withheld by the guard"


def make_guard(**settings: Any) -> FakeGuard:
    """A guard that blocks `FLAGGED` and flags `CONTROVERSIAL`."""
    return FakeGuard({**SCRIPT, **settings.pop("script", {})}, **settings)


def cut(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


class Source:
    """A scripted stream that knows how far it has been read: `sent` characters, `done` at its end.

    pause: half-way through it waits until `Seen.add` has reported all that a guard with the hold-back `pause` must
    have let out by then. That makes "while the source is still sending" certain where source and consumer run in
    threads of their own; a guard that lets nothing out in time fails with an AssertionError.
    """

    def __init__(self, text: str, size: int, pause: int | None = None):
        self.text, self.pieces = text, cut(text, size)
        self.sent = 0
        self.done = False
        self.pause = pause
        self._enough = threading.Event()

    def __iter__(self) -> Iterator[str]:
        for i, piece in enumerate(self.pieces):
            if self._waits_at(i) and not self._enough.wait(60):
                raise AssertionError("the source waited for its text in vain")
            self.sent += len(piece)
            yield piece
        self.done = True

    async def __aiter__(self) -> AsyncIterator[str]:
        for i, piece in enumerate(self.pieces):
            if self._waits_at(i) and not await asyncio.to_thread(self._enough.wait, 60):
                raise AssertionError("the source waited for its text in vain")
            self.sent += len(piece)
            yield piece
        self.done = True

    def shown(self, text: str) -> None:
        if self.pause is not None and self.behind(len(text), self._sent_before(self._middle)) <= self.lag(self.pause):
            self._enough.set()

    def behind(self, shown: int, sent: int) -> int:
        """Tokens that were sent and not shown."""
        return len(self.text[shown:sent].split())

    def lag(self, holdback: int) -> int:
        """Tokens that may be sent and not shown: those held back, an unfinished one, and those of the last piece."""
        return holdback + 1 + max(len(p.split()) for p in self.pieces)

    @property
    def _middle(self) -> int:
        return len(self.pieces) // 2

    def _sent_before(self, i: int) -> int:
        return sum(map(len, self.pieces[:i]))

    def _waits_at(self, i: int) -> bool:
        return self.pause is not None and i > 0 and i == self._middle and not self._enough.is_set()


class Seen:
    """What a consumer saw, piece by piece, and how far the source was at that time."""

    def __init__(self, source: Source | None = None):
        self.source = source
        self.pieces: list[str] = []
        self.sent: list[int] = []
        self.early = 0  # pieces that came while the source was still sending

    def add(self, text: str) -> None:
        if not text:
            return
        self.pieces.append(text)
        if self.source is not None:
            self.sent.append(self.source.sent)
            self.early += not self.source.done
            self.source.shown(self.text)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def check_clean(self, shown_early: int = 0) -> None:
        """Nothing flagged was seen, but for the `shown_early` characters of a hold-back that is declared too short."""
        assert self.text.count(FLAGGED_MARK) <= shown_early, self.text
        assert AFTER_MARK not in self.text, self.text

    def check_complete(self, text: str) -> None:
        """All of `text` arrived, once and in order."""
        assert self.text == text

    def check_live(self, holdback: int) -> None:
        """Text came while the source was sending, never more than `holdback` tokens and an unfinished one behind.

        For a source and a consumer in step; where each runs in a thread of its own, let the source pause.
        """
        assert self.source is not None
        shown, behind = 0, []
        for piece, sent in zip(self.pieces, self.sent, strict=True):
            behind.append(self.source.behind(shown, sent))
            shown += len(piece)
        if len(self.source.pieces) > 1 and len(self.source.text.split()) > holdback + 2:
            assert self.early, "nothing came before the source had ended"
        assert max(behind, default=0) <= self.source.lag(holdback), behind


def strings_in(value: Any, _seen: set[int] | None = None) -> Iterator[str]:
    """Every text in a value, however deep: mappings with their keys, sequences, dataclasses, models, any object's own
    attributes, bytes as text."""
    seen = set() if _seen is None else _seen
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes | bytearray):
        yield value.decode("utf-8", "replace")
    elif value is None or isinstance(value, int | float | complex | type) or id(value) in seen:
        return
    else:
        seen.add(id(value))
        yield from _inside(value, seen)
        seen.discard(id(value))


def _inside(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key, seen)
            yield from strings_in(item, seen)
    elif isinstance(value, BaseException):
        yield str(value)
        yield from strings_in(value.args, seen)
    elif isinstance(value, Iterable) and isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from strings_in(item, seen)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from strings_in(getattr(value, field.name, None), seen)
    elif hasattr(value, "model_fields_set"):
        yield from strings_in(dict(value.__dict__), seen)
        yield from strings_in(value.model_extra or {}, seen)
    elif hasattr(value, "__dict__"):
        yield from strings_in(vars(value), seen)


def check_no_trace(value: Any, what: str) -> None:
    """No flagged character anywhere in a state, a checkpoint, a message or a list of events."""
    for text in strings_in(value):
        for mark in (FLAGGED_MARK, AFTER_MARK, "\\u00b6", "\\u00a7"):
            assert mark not in text, f"{what}: {text[:300]!r}"
