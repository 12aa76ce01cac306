"""Texts in rot13, any other shift of the alphabet, or the mirrored alphabet; and texts that are written backwards.

Common words give a cipher away (`gur` for `the`). What is deciphered is the stretch of words around them whose letters
are far likelier once it is undone: ordinary prose, code and names never are. Latin letters only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache

from guardkit.disguises import FOLLOWERS, WORDLIKE
from guardkit.normalize.draft import Draft, Pieces
from guardkit.normalize.words import ALPHABET, COMMON, OPENERS, REVERSED, ciphered, plain_letters

SENTENCE_END = re.compile(r"[\n\"<>{}()\[\]:;.!?=/\\_]")
TOKEN = re.compile(r"[A-Za-z]+")
# Letters in a thousand, on the average of English, German, French and Spanish.
FREQUENCIES = dict(
    zip(
        ALPHABET,
        (80, 15, 30, 42, 150, 15, 19, 38, 71, 4, 6, 48, 28, 76, 61, 24, 6, 66, 71, 70, 43, 11, 12, 3, 11, 5),
        strict=True,
    )
)
LINE = re.compile(r"[^\n]{6,}")
ROT47 = {code: 33 + (code + 14) % 94 for code in range(33, 127)}  # letters, digits and signs are moved by half
LEAST_GAIN = 7.0  # nats by which a stretch must be likelier
DROP = 8.0  # and by which it may fall behind on the way
HIT_GAIN = 2.0
WORD_COST = 0.3
MAX_TOKEN = 24  # a longer word tells no more


def decipher(draft: Draft) -> bool:
    """Replace stretches in a cipher by what they say; True if there were any."""
    words = draft.text.lower().split()
    if len(words) < 2:
        return False
    moved = rot47_words()
    if not moved.isdisjoint(words) and len(moved.intersection(words)) > 2 and draft.rewrite(LINE, _read_rot47):
        return True
    known = ciphered()
    if known.keys().isdisjoint(words):
        return False
    tokens = [(m.start(), m.end(), m[0].lower()) for m in TOKEN.finditer(draft.text)]
    hits: Counter[int] = Counter()
    for word in {word for _, _, word in tokens}:
        hits.update(known.get(word, ()))
    for cipher, count in hits.most_common(3):
        if count < 2:
            break
        spans = _stretches(draft.text, tokens, cipher)
        if spans:  # positions move: another layer sees the rest
            return draft.replace([(start, end, _read(draft.text, start, end, cipher)) for start, end in spans])
    return False


@cache
def rot47_words() -> frozenset[str]:
    """Common words as rot47 shows them, in lower case, as the words of a text are compared."""
    return frozenset(word.translate(ROT47).lower() for word in COMMON if len(word) > 1) - COMMON


def _read_rot47(match: re.Match[str]) -> Pieces | None:
    """A line that turns into common words."""
    plain = match[0].translate(ROT47)
    words = TOKEN.findall(plain.lower())
    common = [word for word in words if word in COMMON and len(word) > 1]
    if len(set(common)) < 3 or 4 * len(common) < len(words):
        return None
    return [(char, match.start() + i) for i, char in enumerate(plain)]


@cache
def _gains(cipher: int) -> dict[str, float]:
    table = plain_letters(cipher)
    return {a: math.log(FREQUENCIES[a.translate(table)] / FREQUENCIES[a]) for a in ALPHABET}


def _gain(word: str, cipher: int) -> float:
    """By how much a word is likelier as what the cipher makes of it."""
    if cipher == REVERSED:
        if word[::-1] in COMMON and word not in COMMON and len(word) > 1:
            return 3.0
        return 1.5 * (_legal(word[::-1]) - _legal(word)) - 3.0 * (word in COMMON and word[::-1] not in COMMON)
    gains = _gains(cipher)
    return sum(gains[char] for char in word[:MAX_TOKEN]) + HIT_GAIN * (cipher in ciphered().get(word, ()))


def _legal(word: str) -> bool:
    word = word[:MAX_TOKEN]
    return all(b in FOLLOWERS.get(a, "") or a == b for a, b in zip(word, word[1:] + "$", strict=True)) and bool(
        WORDLIKE.fullmatch(word)
    )


def _stretches(text: str, tokens: list[tuple[int, int, str]], cipher: int) -> list[tuple[int, int]]:
    """The stretches that are likelier deciphered, from left to right, each to the ends of its sentence."""
    spans: list[tuple[int, int]] = []
    first, total, best, last, done = 0, 0.0, 0.0, -1, 0
    for i, (_, _, word) in enumerate([*tokens, (0, 0, "")]):
        total += _gain(word, cipher) - WORD_COST if word else -math.inf
        if total > best:
            best, last = total, i
        if total <= 0 or total < best - DROP:
            if best >= LEAST_GAIN and _convinces([word for _, _, word in tokens[first : last + 1]], cipher):
                while first > done and _belongs(text, tokens, first - 1, first, cipher):
                    first -= 1
                while last + 1 < len(tokens) and _belongs(text, tokens, last + 1, last, cipher):
                    last += 1
                spans.append((tokens[first][0], tokens[last][1]))
                done = last + 1
            first, total, best, last = max(i + 1, done), 0.0, 0.0, -1
    return spans


def _belongs(text: str, tokens: list[tuple[int, int, str]], at: int, beside: int, cipher: int) -> bool:
    """Whether a word next to a stretch is of its sentence, and no common word as it stands."""
    between = text[tokens[min(at, beside)][1] : tokens[max(at, beside)][0]]
    word = tokens[at][2]
    plain = word[::-1] if cipher == REVERSED else word.translate(plain_letters(cipher))
    if SENTENCE_END.search(between):
        return False
    return word not in COMMON or plain in COMMON or (cipher == REVERSED and len(word) == 3 and _legal(plain))


def _convinces(words: list[str], cipher: int) -> bool:
    """Whether two common words and many that can be spoken come out, and far fewer were there before."""
    known = ciphered()
    hits = {word for word in words if cipher in known.get(word, ())}
    letters = sum(map(len, words))
    if len(hits) < 2 or max(map(len, hits)) < 3 or sum(map(len, (w for w in words if w in hits))) < letters / 6:
        return False
    if cipher == REVERSED:
        return len(hits) * 3 >= len(words)
    table = plain_letters(cipher)
    after = sum(len(word) for word in words if _legal(word.translate(table)))
    before = sum(len(word) for word in words if len(word) > 1 and _legal(word))
    return after >= letters / 2 and before <= letters / 2 and after > before


def _read(text: str, start: int, end: int, cipher: int) -> Pieces:
    stretch = text[start:end]
    if cipher != REVERSED:
        return [(char, start + i) for i, char in enumerate(stretch.translate(plain_letters(cipher)))]
    # Origins may not decrease, so all of the reversed text points at where it begins.
    whole, each = stretch[::-1], " ".join(word[::-1] for word in stretch.split())
    words = TOKEN.findall(stretch.lower())
    ends_open, begins_open = words[-1][::-1] in OPENERS, words[0][::-1] in OPENERS
    if ends_open != begins_open:
        return [(whole if ends_open else each, start)]
    return [(f"{whole}\n{each}", start)]
