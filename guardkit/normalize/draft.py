"""A text on its way to its view: what is rewritten, and where each character came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """A text without its disguise, and where each of its characters came from."""

    text: str
    origin: tuple[int, ...]
    """For each character of `text` the index in the original of the character it came from; never decreasing."""
    original_length: int

    def to_original(self, index: int) -> int:
        """The index in the original that `index` of `text` stands for; the end stands for the end."""
        return self.origin[index] if index < len(self.origin) else self.original_length


Pieces = list[tuple[str, int]]  # characters and the index (in the text being rewritten) that they come from


class Draft:
    """A text that is rewritten step by step; `origin` leads from each of its characters back to the first text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.origin: Sequence[int] = range(len(text))

    def rewrite(self, pattern: re.Pattern[str], replace: Callable[[re.Match[str]], Pieces | None]) -> bool:
        """Replace what `pattern` matches by the pieces that `replace` gives (None: leave it); True if any changed."""
        if pattern.search(self.text) is None:  # so it is nearly always
            return False
        found = ((match, replace(match)) for match in pattern.finditer(self.text))
        return self.replace((m.start(), m.end(), pieces) for m, pieces in found if pieces is not None)

    def replace(self, spans: Iterable[tuple[int, int, Pieces]]) -> bool:
        """Replace spans of the text, given from left to right, by pieces; True if there were any."""
        parts: list[str] = []
        origin: list[int] = []
        at = 0
        for start, end, pieces in spans:
            parts.append(self.text[at:start])
            origin.extend(self.origin[at:start])
            for chars, index in pieces:
                parts.append(chars)
                origin.extend([self.origin[index]] * len(chars))
            at = end
        if not at:
            return False
        parts.append(self.text[at:])
        origin.extend(self.origin[at:])
        self.text, self.origin = "".join(parts), origin
        return True
