"""Text in units: words, runs of scripts that write without blanks, single signs; and what carries no meaning, folded.

A text is cut by its characters alone. A unit has the same tokens wherever it stands, so units are remembered, and a
stream may be cut between any two. A unit has a greatest length, counted from its start, so a run without a boundary is
bounded as well.

Numbers, dates, times, addresses, hexadecimal ids, UUIDs and the stock phrases of browsers' names become one token
each: lines of a log that differ only there have the same tokens. Digits inside a word stay: there they are letters in
disguise. So do the words of paths, queries and quotes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

MAX_WORD_CHARS = 48
MAX_RUN_CHARS = 16  # of a script without blanks
MAX_FOLDED_CHARS = 48  # of numbers and what joins them
MAX_TAIL_CHARS = 64  # what stays unstable is shorter

Word = tuple[tuple[int, ...], tuple[int, ...]]
"""The tokens of a unit: ids, and the index of each one's first character in the unit."""

# A character's class decides the units: "w" joins to words, "c" to runs of a script that writes without blanks, "m"
# (marks, invisible characters) belongs to the unit around it, "p" stands alone, "s" separates.
_UNITS_AND_GAPS = re.compile(rf"[wm]{{1,{MAX_WORD_CHARS}}}|c[cm]{{0,{MAX_RUN_CHARS - 1}}}|bx*|p|s+")

# What a number may be, once folded; with `_JOINERS` between them numbers are one.
_UNITS = "ms|us|ns|s|m|h|d|k|kb|mb|gb|tb|kib|mib|gib|b|px|pt|em|rem|x|st|nd|rd|th"
_NUMERIC = re.compile(
    rf"\d+(?:t\d+)?z?|\d+(?:{_UNITS})|0x[0-9a-f]+|(?=\D*\d)[0-9a-f]{{8,}}|(?=\D*\d\D*\d)[0-9a-f]{{7}}"
)
_NUMBERED = re.compile(r"([^\W\d_]+)\d{2,}|\d{2,}([^\W\d_]+)")  # a word with a number at one end
_HEX = re.compile(r"[0-9a-f]{4}|[0-9a-f]{12}")  # the later groups of a UUID
_JOINERS = frozenset("-:./,+_")
_MONTHS = frozenset(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"))
_PRODUCTS = frozenset(
    (
        "mozilla", "applewebkit", "chrome", "safari", "firefox", "gecko", "edg", "edge", "opr", "version", "mobile",
        "headlesschrome", "chromium", "trident", "samsungbrowser", "crios", "fxios",
    )
)  # fmt: skip
_BROWSER_STARTS = (
    "(KHTML, like Gecko)", "(Windows NT ", "(X11; Linux ", "(X11; Ubuntu; Linux ", "(Macintosh; Intel Mac OS X ",
    "(iPhone; CPU iPhone OS ", "(Linux; Android ", "(compatible; ",
)  # fmt: skip
_BROWSER = re.compile(
    r"\((?:KHTML, like Gecko\)|Windows NT [\d.]{1,6}(?:; Win64; x64)?(?=[;)])"
    r"|X11; (?:Ubuntu; )?Linux (?:x86_64|i686)(?=[;)])"
    r"|Macintosh; Intel Mac OS X [\d._]{1,10}(?=[;)])|iPhone; CPU iPhone OS [\d_]{1,8} like Mac OS X\)"
    r"|Linux; Android [\d.]{1,8}(?=[;)])|compatible; )"
)
_HELD_BACK = 56  # characters from a bracket on that may yet become a browser's phrase
_AT_START: tuple[int, ...] = (0,)


class Classes(dict[int, str]):
    """Code point -> class, filled as characters are met (a translation table for `str.translate`). ranges, cls: code
    points whose class does not follow from Unicode, and that class."""

    def __init__(self, ranges: tuple[tuple[int, int], ...], cls: str):
        self._ranges, self._cls = ranges, cls

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if char.isspace():
            cls = "s"
        elif any(lo <= code <= hi for lo, hi in self._ranges):
            cls = self._cls
        elif char.isalnum():
            cls = "w"
        else:
            cls = "m" if unicodedata.category(char) in ("Mn", "Mc", "Me", "Cc", "Cf") else "p"
        self[code] = cls
        return cls


def is_number(folded: str) -> bool:
    """Whether a unit, in lower case, is a number or an id."""
    return _NUMERIC.fullmatch(folded) is not None


def numbered(folded: str) -> tuple[int, int] | None:
    """Where the letters are, in a unit of letters with a number at one end."""
    match = _NUMBERED.fullmatch(folded)
    return match.span(1 if match.group(1) else 2) if match else None


def _classes(text: str, table: Classes) -> str:
    classes = text.translate(table)
    if "(" not in text:
        return classes
    parts, at = [], 0
    for match in _BROWSER.finditer(text):
        begin, end = match.span()
        parts += [classes[at:begin], "b", "x" * (end - begin - 1)]
        at = end
    return "".join((*parts, classes[at:]))


def scan(text: str, table: Classes, word: Callable[[str], Word], number: int) -> tuple[list[int], list[int], int]:
    """ids and starts of a text's tokens, and the length of its stable prefix: that which no later text can re-tokenise.
    word: gives the tokens of a unit; number: the id of what is folded."""
    ids: list[int] = []
    starts: list[int] = []
    head = -1  # where a number starts, or a product's name, that what comes next could go on; -1: nowhere
    product = False  # which of the two it is
    joins = False  # whether what was read last stands between it and the next part
    first = 0  # length of the number's first part
    kept = 0  # how many tokens stand before what the next part would replace
    open_at = -1  # where what the last unit could still become part of starts
    begin = end = at = 0  # of the last unit; of what comes next
    alone: tuple[int, ...] = (number,)
    classes = _classes(text, table)
    for piece in _UNITS_AND_GAPS.findall(classes):
        kind = piece[0]
        if kind == "s":
            at += len(piece)
            head = -1
            continue
        begin, end = at, at + len(piece)
        at = end
        unit = text[begin:end]
        if end - head > MAX_FOLDED_CHARS:
            head = -1
        open_at = head
        if kind == "b":
            head, new_ids, new_starts = -1, alone, _AT_START
        else:
            new_ids, new_starts = word(unit)
        if head >= 0:
            if joins and (new_ids == alone or (not product and _goes_on(unit, first))):
                del ids[kept:], starts[kept:]
                if product:
                    ids.append(number)
                    starts.append(head)
                product = joins = False
                continue
            if not joins and (unit == "/" if product else unit in _JOINERS):
                joins = True
                kept = kept if product else len(ids)
                ids += new_ids
                starts.append(begin)
                continue
        head = -1
        if new_ids == alone and kind != "b":
            head, product, joins, first = begin, False, False, end - begin
        elif unit.lower() in _PRODUCTS:
            head, product, joins, kept = begin, True, False, len(ids)
        ids += new_ids
        if len(new_starts) == 1:
            starts.append(begin + new_starts[0])
        else:
            starts += [begin + s for s in new_starts]
    return ids, starts, _stable(text, classes, begin, end, head if head >= 0 else open_at)


def _goes_on(unit: str, first: int) -> bool:
    """Whether a unit behind a number and a joiner belongs to it: a month's name, a group of a UUID."""
    folded = unit.lower()
    return folded in _MONTHS or (first == 8 and _HEX.fullmatch(folded) is not None)


def _stable(text: str, classes: str, begin: int, end: int, open_at: int) -> int:
    """The length of the stable prefix. begin, end: the last unit; open_at: where the number or product starts that
    it belongs to, follows or could still become part of (-1: none)."""
    size = stable = len(text)
    if end == size and size:
        longest = {"w": MAX_WORD_CHARS, "m": MAX_WORD_CHARS, "c": MAX_RUN_CHARS}.get(classes[begin], 0)
        if end - begin < longest:
            stable = begin
        if open_at >= 0:
            stable = open_at
    at = text.rfind("(", max(0, size - MAX_TAIL_CHARS))
    if at >= 0 and size - at < _HELD_BACK and classes[at] != "b":
        rest = text[at:]
        if any(rest[: len(start)] == start[: len(rest)] for start in _BROWSER_STARTS):
            stable = min(stable, at)
    return stable
