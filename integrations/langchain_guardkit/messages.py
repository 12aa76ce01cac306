"""Whole messages, judged: what goes into a model, and what comes out of it or out of a tool."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage

from guardkit import Action, Decision, Message, MessageError, Stage
from langchain_guardkit.enforcing import (
    Enforcement,
    Judged,
    digest,
)
from langchain_guardkit.marks import RECENT, withheld
from langchain_guardkit.reading import beside, call_text, read, select

INPUT_STAGES = frozenset((Stage.prompt, Stage.tool_output, Stage.document))
_M = TypeVar("_M", bound=BaseMessage)


class Admitted(list[BaseMessage]):
    """Messages that may be seen: what was withheld is scrubbed. refusal: the mark that ends the call, if one does."""

    refusal: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Found:
    """A decision about the message at `index`; `key` is what a memory knows the message by, where it can be known."""

    index: int
    decision: Decision
    key: str | None
    settled: bool = False  # a violation message of this process: reported already


@dataclass(frozen=True)
class Agent:
    """What an agent's middleware tells its parts. name: its own, since each guard of an agent has one, and what passes
    one of them does not pass another. asks: whether a person is asked about what is flagged: then a flag alone is no
    pass. passed: keys of what passed elsewhere, as the agent's state has them."""

    name: str = ""
    asks: bool = False
    passed: Collection[str] = ()


class MessageGuard:
    """Judges messages under an `Enforcement`, each text once: what passed is remembered by its digest."""

    def __init__(
        self,
        enforcement: Enforcement,
        stages: frozenset[Stage],
        judged: Judged | None = None,
        *,
        agent: Agent = Agent(),
        own: bool = False,
        system: bool = True,
    ):
        self.enforcement, self.stages = enforcement, stages
        self.judged = Judged() if judged is None else judged
        self.agent = agent
        asked = sorted(stage.value for stage in (stages if own else stages & INPUT_STAGES))
        self._key = " ".join((agent.name, enforcement.key, *asked))
        self.own = own  # whether the model's own messages are input too, as where a client brings a history
        self.system = system  # whether instructions are judged
        self.again: Judged | None = None  # ids of own marks, where one call admits its messages more than once

    def under(self, enforcement: Enforcement) -> MessageGuard:
        """The same under a run's own policy."""
        if enforcement is self.enforcement:
            return self
        other = MessageGuard(enforcement, self.stages, self.judged, agent=self.agent, own=self.own, system=self.system)
        other.again = self.again
        return other

    def key_of(self, message: BaseMessage) -> str | None:
        """What the whole message is remembered by; None where it is not all plain data."""
        if isinstance(message, AIMessage) and not self.own:
            return None
        plain, more = message.content, beside(message)
        if more or not isinstance(plain, str):
            try:
                plain = json.dumps((plain, more))
            except (TypeError, ValueError, RecursionError):
                return None
        return digest(self._key, message.type, str(bool(more)), plain)

    def decide_input(
        self,
        messages: Sequence[BaseMessage],
        known: Collection[str] = (),
        keys: Sequence[str | None] | None = None,
    ) -> list[Found]:
        """A decision for each message with input that was not judged before, in one batch, in order.

        Input is all but the model's own messages. known: keys of messages that passed elsewhere; keys: those of
        these messages. What passed is remembered here.
        """
        fresh: list[tuple[int, Message, str | None]] = []
        found: list[Found] = []
        if not self.stages & INPUT_STAGES:
            return found
        for i, message in enumerate(messages):
            if message.type == "remove" or (isinstance(message, AIMessage) and not self.own):
                continue
            if isinstance(message, SystemMessage) and not self.system:
                continue
            key = keys[i] if keys is not None else self.key_of(message)
            if key is not None and (key in known or self.judged.has(key)):
                continue
            mark = withheld(message)
            if mark and self.enforcement.marked.has(str(mark.get("id"))) and not _more(message):
                decision = RECENT.get(mark)
                if decision is not None and message.content == mark.get("message"):
                    found.append(Found(i, decision, key, settled=True))
                    continue
            try:
                wanted = select(read(message, i), self.stages)
            except MessageError as error:
                found.append(Found(i, self.enforcement.guard.not_judged(str(error), Stage.prompt, None), key))
                continue
            wanted = wanted and self.judged.fresh(wanted, self.enforcement.key)
            if wanted is None:
                self._remember(key)
            else:
                fresh.append((i, wanted, key))
        decisions = self.enforcement.guard.decide_batch([[message] for _, message, _ in fresh])
        for (i, wanted, key), decision in zip(fresh, decisions, strict=True):
            if (
                decision.judged
                and not decision.action.stops
                and not (self.agent.asks and decision.action is Action.flag)
            ):
                self.judged.passed(wanted, self.enforcement.key)
                self._remember(key)
            found.append(Found(i, decision, key))
        return sorted(found, key=lambda f: f.index)

    def _remember(self, key: str | None) -> None:
        if key is not None:
            self.judged.add(key)

    def admit(self, messages: Sequence[BaseMessage]) -> Admitted:
        """What may go into the model. A violation in the current turn is its refusal; with "replace", or in an earlier
        turn, which a refusal has ended already, the violation message stands in its place and the call goes on."""
        if isinstance(messages, Admitted):
            return messages
        admitted = Admitted(messages)
        decided = self.decide_input(messages, self.agent.passed)
        start = turn_start(messages) if decided else 0
        for found in decided:
            i, decision = found.index, found.decision
            if not decision.action.stops:
                continue
            mark = withheld(messages[i])
            before = found.settled and not (self.again and mark and self.again.has(str(mark.get("id"))))
            current = is_current(messages, i, start, settled=before)
            if not found.settled or mark is None:
                admitted[i] = self.enforcement.scrubbed(messages[i], decision, i)
                mark = withheld(admitted[i])
                if self.again is not None and mark is not None:
                    self.again.add(str(mark.get("id")))
                if current:
                    self.enforcement.report(decision)
            if current and admitted.refusal is None and self.enforcement.behavior(decision) != "replace":
                admitted.refusal = mark
        return admitted

    def passes_beside(self, output: Mapping[str, Any] | None) -> bool:
        """Whether what a provider says about its answers may be seen. Each answer's own metadata holds it too, and was
        judged there, but where there are several."""
        if not output or Stage.response not in self.stages:
            return True
        wanted = Message.of({"role": "assistant", "content": "", "response_metadata": output})
        fresh = self.judged.fresh(wanted, self.enforcement.key)
        return fresh is None or not self.enforcement.guard.decide([fresh]).action.stops

    def judge_answers(
        self, messages: Sequence[BaseMessage], answers: Sequence[_M], *, final: bool = True
    ) -> list[tuple[_M | AIMessage, Decision | None]]:
        """Each answer to `messages`, redacted or not, with None, or a scrubbed one with its decision. "error" raises
        `GuardViolation`, but for answers that are not final."""
        context, scope = self.judged.conversations.of(messages)
        scope = self.enforcement.key + scope
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
                if wanted is not None and decision is not None and decision.judged:
                    self.judged.passed(wanted, scope)
                    if decision.action is Action.allow:  # as a tool is asked: without what came before
                        self.judged.passed(Message("assistant", tool_calls=wanted.tool_calls), self.enforcement.key)
                results.append((answer, None))
                continue
            self.enforcement.report(decision)
            if final:
                self.enforcement.raise_if_error(decision, index)
            scrubbed = self.enforcement.scrubbed(answer, decision, index)
            results.append((scrubbed, None if withheld(scrubbed) is None else decision))
        return results


def call_key(call: Mapping[str, Any], enforcement: Enforcement) -> str:
    """What a tool call is remembered by, as `judge_answers` does."""
    return digest(Stage.tool_call.value, call_text(call["name"], call["args"]), enforcement.key)


def _more(message: BaseMessage) -> bool:
    """Whether a violation message carries what it did not when it was written."""
    return any(key not in ("response_metadata", "usage_metadata", "name") for key in beside(message))


def turn_start(messages: Sequence[BaseMessage]) -> int:
    """Where the current turn begins: at the last message of a person. What stands before it is history."""
    return max((i for i, message in enumerate(messages) if message.type in ("human", "HumanMessageChunk")), default=0)


def is_current(messages: Sequence[BaseMessage], index: int, start: int, *, settled: bool = False) -> bool:
    """Whether a message belongs to the current turn. Instructions to the model belong to every turn, but where a
    violation message stands in their place: its turn has ended."""
    return index >= start or (messages[index].type in ("system", "SystemMessageChunk") and not settled)
