"""Whole texts, judged for a request: in time, told to the observer, and never called safe unjudged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from guardkit import Action, Decision, Guard, Message, MessageError, Stage
from guardkit.batch import Item
from guardkit.messages import Part, read_messages
from guardkit_serve.errors import HttpError, overloaded
from guardkit_serve.joining import decide_joined
from guardkit_serve.observe import Observer
from guardkit_serve.tracing import is_traced


async def decide(
    guard: Guard, items: Sequence[Item], observer: Observer, seconds: float, *, sheds: bool = True
) -> list[Decision]:
    """A decision for each item, in one batch, with the texts of other requests unless requests are traced. Raises
    `HttpError` (503) where the model has no room and on_error does not let the text through (sheds: only then); any
    other fault is a decision that says so."""
    start = time.perf_counter()
    try:
        async with asyncio.timeout(seconds):
            decisions = await (guard.adecide_batch(items) if is_traced() else decide_joined(guard, items))
    except TimeoutError:
        decisions = _none_judged(guard, items, f"not judged within {seconds:g} s", start)
    except Exception as error:  # a guard that was closed, or is broken: nothing was judged
        decisions = _none_judged(guard, items, f"{type(error).__name__}: {error}", start)
    took = time.perf_counter() - start
    for decision in decisions:
        observer.judged(decision, guard.model.name, guard.policy.name, took)
    if sheds and any(d.overloaded and d.action.stops for d in decisions):
        raise overloaded("the guard has no room for more; try again")
    return decisions


def _none_judged(guard: Guard, items: Sequence[Item], why: str, start: float) -> list[Decision]:
    """The decisions that the guard itself did not come to, in its audit as well."""
    decision = guard.not_judged(why, Stage.prompt, None)
    for item in items:
        guard.record(decision, item, 0, (time.perf_counter() - start) * 1e3, "check")
    return [decision for _ in items]


def item_of(text: str, stage: Stage) -> Item:
    """A text with its stage, as an item of a batch."""
    return [Message("user", attached=(Part(stage, text),))]


def messages_of(value: Any, what: str = "messages") -> list[Message]:
    """Raises `HttpError` (400) for what are no messages."""
    if not isinstance(value, list) or not value:
        raise HttpError(400, f"'{what}' must be a list of messages, with at least one", param=what)
    try:
        return read_messages(value)
    except (MessageError, RecursionError) as error:
        raise HttpError(400, str(error) or "nested too deeply", param=what) from None


def worst(decisions: Sequence[Decision]) -> Decision | None:
    """The strictest decision; of equals the first."""
    return max(decisions, key=lambda d: d.action, default=None)


def action_of(decisions: Sequence[Decision]) -> str:
    return max((d.action for d in decisions), default=Action.allow).value


def told(decision: Decision) -> dict[str, Any]:
    """A decision as JSON, as ``/v1/check`` gives it."""
    out: dict[str, Any] = {
        "action": decision.action.value,
        "judged": decision.judged,
        "rule": decision.rule,
        "verdict": decision.verdict.to_dict() if decision.verdict else None,
    }
    return out if decision.error is None else out | {"error": decision.error}
