"""The normalised view: what a text says once its disguise is taken off, for a guard to judge beside the text itself.

A model that knows "bomb" need not know "b0mb", "b o m b", "ｂｏｍｂ" or "bоmb" with a Cyrillic о; the language model
behind the guard usually does. The view undoes such spellings and keeps, for every character, where it came from, so
a finding in the view can be shown in the text.

Both texts are judged, so a wrong change here costs a second look and never a verdict. It would still cost it on every
log line, so each rule asks for a reason that ordinary text does not give: another script inside one word, digits
inside something that reads like a word, four single letters in a row. Writing in its own script stays as it is.

Every step is one pass of an expression that cannot backtrack (or a loop over its matches): time is linear.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guardkit.disguises import (
    ALPHABET,
    ARTICLE_FOLLOWS,
    ASCII_LETTER,
    BADGES,
    DOLLAR,
    EXEMPT,
    FLAG_PAIRS,
    FLAG_TAGS,
    FLIP_ONLY,
    FLIPPED,
    FOLLOWERS,
    FORCED,
    FORMAT,
    HEX,
    HIDDEN_RUN,
    HINT_RARE,
    HINT_SPACED,
    HINT_SPACED_WIDE,
    HOT,
    KEEP_REPEATS,
    LEET,
    LEET_RUN,
    LEET_SHORT,
    LEET_SIGNS,
    LOOSE_MARK,
    LOWER,
    MAX_CHARS,
    MAX_LEET,
    MIN_SPACED,
    NATIVE_JOINER,
    NOT_LEET,
    NOT_LETTERS,
    OVERLAYS,
    OVERRIDE,
    RARE,
    REGIONAL,
    REPEATED,
    REPEATS,
    SPACED,
    STROKED,
    STRONG,
    SYMBOLS,
    UPSIDE_DOWN,
    WEAK,
    WORD,
    WORDLIKE,
)


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


def normalized_view(text: str) -> View | None:
    """The text as it reads, or None when that is the text itself (which is so for nearly all text)."""
    head = text if len(text) <= MAX_CHARS else text[:MAX_CHARS]
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
        return None
    draft = _Draft(head)
    if hidden:
        draft.rewrite(OVERRIDE, _read_override)
        draft.rewrite(HIDDEN_RUN, _drop_hidden)
    if words:
        draft.rewrite(UPSIDE_DOWN, _turn_over)
        draft.rewrite(REGIONAL, _spell_flags)
        draft.rewrite(WORD, _fold_word)
    if (spaced or hidden) and draft.rewrite(SPACED, _join) and not draft.text.isascii():
        draft.rewrite(WORD, _fold_word)  # letters of several alphabets, now in one word
    if rare or draft.text is not head:
        draft.rewrite(LEET, _read_leet)
    if repeats or draft.text is not head:
        draft.rewrite(REPEATS, _squeeze)
    return None if draft.text == head else View(draft.text, tuple(draft.origin), len(text))


def _has_repeats(raw: bytes) -> bool:
    """Four equal ASCII letters in a row, found without a backreference (which costs as much per letter as all else).

    The text as one number, xored with itself moved by a byte, has a zero byte wherever two neighbours are equal.
    Without anything but letters, so that indents, rules and zeros are no trigger.
    """
    letters = raw.translate(LOWER, NOT_LETTERS)
    number = int.from_bytes(letters, "big")
    return b"\0\0\0" in (number ^ (number >> 8)).to_bytes(len(letters), "big")


Pieces = list[tuple[str, int]]  # characters and the index (in the text being rewritten) that they come from


class _Draft:
    def __init__(self, text: str) -> None:
        self.text = text
        self.origin: Sequence[int] = range(len(text))

    def rewrite(self, pattern: re.Pattern[str], replace: Callable[[re.Match[str]], Pieces | None]) -> bool:
        """Replace what `pattern` matches by the pieces that `replace` gives (None: leave it); True if any changed."""
        parts: list[str] = []
        origin: list[int] = []
        at = 0
        for match in pattern.finditer(self.text):
            pieces = replace(match)
            if pieces is None:
                continue
            parts.append(self.text[at : match.start()])
            origin.extend(self.origin[at : match.start()])
            for chars, index in pieces:
                parts.append(chars)
                origin.extend([self.origin[index]] * len(chars))
            at = match.end()
        if not at:
            return False
        parts.append(self.text[at:])
        origin.extend(self.origin[at:])
        self.text, self.origin = "".join(parts), origin
        return True


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
    # Text written in characters that no screen shows: as tags, or as bytes in variation selectors.
    pieces = [(chr(code), start + i) for i, char in enumerate(run) if 32 <= (code := ord(char) - 0xE0000) <= 126]
    selectors = [(chr(code), start + i) for i, char in enumerate(run) if 32 <= (code := ord(char) - 0xE00F0) <= 126]
    pieces = pieces or (selectors if len(selectors) > 1 else [])
    if len(pieces) > 3 and before.isalnum():
        pieces.insert(0, (" ", start))  # a message of its own, no part of the word it hides behind
    return pieces


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


# --- letters set apart, digits for letters, repeats ------------------------------------------------------------------


def _join(match: re.Match[str]) -> Pieces | None:
    text, sep, start, end = match.string, match[1], match.start(), match.end()
    if not sep[0].isspace():  # a.b.c.Class, -rw-r--r--, a-b-c=1, U.S.S.R.: part of something longer
        before, after = text[start - 1 : start], text[end : end + 2]
        if before in tuple(".*_|~+,-/\\:@=$") or after[:1] in tuple("/\\:@=("):
            return None
        if after[:1] in tuple(".*_|~+,-") and (after[1:].isalnum() or (sep == "." and match[0].isupper())):
            return None
    groups: list[Pieces] = [[]]
    last = start
    for i, char in enumerate(match[0], start):
        if char.isalnum() or char in "@$!":
            if groups[-1] and text[last + 1 : i] != sep:
                groups.append([])
            groups[-1].append((char, i))
            last = i
    longest, total = max(map(len, groups)), sum(map(len, groups))
    if longest < MIN_SPACED and not (longest == MIN_SPACED - 1 and total > MIN_SPACED):
        return None  # "A B C", "e.g."; but three letters count where more spelling follows ("h o w  t o")
    if not _spelled("".join(char for group in groups for char, _ in group)):
        return None
    if sep == " " and groups[0][0][0] in "aA" and len(groups[0]) > MIN_SPACED:
        # "build a b o m b", but "to a b u s e": an article where a word comes before and another can follow.
        rest = "".join(char for char, _ in groups[0][1:]).lower()
        if ARTICLE_FOLLOWS.search(text[max(0, start - 20) : start]) and WORDLIKE.fullmatch(rest):
            groups[:1] = [groups[0][:1], groups[0][1:]]
    pieces = groups[0]
    for group in groups[1:]:
        pieces.append((" ", pieces[-1][1] + 1))
        pieces.extend(group)
    return pieces


def _spelled(letters: str) -> bool:
    """Whether single letters spell something, rather than list (a b c d), tabulate (Y N N Y) or count."""
    alphabetic = sum(map(str.isalpha, letters))
    if alphabetic < 3 or alphabetic < 2 * (len(letters) - alphabetic) or re.search("[269]", letters):
        return False
    if not re.search("[aeiou0134@!]|[^\x00-\x7f]", letters, re.IGNORECASE) or len(set(letters.lower())) < 2:
        return False
    steps = [ord(b) - ord(a) for a, b in zip(letters.lower(), letters.lower()[1:], strict=False)]
    return not (all(0 < step <= 2 for step in steps) or all(-2 <= step < 0 for step in steps))


def _read_leet(match: re.Match[str]) -> Pieces | None:
    token, start = match[0].rstrip("!"), match.start()
    if token.isalpha() or token.isdigit():
        return None
    low = token.lower()
    if low in NOT_LEET or re.search("[269]", low):
        return None
    if HEX.fullmatch(token) or FORMAT.fullmatch(low):
        return None
    read = LEET_SHORT.get(low) or _unleet(token, low)
    if not read:
        return None
    upper = sum(map(str.isupper, token)) > 1
    chars = read.upper() if upper else "".join(a if a.isalpha() else b for a, b in zip(token, read, strict=True))
    return [(char, start + i) for i, char in enumerate(chars + match[0][len(token) :])]


def _unleet(token: str, low: str) -> str | None:
    """The word that a lower-case token of letters, digits and signs spells, or None if it does not look like one."""
    letters = "".join(char for char in token if char.isalpha())
    runs = [(m.start(), m.end(), m[0]) for m in LEET_RUN.finditer(low)]
    if not letters or not (letters.islower() or letters.isupper() or letters.istitle()):
        return None  # base64 and camel case
    inner = [run for a, b, run in runs if a and b < len(low)]
    equal = any(len(run) > 1 and len(set(run)) == 1 for _, _, run in runs)
    if len(letters) < (2 if equal else 3) or any(len(run) > 2 and len(set(run)) > 1 for _, _, run in runs):
        return None
    if not inner and not DOLLAR.fullmatch(low) and low[-2:] != "$$":
        return None  # covid19, mp3, 4th: digits at an end alone count something
    last = runs[-1][2] if runs[-1][1] == len(low) else ""
    if sum(len(set(run)) for _, _, run in runs) > len(letters) + 1 or len(last) > 2:
        return None
    if len(runs) == 1 and len(set(runs[0][2])) > 1 and len(letters) < 4:
        return None  # i18n, x11y: one number, few letters
    if any(not run[0].isdigit() and a > 2 and len(low) - b > 2 for a, b, run in runs):
        return None  # user@host, main$inner, wow!great: two words and a sign
    read = list(low)
    for i, char in enumerate(low):
        read[i] = LEET_SIGNS.get(char, char)
    for i, char in enumerate(low):
        if char == "1":
            before, after = "".join(read[i - 1 : i]), "".join(read[i + 1 : i + 2])
            # One sign for two letters: l where i would not read (ki11, b1ack), else i (k1ll, su1cide).
            is_l = after in ("a", "e", "i", "o", "u") if before in tuple("bcfgpsaeiou") else False
            is_l = is_l or (before in ("e", "i", "o", "l") and after != "n") or (before == "r" and not after)
            read[i] = "l" if is_l else "i"
    word = "".join(read)
    shape = re.sub(r"(.)\1+", r"\1\1", word)  # b0000mb is still to be squeezed
    pairs = zip(shape, shape[1:] + "$", strict=True)
    doubled = re.sub(r"(.)\1", r"\1", shape)
    fits = all(b in FOLLOWERS.get(a, "") or a == b for a, b in pairs) and WORDLIKE.fullmatch(doubled)
    return word if fits and re.search("[aeiou]", word) else None


def _squeeze(match: re.Match[str]) -> Pieces | None:
    token, start = match[0], match.start()
    # Letters alone, in one case: ffff, xxxx, AAAA and base64 are no stretched words.
    if not token.isalpha() or len(set(token.lower())) < 2 or HEX.fullmatch(token):
        return None
    if not re.fullmatch("[^a-z]*[^A-Z]*", token):
        return None
    pieces: Pieces = []
    at = 0
    for m in REPEATED.finditer(token):
        pieces += [(token[i], start + i) for i in range(at, m.start() + KEEP_REPEATS)]
        at = m.end()
    return pieces + [(token[i], start + i) for i in range(at, len(token))] if at else None
