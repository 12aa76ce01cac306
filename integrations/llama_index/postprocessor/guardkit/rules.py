"""What every part shares: what to do on a violation, how it is reported, and redaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from llama_index.core.bridge.pydantic import Field
from llama_index.postprocessor.guardkit.marks import described
from llama_index.postprocessor.guardkit.runs import Policies, guard_of_run
from llama_index.postprocessor.guardkit.steps import Steps
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent

from guardkit import Action, Decision, Guard, GuardViolation, Message, Stage

ExitBehavior = Literal["error", "end", "replace"]
"""On a violation: raise `GuardViolation`; end with the violation message; or put the message in the place of the
blocked part alone and go on."""

ViolationMessage = str | Mapping[str, str] | Callable[[Decision], str]
"""A text, a text for each stage (the default for those left out), or a function of the decision. A text may hold
``{stage}``, ``{severity}`` and ``{categories}``."""

OnViolation = Callable[[Decision], object]
"""Is told each decision that withholds a text; what it raises is logged."""

VIOLATION_MESSAGE = "This was withheld by a safety check."
REDACTED = "[redacted]"

_log = logging.getLogger("guardkit.llama_index")
_dispatcher = get_dispatcher("llama_index.postprocessor.guardkit")


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


def worst(decisions: Sequence[Decision]) -> Decision:
    """The decision with the strongest action, the most severe of those."""
    return max(decisions, key=lambda d: (d.action, d.verdict is not None, d.verdict and d.verdict.severity))


@dataclass(frozen=True)
class Rules:
    """The guard, and what a violation leads to."""

    base: Guard
    exit_behavior: ExitBehavior = "end"
    violation_message: ViolationMessage = VIOLATION_MESSAGE
    on_violation: OnViolation | None = None
    policies: Policies = field(default_factory=dict)
    chosen: bool = False  # whether the run's policy is chosen already

    def __post_init__(self) -> None:
        if self.exit_behavior not in ("error", "end", "replace"):
            raise ValueError(f"exit_behavior must be 'error', 'end' or 'replace', not {self.exit_behavior!r}")
        if isinstance(self.violation_message, Mapping):
            for stage in self.violation_message:
                Stage(stage)  # its error names the stage

    @property
    def guard(self) -> Guard:
        """The guard, under the policy that this run names."""
        return self.base if self.chosen else guard_of_run(self.base, self.policies)

    def of_run(self) -> Rules:
        """These under the policy that this run names, for what goes on outside of the call: a stream."""
        return replace(self, base=self.guard, policies={}, chosen=True)

    def message(self, decision: Decision) -> str:
        """What is said in the place of a text that was withheld."""
        given = self.violation_message
        if isinstance(given, Mapping):
            by_stage = {Stage(stage): text for stage, text in given.items()}
            given = by_stage.get(decision.stage, VIOLATION_MESSAGE)
        if not isinstance(given, str):
            return given(decision)
        verdict = decision.verdict
        about = ", ".join(c.label for c in verdict.categories) if verdict else ""
        severity = verdict.severity.value if verdict else "not judged"
        text = given.replace("{stage}", decision.stage.value).replace("{severity}", severity)
        return text.replace("{categories}", about)

    def violated(self, decision: Decision, where: str) -> None:
        """Report a violation; raise it where that is asked for."""
        raises = self.exit_behavior == "error"
        self.withheld(decision, where, {"error": "raised", "end": "ended", "replace": "replaced"}[self.exit_behavior])
        if raises:
            raise GuardViolation(bare(decision), f"{where}: {decision}")

    def withheld(self, decision: Decision, where: str, outcome: str) -> None:
        """Report a text that does not go on as it was."""
        report(decision, where, outcome)
        if self.on_violation is not None:
            try:
                self.on_violation(decision)
            except Exception:
                _log.exception("on_violation failed")

    def text(self, text: str, stage: Stage, where: str, context: Sequence[Message] = ()) -> Steps[tuple[str, Decision]]:
        """Judge one whole text; returns what may be shown in its place, and the decision."""
        item = [*context, _message(text, stage)]
        decision: Decision = (yield lambda: self.guard.decide_batch([item], stage=_asked(stage)))[0]
        if decision.action is Action.redact:
            text = yield from redacted(self.guard, text, stage)
            self.withheld(decision, where, "redacted")
        elif decision.action is Action.block:
            self.violated(decision, where)
            text = self.message(decision)
        elif decision.action is Action.flag:
            report(decision, where, "flagged")
        return text, decision


def redacted(guard: Guard, text: str, stage: Stage) -> Steps[str]:
    """`text` without the sentences that the policy stops, or without anything where that does not make it pass."""
    left: str = yield lambda: guard.redact(text, stage=stage, mark=REDACTED)
    return left


def bare(decision: Decision) -> Decision:
    """The decision without the text that it was made about, for what is kept or handed on."""
    return replace(decision, text=None) if decision.text is not None else decision


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
