r"""Characters that are written as something else, as a program would write them: \u0062, &#98;, %62, =62, and marks
inside a word that no reader sees: tags, comments, a hyphen at the end of a line, a string that is cut in two.

Each step first asks whether anything hides a letter, and changes nothing otherwise: \" or &amp; or %2F alone is no
disguise. Escapes of escapes (JSON in JSON, &amp;#98;, %2562) are read in one go. Bytes are UTF-8, or else Latin-1.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import islice

from guardkit.normalize.draft import Draft, Pieces

BACKSLASH = re.compile(
    r"(?<!\\)\\++(?:u\{0{0,8}([0-9a-fA-F]{1,6})\}|[uU]\+?([0-9a-fA-F]{8}|[0-9a-fA-F]{4})"
    r"|x\{?([0-9a-fA-F]{2})\}?|([0-3][0-7]{2})|N\{([A-Z][A-Z0-9 -]{1,87})\}|([nrt\"'/]))"
)
BACKSLASHES = re.compile(rf"(?:{re.sub('[(](?![?])', '(?:', BACKSLASH.pattern)})++")
RICH_TEXT = re.compile(r"(?:\\u-?[0-9]{1,5}\?){3,}+")  # of RTF: code points in decimal, "?" for old readers
RICH_TEXT_CODE = re.compile(r"u(-?[0-9]+)")
STYLE_ESCAPES = re.compile(r"(?:\\0{0,4}[2-7][0-9a-fA-F] ?){3,}+")  # of CSS
STYLE_ESCAPE = re.compile(r"\\0{0,4}([2-7][0-9a-fA-F])")
CODE_POINTS = re.compile(r"(?<!\w)(?:U\+[0-9A-Fa-f]{4,6}+[ ,;]{0,2}){3,}+")
CODE_POINT = re.compile(r"U\+([0-9A-Fa-f]{4,6})([ ,;]*)")
LINE_SIGN = re.compile(r"\\[nrt][^\W\d_]{2}")
PLAIN_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}

ENTITY = re.compile(
    r"&(?:amp;)*+(?:#(?:0{0,20}[0-9]{1,7}+|[xX]0{0,20}[0-9a-fA-F]{1,6}+);?|[A-Za-z][A-Za-z0-9]{1,31}+(?:;|(?![=(])))"
)
PERCENT = re.compile(r"(?:%(?:25){0,8}[0-9a-fA-F]{2})++|%u[0-9a-fA-F]{4}")
PERCENT_BYTE = re.compile(r"%(?:25){0,8}([0-9a-fA-F]{2})")
PERCENT_BLANK = re.compile("%(?:25)*20")
PLUSES = re.compile(r"(?<=[=?&])[\w%.,'!?-]{1,80}+(?:\+[\w%.,'!?-]{1,80}+){2,}+(?=[&\s\"'<>#)\]}]|\Z)")
QUOTED = re.compile(r"(?:=[0-9A-F]{2}|=[ \t]{0,8}\r?\n)++")
QUOTED_BYTE = re.compile(r"=(?:([0-9A-F]{2})|[ \t]*\r?\n)")
QUOTED_LETTER = re.compile(
    r"=[2-7C-F][0-9A-F]=[0-9A-F]{2}|[a-z]=[C-F][0-9A-F][a-z]|[\s,.][^\W\d_]{1,20}+=\r?\n[^\W\d_]"
)

LETTERS_ESCAPED = re.compile(r"(?:(?<!\\)\\[A-Za-z][ ,.'!?]{0,2}){6,}+")
SET_APART = re.compile(r"(?:\\(?:text|math|rm|bf|it)[a-z]{0,4}\{[^{}\\]{1,3}\}(?:\\? |~){0,2}){4,}+")  # by TeX
SET_LETTERS = re.compile(r"\{([^{}]{1,3})\}|\\? |~")
INLINE = r"(?!/?(?:p|div|td|th|tr|li|ul|ol|dl|dt|dd|br|hr|h[1-6]|table|tbody|thead|section|article|pre|option|title)\b)"
ATTRIBUTES = r"(?:\s++[\w:@.-]++(?:\s*+=\s*+(?:\"[^\"<]*+\"|'[^'<]*+'|[^\s\"'<>=]++))?)*+"
TERMINAL = r"(?:\x1b|\\{1,4}(?:e|x1[bB]|0?33|u001[bB])|\^\[|\u241b)"  # the sign, or how it is written
# Behind a letter. Whether one follows is looked at afterwards: a run that none follows would be read again and again.
TAGS = re.compile(
    rf"(?<=[^\W\d_])(?:<{INLINE}(?:/?[A-Za-z][\w:-]*+{ATTRIBUTES}\s*+/?)>|<!--(?:[^<>-]|-(?!->))*+-->|{TERMINAL}\[[0-9;?]*+[@-~]"
    r"|\[/?(?:b|i|u|s|color|size|font|url)(?:=[^\[\]\s]{0,40}+)?\]|\]\]><!\[CDATA\[)++"
)
TAG_HINTS = ("[/", "e[", "^[[", "1b[", "1B[", "33[", "\u241b[")
SHIFTED = re.compile(r"(?<=[\w ,.])\) ?-?[0-9]{1,5}(?:\.[0-9]{1,3})? ?\((?=[\w ,.])")  # by PDF, within a word
ANY_TAG = re.compile(TAGS.pattern.removeprefix(r"(?<=[^\W\d_])"))
LETTER = re.compile(r"[^\W\d_]")
STARS = re.compile(r"(?<=[^\W\d_])(?:\*\*|__|~~)(?=[^\W\d_]{1,30}+(?:\*\*|__|~~))|(?<=[^\W\d_])(?:\*\*|~~)(?=[^\W\d_])")
HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u00ad\u2010]\r?\n[ \t>*#/|]{0,20}+(?=[^\W\d_])")
CUT = r"([\"'`])[ \t\n]{0,20}+(?:\+|\.\.?|&|\|\||~)[ \t\n]{0,20}+\1"
CUT_STRING = re.compile(rf"(?<=[^\W\d_]){CUT}(?=[^\W\d_])")
ANY_CUT = re.compile(rf"(?<=[^\W\d_ ]|[ ,.'!?]){CUT}(?=[^\W\d_]|[ ,.'!?])")
# Pieces of a text in variables that are put together later: a = "How do "; b = "I make "; c1="a kite"
SET_TO = r"[$]?(?:[A-Za-z]{1,2}|part|text|str|var|chunk|piece)_?[0-9]{0,2} ?:?= ?"
NAMED_PIECES = re.compile(
    rf"(?<![\w.-]){SET_TO}([\"'])[^\"'\n]{{1,60}}\1(?:\s{{0,3}}[;,]?\s{{0,3}}{SET_TO}\1[^\"'\n]{{1,60}}\1){{2,}}+"
)
LISTED_PIECES = re.compile(r"([\"'])[^\"'\n]{1,60}\1(?:\s{0,3}[,.]?\s{0,9}\1[^\"'\n]{1,60}\1){4,}+")
LISTED = re.compile(r"[\"'][ \n,.]{1,3}[\"'] | [\"'][ \n,.]{1,3}[\"']")  # a blank at the end of one of them
PIECE = re.compile(r"([\"'])([^\"'\n]+)\1")
DOTS = re.compile("(?<=[^\\W\\d_])[·•∙‧˙](?=[^\\W\\d_])")
OFTEN = 4  # what cuts words so often is taken out between words, too
HIDDEN_KINDS = ("Cf", "Mn", "Lm", "Zs")


def unescape(draft: Draft) -> bool:
    """Undo one layer of whatever hides letters; True if anything did."""
    text, changed = draft.text, False
    if "\\" in text:
        changed |= _backslashes(draft)
    if "U+" in text:
        changed |= draft.rewrite(CODE_POINTS, _code_points)
    if "&" in text:
        changed |= _entities(draft)
    if "%" in text or "+" in text:
        changed |= _percents(draft)
    if "=" in text and QUOTED_LETTER.search(draft.text):
        changed |= draft.rewrite(QUOTED, _quoted)
    if "<" in text or "\x1b" in text or ("[" in text and any(hint in text for hint in TAG_HINTS)):
        changed |= _cut_out(draft, TAGS, ANY_TAG)
    if "TJ" in text:
        changed |= draft.rewrite(SHIFTED, _nothing)
    if "**" in text or "~~" in text:
        changed |= draft.rewrite(STARS, _nothing)
    if "\n" in text:
        changed |= draft.rewrite(HYPHEN, _hyphen)
    if '"' in text or "'" in text or "`" in text:
        changed |= _cut_out(draft, CUT_STRING, ANY_CUT)
        if '="' in text or "='" in text or '= "' in text or "= '" in text:
            changed |= draft.rewrite(NAMED_PIECES, _pieces)
        if LISTED.search(draft.text):
            changed |= draft.rewrite(LISTED_PIECES, _pieces)
    if not text.isascii() and sum(1 for _ in islice(DOTS.finditer(draft.text), 3)) == 3:
        changed |= draft.rewrite(DOTS, _nothing)
    return changed


def hides(char: str) -> bool:
    """Whether somebody who writes this character as an escape keeps a word from being read."""
    return (
        char.isalnum()
        or char == " "
        or char > "\uffff"
        or (char > "\x7f" and unicodedata.category(char) in HIDDEN_KINDS)
    )


def from_bytes(values: Iterable[tuple[int, int]]) -> Pieces:
    """Bytes, each with its position, as characters: UTF-8 where it is that, else Latin-1."""
    pairs = list(values)
    raw = bytes(value for value, _ in pairs)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
        return [(char, index) for char, (_, index) in zip(text, pairs, strict=True)]
    if text.isascii():
        return [(char, index) for char, (_, index) in zip(text, pairs, strict=True)]
    pieces: Pieces = []
    at = 0
    for char in text:
        pieces.append((char, pairs[at][1]))
        at += len(char.encode())
    return pieces


def _nothing(match: re.Match[str]) -> Pieces:
    return []


def _cut_out(draft: Draft, inside: re.Pattern[str], anywhere: re.Pattern[str]) -> bool:
    """Take out what stands inside words; where it does so often, take it out everywhere."""
    if inside.search(draft.text) is None:
        return False
    found = (match for match in inside.finditer(draft.text) if LETTER.match(draft.text, match.end()))
    often = sum(1 for _ in islice(found, OFTEN)) == OFTEN
    return draft.rewrite(anywhere, _nothing) if often else draft.rewrite(inside, _inside_a_word)


def _inside_a_word(match: re.Match[str]) -> Pieces | None:
    return [] if LETTER.match(match.string, match.end()) else None


def _pieces(match: re.Match[str]) -> Pieces | None:
    """Pieces as one text, where blanks at their ends show that they are pieces and no list."""
    found = list(PIECE.finditer(match.string, match.start(), match.end()))
    if sum(m[2][0] == " " or m[2][-1] == " " for m in found) < max(2, len(found) / 6):
        return None
    text = "".join(m[2] for m in found)
    if 2 * sum(map(str.isalpha, text)) < len(text):
        return None
    return [(char, m.start(2) + i) for m in found for i, char in enumerate(m[2])]


def _hyphen(match: re.Match[str]) -> Pieces | None:
    return [] if match.string[match.end()].islower() or match.string[match.start() - 1].isupper() else None


# --- backslashes -----------------------------------------------------------------------------------------------------


def _backslashes(draft: Draft) -> bool:
    changed = draft.rewrite(LETTERS_ESCAPED, _bare)
    if "?\\u" in draft.text:
        changed |= draft.rewrite(RICH_TEXT, _rich_text)
    changed |= draft.rewrite(SET_APART, _set_letters)
    bytewise = 0  # a folder may be called \\x64 or \\101
    for match in BACKSLASH.finditer(draft.text):
        bytewise += bool(match[3] or match[4])
        if _reveals(match) and (bytewise > 1 or not (match[3] or match[4])):
            changed = draft.rewrite(BACKSLASHES, _read_backslashes)
            break
    else:
        if ('"' in draft.text or "'" in draft.text) and LINE_SIGN.search(draft.text):
            changed = draft.rewrite(BACKSLASHES, _read_backslashes)
    return changed | draft.rewrite(STYLE_ESCAPES, _style_escapes)


def _rich_text(match: re.Match[str]) -> Pieces | None:
    found = RICH_TEXT_CODE.finditer(match.string, match.start(), match.end())
    return [(chr(int(m[1]) % 0x10000), m.start() - 1) for m in found if not 0xD800 <= int(m[1]) % 0x10000 < 0xE000]


def _bare(match: re.Match[str]) -> Pieces | None:
    """Letters that are escaped one by one; not a row of line ends and tabs."""
    letters = {char.lower() for char in match[0] if char.isalpha()}
    if len(letters) < 5 or not letters & set("aeiou"):
        return None
    return [(char, i) for i, char in enumerate(match[0], match.start()) if char != "\\"]


def _set_letters(match: re.Match[str]) -> Pieces:
    found = SET_LETTERS.finditer(match.string, match.start(), match.end())
    return [(m[1] or " ", m.start()) for m in found]


def _reveals(match: re.Match[str]) -> bool:
    if code := match[1] or match[2]:
        value = int(code, 16)
        return value < 0x110000 and (0xD800 <= value < 0xE000 or hides(chr(value)))
    if code := match[3]:
        return int(code, 16) > 0x7F or hides(chr(int(code, 16)))
    if code := match[4]:
        return hides(chr(int(code, 8)))
    return match[5] is not None


def _read_backslashes(match: re.Match[str]) -> Pieces | None:
    pieces: Pieces = []
    raw: list[tuple[int, int]] = []  # bytes that may be one character together
    high = 0  # the first half of a surrogate pair
    for part in BACKSLASH.finditer(match.string, match.start(), match.end()):
        at = part.start()
        byte = part[3] or part[4]
        if byte:
            raw.append((int(byte, 16 if part[3] else 8), at))
            continue
        pieces += from_bytes(raw)
        raw = []
        code = int(part[1] or part[2] or "0", 16)
        if 0xDC00 <= code < 0xE000 and high:
            pieces[-1] = (chr(0x10000 + ((high - 0xD800) << 10) + code - 0xDC00), pieces[-1][1])
            high = 0
            continue
        high = code if 0xD800 <= code < 0xDC00 else 0
        if code and code < 0x110000:
            pieces.append((chr(code), at))
        elif part[5]:
            try:
                pieces.append((unicodedata.lookup(part[5]), at))
            except KeyError:
                pieces += [(char, at + i) for i, char in enumerate(part[0])]
        elif part[6]:
            pieces.append((PLAIN_ESCAPES.get(part[6], part[6]), at))
        else:
            pieces += [(char, at + i) for i, char in enumerate(part[0])]
    return pieces + from_bytes(raw)


def _style_escapes(match: re.Match[str]) -> Pieces | None:
    return [(chr(int(m[1], 16)), m.start()) for m in STYLE_ESCAPE.finditer(match.string, match.start(), match.end())]


def _code_points(match: re.Match[str]) -> Pieces | None:
    found = [(int(m[1], 16), m.start()) for m in CODE_POINT.finditer(match.string, match.start(), match.end())]
    tail = match[0][len(match[0].rstrip(" ,;")) :]
    if any(code >= 0x110000 or 0xD800 <= code < 0xE000 for code, _ in found):
        return None
    return [(chr(code), at) for code, at in found] + [(c, match.end() - len(tail) + i) for i, c in enumerate(tail)]


# --- entities, percent, quoted-printable -----------------------------------------------------------------------------


def _entities(draft: Draft) -> bool:
    for match in ENTITY.finditer(draft.text):
        read, after = _entity(match[0]), match.string[match.end() : match.end() + 1]
        if read is None or read[0] in "&<>\"'":
            continue
        if read.strip() if hides(read[0]) else False:
            return draft.rewrite(ENTITY, _read_entity)
        if read[0].isspace() and after.isalpha() and match.string[match.start() - 1 : match.start()].isalpha():
            return draft.rewrite(ENTITY, _read_entity)
    return False


def _entity(written: str) -> str | None:
    from html import unescape as read_html  # a table of 2,000 names, for texts that have some

    body = written.rsplit("amp;", 1)[-1] if written.startswith("&amp;") else written[1:]
    if not body:
        return "&"
    read = read_html("&" + body)
    return None if read == "&" + body or not read else read


def _read_entity(match: re.Match[str]) -> Pieces | None:
    read = _entity(match[0])
    return None if read is None else [(read, match.start())]


def _percents(draft: Draft) -> bool:
    changed = draft.rewrite(PLUSES, _read_pluses) if "+" in draft.text else False
    if changed:
        draft.rewrite(PERCENT, _read_percents)
    for match in PERCENT.finditer(draft.text):
        blank = (
            PERCENT_BLANK.fullmatch(match[0])
            and match.string[match.end() : match.end() + 1].isalpha()
            and match.start() > 0
        )
        if (blank and match.string[match.start() - 1].isalpha()) or _percent_hides(match):
            return draft.rewrite(PERCENT, _read_percents)
    return changed


def _percent_hides(match: re.Match[str]) -> bool:
    if PERCENT_BLANK.fullmatch(match[0]):
        return False
    read = _read_percents(match)
    if len(read) == 1 and read[0][0] > "\x7f" and len(match[0]) == 3:
        return False  # one byte above ASCII: as likely a format or a percentage
    return any(char != " " and hides(char) for char, _ in read)


def _read_percents(match: re.Match[str]) -> Pieces:
    if match[0][1] == "u":
        code = int(match[0][2:], 16)
        return [("\ufffd" if 0xD800 <= code < 0xE000 else chr(code), match.start())]
    found = PERCENT_BYTE.finditer(match.string, match.start(), match.end())
    return from_bytes((int(m[1], 16), m.start()) for m in found)


def _read_pluses(match: re.Match[str]) -> Pieces | None:
    if sum(map(str.isalpha, match[0])) + 3 * match[0].count("%") < len(match[0]) / 2:
        return None
    return [(" " if char == "+" else char, match.start() + i) for i, char in enumerate(match[0])]


def _quoted(match: re.Match[str]) -> Pieces | None:
    found = QUOTED_BYTE.finditer(match.string, match.start(), match.end())
    return from_bytes((int(m[1], 16), m.start()) for m in found if m[1])
