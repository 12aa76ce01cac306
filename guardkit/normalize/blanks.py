"""Words without blanks between them: HowToDoThis, how_to_do_this, howtodothis.

They are told from identifiers by the common words in them: half of the words, or of the letters, have to be such.
"""

from __future__ import annotations

import re

from guardkit.disguises import WORDLIKE
from guardkit.normalize.draft import Draft, Pieces
from guardkit.normalize.words import COMMON

LOWER, UPPER = "a-z\u00df-\u00f6\u00f8-\u00ff", "A-Z\u00c0-\u00d6\u00d8-\u00de"
CAMEL = re.compile(rf"(?<![\w+/=])[{LOWER}]{{0,20}}+(?:[{UPPER}][{LOWER}]*+){{3,}}+(?![\w+/=])")
HUMP = re.compile(rf"[{UPPER}]?[{LOWER}]+|[{UPPER}]")
JOINED = re.compile(r"(?<![\w/.-])[A-Za-z]{1,20}+([-_.+~*|])[A-Za-z]{1,20}+(?:\1[A-Za-z]{1,20}+){2,}+(?![\w/(-])")
GLUED = re.compile(r"(?<![A-Za-z])(?:[a-z]{12,80}+|[A-Z]{12,80}+)(?![A-Za-z])")
CASES = bytes(32 if code > 127 or not chr(code).isalpha() else 97 if chr(code).islower() else 65 for code in range(256))
KNOWN_COST = {1: 0.5, 2: 2.0}  # of a common word by its length; many letter pairs are one by chance
BEGINNINGS = frozenset(word[:3] for word in COMMON if len(word) > 2)
MOST_UNKNOWN = 14  # letters of a word between common ones


def split_words(draft: Draft) -> None:
    """Put the blanks back."""
    cases = draft.text.encode("utf-8", "replace").translate(CASES)
    if b"aA" in cases:
        draft.rewrite(CAMEL, _humps)
    draft.rewrite(JOINED, _joined)
    if b"a" * 12 in cases or b"A" * 12 in cases:
        draft.rewrite(GLUED, _glued)


def _humps(match: re.Match[str]) -> Pieces | None:
    humps = [(m[0], m.start()) for m in HUMP.finditer(match.string, match.start(), match.end())]
    return _spread(humps) if are_words([word for word, _ in humps]) else None


def _joined(match: re.Match[str]) -> Pieces | None:
    words = match[0].split(match[1])
    if not are_words(words):
        return None
    return [(" " if char == match[1] else char, match.start() + i) for i, char in enumerate(match[0])]


def are_words(words: list[str]) -> bool:
    """Whether so many words are common ones that together they are prose, and no list of names."""
    common = [word for word in map(str.lower, words) if word in COMMON]
    return len(set(common)) > 1 and max(map(len, common)) > 2 and 2 * len(common) >= len(words) and len(words) > 3


def _spread(words: list[tuple[str, int]]) -> Pieces:
    pieces: Pieces = []
    for word, start in words:
        if pieces:
            pieces.append((" ", start))
        pieces += [(char, start + i) for i, char in enumerate(word)]
    return pieces


def _glued(match: re.Match[str]) -> Pieces | None:
    """The cheapest way to read letters as common words, with as few and as short words in between as can be."""
    word = match[0].lower()
    size = len(word)
    if sum(word[i : i + 3] in BEGINNINGS for i in range(size - 2)) < 2:
        return None
    cost = [0.0] + [1e9] * size
    begin = [0] * (size + 1)
    for end in range(1, size + 1):
        for start in range(max(0, end - MOST_UNKNOWN), end):
            part = word[start:end]
            known = part in COMMON
            price = cost[start] + (KNOWN_COST.get(len(part), 1.0) if known else 4.0 + 0.8 * len(part))
            if price < cost[end] and (known or (len(part) > 2 and WORDLIKE.fullmatch(part))):
                cost[end], begin[end] = price, start
    if cost[size] >= 1e9:
        return None
    parts: list[tuple[str, int]] = []
    end = size
    while end:
        parts.append((match[0][begin[end] : end], match.start() + begin[end]))
        end = begin[end]
    parts.reverse()
    common = [part for part, _ in parts if part.lower() in COMMON]
    long = [part for part in common if len(part) > 2]  # short ones are in any word: met-hamp-het-a-mi-ne
    if (
        len(parts) < 4
        or len(set(long)) < 2
        or sum(map(len, long)) < 0.45 * size
        or len(parts) - len(common) > len(common)
    ):
        return None
    return _spread(parts)
