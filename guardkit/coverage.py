"""What a model was measured on, and whether a text is in a language or script that it was not.

A list stands beside a model's weights, as JSON: ``{"measured": {"en": {"name": "English", "script": "Latin",
"figures": {...}}, ...}}``. A text is looked at in segments of `SEGMENT` characters; one segment in an unmeasured
language is enough. By script first; within a script that the model knows by letters that none of its languages has,
then by frequent words, and only where they leave no doubt: code, logs, numbers, names and short texts count as
covered. Linear in the length of the text, and cheap for ASCII.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from guardkit.languages import ALPHABETS, DENSE, NAMES, SCRIPTS, UNSPACED, WORDS

SEGMENT = 512  # characters looked at together
MIN_DENSE = 5  # characters of a dense script that are more than a name
MIN_LETTERS, MIN_WORDS = 12, 3  # letters, in words, of any other script
MIN_FOREIGN, FOREIGN_SHARE = 2, 0.2  # different words with letters of no measured language, their share of all words
MIN_HITS, HIT_SHARE = 3, 0.18  # different frequent words of one language, their share of all words
_STARTS = [start for start, _ in SCRIPTS]
# Words: what stands between blanks, ASCII that is no letter, and punctuation.
_WORD = re.compile("[^\x00-\x26\x28-\x40\x5b-\x60\x7b-\xbf\u2000-\u2018\u201a-\u206f\u3000-\u303f\uff00-\uff0f]+")
_LOWER = bytes(ord(chr(b).lower()) if chr(b).isalpha() or b == 0x27 else 0x20 for b in range(128)) + bytes(128)


@dataclass(frozen=True)
class Coverage:
    """The languages that a model was measured on, by code: a name, scripts, and the figures."""

    languages: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Coverage:
        """Raises OSError or ValueError for a file that is no such list."""
        measured = json.loads(path.read_text(encoding="utf-8"))["measured"]
        return cls({str(code): dict(about) for code, about in measured.items()})

    @cached_property
    def scripts(self) -> frozenset[str]:
        found = {NAMES[code][1] for code in self._known}
        for about in self.languages.values():
            given = about.get("script", ())
            found.update([given] if isinstance(given, str) else given)
        return frozenset(found)

    @cached_property
    def _letters(self) -> dict[str, frozenset[str]]:
        """By script, all letters of its measured languages, where they are known."""
        found: dict[str, set[str]] = {}
        for code in self._known:
            found.setdefault(NAMES[code][1], set()).update(ALPHABETS.get(code, ""))
        unknown = {NAMES[code][1] for code in self._known if code not in ALPHABETS}
        return {script: frozenset(letters) for script, letters in found.items() if script not in unknown}

    @cached_property
    def _known(self) -> tuple[str, ...]:
        """The measured languages that the tables hold: "zh-Hant" is "zh" there."""
        found = ((code if code in NAMES else code.split("-")[0]) for code in self.languages)
        return tuple(dict.fromkeys(code for code in found if code in NAMES))

    @cached_property
    def _others(self) -> dict[str, frozenset[str]]:
        """The words that tell of each unmeasured language whose script is known: those of no measured one."""
        own: frozenset[str] = frozenset().union(*(WORDS.get(code, frozenset()) for code in self._known))
        scripts = {NAMES[code][1] for code in self._known}
        return {c: words - own for c, words in WORDS.items() if c not in self._known and NAMES[c][1] in scripts}

    @cached_property
    def _any_other(self) -> frozenset[str]:
        return frozenset().union(*self._others.values())

    @cached_property
    def _any_other_ascii(self) -> frozenset[bytes]:
        return frozenset(word.encode() for word in self._any_other if word.isascii())

    def unmeasured(self, segment: str) -> str | None:
        """The language or script of `segment` that the model was not measured on, by its name; None: covered."""
        if segment.isascii():
            ascii_words = segment.encode("ascii").translate(_LOWER).split()
            if len(self._any_other_ascii.intersection(ascii_words)) < MIN_HITS:
                return None
            return self._by_words([word.decode() for word in ascii_words])
        words = _WORD.findall(segment)
        return self._by_script(segment, words) or self._by_letters(words) or self._by_words([w.lower() for w in words])

    def _by_script(self, segment: str, words: list[str]) -> str | None:
        chars = Counter(segment)
        dense: Counter[str] = Counter()
        for char, n in chars.items():
            if char > "\u1100" and (script := script_of(char)) in DENSE:
                dense[script] += n
        if dense["Kana"] and "ja" in self._known:
            dense["Han"] = 0  # Chinese characters of a Japanese text
        if dense["Kana"] >= MIN_DENSE and "Kana" not in self.scripts:
            return "Japanese"
        for script, n in dense.items():
            if n >= MIN_DENSE and script not in self.scripts:
                return {"Han": "Chinese", "Hangul": "Korean", "Kana": "Japanese"}.get(script, script)
        letters: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        for word in words:
            first = next((c for c in word if c > "\u024f" and c.isalpha()), None)
            if first is None or word[0].isupper():  # a name
                continue
            script = script_of(first)
            if not script or script in DENSE or script in self.scripts:
                continue
            n = sum(map(str.isalpha, word))
            if n > 1:
                letters[script] += n
                counted[script] += 1
        for script, n in letters.most_common():
            if n >= MIN_LETTERS and (counted[script] >= MIN_WORDS or script in UNSPACED):
                return script
        return None

    def _by_letters(self, words: list[str]) -> str | None:
        foreign: dict[str, set[str]] = {}
        counts: Counter[str] = Counter()
        for word in words:
            if word.isascii() or word[0].isupper():
                continue
            first = next((c for c in word if c.isalpha() and c > "\x7f"), None)
            script = script_of(first) if first else ""
            own = self._letters.get(script)
            if own is not None and any(c.isalpha() and c > "\x7f" and c not in own for c in word.lower()):
                foreign.setdefault(script, set()).add(word.lower())
                counts[script] += 1
        for script, found in foreign.items():
            if len(found) >= MIN_FOREIGN and counts[script] >= FOREIGN_SHARE * len(words):
                return self._named(words, script)
        return None

    def _named(self, words: list[str], script: str) -> str:
        """The likeliest name for a text that is in no measured language of its script."""
        lower = [w.lower() for w in words]
        hits = {c: sum(w in found for w in lower) for c, found in self._others.items() if NAMES[c][1] == script}
        best = max(hits, key=hits.__getitem__, default=None)
        return NAMES[best][0] if best is not None and hits[best] > 1 else f"a language in {script} letters"

    def _by_words(self, words: list[str]) -> str | None:
        told = self._any_other.intersection(words)
        if len(told) < MIN_HITS:
            return None
        hits = Counter(word for word in words if word in told)
        best, most = "", 0
        for code, frequent in self._others.items():
            here = [n for word, n in hits.items() if word in frequent]
            if len(here) >= MIN_HITS and sum(here) > most:
                best, most = code, sum(here)
        if not best:
            return None
        own = sum(w in WORDS[best] for w in words)
        rivals = max((sum(w in WORDS[code] for w in words) for code in self._known if code in WORDS), default=0)
        return NAMES[best][0] if own >= HIT_SHARE * len(words) and own >= rivals + MIN_HITS else None


def script_of(char: str) -> str:
    """The script of a letter; "" where none is told."""
    at = bisect_right(_STARTS, ord(char)) - 1
    return SCRIPTS[at][1] if at >= 0 else ""


class Meter:
    """Text in, in any pieces; `found` names the language or script that was not measured, of what came so far.

    A copy goes its own way.
    """

    def __init__(self, coverage: Coverage):
        self._coverage = coverage
        self._found: str | None = None
        self._rest = ""

    def add(self, text: str) -> None:
        if self._found is not None:
            return
        self._rest += text
        if len(self._rest) > SEGMENT:
            at = 0
            for start, end in _segments(self._rest):
                at = end
                self._found = self._found or self._coverage.unmeasured(self._rest[start:end])
            self._rest = self._rest[at:]

    @property
    def found(self) -> str | None:
        return self._found or (self._coverage.unmeasured(self._rest) if self._rest else None)


def _segments(text: str) -> Iterator[tuple[int, int]]:
    """Whole segments, each cut at its last blank; what is left is at most `SEGMENT` long."""
    start = 0
    while len(text) - start > SEGMENT:
        end = start + SEGMENT
        blank = text.rfind(" ", start + SEGMENT // 2, end)
        end = blank + 1 if blank >= 0 else end
        yield start, end
        start = end


def language(text: str, coverage: Coverage | None) -> str | None:
    """The name of the language or script of `text` that the model was not measured on; None: covered."""
    if coverage is None:
        return None
    meter = Meter(coverage)
    meter.add(text)
    return meter.found


def unmeasured(text: str, coverage: Coverage | None) -> Literal["unmeasured"] | None:
    """A verdict's `coverage`."""
    return "unmeasured" if language(text, coverage) is not None else None


def guess_language(text: str) -> str:
    """The likeliest language, or the script, of the beginning of a text, for people; "not told" for numbers and code
    in which none shows."""
    words = [w.lower() for w in _WORD.findall(text[:SEGMENT])]
    scripts = Counter(script for w in words for c in w if c.isalpha() and (script := script_of(c)))
    if not scripts:
        return "not told"
    script = "Kana" if scripts["Kana"] else scripts.most_common(1)[0][0]
    codes = [code for code, (_, own) in NAMES.items() if own == script]
    hits = {code: len(WORDS.get(code, frozenset()).intersection(words)) for code in codes}
    best = max(hits, key=hits.__getitem__, default="")
    if best and (hits[best] >= 2 or len(codes) == 1):
        return NAMES[best][0]
    return "not told" if script == "Latin" else script
