"""The mark that a message keeps of a text that was withheld from it: the decision, without the text.

It stands in `additional_kwargs`, so that it survives stores and processes: a guarded LLM that reads a blocked question
from a memory knows that there is nothing to answer, and callers can tell a refusal from an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from guardkit import Action, Category, Decision, Severity, Stage, Verdict
from guardkit.reading.values import is_name

MARK = "guardkit"
_FIELDS = {"action", "stage", "judged", "severity", "categories"}


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


def mark_of(decision: Decision) -> dict[str, Any]:
    return {MARK: described(decision)}


def decision_of(mark: Any) -> Decision | None:
    """The decision that a mark stands for; None for anything that is no mark, which then is judged like any value."""
    if not isinstance(mark, Mapping) or set(mark) != _FIELDS or not isinstance(mark["judged"], bool):
        return None
    try:
        stage, severity = Stage(mark["stage"]), mark["severity"]
        if not all(is_name(c) for c in mark["categories"]):  # a text in the place of a category
            return None
        categories = tuple(Category.named(c) for c in mark["categories"])
        verdict = Verdict(Severity(severity), categories, stage=stage) if severity is not None else None
        error = None if verdict else "it was withheld earlier"
        return Decision(Action(mark["action"]), verdict, "withheld earlier", mark["judged"], stage, error)
    except (ValueError, TypeError):
        return None


def withheld_in(message: ChatMessage) -> Decision | None:
    """The decision that withheld (a part of) this message, if one did."""
    return decision_of(message.additional_kwargs.get(MARK))


def unmarked(message: ChatMessage) -> ChatMessage:
    """As an LLM may be sent it."""
    if MARK not in message.additional_kwargs:
        return message
    kwargs = {k: v for k, v in message.additional_kwargs.items() if k != MARK}
    return message.model_copy(update={"additional_kwargs": kwargs})
