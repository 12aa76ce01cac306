"""Letters set apart, digits and signs for letters, letters drawn out."""

from __future__ import annotations

import re

from guardkit.disguises import (
    ARTICLE_FOLLOWS,
    DOLLAR,
    FOLLOWERS,
    FORMAT,
    HEX,
    KEEP_REPEATS,
    LEET,
    LEET_RUN,
    LEET_SHORT,
    LEET_SIGNS,
    MAX_LEET,
    MIN_SPACED,
    NOT_LEET,
    REPEATED,
    REPEATS,
    SPACED,
    TOKEN_END,
    WORDLIKE,
)
from guardkit.normalize.draft import Draft, Pieces
from guardkit.normalize.words import COMMON

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
    if not is_spelled("".join(char for group in groups for char, _ in group)):
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


def is_spelled(letters: str) -> bool:
    """Whether single letters spell something, rather than list (a b c d), tabulate (Y N N Y) or count."""
    alphabetic = sum(map(str.isalpha, letters))
    if alphabetic < 3 or alphabetic < 2 * (len(letters) - alphabetic) or re.search("[269]", letters):
        return False
    if not re.search("[aeiou0134@!]|[^\x00-\x7f]", letters, re.IGNORECASE) or len(set(letters.lower())) < 2:
        return False
    steps = [ord(b) - ord(a) for a, b in zip(letters.lower(), letters.lower()[1:], strict=False)]
    return not (all(0 < step <= 2 for step in steps) or all(-2 <= step < 0 for step in steps))


DRAWN = {  # letters drawn with several signs
    "|\\/|": "m", "/\\/\\": "m", "|\\|": "n", "\\/\\/": "w", "|_|": "u", "|-|": "h", "/-\\": "a", "|<": "k", "|)": "d",
    "|3": "b", "|2": "r", "()": "o", "[]": "o", "/\\": "a", "\\/": "v", "><": "x", "|_": "l", "|=": "f",
}  # fmt: skip
DRAWN_LETTER = re.compile("|".join(map(re.escape, sorted(DRAWN, key=len, reverse=True))))
DRAWN_TOKEN = re.compile(r"(?<!\S)[\w@$!|\\/()<>\[\]=-]{3,40}+(?![^\s.,;?])")
LEET_TEXT = 4  # tokens after which a text is taken for leet as a whole
ANY_LEET = re.compile(rf"(?<![^\s\"'(\[{{<,;*“‘«¿¡-])[\w@$!]{{1,{MAX_LEET}}}+{TOKEN_END}")
HEAVY_SIGNS = {**LEET_SIGNS, "1": "i", "2": "z", "6": "g", "9": "g"}


def _read_drawn(match: re.Match[str]) -> Pieces | None:
    """A token that is a word once several signs are read as a letter; no path, call or operator is."""
    pieces: Pieces = []
    at, drawn = match.start(), 0
    while at < match.end():
        found = DRAWN_LETTER.match(match.string, at, match.end())
        sign = match.string[at]
        pieces.append((DRAWN[found[0]] if found else HEAVY_SIGNS.get(sign, sign), at))
        at = found.end() if found else at + 1
        drawn += found is not None
    word = "".join(char for char, _ in pieces).lower()
    if not drawn or not word.isalpha() or not word.isascii() or len(word) < 4:
        return None
    inside = re.search(r"[A-Za-z0-9@$!|](?:\(\)|\[\])[A-Za-z0-9@$!|]|[|/\\<>]", match[0])
    return pieces if inside and WORDLIKE.fullmatch(re.sub(r"(.)\1", r"\1", word)) else None


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
    word = _letters_for(low)
    shape = re.sub(r"(.)\1+", r"\1\1", word)  # b0000mb is still to be squeezed
    pairs = zip(shape, shape[1:] + "$", strict=True)
    doubled = re.sub(r"(.)\1", r"\1", shape)
    fits = all(b in FOLLOWERS.get(a, "") or a == b for a, b in pairs) and WORDLIKE.fullmatch(doubled)
    return word if fits and re.search("[aeiou]", word) else None


def _letters_for(low: str) -> str:
    """A lower-case token with letters for its digits and signs."""
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
    return "".join(read)


def _is_leet(token: str) -> bool:
    """Whether a token of letters and digits would read like a word; not as strict as the word alone has to be."""
    low = token.lower()
    if low.isalpha() or not any(map(str.isalpha, low)) or re.search("[269_]", low) or low in NOT_LEET:
        return False
    if HEX.fullmatch(token) or FORMAT.fullmatch(low) or not re.search("[a-z][0134578@$!]+[a-z]", low):
        return False
    return bool(WORDLIKE.fullmatch(re.sub(r"(.)\1", r"\1", _letters_for(low))))


def _read_any_leet(match: re.Match[str]) -> Pieces | None:
    """In a text that is full of it: whatever holds a letter and a digit, and numbers that spell a common word."""
    token, start = match[0].rstrip("!"), match.start()
    low = token.lower()
    read = _letters_for(low)
    if read == low or re.search("[269_]", low):
        return None
    if not any(map(str.isalpha, low)) and read not in COMMON:
        return None
    chars = "".join(a if a.isalpha() else b for a, b in zip(token, read, strict=True)) + match[0][len(token) :]
    return [(char, start + i) for i, char in enumerate(chars)]


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
    pieces += [(token[i], start + i) for i in range(at, len(token))]
    return pieces if at and len(pieces) <= MAX_LEET else None  # no word is as long: a sequence of genes, a key


# --- the steps -------------------------------------------------------------------------------------------------------


def join_spaced(draft: Draft) -> bool:
    """Join letters that are set apart; True if there were any."""
    return draft.rewrite(SPACED, _join)


def read_leet(draft: Draft) -> None:
    """Put letters for the digits and signs that stand for them."""
    if sum(_is_leet(m[0]) for m in LEET.finditer(draft.text)) >= LEET_TEXT:
        draft.rewrite(ANY_LEET, _read_any_leet)
    draft.rewrite(LEET, _read_leet)


def read_drawn(draft: Draft) -> bool:
    """Put letters for groups of signs that are drawn like them; True if there were any."""
    return bool(DRAWN_LETTER.search(draft.text)) and draft.rewrite(DRAWN_TOKEN, _read_drawn)


def squeeze(draft: Draft) -> None:
    """Shorten runs of one letter."""
    draft.rewrite(REPEATS, _squeeze)
