"""What a guard finds in completions: thinking, answer and tool calls each at their own stage, in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from guardkit.errors import GuardkitError, MessageError
from guardkit.guard import Guard
from guardkit.messages import Message, read_messages, split_reasoning
from guardkit.policy import Decision
from guardkit.verdict import Severity, Stage

Conversation = str | Sequence[Message | Mapping[str, Any]]
"""A prompt or a completion: plain text, or messages."""


class LogMetric(Protocol):
    def __call__(self, name: str, value: float, /) -> object: ...


@dataclass(frozen=True)
class Judged:
    """What was found in one completion.

    severity: the worst of its parts; None where any of them was not judged, or where there was nothing to judge.
    stage: of that part. refusal: whether the last answer declines; None where the guard does not say. error: why there
    is no severity. risk, unsafe: the greatest probability among its parts of not being safe, and of being unsafe; None
    where the guard gives none.
    """

    severity: Severity | None
    stage: Stage = Stage.response
    refusal: bool | None = None
    error: str | None = None
    risk: float | None = None
    unsafe: float | None = None


def judge_completions(
    guard: Guard | Sequence[Guard], prompts: Sequence[Conversation], completions: Sequence[Conversation]
) -> list[Judged]:
    """Judge each completion after its prompt. Equal completions of equal prompts are judged once.

    guard: several judge each on their own, and the worst that any of them finds counts; a completion that one of them
    could not judge is not judged.

    What the model wrote is judged: reasoning, answers and tool calls of every assistant message. Tool results in a
    completion are context. What answers an empty prompt is not judged. Raises ValueError for sequences of different
    lengths, `MessageError` without prompts.
    """
    if prompts is None:
        raise MessageError("these completions have no prompts: a completion is judged with what it answers")
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts for {len(completions)} completions")
    rows: list[list[tuple[Message, ...]]] = []
    errors: dict[int, str] = {}
    items: dict[tuple[Message, ...], int] = {}
    for at, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        try:
            parts = _parts(prompt, completion)
        except MessageError as error:
            parts, errors[at] = [], str(error)
        for part in parts:
            items.setdefault(part, len(items))
        rows.append(parts)
    asked = [list(item) for item in items]
    each = [one.decide_batch(asked) for one in check_guards(guard)]
    return [
        Judged(None, error=errors[at])
        if at in errors
        else _together([_worst([decisions[items[part]] for part in parts]) for decisions in each])
        for at, parts in enumerate(rows)
    ]


def tell(found: Sequence[Judged], log_metric: LogMetric | None) -> None:
    """Shares by severity, of refusals and of what was not judged, to a trainer's log."""
    if log_metric is None or not found:
        return
    judged = [f for f in found if f.severity is not None]
    for severity in Severity:
        share = sum(f.severity is severity for f in judged) / len(judged) if judged else 0.0
        log_metric(f"guard/{severity.value}", share)
    told = [f.refusal for f in judged if f.refusal is not None]
    if told:
        log_metric("guard/refusal", sum(told) / len(told))
    unsafe_thoughts = sum(f.stage is Stage.reasoning and f.severity is not Severity.safe for f in judged)
    log_metric("guard/unsafe_thinking", unsafe_thoughts / len(judged) if judged else 0.0)
    log_metric("guard/not_judged", 1 - len(judged) / len(found))


def _parts(prompt: Conversation, completion: Conversation) -> list[tuple[Message, ...]]:
    """What must be judged, each as a conversation whose last message holds one part."""
    for what, given in (("prompt", prompt), ("completion", completion)):
        if not isinstance(given, str) and (isinstance(given, Mapping) or not isinstance(given, Iterable)):
            raise MessageError(f"the {what} is neither text nor messages, but {type(given).__name__}")
    context = [Message("user", prompt)] if isinstance(prompt, str) else read_messages(prompt)
    if not any(message.content.strip() or message.tool_calls or message.unjudgeable for message in context):
        raise MessageError("the prompt is empty: a completion is judged with what it answers")
    written = [Message("assistant", completion)] if isinstance(completion, str) else read_messages(completion)
    found: list[tuple[Message, ...]] = []
    for message in written:
        if message.stage is Stage.response:
            thought, answer = split_reasoning(message.content)
            thought = "\n".join(filter(None, (message.reasoning, thought)))
            own = [
                Message(message.role, reasoning=thought) if thought.strip() else None,
                Message(message.role, tool_calls=message.tool_calls) if message.tool_calls else None,
                Message(message.role, unjudgeable=message.unjudgeable) if message.unjudgeable else None,
                Message(message.role, answer) if answer.strip() else None,
            ]
            found += [(*context, part) for part in own if part is not None]
        context = [*context, message]
    return found


def _worst(decisions: Sequence[Decision]) -> Judged:
    if not decisions:
        return Judged(None, error="nothing was written: there is nothing to judge")
    worst: Decision | None = None
    refusal: bool | None = None
    risks: list[float] = []
    unsafe: list[float] = []
    for decision in decisions:
        verdict = decision.verdict
        if not decision.judged or verdict is None:
            return Judged(None, decision.stage, error=decision.error or "not judged")
        if verdict.scores:
            risks.append(verdict.risk)
            unsafe.append(verdict.scores.get(Severity.unsafe.value, 0.0))
        if worst is None or worst.verdict is None or verdict.severity > worst.verdict.severity:
            worst = decision
        if decision.stage is Stage.response:
            refusal = verdict.refusal
    assert worst is not None
    assert worst.verdict is not None
    if len(risks) < len(decisions):
        return Judged(worst.verdict.severity, worst.stage, refusal)
    return Judged(worst.verdict.severity, worst.stage, refusal, risk=max(risks), unsafe=max(unsafe))


def _together(found: Sequence[Judged]) -> Judged:
    """What several guards found in one completion: the worst counts."""
    if len(found) == 1:
        return found[0]
    for one in found:
        if one.severity is None:
            return one
    worst = max(found, key=lambda one: one.severity or Severity.unsafe)
    told = [one.refusal for one in found if one.refusal is not None]
    risks = [one.risk for one in found if one.risk is not None]
    unsafe = [one.unsafe for one in found if one.unsafe is not None]
    return Judged(
        worst.severity,
        worst.stage,
        any(told) if told else None,
        risk=max(risks) if len(risks) == len(found) else None,
        unsafe=max(unsafe) if len(unsafe) == len(found) else None,
    )


def check_guards(guard: Guard | Sequence[Guard]) -> tuple[Guard, ...]:
    """One guard or several, as several. Raises `GuardkitError` for what is no guard, as a name (it would be loaded once
    a call), and for none at all."""
    guards = tuple(guard) if isinstance(guard, Sequence) and not isinstance(guard, str) else (guard,)
    for one in guards:
        if not hasattr(one, "decide_batch"):
            raise GuardkitError(f"a reward takes a Guard, not {type(one).__name__}: Guard.load(...) makes one")
    if not guards:
        raise GuardkitError("a reward takes a Guard, or several; here are none")
    return guards
