"""A tokenizer without a vocabulary, for models that take text: it only cuts, and every character is in some token."""

from __future__ import annotations

import re

MAX_CHARS = 48

# A long run is cut every MAX_CHARS characters from its start, so the cuts depend on the text alone.
_PIECE = re.compile(rf"\S{{{MAX_CHARS}}}|\S{{1,{MAX_CHARS - 1}}}\s?|\s{{1,{MAX_CHARS}}}")


class WordTokenizer:
    """A token is a word with the blank after it; further blanks are tokens of their own. All ids are 0."""

    made_of = ()

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        starts = [piece.start() for piece in _PIECE.finditer(text)]
        return [0] * len(starts), starts

    def stable_chars(self, text: str) -> int:
        """All but a last word or run of blanks, less what the fixed cut has closed."""
        word_end = len(text.rstrip())
        blanks = len(text) - word_end
        if not blanks:
            return len(text) - _last_word(text) % MAX_CHARS
        if _last_word(text[:word_end]) % MAX_CHARS:
            blanks -= 1  # the first one belongs to the word
        return len(text) - blanks % MAX_CHARS


def _last_word(text: str) -> int:
    """The length of the word that `text` ends with."""
    at = len(text)
    while at and not text[at - 1].isspace():
        at -= 1
    return len(text) - at
