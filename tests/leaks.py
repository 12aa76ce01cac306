"""The leak test's parts that belong to no framework: scripted texts, their cutting, and what an observer may see.

Every character of the flagged span is `FLAGGED_MARK` and every one after it `AFTER_MARK`, and neither occurs anywhere
else, so that one of them in what a consumer, a state or a checkpoint holds is a leak, however small the pieces are.
"""

from __future__ import annotations

import dataclasses
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
    """A scripted stream that knows how far it has been read: `sent` characters, `done` at its end."""

    def __init__(self, text: str, size: int):
        self.text, self.pieces = text, cut(text, size)
        self.sent = 0
        self.done = False

    def __iter__(self) -> Iterator[str]:
        for piece in self.pieces:
            self.sent += len(piece)
            yield piece
        self.done = True

    async def __aiter__(self) -> AsyncIterator[str]:
        for piece in self:
            yield piece


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
        """Text came while the source was sending, never more than `holdback` tokens and an unfinished one behind."""
        assert self.source is not None
        text, shown, lag = self.source.text, 0, []
        for piece, sent in zip(self.pieces, self.sent, strict=True):
            lag.append(len(text[shown:sent].split()))
            shown += len(piece)
        if len(self.source.pieces) > 1 and len(text.split()) > holdback + 2:
            assert self.early, "nothing came before the source had ended"
        size = max(len(p.split()) for p in self.source.pieces)
        assert max(lag, default=0) <= holdback + 1 + size, lag


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
