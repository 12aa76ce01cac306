"""The tokenizer of the multilingual model: XLM-R's Unigram pieces over the runtime's units.

* No text becomes unknown: a character that no piece has is spelled in UTF-8 bytes.
* Case, compatibility forms and invisible characters vanish. Of the spellings with and without accents the one with
  fewer pieces counts: accents tell Vietnamese words apart, and disguise English ones.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from guardkit.models.nano.units import Classes, Word, is_number, numbered, scan

WORD_CACHE = 1 << 15
CLS, PAD, SEP, NUMBER = 0, 1, 2, 3
FIRST_BYTE_ID = 4
FIRST_PIECE_ID = FIRST_BYTE_ID + 256
_UNKNOWN = -30.0  # log-probability of a character that no piece has: below every piece's

_UNSPACED = (
    (0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F), (0x20000, 0x323AF),
)  # fmt: skip
CLASSES = Classes(_UNSPACED, "c")
_DROPPED = frozenset(("Me", "Cc", "Cf", "Zs", "Zl", "Zp"))


def _kept(char: str) -> bool:
    return unicodedata.category(char) not in _DROPPED and not "\ufe00" <= char <= "\ufe0f" and char != "\u0307"


def _accent(char: str) -> bool:
    return "\u0300" <= char <= "\u036f"


@lru_cache(maxsize=1 << 12)
def _plain(char: str) -> str:
    """A character without its accents."""
    apart = unicodedata.normalize("NFD", char)
    return "".join(c for c in apart if not _accent(c)) if any(map(_accent, apart)) else char


@lru_cache(maxsize=1 << 14)
def fold(cluster: str) -> str:
    """A character with its marks as the vocabulary spells it: compatibility form, lower case, nothing invisible."""
    shown = "".join(
        chr(ord(c) - 0xE0000) if "\U000e0020" <= c <= "\U000e007e" else c  # tag characters: ASCII that no screen shows
        for c in cluster
    )
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", shown).lower())
    return "".join(filter(_kept, plain))


def _clusters(word: str) -> list[tuple[int, str]]:
    """(index, character with the marks behind it) of a word."""
    out: list[tuple[int, str]] = []
    for i, char in enumerate(word):
        joins = unicodedata.combining(char) or "\u1160" <= char <= "\u11ff"  # a mark; a later part of a Korean syllable
        if joins and out:
            out[-1] = (out[-1][0], out[-1][1] + char)
        else:
            out.append((i, char))
    return out


Spelled = list[tuple[int, str]]  # (index of the character it comes from, folded character)


class UnigramTokenizer:
    """Text to token ids with the index of each token's first character.

    `encode(text)` returns `(ids, starts)`, both of the same length; `starts[i]` is a character index into `text`.
    `stable_chars(text)` tells how many leading characters no later text can re-tokenise.
    """

    def __init__(self, pieces: Path | Sequence[str], scores: Path | Sequence[float]):
        """pieces: a file with one a line, or themselves, in the order of their ids from `FIRST_PIECE_ID` on; scores:
        their log-probabilities (a .npy file of float16, or themselves)."""
        entries = pieces.read_text(encoding="utf-8").split("\n") if isinstance(pieces, Path) else list(pieces)
        if not entries[-1]:
            del entries[-1]
        self._ids = dict(zip(entries, range(FIRST_PIECE_ID, FIRST_PIECE_ID + len(entries)), strict=True))
        known = np.load(scores).astype(np.float32).tolist() if isinstance(scores, Path) else list(scores)
        self._scores = [0.0] * FIRST_PIECE_ID + known
        self.size = FIRST_PIECE_ID + len(entries)
        self._longest = max(map(len, entries))
        self._word = lru_cache(maxsize=WORD_CACHE)(self._encode_word)
        self.made_of = (pieces, scores) if isinstance(pieces, Path) and isinstance(scores, Path) else None

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        ids, starts, _ = scan(text, CLASSES, self._word, NUMBER)
        return ids, starts

    def stable_chars(self, text: str) -> int:
        """The length of the longest prefix whose tokens are final, whatever text may follow."""
        return scan(text, CLASSES, self._word, NUMBER)[2]

    def _encode_word(self, word: str) -> Word:
        """The tokens of one unit; starts count from its first character."""
        if word.isascii():
            spelled: Spelled = [(i, c) for i, c in enumerate(word.lower()) if c >= " " and c != "\x7f"]
        else:
            spelled = [(i, c) for i, cluster in _clusters(word) for c in fold(cluster)]
        text = "".join(c for _, c in spelled)
        if not text:
            return (), ()
        if is_number(text):
            return (NUMBER,), (spelled[0][0],)
        if (letters := numbered(text)) is not None:
            begin, end = letters
            ids, starts = self._pieces(spelled[begin:end])
            if begin == 0:
                return (*ids, NUMBER), (*starts, spelled[end][0])
            return (NUMBER, *ids), (spelled[0][0], *starts)
        best = self._pieces(spelled)
        if not word.isascii():
            bare = [(i, c) for i, c in spelled if not _accent(c)]
            plain = [(i, c) for i, char in spelled for c in _plain(char)]
            for other in (bare, plain):
                if other and other != spelled:
                    found = self._pieces(other)
                    best = found if len(found[0]) < len(best[0]) else best
        return best

    def _pieces(self, spelled: Spelled) -> Word:
        """The likeliest pieces of a unit. A word's first piece carries the sign of a word's beginning."""
        text = "".join(c for _, c in spelled)
        begins = CLASSES[ord(text[0])] == "w"
        if begins:
            text = "▁" + text
        size = len(text)
        known, scores, longest = self._ids, self._scores, self._longest
        best = [0.0] + [-1e9] * size
        back = [(0, 0)] * (size + 1)  # (start, id; 0: no piece)
        for at in range(size):
            so_far = best[at]
            for end in range(at + 1, min(size, at + longest) + 1):
                piece = known.get(text[at:end])
                if piece is None:
                    if end > at + 1:
                        continue
                    score, piece = so_far + _UNKNOWN, 0
                else:
                    score = so_far + scores[piece]
                if score > best[end]:
                    best[end] = score
                    back[end] = (at, piece)
        ids: list[int] = []
        starts: list[int] = []
        at = size
        while at:
            start, piece = back[at]
            origin = spelled[max(0, start - begins)][0]
            if piece:
                ids.append(piece)
                starts.append(origin)
            elif text[start] != "▁":
                for byte in reversed(text[start].encode("utf-8", "surrogatepass")):
                    ids.append(FIRST_BYTE_ID + byte)
                    starts.append(origin)
            at = start
        return tuple(reversed(ids)), tuple(reversed(starts))
