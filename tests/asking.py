"""Asks a model itself, without a guard around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from guardkit import Guard
from guardkit.models.base import Append, Query, QueryScores, Scores, Session, StreamModel, Tokens, Work
from guardkit.runner import Steps, run


def ask_all(model: StreamModel, works: Sequence[Work]) -> list[Any]:
    """Work that is submitted together; the first error is raised."""

    def job(work: Work) -> Steps[Any]:
        result = yield work
        return result

    found = run(model, [partial(job, work) for work in works])
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


def ask(model: StreamModel, queries: Sequence[Query]) -> list[list[QueryScores]]:
    return ask_all(model, queries)


def append(model: StreamModel, session: Session, tokens: Tokens) -> Scores:
    scores: Scores = model.judge(Append(session, tokens))
    return scores


def peek(model: StreamModel, session: Session, tokens: Tokens) -> Scores:
    scores: Scores = model.judge(Append(session, tokens, keep=False))
    return scores


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something holds, now or soon: what a loop does in its own time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def assert_goes_back(guard: Guard, n_words: int = 60) -> None:
    """A stream that was taken back to a mark, twice, ends as one that never went further."""
    words = [f"word {i} of a text about tomatoes, " for i in range(n_words)]
    ends = []
    for dropped in ((), (13, n_words)):
        stream = guard.stream("Say words.")
        for word in words[:10]:
            stream.feed(word)
        mark = stream.mark()
        for n in dropped:
            for word in words[10:n]:
                stream.feed(word)
            stream.finish(close=False)
            stream.rewind(mark)
        for word in ("sun ", "and water. "):
            stream.feed(word)
        stream.finish()
        verdict = stream.verdict
        ends.append((stream.n_tokens, verdict.windowed, verdict.char_index, stream.released))
        ends.append([round(score, 3) for score in verdict.scores.values()])
    assert ends[:2] == ends[2:]
