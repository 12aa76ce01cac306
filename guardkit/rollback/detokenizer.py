"""Tokens of a language model in, text out as soon as its characters are complete; and back again."""

from __future__ import annotations

from collections.abc import Callable

REACH = 4  # tokens before the newest that may change how it is spelled (blanks, parts of a character)


class Detokenizer:
    """decode: token ids to text, special tokens left out."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._from, self._done = 0, 0  # ids before `_done` are told; from `_from` on they are decoded again
        self._told = ""  # the text of those between the two

    @property
    def n_tokens(self) -> int:
        return len(self._ids)

    def add(self, token: int) -> str:
        """The text that `token` completes."""
        self._ids.append(token)
        text = self._decode(self._ids[self._from :])
        if text.endswith("\ufffd"):  # a part of a character
            return ""
        return self._tell(text)

    def finish(self) -> str:
        """The text of what never became a character."""
        return self._tell(self._decode(self._ids[self._from :]))

    def _tell(self, text: str) -> str:
        new = text[len(self._told) :]
        self._from, self._done = max(self._done - REACH, 0), len(self._ids)
        self._told = self._decode(self._ids[self._from : self._done])
        return new

    def keep(self, n_tokens: int) -> None:
        """Forget all but the first `n_tokens` tokens."""
        del self._ids[n_tokens:]
        self._from, self._done = max(n_tokens - REACH, 0), n_tokens
        self._told = self._decode(self._ids[self._from : self._done])
