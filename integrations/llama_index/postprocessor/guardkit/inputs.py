"""Messages on their way into a model or a memory. Each is judged once, however often a conversation is sent."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.postprocessor.guardkit.marks import unmarked, withheld_in
from llama_index.postprocessor.guardkit.messages import ASSISTANT, digest, read, rewritten
from llama_index.postprocessor.guardkit.rules import Rules, bare, redacted, report
from llama_index.postprocessor.guardkit.steps import Steps

from guardkit import Action, Decision, GuardViolation, Stage

_REMEMBERED = 4096  # messages
_Key = tuple[int, bytes]


class Inputs:
    """Judges messages, and remembers by content those that it met. Safe to share between threads and tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, Decision] = OrderedDict()

    def judge(
        self, rules: Rules, messages: Sequence[ChatMessage], wants: Callable[[ChatMessage], bool]
    ) -> Steps[tuple[list[ChatMessage], Decision | None]]:
        """The messages as they may go on, and the decision for which the exit behaviour is to end here, if any is.

        What is wrong in earlier turns is replaced, so that one bad message does not end the conversation for good;
        what is wrong in this turn (the last question and what came after the last answer) leads to the exit behaviour.
        """
        out = [unmarked(message) for message in messages]
        asked = [i for i, message in enumerate(messages) if wants(message)]
        decisions, new = yield from self._decide(rules, [messages[i] for i in asked])
        last_answer = max((i for i, m in enumerate(messages) if m.role in ASSISTANT), default=-1)
        question = max((i for i, m in enumerate(messages) if m.role is MessageRole.USER), default=-1)
        if question > last_answer and question in asked:
            withheld = _withheld(rules, messages[question])
            if withheld is not None and rules.exit_behavior != "replace":
                rules.violated(withheld, f"message {question} (user)")
                return out, withheld
        for i, decision, is_new in zip(asked, decisions, new, strict=True):
            where = f"message {i} ({messages[i].role.value})"
            if decision.action is Action.flag and is_new:
                report(decision, where, "flagged")
            if decision.action is Action.block and i > last_answer and not _asked_before(messages[i], i, question):
                rules.violated(decision, where)
                if rules.exit_behavior == "end":
                    return out, decision
                out[i] = rewritten(messages[i], rules.message(decision))
            elif decision.action.stops:
                out[i] = unmarked((yield from self._passable(rules, messages[i], decision, where, is_new)))
        return out, None

    def passable(
        self, rules: Rules, messages: Sequence[ChatMessage]
    ) -> Steps[tuple[list[ChatMessage], GuardViolation | None]]:
        """The messages as they may be kept, what is wrong replaced; and the violation that is to be raised, once they
        are kept, where the exit behaviour is "error"."""
        decisions, new = yield from self._decide(rules, messages)
        out, violation = [], None
        for i, (message, decision, is_new) in enumerate(zip(messages, decisions, new, strict=True)):
            where = f"message {i} ({message.role.value})"
            if decision.action.stops:
                if decision.action is Action.block and rules.exit_behavior == "error" and violation is None:
                    violation = GuardViolation(bare(decision), f"{where}: {decision}")
                message = yield from self._passable(rules, message, decision, where, is_new)
            out.append(message)
        return out, violation

    def remember(self, rules: Rules, message: ChatMessage) -> None:
        """A message that was judged on its way out needs no judgement on its way back in."""
        passed = Decision(Action.allow, None, "judged as an answer", True, Stage.response)
        self._put((id(rules.guard), digest(read(message))), passed)

    def _passable(
        self, rules: Rules, message: ChatMessage, decision: Decision, where: str, is_new: bool
    ) -> Steps[ChatMessage]:
        text, outcome = rules.message(decision), "replaced"
        if decision.action is Action.redact:
            content = read(message)
            text, outcome = (yield from redacted(rules.guard, content.content, content.stage)), "redacted"
        if is_new:
            rules.withheld(decision, where, outcome)
        return rewritten(message, text, decision if decision.action is Action.block else None)

    def _decide(self, rules: Rules, messages: Sequence[ChatMessage]) -> Steps[tuple[list[Decision], list[bool]]]:
        contents = [read(message) for message in messages]
        guard = rules.guard
        keys = [(id(guard), digest(content)) for content in contents]
        known = {key: decision for key in keys if (decision := self._get(key)) is not None}
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            found: list[Decision] = yield partial(guard.decide_batch, [[contents[i]] for i in new])
            for i, decision in zip(new, found, strict=True):
                known[keys[i]] = decision
                if decision.judged:  # a fault may pass: ask again
                    self._put(keys[i], bare(decision))
        return [known[key] for key in keys], [i in new for i in range(len(keys))]

    def _get(self, key: _Key) -> Decision | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def _put(self, key: _Key, decision: Decision) -> None:
        with self._lock:
            self._known[key] = decision
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)


def _asked_before(message: ChatMessage, i: int, question: int) -> bool:
    """Whether this is a question that another one followed: its turn is over, though nothing answered it."""
    return message.role is MessageRole.USER and i < question


def _withheld(rules: Rules, question: ChatMessage) -> Decision | None:
    """The decision for which a `GuardMemory` kept a question as the violation message: nothing is left to answer."""
    if (decision := withheld_in(question)) is not None:
        return decision
    if isinstance(rules.violation_message, str) and question.content == rules.violation_message:
        return Decision(Action.block, None, "withheld earlier", False, Stage.prompt, "it was withheld earlier")
    return None
