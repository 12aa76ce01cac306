"""Runs of letters and digits that are nobody's words: keys, tokens, pictures in base64. What they hold, where that is a
text, is judged in the normalised view; as they stand they say nothing, but to nano they would look like a disguise.
"""

from __future__ import annotations

import re

LEAST = 24  # characters of such a run
MOST_IN_WORDS = 0.4  # of its characters, in runs of small letters; of words without blanks it is nearly all
_RUN = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{24,}+={0,2}")
_WORDS = re.compile("[A-Za-z][a-z]{3,}")
_IS_BASE64 = bytes(97 if (chr(code).isalnum() and code < 128) or chr(code) in "+/-_" else 32 for code in range(256))
_LONG = b"a" * LEAST


def without_opaque(text: str) -> str:
    """`text` with zeros in the place of such runs, as long as before: nano reads them as one number."""
    if _LONG not in text.encode("utf-8", "replace").translate(_IS_BASE64):
        return text
    return _RUN.sub(_zeros, text)


def _zeros(match: re.Match[str]) -> str:
    run = match[0]
    if run.islower() or run.isupper() or not any(map(str.isdigit, run)):
        return run
    in_words = sum(len(word) for word in _WORDS.findall(run))
    return run if in_words > MOST_IN_WORDS * len(run) else "0" * len(run)
