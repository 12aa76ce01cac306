"""A text without what the policy stops: the flagged places are replaced, until what is left passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardkit.locate import parts_of
from guardkit.policy import MARK, Decision
from guardkit.verdict import Stage

if TYPE_CHECKING:
    from guardkit.guard import Guard

ROUNDS = 8  # places replaced one after the other; a text that needs more is replaced as a whole


def redact(guard: Guard, text: str, stage: Stage | None = None, mark: str = MARK) -> str:
    """`text` as the policy lets it pass: unchanged where it is allowed or flagged; else every sentence that is stopped
    by itself is replaced by `mark`, and then whatever else the text is still stopped for.

    Fails closed: what cannot be judged, or still does not pass, is replaced as a whole.
    """
    decision = _decide(guard, [text], stage)[0]
    if not decision.action.stops:
        return text
    parts = parts_of(text, 0, len(text))
    if len(parts) > 1 and decision.judged:
        decisions = _decide(guard, [text[a:b] for a, b in parts], stage)
        for (a, b), found in reversed(list(zip(parts, decisions, strict=True))):
            if found.action.stops:
                text = text[:a] + mark + text[b:]
        decision = _decide(guard, [text], stage)[0]
    for _ in range(ROUNDS):
        if not decision.action.stops:
            return text
        left = decision.redacted(mark)
        if not decision.judged or left == text:
            break
        text = left
        decision = _decide(guard, [text], stage)[0]
    return text if not decision.action.stops else mark


def _decide(guard: Guard, texts: list[str], stage: Stage | None) -> list[Decision]:
    """What the guard decides, without a record in its audit: the text as it came has one."""
    return guard.decide_batch(texts, stage=stage, audit=False)
