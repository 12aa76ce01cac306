"""An answer under way: which characters came with which token, how far they were judged, and how far shown."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class Draft:
    """The visible text. ends: for each token, the length of the text behind it (equal to the one before for a token
    that completes no character). shown_tokens: whole tokens that were shown; what they say is never taken back.

    stops: strings that end the text; the first of them, and all behind it, is no part of it.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self._stops = tuple(filter(None, stops))
        self.text = ""
        self.ends: list[int] = []
        self.shown_tokens = 0

    @property
    def n_tokens(self) -> int:
        return len(self.ends)

    @property
    def shown(self) -> int:
        """Characters that were shown."""
        return self.end(self.shown_tokens)

    @property
    def settled(self) -> int:
        """Characters behind which no stop string may be under way."""
        end = len(self.text)
        for stop in self._stops:
            for n in range(min(len(stop) - 1, len(self.text)), 0, -1):
                if self.text.endswith(stop[:n]):
                    end = min(end, len(self.text) - n)
                    break
        return end

    def end(self, n_tokens: int) -> int:
        return self.ends[n_tokens - 1] if n_tokens else 0

    def add(self, piece: str) -> bool:
        """Take the next token's text; True where a stop string ends the answer in it."""
        before = len(self.text)
        self.text += piece
        self.ends.append(len(self.text))
        found = [at for stop in self._stops if (at := self.text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if not found:
            return False
        self.text = self.text[: min(found)]
        self.ends = [min(end, len(self.text)) for end in self.ends]
        return True

    def tokens_within(self, n_chars: int) -> int:
        """How many whole tokens the first `n_chars` characters hold; of tokens without text behind them none."""
        n = bisect_right(self.ends, n_chars)
        return self.whole(n)

    def whole(self, n_tokens: int) -> int:
        """`n_tokens`, less those at the end that complete no character."""
        while n_tokens and self.end(n_tokens) == self.end(n_tokens - 1):
            n_tokens -= 1
        return n_tokens

    def show(self, n_tokens: int) -> str:
        """The text up to token `n_tokens` that was not shown yet; it is from now on."""
        if n_tokens <= self.shown_tokens:
            return ""
        text = self.text[self.shown : self.end(n_tokens)]
        self.shown_tokens = n_tokens
        return text

    def drop(self, n_tokens: int) -> str:
        """Take back all but the first `n_tokens` tokens; returns their text."""
        if n_tokens < self.shown_tokens:
            raise ValueError(f"{self.shown_tokens} tokens were shown: {n_tokens} are too few to keep")
        end = self.end(n_tokens)
        dropped, self.text = self.text[end:], self.text[:end]
        del self.ends[n_tokens:]
        return dropped
