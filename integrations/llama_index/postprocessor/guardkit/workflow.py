"""`guard_step`: a step for your own workflows, between the event that carries a text and the step that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.workflow import Event, StopEvent, Workflow, step
from llama_index.postprocessor.guardkit.guards import Source, resolve
from llama_index.postprocessor.guardkit.inputs import Inputs
from llama_index.postprocessor.guardkit.nodes import NodeRules
from llama_index.postprocessor.guardkit.postprocessor import GuardNodePostprocessor
from llama_index.postprocessor.guardkit.rules import (
    VIOLATION_MESSAGE,
    ExitBehavior,
    OnViolation,
    Rules,
    ViolationMessage,
)
from llama_index.postprocessor.guardkit.runs import Policies
from llama_index.postprocessor.guardkit.steps import Steps, arun

from guardkit import Action, Decision, Guard, GuardkitError, Message, Stage
from guardkit.reading.values import Key, replaced, texts_of


def guard_step(
    workflow: type[Workflow],
    guard: Guard | Source,
    *,
    takes: type[Event],
    gives: type[Event],
    field: str,
    stage: Stage | str = Stage.prompt,
    exit_behavior: ExitBehavior = "end",
    violation_message: ViolationMessage = VIOLATION_MESSAGE,
    on_violation: OnViolation | None = None,
    policies: Policies | None = None,
    name: str | None = None,
) -> None:
    """Add a step to a workflow class: it takes an event, judges one field, and gives an event with the same fields.

    field: holds a text, a chat message or a list of them, a list of nodes, or any value with texts in it (a mapping, a
    model), which keeps its type where one of them is replaced; stage: what a text is judged as. On a
    violation the step raises `GuardViolation` ("error"), ends the workflow with ``StopEvent(result=violation_message)``
    ("end"), or goes on with the message in the text's place ("replace"). Nodes that are blocked are left out.
    """
    rules = Rules(resolve(guard), exit_behavior, violation_message, on_violation, policies or {})
    judge = _Judge(rules, Stage(stage), field)

    async def guard_field(ev: Any) -> Any:
        values = {k: getattr(ev, k) for k in type(ev).model_fields} | dict(ev.items())
        if field not in values:
            raise GuardkitError(f"{type(ev).__name__} has no field '{field}'; it has {', '.join(values) or 'none'}")
        values[field], refused = await arun(judge.steps(values[field]))
        return StopEvent(result=rules.message(refused)) if refused else gives(**values)

    guard_field.__annotations__ = {"ev": takes, "return": gives | StopEvent}
    guard_field.__name__ = name or f"guard_{takes.__name__}_{field}"
    guard_field.__qualname__ = guard_field.__name__
    step(workflow=workflow)(guard_field)


class _Judge:
    def __init__(self, rules: Rules, stage: Stage, field: str):
        self._rules, self._stage, self._field = rules, stage, field
        self._inputs = Inputs()

    def steps(self, value: Any) -> Steps[tuple[Any, Decision | None]]:
        """The value as it may go on, and the decision for which the workflow is to end here, if there is one."""
        if isinstance(value, str):
            text, decision = yield from self._rules.text(value, self._stage, f"field '{self._field}'")
            ends = decision.action is Action.block and self._rules.exit_behavior == "end"
            return text, decision if ends else None
        if isinstance(value, ChatMessage):
            messages, refused = yield from self._inputs.judge(self._rules, [value], lambda _: True)
            return messages[0], refused
        if isinstance(value, Sequence) and all(isinstance(v, ChatMessage) for v in value):
            return (yield from self._inputs.judge(self._rules, value, lambda _: True))
        if isinstance(value, Sequence) and all(isinstance(v, NodeWithScore) for v in value):
            screening = yield from GuardNodePostprocessor(guard=self._rules.guard).steps(value)
            return screening.nodes, None
        if isinstance(value, Sequence) and all(isinstance(v, BaseNode) for v in value):
            screened = yield from NodeRules(self._rules).screen(value)
            return [s.node for s in screened if s.node is not None], None
        return (yield from self._of_any_type(value))

    def _of_any_type(self, value: Any) -> Steps[tuple[Any, Decision | None]]:
        """Another value: all its texts together, and by themselves where one of them is to be replaced."""
        rules, where = self._rules, f"field '{self._field}'"
        if value is None or isinstance(value, bool | int | float):
            raise GuardkitError(f"{where} must hold something with texts in it, not {type(value).__name__}")
        found = texts_of(value, self._stage, names=True)
        texts = [f for f in found if f.text]
        unread = tuple(dict.fromkeys(f.what for f in found if f.text is None))
        if not found:
            return value, None
        role = {Stage.tool_output: "tool", Stage.prompt: "user", Stage.document: "user"}.get(self._stage, "assistant")
        together = Message(role, "\n".join(f.text or "" for f in texts), unjudgeable=unread)
        each: list[Any] = [[together], *(f.text for f in texts)]
        decisions: list[Decision] = yield partial(rules.guard.decide_batch, each, stage=self._stage)
        decision = decisions[0]
        if not decision.action.stops:
            return value, None
        rules.violated(decision, where)
        if decision.action is Action.block and rules.exit_behavior == "end":
            return value, decision
        said = rules.message(decision)
        bad = [f.path for f, d in zip(texts, decisions[1:], strict=True) if d.action.stops]
        if unread or not bad or any(isinstance(step, Key) for path in bad for step in path):
            return said, None
        try:
            return replaced(value, dict.fromkeys(bad, said)), None
        except (TypeError, KeyError, ValueError, AttributeError):  # it does not let itself be copied with changes
            return said, None
