"""Incremental re-tokenisation: text that arrives cut anywhere becomes tokens that later text cannot change.

Works for every tokenizer that can tell a stable prefix. What is not stable yet (mostly the last unfinished word) is
the tail; its length is bounded by the tokenizer, whatever the text.
"""

from __future__ import annotations

import re

from guardkit.models.base import Tokenizer

Cut = tuple[list[int], list[int], str, int]
"""Token ids, the index of each one's first character, the text that they were made from, and where it ends."""

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class SurrogateJoiner:
    """Joins surrogate pairs that JSON or UTF-16 sources deliver as two code units, also across deltas."""

    def __init__(self) -> None:
        self.carry = ""

    def push(self, text: str) -> str:
        """What is complete of `text`; a high surrogate at its end waits for the next call."""
        if self.carry:
            text, self.carry = self.carry + text, ""
        if text.isascii():
            return text
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self.carry = text[:-1], text[-1]
        return _PAIR.sub(lambda m: m[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)

    def finish(self) -> str:
        text, self.carry = self.carry, ""
        return text


class IncrementalTokenizer:
    """`push` text, get final tokens; their starts count characters from the first push on (or from `origin`)."""

    def __init__(self, tokenizer: Tokenizer, origin: int = 0):
        self._tokenizer = tokenizer
        self._offset = origin
        self.tail = ""

    def push(self, text: str) -> Cut:
        self.tail += text
        return self._take(self._tokenizer.stable_chars(self.tail))

    def finish(self) -> Cut:
        """The tokens of the tail: no more text follows."""
        return self._take(len(self.tail))

    def skip(self, n_chars: int) -> None:
        """Count characters that are no part of the tokenised text. Only with an empty tail."""
        self._offset += n_chars

    def peek(self) -> Cut:
        """The tokens of the tail as if the text ended here."""
        ids, starts = self._tokenizer.encode(self.tail)
        return ids, [self._offset + s for s in starts], self.tail, self._offset + len(self.tail)

    def _take(self, n_chars: int) -> Cut:
        text, self.tail = self.tail[:n_chars], self.tail[n_chars:]
        ids, starts = self._tokenizer.encode(text) if text else ([], [])
        starts = [self._offset + s for s in starts]
        self._offset += n_chars
        return ids, starts, text, self._offset
