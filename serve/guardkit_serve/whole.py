"""A whole answer, judged before any of it goes out: each candidate, and whatever else stands in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardkit import Action, Guard, MessageError, Stage
from guardkit.batch import Item
from guardkit.reading.values import replaced
from guardkit_serve.asking import redactions
from guardkit_serve.judging import decide, item_of
from guardkit_serve.observe import Observer
from guardkit_serve.protocols.base import Protocol, Violation


@dataclass(frozen=True)
class Judged:
    """data: the answer as it may go out, the same object where nothing was changed. stopped: the violation of a
    candidate that was ended in it."""

    data: Mapping[str, Any]
    stopped: Violation | None = None


async def judge_answer(
    protocol: Protocol, data: Any, guard: Guard, observer: Observer, seconds: float, replace: bool
) -> tuple[Judged, Action]:
    """The answer as it may go out, and the strictest action. Raises `Violation` for what belongs to no candidate,
    `MessageError` for what is no answer of this protocol."""
    if not isinstance(data, Mapping):
        raise MessageError("an answer is a JSON object")
    answers, rest = protocol.answers(data)
    items: list[Item] = [[*protocol.context, answer.message] for answer in answers]
    unreadable = next((part for part in rest if part.text is None), None)
    if unreadable is not None:
        fault = guard.not_judged(f"{unreadable.what} cannot be judged", Stage.response, None)
        if fault.action.stops:
            raise Violation(fault, "answer")
    items += [item_of(part.text, part.stage) for part in rest if part.text is not None]
    decisions = await decide(guard, items, observer, seconds, sheds=False) if items else []
    action = max((d.action for d in decisions), default=Action.allow)
    for decision in decisions[len(answers) :]:
        if decision.action.stops:
            raise Violation(decision, "answer")
    stopped: dict[int, Violation] = {}
    new = data
    for i, (answer, decision) in enumerate(zip(answers, decisions, strict=False)):
        if decision.action is Action.redact and decision.judged:
            tried = replaced(new, await redactions(guard, new, answer.path, decision))
            message = protocol.answers(tried)[0][i].message
            (decision,) = await decide(guard, [[*protocol.context, message]], observer, seconds, sheds=False)
            if not decision.action.stops:
                new = tried
                continue
        if decision.action.stops:
            stopped[i] = Violation(decision, "answer")
    if not stopped:
        return Judged(new), action
    worst = max(stopped.values(), key=lambda violation: violation.decision.action)
    return Judged(protocol.ended_whole(new, stopped, replace), worst), action
