"""Letters, and words, that stand apart between any marks: H|o|w, [H][o][w], ["H","o","w"]; letters that stand twice.

`spelling` joins letters set apart by blanks and the like; here the marks may be anything, as long as they repeat.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby, islice, pairwise

from guardkit.disguises import ALPHABETS, LOWER, NOT_LETTERS, WORDLIKE
from guardkit.normalize.blanks import are_words
from guardkit.normalize.draft import Draft, Pieces
from guardkit.normalize.spelling import is_spelled
from guardkit.normalize.words import COMMON

LETTER = f"A-Za-z\u00c0-\u024f{ALPHABETS}"
MARKED = re.compile(rf"(?<![^\W_])[{LETTER}](?:[\W_]{{1,12}}+[{LETTER}](?![^\W_])){{7,}}+")
KINDS = bytes(97 if chr(code).isalpha() and code < 128 else 48 if 48 <= code < 58 or code > 127 else 32
              for code in range(256))  # fmt: skip
LONE = b" a" * 8
QUOTED = re.compile(r"([\"'`])[^\W\d_]{1,20}[.,;:!?]?\1(?:\s{0,2}[,;+]?\s{0,9}\1[^\W\d_][^\s\"'`]{0,20}\1){4,}+")
OFTEN = 3  # pictures between words from which on they are blanks
QUOTED_WORD = re.compile(r"([\"'`])([^\s\"'`]{1,22})\1")
WORD = re.compile("[A-Za-z]+")
SPACED_PICTURES = re.compile("(?<=[A-Za-z.,']) [\u2600-\u27bf\U0001f300-\U0001faff\ufe0f\u200d]{1,8}+ (?=[A-Za-z])")
PICTURES = re.compile("(?<=[A-Za-z.,'])[\u2600-\u27bf\U0001f300-\U0001faff\ufe0f\u200d]{1,8}+(?=[A-Za-z])")


def join_marked(draft: Draft) -> bool:
    """Join letters between marks, and quoted words; True if there were any."""
    text, changed = draft.text, False
    kinds = text.encode("utf-8", "replace").translate(KINDS)
    apart = kinds.count(b" a ") > 2 and LONE + b" " in b" " + b" ".join(kinds.split()) + b" "
    if apart or not text.isascii():
        changed |= draft.rewrite(MARKED, _letters)
    if any(between in text for between in ('","', '", "', "','", "', '", '" "', '",\n')):
        changed |= draft.rewrite(QUOTED, _words)
    if not text.isascii() and sum(1 for _ in islice(PICTURES.finditer(draft.text), OFTEN)) == OFTEN:
        changed |= draft.rewrite(PICTURES, _blank)
    if not text.isascii() and " " in text:
        n_pictures = sum(1 for _ in SPACED_PICTURES.finditer(draft.text))
        if n_pictures > OFTEN and 3 * n_pictures > draft.text.count(" "):
            changed |= draft.rewrite(SPACED_PICTURES, _blank)
    return changed | _halve(draft)


def _blank(match: re.Match[str]) -> Pieces:
    return [(" ", match.start())]


def _letters(match: re.Match[str]) -> Pieces | None:
    """The mark that stands most often is inside words; another one, or more of it, is between words."""
    at = [i for i in range(match.start(), match.end()) if match.string[i].isalpha()]
    marks = [match.string[a + 1 : b] for a, b in pairwise(at)]
    inside, count = Counter(marks).most_common(1)[0]
    letters = "".join(match.string[i] for i in at)
    n_next = sum(ord(b) - ord(a) == 1 for a, b in pairwise(letters.lower()))  # of a list: a, b, c
    if inside.isspace() or 2 * count < len(marks) or 2 * n_next > len(marks) or not is_spelled(letters):
        return None
    pieces: Pieces = [(match.string[at[0]], at[0])]
    for i, mark in zip(at[1:], marks, strict=True):
        if mark != inside:
            pieces.append((" ", i - len(mark)))
        pieces.append((match.string[i], i))
    words = "".join(char for char, _ in pieces).lower().split()
    if not _read_as_words(words):
        return None
    if marks.count(inside) == len(marks):  # one word, of which `blanks` makes several
        return [(char.lower(), i) for char, i in pieces]
    return pieces


def _read_as_words(words: list[str]) -> bool:
    """Whether most letters stand in what can be spoken; the names in a program's code are mostly single letters."""
    total = sum(map(len, words))
    if len(words) == 1:
        return 4 * sum(char in "aeiouy" or char > "\x7f" for char in words[0]) >= total
    spoken = (w for w in words if w in COMMON or (len(w) > 2 and (not w.isascii() or WORDLIKE.fullmatch(w))))
    return 5 * sum(map(len, spoken)) >= 3 * total


def _words(match: re.Match[str]) -> Pieces | None:
    words = [(m[2], m.start(2)) for m in QUOTED_WORD.finditer(match.string, match.start(), match.end())]
    if not are_words([word.rstrip(".,;:!?") for word, _ in words]):
        return None
    pieces: Pieces = []
    for word, start in words:
        if pieces:
            pieces.append((" ", start - 1))
        pieces += [(char, start + i) for i, char in enumerate(word)]
    return pieces


def _halve(draft: Draft) -> bool:
    """Take letters that all stand twice, or three times, once."""
    raw = draft.text.encode("ascii", "ignore").translate(LOWER, NOT_LETTERS)
    if len(raw) < 16:
        return False
    number = int.from_bytes(raw, "big")
    if 5 * (number ^ (number >> 8)).to_bytes(len(raw), "big").count(0) < 2 * len(raw):
        return False
    words = WORD.findall(draft.text)
    for times in (3, 2):
        n_drawn = sum(len(word) for word in words if _is_times(word, times))
        if n_drawn >= 0.8 * sum(map(len, words)) and len({char for word in words for char in word.lower()}) > 4:
            return draft.rewrite(WORD, lambda m: _once(m, times))  # noqa: B023
    return False


def _is_times(word: str, times: int) -> bool:
    return all(len(list(run)) % times == 0 for _, run in groupby(word.lower()))


def _once(match: re.Match[str], times: int) -> Pieces | None:
    if not _is_times(match[0], times):
        return None
    return [(match[0][i], match.start() + i) for i in range(0, len(match[0]), times)]
