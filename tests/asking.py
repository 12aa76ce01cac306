"""Asks a model itself, without a guard around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether something holds, now or soon: what a loop does in its own time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
