"""Incremental re-tokenisation: text that arrives cut anywhere becomes tokens that later text cannot change.

Works for every tokenizer that can tell a stable prefix. What is not stable yet (mostly the last unfinished word) is
the tail; its length is bounded by the tokenizer, whatever the text.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable, Sequence

from guardkit.models.base import Tokenizer

Cut = tuple[list[int], list[int], str, int]
"""Token ids, the index of each one's first character, the text that they were made from, and where it ends."""

Group = tuple[list[int], list[int], str]
"""Token ids that share characters, the index of each one's first in the text that they stand for."""

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
        self.offset = origin  # where the tail begins
        self.tail = ""

    def push(self, text: str) -> Cut:
        self.tail += text
        return self._take(self._tokenizer.stable_chars(self.tail))

    def finish(self) -> Cut:
        """The tokens of the tail: no more text follows."""
        return self._take(len(self.tail))

    def skip(self, n_chars: int) -> None:
        """Count characters that are no part of the tokenised text. Only with an empty tail."""
        self.offset += n_chars

    def peek(self) -> Cut:
        """The tokens of the tail as if the text ended here."""
        ids, starts = self._tokenizer.encode(self.tail)
        return ids, [self.offset + s for s in starts], self.tail, self.offset + len(self.tail)

    def _take(self, n_chars: int) -> Cut:
        if not n_chars:
            return [], [], "", self.offset
        text, self.tail = self.tail[:n_chars], self.tail[n_chars:]
        ids, starts = self._tokenizer.encode(text)
        if self.offset:
            starts = list(map(self.offset.__add__, starts))
        self.offset += n_chars
        return ids, starts, text, self.offset


class IdReader:
    """Token ids in, with the text that they stand for; those that share a character stay together."""

    def __init__(self, bytes_of: Callable[[int], bytes]):
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._groups: deque[Group] = deque()  # whole ones
        self._open: Group = ([], [], "")
        self.n_whole = 0  # characters of the whole ones

    def copy(self) -> IdReader:
        """A twin that goes its own way."""
        twin = IdReader(self._bytes_of)
        twin._utf8.setstate(self._utf8.getstate())
        own, starts, text = self._open
        twin._groups, twin._open, twin.n_whole = self._groups.copy(), (own[:], starts[:], text), self.n_whole
        return twin

    def bytes_of(self, ids: Sequence[int]) -> list[bytes]:
        """Raises ValueError for an unknown id."""
        return [self._bytes_of(token_id) for token_id in ids]

    def push(self, ids: Sequence[int], known: Sequence[bytes]) -> str:
        """The text that `ids`, whose bytes are `known`, complete. Special tokens have none, and are left out."""
        texts = []
        for token_id, found in zip(ids, known, strict=True):
            if not found:
                continue
            own, starts, before = self._open
            text = self._utf8.decode(found)
            own.append(token_id)
            starts.append(len(before))
            texts.append(text)
            self._open = (own, starts, before + text)
            if not self._utf8.getstate()[0]:
                self._close()
        return "".join(texts)

    def finish(self) -> str:
        """No more ids follow: U+FFFD for an incomplete character."""
        text = self._utf8.decode(b"", True)
        own, starts, before = self._open
        if own:
            self._open = (own, starts, before + text)
            self._close()
        return text

    def _close(self) -> None:
        self._groups.append(self._open)
        self.n_whole += len(self._open[2])
        self._open = ([], [], "")

    @property
    def n_chars(self) -> int:
        """Characters that are not taken yet."""
        return self.n_whole + len(self._open[2])

    @property
    def text(self) -> str:
        """That of the whole ones."""
        return "".join(text for _, _, text in self._groups)

    def waiting(self) -> Group:
        """All that is not taken, as if nothing followed."""
        return _joined([*self._groups, self._open])

    def take_whole(self, n_chars: int) -> Group:
        """The first groups that have at most `n_chars` characters together."""
        taken = []
        while self._groups and len(self._groups[0][2]) <= n_chars:
            taken.append(self._groups.popleft())
            n_chars -= len(taken[-1][2])
            self.n_whole -= len(taken[-1][2])
        return taken[0] if len(taken) == 1 else _joined(taken)

    def take(self, n_chars: int, encode: Callable[[str], tuple[list[int], list[int]]]) -> Group:
        """The first `n_chars` characters; of a group that reaches beyond, both sides are encoded anew."""
        found = self.take_whole(n_chars)
        left = n_chars - len(found[2])
        if not left:
            return found
        text = self._groups.popleft()[2]
        self._groups.appendleft((*encode(text[left:]), text[left:]))
        self.n_whole -= left
        return _joined([found, (*encode(text[:left]), text[:left])])


def _joined(groups: Sequence[Group]) -> Group:
    ids: list[int] = []
    starts: list[int] = []
    texts: list[str] = []
    at = 0
    for own, own_starts, text in groups:
        ids += own
        starts += [at + start for start in own_starts]
        texts.append(text)
        at += len(text)
    return ids, starts, "".join(texts)
