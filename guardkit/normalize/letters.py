"""Letters that are hidden, turned, or drawn like others."""

from __future__ import annotations

import re
import unicodedata

from guardkit.disguises import (
    ASCII_LETTER,
    BADGES,
    EXEMPT,
    FLAG_PAIRS,
    FLAG_TAGS,
    FLIP_ONLY,
    FLIPPED,
    FORCED,
    HIDDEN_RUN,
    LOOSE_MARK,
    MAX_LEET,
    NATIVE_JOINER,
    OVERLAYS,
    OVERRIDE,
    RARE,
    REGIONAL,
    STROKED,
    STRONG,
    SYMBOLS,
    UPSIDE_DOWN,
    WEAK,
    WORD,
)
from guardkit.normalize.draft import Draft, Pieces

# --- invisible and turned characters ---------------------------------------------------------------------------------


def _read_override(match: re.Match[str]) -> Pieces | None:
    # Origins may not decrease, so all of the reversed text points at where it begins.
    return [(match[1][::-1], match.start())] if ASCII_LETTER.search(match[1]) else None


def _turn_over(match: re.Match[str]) -> Pieces | None:
    if sum(char in FLIP_ONLY for char in match[0]) < 3:  # phonetic spelling uses one or two of these letters
        return None
    return [("".join(FLIPPED.get(char, char) for char in reversed(match[0])), match.start())]


def _drop_hidden(match: re.Match[str]) -> Pieces | None:
    run, start = match[0], match.start()
    before = match.string[start - 1 : start] if start else ""
    after = match.string[match.end() : match.end() + 1]
    if (before == "\U0001f3f4" and FLAG_TAGS.fullmatch(run)) or (run == "\ufeff" and not start):
        return None
    if run[0] < "\xa0":  # control characters: between letters they hide, elsewhere they are format
        return [] if before.isalpha() and after.isalpha() else None
    if len(run) <= 2:
        in_emoji = after == "\u20e3" or (before > " " and not before.isalnum())
        if in_emoji and not run.strip("\u200d\ufe0e\ufe0f"):
            return None
        native = [char for char in (before, after) if NATIVE_JOINER.match(char)]
        if native and not any(char.isalpha() for char in (before, after) if char not in native):
            return None
    if len(run) > 31 and len(set(run)) == 2:
        for zero in sorted(set(run)):
            if (text := _bits(run, zero)) is not None:
                return [(f" {text}", start)]
    # Text written in characters that no screen shows: as tags, or as bytes in variation selectors.
    pieces = [(chr(code), start + i) for i, char in enumerate(run) if 32 <= (code := ord(char) - 0xE0000) <= 126]
    selectors = [(chr(code), start + i) for i, char in enumerate(run) if 32 <= (code := ord(char) - 0xE00F0) <= 126]
    pieces = pieces or (selectors if len(selectors) > 1 else [])
    if len(pieces) > 3 and before.isalnum():
        pieces.insert(0, (" ", start))  # a message of its own, no part of the word it hides behind
    return pieces


def _bits(run: str, zero: str) -> str | None:
    """Text written in two hidden characters, eight a byte."""
    bits = "".join("0" if char == zero else "1" for char in run)
    raw = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8))
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and any(map(str.isalpha, text)) else None


def _spell_flags(match: re.Match[str]) -> Pieces | None:
    letters = "".join(chr(ord(char) - 0x1F1E6 + 65) for char in match[0])
    if len(letters) % 2 == 0 and all(letters[i : i + 2] in FLAG_PAIRS for i in range(0, len(letters), 2)):
        return None
    return [(letter.lower(), match.start() + i) for i, letter in enumerate(letters)]


# --- letters that pass for others ------------------------------------------------------------------------------------

_ASCII: dict[str, str] = {}  # a character -> the ASCII that it looks like
_KNOWN: dict[str, str] = {}  # a character -> its kind, see _Kinds
for _kind, _table in (("s", STRONG), ("w", WEAK), ("r", RARE), ("l", STROKED), ("y", SYMBOLS)):
    for _letter, _alike in _table.items():
        for _char in _alike:
            _KNOWN[_char] = _kind
            _ASCII[_char] = _letter
for _first, _base in BADGES:
    for _i in range(26 if _first != 0x24C2 else 1):
        _KNOWN[chr(_first + _i)] = "C" if _first == 0x1F150 else "c"  # a single 🅰, 🅿 or Ⓜ is a sign
        _ASCII[chr(_first + _i)] = chr(_base + _i)


class _Kinds(dict[int, str]):
    """Code point -> kind of character, filled as characters are met (a translation table for `str.translate`).

    a ASCII letter, l accented Latin letter, u Latin letter with an accent of no everyday spelling, r rare Latin
    letter, C and c compatibility forms (C: wherever they stand), s and w letters of other alphabets that are or
    nearly are drawn like ASCII, o those that are not, y sign, m mark, - anything else.
    """

    def __missing__(self, code: int) -> str:
        kind = self[code] = self._kind(chr(code), code)
        return kind

    def _kind(self, char: str, code: int) -> str:
        if code < 128:
            return "a" if char.isalpha() else "-"
        if char in _KNOWN:
            return _KNOWN[char]
        category = unicodedata.category(char)
        if category[0] == "M":
            return "m"
        forced = any(lo <= code <= hi for lo, hi in FORCED)
        plain = unicodedata.normalize("NFKC", char)
        if char in EXEMPT or category == "No" or (category == "So" and not forced):
            return "-"  # m², ½, ①, ™ are spelling, not disguise
        if (plain != char and plain.isascii()) or category == "So":
            _ASCII[char] = "".join(c for c in plain if c.isalnum())
            return "C" if forced else "c"
        base = unicodedata.normalize("NFKD", char)[0]
        if base == char:
            return "o" if char.isalpha() else "-"
        kind = self[ord(base)]
        if kind == "a":
            _ASCII[char] = base
            return "u" if 0x1E00 <= code <= 0x1E9F or (0x1DD <= code <= 0x24F and char not in "ȘșȚț") else "l"
        if kind in "swrl" and base in _ASCII:
            _ASCII[char] = _ASCII[base]
            return "w" if kind in "sw" else kind
        return "o" if char.isalpha() else "-"


_KINDS = _Kinds()


def _fold_word(match: re.Match[str]) -> Pieces | None:
    word, start = match[0], match.start()
    if word.isascii():
        return None
    kinds = word.translate(_KINDS)
    have = set(kinds)
    fold = "C"
    letters = len(kinds) - kinds.count("m") - kinds.count("-") - kinds.count("y")
    foreign = kinds.count("s") + kinds.count("w")
    if letters >= 3:
        fold += "rc"
        if foreign and have & set("alurCc") and "o" not in have and not (foreign == 1 and word[0] in "μµΔΩ"):
            fold += "swlu"  # several alphabets in one word; 5 μmol, ΔTmax and PDFы are spelling
        if (letters > 3 and not have & set("aswo")) or kinds.count("u") > 1:
            fold += "lu"  # no plain letter at all, or accents that hardly any language uses
    if kinds.count("s") == letters == foreign > 1 and _among_latin(match):
        fold += "s"
    marked = "m" in have and (
        "mmm" in kinds
        or bool(OVERLAYS.search(word))
        or sum(len(unicodedata.normalize("NFC", m[0])) > 1 for m in LOOSE_MARK.finditer(word)) > 1
    )
    if not marked and "y" not in have and not have & set(fold):
        return None
    pieces: Pieces = []
    for i, (char, kind) in enumerate(zip(word, kinds, strict=True)):
        if kind == "m" and marked:
            continue
        if kind in fold or (kind == "y" and 0 < i < len(word) - 1 and kinds[i - 1] == kinds[i + 1] == "a"):
            char = _ASCII.get(char, char)
        pieces.append((char, start + i))
    return pieces if "".join(chars for chars, _ in pieces) != word else None


def _among_latin(match: re.Match[str]) -> bool:
    """A word that is all lookalikes is a lookalike where nothing around it is truly of its alphabet."""
    if len(match[0]) > MAX_LEET:
        return False
    kinds = match.string[max(0, match.start() - 60) : match.end() + 60].translate(_KINDS)
    return not ("w" in kinds or "o" in kinds) and kinds.count("a") >= kinds.count("s")


# --- the steps -------------------------------------------------------------------------------------------------------


def drop_hidden(draft: Draft) -> None:
    """Take out what no screen shows, and read what is shown from right to left."""
    draft.rewrite(OVERRIDE, _read_override)
    draft.rewrite(HIDDEN_RUN, _drop_hidden)


def fold_letters(draft: Draft) -> None:
    """Turn letters back, spell out flags, and put ASCII letters for those that pass for them."""
    draft.rewrite(UPSIDE_DOWN, _turn_over)
    draft.rewrite(REGIONAL, _spell_flags)
    fold_words(draft)


def fold_words(draft: Draft) -> None:
    """Put ASCII letters for those that pass for them, in words that mix alphabets."""
    draft.rewrite(WORD, _fold_word)
