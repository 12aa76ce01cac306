"""Messages on their way into a model or a memory. Each is judged once, however often a conversation is sent."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.postprocessor.guardkit.messages import ASSISTANT, digest, read, rewritten
from llama_index.postprocessor.guardkit.rules import Rules, redacted, report
from llama_index.postprocessor.guardkit.steps import Steps

from guardkit import Action, Decision, Stage

_REMEMBERED = 4096  # messages


class Inputs:
    """Judges messages, and remembers by content those that it met. Safe to share between threads and tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Decision] = OrderedDict()

    def judge(
        self, rules: Rules, messages: Sequence[ChatMessage], wants: Callable[[ChatMessage], bool]
    ) -> Steps[tuple[list[ChatMessage], bool]]:
        """The messages as they may go on, and whether the exit behaviour is to end here.

        What is wrong in earlier turns is replaced, so that one bad message does not end the conversation for good;
        what is wrong in this turn (after the last answer) leads to the exit behaviour.
        """
        out = list(messages)
        asked = [i for i, message in enumerate(messages) if wants(message)]
        decisions, new = yield from self._decide(rules, [messages[i] for i in asked])
        last_answer = max((i for i, m in enumerate(messages) if m.role in ASSISTANT), default=-1)
        question = next((m for m in reversed(messages[last_answer + 1 :]) if m.role is MessageRole.USER), None)
        # What a `GuardMemory` kept of a blocked question: there is nothing left to answer.
        withheld = question is not None and wants(question) and question.content == rules.violation_message
        if withheld and rules.exit_behavior == "end":
            return out, True
        for i, decision, is_new in zip(asked, decisions, new, strict=True):
            where = f"message {i} ({messages[i].role.value})"
            if decision.action is Action.flag and is_new:
                report(decision, where, "flagged")
            if decision.action is Action.block and i > last_answer:
                rules.violated(decision, where)
                if rules.exit_behavior == "end":
                    return out, True
                out[i] = rewritten(messages[i], rules.violation_message)
            elif decision.action.stops:
                out[i] = yield from self._passable(rules, messages[i], decision, where)
        return out, False

    def passable(self, rules: Rules, messages: Sequence[ChatMessage]) -> Steps[list[ChatMessage]]:
        """The messages as they may be kept: what is wrong is replaced, or raised where the exit behaviour is error."""
        decisions, _ = yield from self._decide(rules, messages)
        out = []
        for i, (message, decision) in enumerate(zip(messages, decisions, strict=True)):
            where = f"message {i} ({message.role.value})"
            if decision.action is Action.block and rules.exit_behavior == "error":
                rules.violated(decision, where)
            if decision.action.stops:
                message = yield from self._passable(rules, message, decision, where)
            out.append(message)
        return out

    def remember(self, message: ChatMessage) -> None:
        """A message that was judged on its way out needs no judgement on its way back in."""
        self._put(digest(read(message)), Decision(Action.allow, None, "judged as an answer", True, Stage.response))

    def _passable(self, rules: Rules, message: ChatMessage, decision: Decision, where: str) -> Steps[ChatMessage]:
        text, outcome = rules.violation_message, "replaced"
        if decision.action is Action.redact:
            content = read(message)
            text, outcome = (yield from redacted(rules.guard, content.content, content.stage)), "redacted"
        report(decision, where, outcome)
        return rewritten(message, text)

    def _decide(self, rules: Rules, messages: Sequence[ChatMessage]) -> Steps[tuple[list[Decision], list[bool]]]:
        contents = [read(message) for message in messages]
        keys = [digest(content) for content in contents]
        known = {key: decision for key in keys if (decision := self._get(key)) is not None}
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            found: list[Decision] = yield partial(rules.guard.decide_batch, [[contents[i]] for i in new])
            for i, decision in zip(new, found, strict=True):
                known[keys[i]] = decision
                if decision.judged:  # a fault may pass: ask again
                    self._put(keys[i], decision)
        return [known[key] for key in keys], [i in new for i in range(len(keys))]

    def _get(self, key: bytes) -> Decision | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def _put(self, key: bytes, decision: Decision) -> None:
        with self._lock:
            self._known[key] = decision
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
