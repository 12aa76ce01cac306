"""Text in the notations of programs and people: chr(72)+chr(105), _x0048_, Braille, uuencode, Ascii85, letters as
numbers from 1 to 26 or by their names in the alphabet of radio."""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from itertools import islice

from guardkit.normalize.draft import Draft, Pieces
from guardkit.normalize.encodings import UNPRINTABLE, reads_as_text
from guardkit.normalize.words import COMMON

CALL = r"(?i:n?char|chrw?|unichr|fromcharcode)\$?\((?:0[xX][0-9a-fA-F]{1,5}|[0-9]{1,6})\)"
CALLS = re.compile(rf"(?:[A-Za-z.]{{0,8}}{CALL}\s?(?:\+|\|\||&|\.|,)?\s?){{4,}}+")
CALL_CODE = re.compile(r"\((0[xX][0-9a-fA-F]{1,5}|[0-9]{1,6})\)")
CALL_HINTS = ("hr(", "HR(", "har(", "HAR(", "rW(", "ode(")
UNDERSCORED = re.compile("(?:_x[0-9a-fA-F]{4}_){3,}+")
UNDERSCORED_CODE = re.compile("_x([0-9a-fA-F]{4})_")
UUENCODED = re.compile(r"begin [0-7]{3} [^\n]{1,80}\n((?:[ -`]{2,61}\r?\n){1,2000}+)")
ASCII85 = re.compile(r"<~([!-uz\s]{10,4000})~>")
BASE85 = re.compile(r"(?<!\S)[!-~]{25,4000}(?!\S)")
SIGNS85 = bytes(33 if chr(code) in "!#$%()*+;<>?@^`{|}~" else 97 for code in range(256))
BRAILLE = dict(zip("⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵", "abcdefghijklmnopqrstuvwxyz", strict=True)) | {
    "⠀": " ", "⠠": "", "⠰": "", "⠲": ".", "⠂": ",", "⠦": "?", "⠖": "!", "⠄": "'", "⠤": "-",
}  # fmt: skip
BRAILLE_RUN = re.compile("[\u2800-\u28ff](?:[ \n]?[\u2800-\u28ff]){4,}+")
NUMBER = "(?:2[0-7]|1[0-9]|[0-9])"
NUMBERED = re.compile(rf"(?<![\w.,:/-]){NUMBER}(?:(?: ?[/|] ?|, | {{1,4}}|[,.-]){NUMBER}(?![\w])){{11,}}+")
NUMBERED_PART = re.compile(r"(\d+)(\D*)")
KEYED = re.compile(r"[\"']([\w. -]{0,24})[\"'] ?: ?([\"'])([^\"'\\\n]{1,24})\2")
DIGITS = re.compile(r"\d+")
ENOUGH, LOOKED_AT = 6, 64  # pieces that may be a text; values that are looked at first
_NAMES = """
alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo sierra
tango uniform victor whiskey xray yankee zulu alpha juliet x-ray
"""
NATO = {name: name[0] for name in _NAMES.split()}
NATO_NAME = "(?i:" + "|".join(sorted(NATO, key=len, reverse=True)) + ")"
NATO_RUN = re.compile(rf"(?<![\w-]){NATO_NAME}(?:(?:[ ,.-]|, | ?[/|\n] ?|  ){NATO_NAME}(?!\w)){{5,}}+")
NATO_PART = re.compile(rf"({NATO_NAME})([^A-Za-z]*)")


def read_codes(draft: Draft) -> bool:
    """Replace what is written as codes by the text; True if there was any."""
    text, changed = draft.text, False
    if "(" in text and any(hint in text for hint in CALL_HINTS):
        changed |= draft.rewrite(CALLS, _calls)
    if "_x" in text:
        changed |= draft.rewrite(UNDERSCORED, _underscored)
    if "begin " in text:
        changed |= draft.rewrite(UUENCODED, _uuencoded)
    if "<~" in text:
        changed |= draft.rewrite(ASCII85, _ascii85)
    if text.encode("utf-8", "replace").translate(SIGNS85).count(b"!") * 12 > len(text):
        changed |= draft.rewrite(BASE85, _base85)
    if "': " in text or '":' in text:
        changed |= _keyed(draft)
    if not text.isascii():
        changed |= draft.rewrite(BRAILLE_RUN, _braille)
    elif 3 * len(text.encode().translate(None, b"0123456789")) < 2 * len(text):
        changed |= draft.rewrite(NUMBERED, _numbered)
    if "ovember" in text or "scar" in text or "ndia" in text or "cho" in text or "NDIA" in text or "CHO" in text:
        changed |= draft.rewrite(NATO_RUN, _nato)
    return changed


def _chars(codes: list[tuple[int, int]]) -> Pieces | None:
    """Code points with their places, where they are letters for the most part."""
    if any(code > 0x10FFFF or 0xD800 <= code < 0xE000 or code < 9 for code, _ in codes):
        return None
    pieces = [(chr(code), at) for code, at in codes]
    return pieces if 2 * sum(char.isalpha() for char, _ in pieces) >= len(pieces) else None


def _calls(match: re.Match[str]) -> Pieces | None:
    found = CALL_CODE.finditer(match.string, match.start(), match.end())
    return _chars([(int(m[1], 16 if m[1][:2] in ("0x", "0X") else 10), m.start()) for m in found])


def _underscored(match: re.Match[str]) -> Pieces | None:
    found = UNDERSCORED_CODE.finditer(match.string, match.start(), match.end())
    return _chars([(int(m[1], 16), m.start()) for m in found])


def _uuencoded(match: re.Match[str]) -> Pieces | None:
    try:
        raw = b"".join(binascii.a2b_uu(line) for line in match[1].encode().splitlines() if not line.startswith(b"`"))
    except binascii.Error:
        return None
    return _whole(raw, match.start())


def _ascii85(match: re.Match[str]) -> Pieces | None:
    try:
        return _whole(base64.a85decode(match[1]), match.start())
    except ValueError:
        return None


def _base85(match: re.Match[str]) -> Pieces | None:
    """Base85 of either alphabet without marks, where it turns into text; its beginning tells nearly always."""
    for decode in (base64.b85decode, base64.a85decode):
        try:
            begin = decode(match[0][:25])
            if UNPRINTABLE.search(begin.decode("utf-8", "ignore")) or len(begin.decode("utf-8", "ignore")) < 10:
                continue
            read = _whole(decode(match[0]), match.start())
        except ValueError:
            continue
        if read and reads_as_text(read[0][0]):
            return read
    return None


def _whole(raw: bytes, at: int) -> Pieces | None:
    """Bytes of which no character has a place of its own."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return [(text, at)] if text.isprintable() or "\n" in text else None


def _braille(match: re.Match[str]) -> Pieces | None:
    return [(BRAILLE.get(char, char), i) for i, char in enumerate(match[0], match.start()) if BRAILLE.get(char, char)]


def _nato(match: re.Match[str]) -> Pieces | None:
    return _spelled([(NATO[m[1].lower()], m[2], m.start()) for m in NATO_PART.finditer(*_span(match))])


def _numbered(match: re.Match[str]) -> Pieces | None:
    """Numbers for letters; 0 and 27 are blanks. Only what reads as words: most lists of numbers are none."""
    parts = [(int(m[1]), m[2], m.start()) for m in NUMBERED_PART.finditer(*_span(match))]
    pieces = _spelled([(chr(96 + n) if 0 < n < 27 else " ", mark, at) for n, mark, at in parts])
    words = "".join(char for char, _ in pieces).split() if pieces else []
    common = {word for word in words if word in COMMON and len(word) > 1}
    return pieces if len(common) > 2 and 3 * sum(map(len, common)) > sum(map(len, words)) / 2 else None


def _keyed(draft: Draft) -> bool:
    """A text in tokens or words that are values of one key, or of numbers: [{"token": " the"}, {"token": " red"}]."""
    if not _are_pieces([m[3] for m in islice(KEYED.finditer(draft.text), LOOKED_AT)]):
        return False
    groups: dict[str, list[re.Match[str]]] = {}
    for match in KEYED.finditer(draft.text):
        groups.setdefault(DIGITS.sub("#", match[1]), []).append(match)
    for found in groups.values():
        pieces = [m[3] for m in found]
        if not _are_pieces(pieces):
            continue
        blank = "" if _have_blanks(pieces) else " "
        letters = [(char, m.start(3) + i) for m in found for i, char in enumerate(m[3] + blank)]
        return draft.replace([(found[0].start(3), found[-1].end(3), letters)])
    return False


def _have_blanks(pieces: list[str]) -> bool:
    return sum(piece[0] == " " or piece[-1] == " " for piece in pieces) >= max(2, len(pieces) / 6)


def _are_pieces(pieces: list[str]) -> bool:
    if len(pieces) < ENOUGH or sum(" " in piece.strip() for piece in pieces) > len(pieces) / 2:
        return False
    words = [piece.strip().lower() for piece in pieces[:LOOKED_AT]]
    common = {word for word in words if word in COMMON and len(word) > 1}
    is_list = len(set(words)) < 0.5 * len(words)  # of states, directions
    return len(common) > 3 and not is_list and (_have_blanks(pieces) or 4 * len(common) >= len(words))


def _span(match: re.Match[str]) -> tuple[str, int, int]:
    return match.string, match.start(), match.end()


def _spelled(letters: list[tuple[str, str, int]]) -> Pieces | None:
    """Letters, each with the mark behind it and its place; a mark that is not the usual one ends a word."""
    if not letters:
        return None
    usual = Counter(mark for _, mark, _ in letters[:-1]).most_common(1)
    pieces: Pieces = []
    for char, mark, at in letters[:-1]:
        pieces.append((char, at))
        if mark != usual[0][0]:
            pieces.append((" ", at))
    return [*pieces, (letters[-1][0], letters[-1][2])]
