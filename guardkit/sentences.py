"""Where the sentences of a text begin: a small splitter with exact offsets, for reports about a place in a text.

A sentence ends at a line break; at the full stops of Chinese, Japanese, Hindi and Urdu; and at ``.``, ``!``, ``?`` or
``…``, closing quotes and brackets included, when white space follows and what comes next is not in lower case. The
stop of an abbreviation ("Dr. Roe", "e.g. Rome"), of an initial ("J. Doe") and of a list number ("1. Mix") ends none.
White space belongs to the sentence before it.
"""

from __future__ import annotations

import re

_CLOSERS = "\"'”’»)\\]}」』】）》"
_END = re.compile(  # possessive, and never begun inside a run of stops: the cost is linear for any text
    rf"[。！？｡।॥۔؟]++[{_CLOSERS}]*+\s*+"  # these need no space after them
    rf"|(?<![.!?…])(?P<stop>[.!?…]++)[{_CLOSERS}]*+\s++"
    r"|[\r\n\x85\u2028\u2029]\s*+"
)
_LAST_WORD = re.compile(r"[^\W_]+(?:\.[^\W_]+)*\Z")
_LONGEST = 16  # no abbreviation or list number is longer
_ABBREVIATIONS = frozenset((
    "mr", "mrs", "ms", "mx", "dr", "prof", "st", "sen", "rep", "gov", "gen", "lt", "col", "sgt", "capt", "rev", "hon",
    "jr", "messrs", "vs", "e.g", "i.e", "cf", "viz", "fig", "figs", "eq", "eqs", "sec", "vol", "pp", "approx", "ca",
    "dept", "est",
))  # fmt: skip


def sentence_starts(text: str) -> list[int]:
    """The index of each sentence's first character, ascending; the first is 0. Empty for an empty text.

    The text from each start to the next is a sentence, and none is only white space unless the whole text is.
    """
    starts = [0] if text else []
    for end in _END.finditer(text):
        at, begin = end.end(), starts[-1]
        if at == len(text) or (end["stop"] and _goes_on(text, begin, end.start(), end["stop"], at)):
            continue
        if not text[begin:at].isspace():
            starts.append(at)
    return starts


def _goes_on(text: str, begin: int, stop: int, marks: str, after: int) -> bool:
    """Whether the sentence that began at `begin` goes on past the marks at `stop`; `after` is what follows them."""
    if "\n" in text[stop:after] or "\r" in text[stop:after]:
        return False
    if text[after].islower():
        return True
    if marks != ".":
        return False
    found = _LAST_WORD.search(text, max(begin, stop - _LONGEST), stop)
    if found is None:
        return False
    word = found[0]
    if word.isdigit():
        return not text[begin : found.start()].strip()
    if len(word) == 1 and word.isupper():
        return word != "I"
    return word.lower() in _ABBREVIATIONS or (word.lower() == "no" and text[after].isdigit())
