"""What an agent's model is asked, judged where it is asked: what other middlewares put in beside the state's messages,
and what a run that goes on from an old checkpoint brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardkit import Decision, Stage
from langchain_guardkit.enforcing import Enforcement
from langchain_guardkit.messages import MessageGuard
from langchain_guardkit.stating import PASSED
from langchain_guardkit.tools import error_text


def admitted(request: Any, guard: MessageGuard, *, system: bool) -> tuple[Any, Mapping[str, Any] | None]:
    """The request as the model may be asked it, and the mark of the violation that ends the turn instead.

    system: whether the system prompt is judged, too.
    """
    front = [request.system_message] if system and request.system_message is not None else []
    state = request.state
    known = set(state.get(PASSED) or ()) if isinstance(state, Mapping) else ()
    found = guard.admit([*front, *request.messages], known)
    changes: dict[str, Any] = {}
    if front and found[0] is not front[0]:
        changes["system_message"] = found[0]
    messages = found[len(front) :]
    if any(new is not old for new, old in zip(messages, request.messages, strict=True)):
        changes["messages"] = messages
    return (request.override(**changes) if changes else request), found.refusal


def decided_error(enforcement: Enforcement, error: Exception) -> Decision | None:
    """The decision that withholds what a model's error says; None where it may be seen. A retry that gives up puts it
    into the conversation."""
    text = error_text(error)
    decision = enforcement.guard.decide(text, stage=Stage.response) if text else None
    return decision if decision is not None and decision.action.stops else None
