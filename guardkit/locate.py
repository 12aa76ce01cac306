"""Where in a text the harm is: the smallest part that is as severe by itself as the whole was found to be.

A response is judged token by token, so its flagged run says where, and the sentence that the run begins in, or one just
before it (`pinpoint`). A query is read as one: here its sentences are judged again, each alone, then pairs of
neighbours, then longer stretches, until one is as severe. Models that take long for a text get a search by halves
instead, with a bound on its queries. Only flagged texts are searched, all those of a batch together. Where no part
carries the verdict, or the search fails, the place is all of what was judged.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from guardkit.messages import REASONING_TAG
from guardkit.sentences import sentence_starts
from guardkit.verdict import SAME_SCORE, Severity

LOOK_BACK = 400  # characters before a flagged run in which its sentence may begin
LONGEST = 300  # characters of a part; longer sentences are cut
Span = tuple[int, int]
Found = tuple[Severity, float]
"""What a part was found to be by itself, and the probability of the severity that is looked for."""
_Search = Generator[list[Span], list[Found], Span]
"""Yields the parts that are to be judged, is sent what they are, returns the place."""


# -- in a response


def begin_of_sentence(text: Callable[[int, int], str], start: int, end: int) -> int:
    """Where the sentence begins that the token from `start` to `end` stands in, at most `LOOK_BACK` before it.

    text: gives the characters of the response between two indexes. Reads nothing behind the token, so a stream gives
    the same however it is cut. A sentence does not reach over a think tag.
    """
    low = max(start - LOOK_BACK, 0)
    before = text(low, end)
    at = start - low
    while at < len(before) - 1 and before[at].isspace():
        at += 1
    before = before[: at + 1]
    begin = sentence_starts(before)[-1] if before else 0
    for tag in REASONING_TAG.finditer(before):
        begin = max(begin, tag.end())
    if begin == 0 < low:  # longer than what is looked at: from a word on
        begin = next((i for i, char in enumerate(before) if char.isspace()), at)
    while begin < at and before[begin].isspace():
        begin += 1
    return low + begin


def visible(text: str) -> int:
    """The length of `text` without the blanks and the invisible characters at its end, at least 1."""
    n = len(text)
    while n > 1 and (text[n - 1].isspace() or unicodedata.category(text[n - 1]) in ("Mn", "Me", "Cc", "Cf")):
        n -= 1
    return max(n, 1)


# -- in a query


@dataclass(frozen=True)
class Flagged:
    """A text that was found to be `severity`: its characters from `start` to `end` were."""

    text: str
    start: int
    end: int
    severity: Severity


def parts_of(text: str, start: int, end: int) -> list[Span]:
    """The sentences of ``text[start:end]``, long ones cut at blanks, without the blanks around them; none is empty."""
    starts = [start + s for s in sentence_starts(text[start:end])]
    parts: list[Span] = []
    for begin, stop in zip(starts, [*starts[1:], end], strict=False):
        for at, to in _cut(text, begin, stop):
            to = at + len(text[at:to].rstrip())
            at = to - len(text[at:to].lstrip())
            if at < to:
                parts.append((at, to))
    return parts


def _cut(text: str, begin: int, stop: int) -> Iterator[Span]:
    while stop - begin > LONGEST:
        end = begin + LONGEST
        blank = next((i for i in range(end, begin + LONGEST // 2, -1) if text[i].isspace()), end)
        yield begin, blank
        begin = blank
    yield begin, stop


def locate(
    flagged: Sequence[Flagged], n_queries: int | None = None
) -> Generator[list[tuple[int, Span]], Sequence[Found], list[Span]]:
    """The place of each text. Yields the parts that are to be judged, each as (index in `flagged`, its characters), and
    is sent what they are by themselves.

    n_queries: how many parts of one text may be judged; None: all that the search asks for; 0: none, the place is
    the text. The searches of all texts share these rounds; each finds what it finds alone.
    """
    places = [(f.start, f.end) for f in flagged]
    if n_queries is not None and n_queries < 2:
        return places
    searches: list[tuple[int, _Search, list[Span]]] = []
    for i, f in enumerate(flagged):
        parts = parts_of(f.text, f.start, f.end)
        search = _each(parts, f) if n_queries is None else _halves(parts, f, n_queries)
        _advance(searches, places, i, search, None)
    while searches:
        asked = [(i, span) for i, _, spans in searches for span in spans]
        answers = iter((yield asked))
        waiting, searches = searches, []
        for i, search, spans in waiting:
            _advance(searches, places, i, search, [next(answers) for _ in spans])
    return places


def _advance(
    searches: list[tuple[int, _Search, list[Span]]],
    places: list[Span],
    i: int,
    search: _Search,
    answer: list[Found] | None,
) -> None:
    try:
        searches.append((i, search, next(search) if answer is None else search.send(answer)))
    except StopIteration as end:
        places[i] = end.value


def _each(parts: list[Span], text: Flagged) -> _Search:
    """Every part by itself, then stretches of 2, 4, 8, ... that overlap by half."""
    size = 1
    while size < len(parts):
        step = max(size // 2, 1)
        firsts = range(0, len(parts) - size + step, step)
        spans = [(parts[at][0], parts[min(at + size, len(parts)) - 1][1]) for at in firsts]
        best = _best(spans, (yield spans), text.severity)
        if best is not None:
            return spans[best]
        size *= 2
    return (parts[0][0], parts[-1][1]) if parts else (text.start, text.end)


def _halves(parts: list[Span], text: Flagged, n_queries: int) -> _Search:
    """The worse half of the worse half, ..., as long as one is as severe and two queries are left."""
    low, high = 0, len(parts)
    while high - low > 1 and n_queries >= 2:
        middle = (low + high) // 2
        spans = [(parts[low][0], parts[middle - 1][1]), (parts[middle][0], parts[high - 1][1])]
        n_queries -= 2
        best = _best(spans, (yield spans), text.severity)
        if best is None:
            break
        low, high = (low, middle) if best == 0 else (middle, high)
    return (parts[low][0], parts[high - 1][1]) if parts else (text.start, text.end)


def _best(spans: Sequence[Span], found: Sequence[Found], severity: Severity) -> int | None:
    """The first of the riskiest parts that are at least as severe. Scores that rounding can tell apart are equal."""
    carrying = [(i, risk) for i, (level, risk) in enumerate(found) if level >= severity]
    if not carrying:
        return None
    most = max(risk for _, risk in carrying)
    return next(i for i, risk in carrying if risk >= most - SAME_SCORE)


def to_original(span: Span, origin: Callable[[int], int], length: int) -> Span:
    """A span of a view as one of the original text; `length`: of the view. At least one character."""
    start, end = origin(span[0]), origin(span[1])
    at = span[1]
    while end <= start and at < length:  # several characters of the view come from one place
        at += 1
        end = origin(at)
    return start, max(end, start + 1)
