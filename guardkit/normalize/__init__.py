"""The normalised view: what a text says once its disguise is taken off, for a guard to judge beside the text itself.

A model that knows "bomb" need not know "b0mb", "b o m b", "ｂｏｍｂ", "bоmb" with a Cyrillic о, "&#98;omb" or base64;
the language model behind the guard usually does. The view undoes what is sure and cheap to undo, and keeps, for every
character, where it came from, so a finding in the view can be shown in the text:

- `escapes`: escapes of JSON and other languages, entities, percent-encoding, quoted-printable; tags, comments, line
  ends and cut strings inside words
- `encodings`: base64, base32, hex, binary, character codes, Morse, Punycode, where they turn into text
- `ciphers`: shifted or mirrored Latin letters, reversed text
- `codes`: calls of chr, Braille, uuencode, base85, numbers and names for letters
- `letters`, `spelling`, `apart`, `blanks`: letters hidden, foreign, set apart, replaced, drawn, repeated; blanks left
  out

Not undone: encrypted data, base58, ciphers of other alphabets than the Latin or with a key, arithmetic and most code
that builds a text, letters in a table or numbered one by one, and what changes the words themselves: Pig Latin and its
like, vowels left out, letters or words in another order.

Both texts are judged, so a wrong change here costs a second look and never a verdict. It would still cost it on every
log line, so each rule asks for a reason that ordinary text does not give: another script inside one word, digits
inside something that reads like a word, four single letters in a row. Writing in its own script stays as it is.

Every step is one pass of an expression that cannot backtrack (or a loop over its matches): time is linear.
"""

from __future__ import annotations

import re

from guardkit.disguises import (
    ALPHABET,
    ASCII_LETTER,
    HIDDEN_RUN,
    HINT_RARE,
    HINT_SPACED,
    HINT_SPACED_WIDE,
    HOT,
    LOWER,
    MAX_CHARS,
    NOT_LETTERS,
    REPEATED,
)
from guardkit.normalize.apart import join_marked
from guardkit.normalize.blanks import split_words
from guardkit.normalize.draft import Draft, View
from guardkit.normalize.letters import drop_hidden, fold_letters, fold_words
from guardkit.normalize.spelling import join_spaced, read_drawn, read_leet, squeeze
from guardkit.normalize.unwrap import unwrap

STRUCK = re.compile("[^\\W\\d_]\b(?=[^\\W\\d_]| )")  # as on a terminal, a backspace takes back the letter before it

__all__ = ["View", "normalized_view"]


def normalized_view(text: str) -> View | None:
    """The text as it reads, or None when that is the text itself (which is so for nearly all text)."""
    head = text if len(text) <= MAX_CHARS else text[:MAX_CHARS]
    draft = Draft(head)
    if head.count("\b") > 2:
        draft.rewrite(STRUCK, lambda _: [])
    if not head.isascii() and HIDDEN_RUN.search(head):
        drop_hidden(draft)
    unwrap(draft)
    _respell(draft)
    split_words(draft)
    return None if draft.text == head else View(draft.text, tuple(draft.origin), len(text))


def _respell(draft: Draft) -> None:
    """Undo what is done to letters one by one: hidden, foreign, set apart, replaced, repeated."""
    read_drawn(draft)
    join_marked(draft)
    head = draft.text
    rare = bool(HINT_RARE.search(head))
    if head.isascii():
        hidden, words = rare, False
        spaced = bool(HINT_SPACED.search(head))
        repeats = _has_repeats(head.encode("ascii"))
    else:
        words = any(hint.search(head) for hint in HOT) or bool(ALPHABET.search(head) and ASCII_LETTER.search(head))
        hidden = words or rare
        spaced = bool(HINT_SPACED_WIDE.search(head))
        repeats = bool(REPEATED.search(head))
    if not (rare or words or spaced or repeats):
        return
    if hidden:
        drop_hidden(draft)
    if words:
        fold_letters(draft)
    if (spaced or hidden) and join_spaced(draft) and not draft.text.isascii():
        fold_words(draft)  # letters of several alphabets, now in one word
    if rare or draft.text is not head:
        read_leet(draft)
    if repeats or draft.text is not head:
        squeeze(draft)


def _has_repeats(raw: bytes) -> bool:
    """Four equal ASCII letters in a row, found without a backreference (which costs as much per letter as all else).

    The text as one number, xored with itself moved by a byte, has a zero byte wherever two neighbours are equal.
    Without anything but letters, so that indents, rules and zeros are no trigger.
    """
    letters = raw.translate(LOWER, NOT_LETTERS)
    number = int.from_bytes(letters, "big")
    return b"\0\0\0" in (number ^ (number >> 8)).to_bytes(len(letters), "big")
