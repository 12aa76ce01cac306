"""Whole messages, judged: what goes into a model, and what comes out of it or out of a tool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from langchain_core.messages import AIMessage, BaseMessage

from guardkit import Action, Decision, Message, MessageError, Stage
from langchain_guardkit.enforcing import Enforcement, Judged, scope_of
from langchain_guardkit.reading import read, select

INPUT_STAGES = frozenset((Stage.prompt, Stage.tool_output, Stage.document))
_M = TypeVar("_M", bound=BaseMessage)


class MessageGuard:
    """Judges messages under an `Enforcement`, each text once: what passed is remembered by its digest."""

    def __init__(self, enforcement: Enforcement, stages: frozenset[Stage], judged: Judged | None = None):
        self.enforcement, self.stages = enforcement, stages
        self.judged = Judged() if judged is None else judged

    def context(self, messages: Sequence[BaseMessage]) -> list[Message]:
        """Messages as the context of an answer; those that cannot be read are left out, since context only helps."""
        found = []
        for i, message in enumerate(messages):
            try:
                found.append(read(message, i))
            except MessageError:
                continue
        return found

    def decide_input(self, messages: Sequence[BaseMessage]) -> list[tuple[int, Decision]]:
        """A decision for each message with input that was not judged before: (index, decision), in one batch.

        Input is all but the model's own messages. Only what passed without a flag is remembered.
        """
        fresh: list[tuple[int, Message]] = []
        found: list[tuple[int, Decision]] = []
        for i, message in enumerate(messages):
            if isinstance(message, AIMessage):
                continue
            try:
                wanted = select(read(message, i), self.stages)
            except MessageError as error:
                found.append((i, self.enforcement.guard.not_judged(str(error), Stage.prompt, None)))
                continue
            wanted = wanted and self.judged.fresh(wanted)
            if wanted is not None:
                fresh.append((i, wanted))
        decisions = self.enforcement.guard.decide_batch([[message] for _, message in fresh])
        for (_, asked), decision in zip(fresh, decisions, strict=True):
            if decision.action is Action.allow:
                self.judged.passed(asked)
        return sorted([*found, *((i, d) for (i, _), d in zip(fresh, decisions, strict=True))], key=lambda pair: pair[0])

    def admit(self, messages: list[BaseMessage]) -> tuple[list[BaseMessage], Decision | None]:
        """What may go into the model, and the decision that ends the call instead. "error" raises `GuardViolation`."""
        admitted = list(messages)
        for i, decision in self.decide_input(messages):
            if not decision.action.stops:
                continue
            self.enforcement.raise_if_error(decision, i)
            if self.enforcement.behavior(decision) == "end":
                return admitted, decision
            admitted[i] = self.enforcement.scrubbed(messages[i], decision)
        return admitted, None

    def judge_answers(
        self, messages: Sequence[BaseMessage], answers: Sequence[_M]
    ) -> list[tuple[_M | AIMessage, Decision | None]]:
        """Each answer to `messages` with None, or a scrubbed one with its decision. "error" raises `GuardViolation`."""
        context = self.context(messages)
        scope = scope_of(context)
        index = len(messages)
        asked: list[Message | None] = []
        for answer in answers:
            wanted = select(read(answer, index), self.stages)
            asked.append(wanted and self.judged.fresh(wanted, scope))
        decisions = iter(self.enforcement.guard.decide_batch([[*context, a] for a in asked if a is not None]))
        results: list[tuple[_M | AIMessage, Decision | None]] = []
        for answer, wanted in zip(answers, asked, strict=True):
            decision = None if wanted is None else next(decisions)
            if decision is None or wanted is None or not decision.action.stops:
                if wanted is not None and decision is not None and decision.action is Action.allow:
                    self.judged.passed(wanted, scope)
                    for call in wanted.tool_calls:
                        self.judged.add(Stage.tool_call, call)  # as a tool is asked: without what came before
                results.append((answer, None))
                continue
            self.enforcement.raise_if_error(decision, index)
            results.append((self.enforcement.scrubbed(answer, decision), decision))
        return results
