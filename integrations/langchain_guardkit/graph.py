"""For graphs of your own: a node that judges the state's messages, and the edge that follows its decision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from guardkit import Guard, Stage
from langchain_guardkit.enforcing import (
    VIOLATION_MESSAGE,
    Enforcement,
    ExitBehavior,
    OnViolation,
    Policies,
    ViolationMessage,
)
from langchain_guardkit.marks import withheld
from langchain_guardkit.messages import INPUT_STAGES, MessageGuard, turn_start
from langchain_guardkit.streaming import OUTPUT_STAGES


def guard_node(
    guard: Guard,
    *,
    exit_behavior: ExitBehavior = "end",
    violation_message: ViolationMessage = VIOLATION_MESSAGE,
    on_violation: OnViolation | None = None,
    policies: Policies | None = None,
    stages: frozenset[Stage] = frozenset(Stage),
    key: str = "messages",
) -> Runnable[Any, dict[str, Any]]:
    """A node that judges the messages under `key`: all input that it has not judged before, and a last answer.

    Offending messages are replaced, by id, with the violation message. With "end" an answer that says so is added
    where an input offends, for `guard_route` to follow. With "error" the state keeps what was raised, since a node
    that raises writes nothing, and the next turn replaces it first. Text that a node streams is seen before any node
    after it runs: give that node a `GuardedChatModel`.
    """
    enforcement = Enforcement(guard, exit_behavior, violation_message, on_violation, policies or {})
    inputs = MessageGuard(enforcement, stages & INPUT_STAGES)
    outputs = MessageGuard(enforcement, stages & OUTPUT_STAGES, inputs.judged)

    def judge(state: Any, config: RunnableConfig) -> dict[str, Any]:
        messages = _messages(state, key)
        run = enforcement.for_run(config)
        admitted = inputs.under(run).admit(messages)
        if run.exit_behavior == "error":  # what was raised stands in the state until here
            _replace_answers(admitted, outputs.under(replace(run, exit_behavior="replace")))
        if admitted.refusal is not None and run.exit_behavior == "error":
            raise run.violation(admitted.refusal)
        update = [after for before, after in zip(messages, admitted, strict=True) if after is not before]
        if admitted.refusal is not None:
            return {key: [*update, run.refusal(admitted.refusal)]}
        if messages and isinstance(messages[-1], AIMessage):
            ((answer, decision),) = outputs.under(run).judge_answers(messages[:-1], messages[-1:])
            if decision is not None:
                update.append(answer)
        return {key: update}

    async def ajudge(state: Any, config: RunnableConfig) -> dict[str, Any]:
        return await asyncio.to_thread(judge, state, config)

    return RunnableLambda(judge, ajudge, name="guard")


def _replace_answers(messages: list[BaseMessage], guard: MessageGuard) -> None:
    """Replace answers of earlier turns that may not stay."""
    earlier = list(enumerate(messages[: turn_start(messages)]))
    answers = [(i, m) for i, m in earlier if isinstance(m, AIMessage)]
    judged = guard.judge_answers([], [answer for _, answer in answers])
    for (i, _), (answer, decision) in zip(answers, judged, strict=True):
        if decision is not None:
            messages[i] = answer


def guard_route(passed: str, blocked: str = "__end__", *, key: str = "messages") -> Callable[[Any], str]:
    """A conditional edge: to `blocked` where the last message is a guard's refusal, else to `passed`."""

    def route(state: Any) -> str:
        messages = _messages(state, key)
        refused = bool(messages) and isinstance(messages[-1], AIMessage) and withheld(messages[-1]) is not None
        return blocked if refused else passed

    return route


def _messages(state: Any, key: str) -> Sequence[BaseMessage]:
    found = state if isinstance(state, list) else state[key] if isinstance(state, Mapping) else getattr(state, key)
    return convert_to_messages(found)
