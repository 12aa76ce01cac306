"""nano's tokenizer: BERT's uncased WordPiece vocabulary with German, Spanish and French words in it, made total,
incremental and exact in its offsets.

Four things differ from BERT's own tokenizer, each because a guard needs it:

* what carries no meaning (numbers, times, ids) is folded, see `units.py`;
* no text becomes unknown: a character that the vocabulary lacks is spelled in UTF-8 bytes, which take 256 of the
  vocabulary's unused entries;
* a run without a boundary is cut every `MAX_WORD_CHARS` characters, counted from its start, so what a long run
  becomes depends on the text alone and never on where a stream happened to be cut;
* each character is folded on its own (compatibility forms, case, accents; invisible characters vanish), so the
  same text gives the same tokens in any chunking.

Only the standard library is used: the default install needs no tokenizer package.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from guardkit.models.nano.units import Classes, Word, is_number, numbered, scan

WORD_CACHE = 1 << 14
CLS, SEP = 101, 102
NUMBER = 2184  # "10": what every number becomes (chosen on dev, see training/nano/log.md)
FIRST_BYTE_ID = 104  # "[unused99]": the vocabulary's unused entries run on from here without a gap

_CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F), (0x3040, 0x30FF),
)  # fmt: skip
_CLASSES = Classes(_CJK, "p")
_DROPPED = frozenset(("Mn", "Me", "Cc", "Cf", "Zs", "Zl", "Zp"))


@lru_cache(maxsize=1 << 14)
def fold(char: str) -> str:
    """One character as the vocabulary spells it: compatibility form, lower case, no marks, nothing invisible."""
    if "\U000e0020" <= char <= "\U000e007e":  # tag characters: ASCII that no screen shows
        char = chr(ord(char) - 0xE0000)
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).lower())
    return "".join(c for c in decomposed if unicodedata.category(c) not in _DROPPED)


def _bytes_of(char: str) -> bytes:
    return char.encode("utf-8", "surrogatepass")


class NanoTokenizer:
    """Text to token ids with the index of each token's first character.

    `encode(text)` returns `(ids, starts)`, both of the same length; `starts[i]` is a character index into `text`.
    `stable_chars(text)` tells how many leading characters no later text can re-tokenise.
    """

    def __init__(self, vocab: Path | Sequence[str]):
        entries = vocab.read_text(encoding="utf-8").splitlines() if isinstance(vocab, Path) else list(vocab)
        self._vocab = {entry: i for i, entry in enumerate(entries) if not entry.startswith("[")}
        self._vocab["["] = entries.index("[")
        self.size = len(entries)
        self._longest = max(map(len, self._vocab))
        self._word = lru_cache(maxsize=WORD_CACHE)(self._encode_word)

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        ids, starts, _ = scan(text, _CLASSES, self._word, NUMBER)
        return ids, starts

    def stable_chars(self, text: str) -> int:
        """The length of the longest prefix whose tokens are final, whatever text may follow."""
        return scan(text, _CLASSES, self._word, NUMBER)[2]

    def _encode_word(self, word: str) -> Word:
        spelled: list[str] = []
        origin: list[int] = []
        for i, char in enumerate(word):
            folded = fold(char)
            spelled.append(folded)
            origin += [i] * len(folded)
        text = "".join(spelled)
        if not text:
            return (), ()
        if is_number(text):
            return (NUMBER,), (origin[0],)
        if (letters := numbered(text)) is not None:
            begin, end = letters
            ids, starts = self._pieces(text[begin:end], origin[begin:end])
            if begin == 0:
                return (*ids, NUMBER), (*starts, origin[end])
            return (NUMBER, *ids), (origin[0], *starts)
        return self._pieces(text, origin)

    def _pieces(self, text: str, origin: list[int]) -> Word:
        """The longest entries from the left. origin: the character that each one of `text` comes from."""
        ids: list[int] = []
        starts: list[int] = []
        at = 0
        while at < len(text):
            prefix = "##" if at else ""
            for end in range(min(len(text), at + self._longest), at, -1):
                token = self._vocab.get(prefix + text[at:end])
                if token is not None:
                    ids.append(token)
                    starts.append(origin[at])
                    at = end
                    break
            else:
                for byte in _bytes_of(text[at]):
                    ids.append(FIRST_BYTE_ID + byte)
                    starts.append(origin[at])
                at += 1
        return tuple(ids), tuple(starts)
