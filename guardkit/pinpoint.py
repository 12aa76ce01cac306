"""Where in a response the harm begins: a flagged run is late, since a token is judged by all that was said up to it.

So the sentence that the run stands in and those just before it are judged again, each by itself; the place begins at
the worst of them: at the stop, or at the end. Whole texts and streams do the same, with the same text: what follows the
run is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any

from guardkit.judge import RunningVerdict
from guardkit.locate import LOOK_BACK
from guardkit.messages import REASONING_TAG, Message
from guardkit.models.base import Append, StreamModel, Work
from guardkit.policy import Policy
from guardkit.response import ResponseReader
from guardkit.sentences import sentence_starts
from guardkit.verdict import SAME_SCORE, Severity, Stage, Verdict

BEFORE = 3  # sentences before that of a flagged run
Sentence = tuple[int, str]
"""Its first character in the response, and its text."""
_Found = tuple[Severity, float]


def sentences_before(text: Callable[[int, int], str], verdict: Verdict | None) -> list[Sentence]:
    """The sentence that a response is flagged in, up to its flagged run, and at most `BEFORE` before it, on the same
    side of a think tag. Empty where there is nothing to choose from. text: gives the characters of the response between
    two indexes."""
    if verdict is None or verdict.char_start is None or verdict.char_end is None:
        return []
    begin, end = verdict.char_start, verdict.char_end
    low = max(begin - LOOK_BACK, 0)
    before = text(low, begin)
    if len(before) < begin - low:  # not remembered
        return []
    first = max((tag.end() for tag in REASONING_TAG.finditer(before)), default=0)
    starts = [start for start in sentence_starts(before) if start >= first and (start or not low)]
    if first and first not in starts and before[first:].strip():
        starts.insert(0, first)
    told = [(low + a, before[a:b]) for a, b in pairwise([*starts, len(before)]) if before[a:b].strip()]
    return [*told[-BEFORE:], (begin, text(begin, end))] if told else []


def begin_of_harm(
    model: StreamModel,
    policy: Policy,
    context: Sequence[Message],
    sentences: Sequence[Sentence],
    stage: Stage,
    debounce: int,
    n_queries: int | None,
) -> Generator[Work, Any, int | None]:
    """Where the worst of some sentences begins; None where none is harmful by itself, or one could not be judged.

    n_queries: how many may be judged; None: all.
    """
    if n_queries is not None:
        sentences = sentences[max(len(sentences) - n_queries, 0) :]
    if len(sentences) < 2 or model.whole_texts:
        return None
    found: list[_Found] = []
    try:
        for _, text in sentences:
            found.append((yield from _alone(model, policy, context, text, stage, debounce)))
    except Exception:  # the verdict stands, and so does its place
        return None
    worst = max(severity for severity, _ in found)
    if worst is Severity.safe:
        return None
    most = max(risk for severity, risk in found if severity is worst)
    return next(
        start
        for (start, _), (severity, risk) in zip(sentences, found, strict=True)
        if severity is worst and risk >= most - SAME_SCORE
    )


def _alone(
    model: StreamModel, policy: Policy, context: Sequence[Message], text: str, stage: Stage, debounce: int
) -> Generator[Work, Any, _Found]:
    """What a sentence is by itself: its severity and risk."""
    reader = ResponseReader(model, stage)
    running = RunningVerdict(reader, model, policy, debounce)
    session = model.open(context)
    try:
        for tokens in reader.read_all(text, len(text)):
            running.add(tokens, (yield Append(session, tokens)))
            if running.stopped:
                break
    finally:
        session.close()
    verdict = running.verdict
    return verdict.severity, verdict.risk
