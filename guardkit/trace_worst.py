"""The worst sentence of a part of a trace: where to look first.

A token's score says how unsafe the text is up to it, so after a harmful sentence the harmless ones behind it are
flagged too, often with higher scores. Hence the flagged sentences, and those just before them, are judged again, each
by itself after the messages before the trace; the worst of them is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from guardkit.batch import Judging
from guardkit.messages import Message
from guardkit.runner import run_rounds
from guardkit.trace_parts import TracePart
from guardkit.verdict import SAME_SCORE, SEVERITIES, Severity, Stage

if TYPE_CHECKING:
    from guardkit.guard import Guard

BEFORE = 2  # sentences before a flagged one that are looked at: a run of flagged tokens is late
MOST = 64  # sentences of one part that are judged again


def with_worst(guard: Guard, parts: Sequence[TracePart], contexts: Sequence[tuple[Message, ...]]) -> list[TracePart]:
    """`parts` with `worst` set where something is flagged; contexts: of each part, the messages before it. All parts
    share batches. Where the second judgement fails, the sentence in which the risk begins is named."""
    chosen = [_candidates(part, guard.model.locate_queries or MOST) for part in parts]
    asked = [
        [*context, _message(part.stage, part.text[part.sentences[i].start : part.sentences[i].end])]
        for part, context, sentences in zip(parts, contexts, chosen, strict=True)
        if len(sentences) > 1
        for i in sentences
    ]
    found: list[tuple[Severity, float] | None] = []
    if asked:
        judging = Judging(guard.model, guard.policy, guard.debounce, 0).judge(asked, None, views=False)
        for outcome in run_rounds(guard.model, judging, guard.timeout):
            verdict = outcome.verdict
            found.append(None if verdict is None or outcome.error is not None else (verdict.severity, verdict.risk))
    answers = iter(found)
    out = []
    for part, sentences in zip(parts, chosen, strict=True):
        judged = [next(answers) for _ in sentences] if len(sentences) > 1 else []
        out.append(replace(part, worst=_worst(part, sentences, judged)))
    return out


def _candidates(part: TracePart, most: int) -> list[int]:
    """The sentences that may be the worst, in order: of many those in which severity and risk rise most."""
    if part.begin is None:
        return []
    flagged = [i for i, s in enumerate(part.sentences) if s.severity > Severity.safe] or [part.begin.sentence]
    near = {j for i in flagged for j in range(max(i - BEFORE, 0), i + 1)}
    levels = [(SEVERITIES.index(s.severity), s.risk) for s in part.sentences]

    def rise(i: int) -> tuple[int, float]:
        level, risk = levels[i - 1] if i else (0, 0.0)
        return levels[i][0] - level, levels[i][1] - risk

    return sorted(sorted(near, key=rise, reverse=True)[:most])


def _worst(part: TracePart, sentences: Sequence[int], judged: Sequence[tuple[Severity, float] | None]) -> int | None:
    if part.begin is None:
        return None
    known = [(i, found) for i, found in zip(sentences, judged, strict=False) if found is not None]
    if not known:
        return part.begin.sentence
    severity = max(found[0] for _, found in known)
    most = max(found[1] for _, found in known if found[0] is severity)
    return next(i for i, found in known if found[0] is severity and found[1] >= most - SAME_SCORE)


def _message(stage: Stage, text: str) -> Message:
    if stage is Stage.reasoning:
        return Message("assistant", reasoning=text)
    if stage is Stage.tool_call:
        return Message("assistant", tool_calls=(text,))
    return Message("assistant", text)
