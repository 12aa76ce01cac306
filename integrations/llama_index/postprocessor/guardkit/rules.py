"""What every part shares: what to do on a violation, how it is reported, and redaction."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llama_index.core.bridge.pydantic import Field
from llama_index.postprocessor.guardkit.steps import Steps
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent

from guardkit import Action, Decision, Guard, GuardViolation, Message, Stage

ExitBehavior = Literal["error", "end", "replace"]
"""On a violation: raise `GuardViolation`; end with the violation message; or put the message in the place of the
blocked part alone and go on."""

VIOLATION_MESSAGE = "This was withheld by a safety check."
REDACTED = "[redacted]"

_log = logging.getLogger("guardkit.llama_index")
_dispatcher = get_dispatcher("llama_index.postprocessor.guardkit")
_SENTENCE = re.compile(r".+?(?:[.!?…]+[\"')\]]*(?=\s)|[。！？]+|\n+|$)\s*", re.S)


class GuardEvent(BaseEvent):
    """Dispatched for every decision that is not a plain allow. Holds no text.

    where: what was judged ("message 2", "node 7f3a…"); outcome: what was done ("dropped", "ended", …).
    """

    where: str
    outcome: str
    action: str
    stage: str
    judged: bool
    rule: str
    severity: str | None = None
    categories: list[str] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "GuardEvent"


def report(decision: Decision, where: str, outcome: str) -> None:
    """Say what was done about a text: an instrumentation event and a log line, both without the text."""
    _dispatcher.event(GuardEvent(where=where, outcome=outcome, rule=decision.rule, **described(decision)))
    _log.info("%s %s: %s", where, outcome, decision)


def described(decision: Decision) -> dict[str, Any]:
    """A decision for metadata: JSON-ready, without text."""
    verdict = decision.verdict
    return {
        "action": decision.action.value,
        "stage": decision.stage.value,
        "judged": decision.judged,
        "severity": verdict.severity.value if verdict else None,
        "categories": [c.value for c in verdict.categories] if verdict else [],
    }


def worst(decisions: Sequence[Decision]) -> Decision:
    """The decision with the strongest action, the most severe of those."""
    return max(decisions, key=lambda d: (d.action, d.verdict is not None, d.verdict and d.verdict.severity))


@dataclass(frozen=True)
class Rules:
    """The guard, and what a violation leads to."""

    guard: Guard
    exit_behavior: ExitBehavior = "end"
    violation_message: str = VIOLATION_MESSAGE

    def __post_init__(self) -> None:
        if self.exit_behavior not in ("error", "end", "replace"):
            raise ValueError(f"exit_behavior must be 'error', 'end' or 'replace', not {self.exit_behavior!r}")

    def violated(self, decision: Decision, where: str) -> None:
        """Report a violation; raise it where that is asked for."""
        raises = self.exit_behavior == "error"
        report(decision, where, {"error": "raised", "end": "ended", "replace": "replaced"}[self.exit_behavior])
        if raises:
            raise GuardViolation(decision, f"{where}: {decision}")

    def text(self, text: str, stage: Stage, where: str, context: Sequence[Message] = ()) -> Steps[tuple[str, Decision]]:
        """Judge one whole text; returns what may be shown in its place, and the decision."""
        item = [*context, _message(text, stage)]
        decision: Decision = (yield lambda: self.guard.decide_batch([item], stage=_asked(stage)))[0]
        if decision.action is Action.redact:
            text = yield from redacted(self.guard, text, stage)
            report(decision, where, "redacted")
        elif decision.action is Action.block:
            self.violated(decision, where)
            text = self.violation_message
        elif decision.action is Action.flag:
            report(decision, where, "flagged")
        return text, decision


def redacted(guard: Guard, text: str, stage: Stage) -> Steps[str]:
    """`text` without the sentences that the policy stops, or without anything where that does not make it pass."""
    pieces: list[str] = _SENTENCE.findall(text)
    decisions: list[Decision] = yield lambda: guard.decide_batch(
        [[_message(p, stage)] for p in pieces], stage=_asked(stage)
    )
    kept = [_blotted(p) if d.action.stops else p for p, d in zip(pieces, decisions, strict=True)]
    result = "".join(kept)
    again: Decision = (yield lambda: guard.decide_batch([[_message(result, stage)]], stage=_asked(stage)))[0]
    return REDACTED if again.action.stops else result


def _blotted(piece: str) -> str:
    return REDACTED + piece[len(piece.rstrip()) :]


def _message(text: str, stage: Stage) -> Message:
    """A message whose only part is `text` at `stage`. A bare string would do for the stages that models are asked at,
    but not for reasoning and tool calls after a context."""
    if stage is Stage.reasoning:
        return Message("assistant", reasoning=text)
    if stage is Stage.tool_call:
        return Message("assistant", tool_calls=(text,))
    return Message("assistant" if stage is Stage.response else "user", text)


def _asked(stage: Stage) -> Stage | None:
    return stage if stage.is_query else None
