"""What a decision does to LangChain's values: the three exit behaviours, and the messages that they leave."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage

from guardkit import Action, Category, Decision, Guard, GuardkitError, GuardViolation, Message, Stage

ExitBehavior = Literal["error", "end", "replace"]
VIOLATION_MESSAGE = "This content was withheld by a safety guard ({stage}: {categories})."
METADATA_KEY = "guardkit"
# What a blocked message keeps of its metadata: nothing in it may repeat the text, as log-probabilities do.
_KEPT_METADATA = ("model_name", "model_provider", "model", "ls_provider")
_M = TypeVar("_M", bound=BaseMessage)


class MessageViolation(GuardViolation):
    """A `GuardViolation` in a list of messages. message_index: 0-based; None where there is no list."""

    def __init__(self, decision: Decision, message_index: int | None = None):
        self.message_index = message_index
        where = "" if message_index is None else f"message {message_index}: "
        super().__init__(decision, f"{where}{decision}")


@dataclass(frozen=True)
class Enforcement:
    """A guard and what to do about its decisions.

    exit_behavior: "error" raises `GuardViolation`; "end" lets only the violation message go on; "replace" puts it where
    the offending text stood. violation_message may hold ``{stage}``, ``{severity}`` and ``{categories}``.
    """

    guard: Guard
    exit_behavior: ExitBehavior = "error"
    violation_message: str = VIOLATION_MESSAGE

    def __post_init__(self) -> None:
        if not isinstance(self.guard, Guard):
            raise TypeError(f"expected a guardkit.Guard (Guard.load()), got {type(self.guard).__name__}")
        if self.exit_behavior not in get_args(ExitBehavior):
            raise GuardkitError(
                f"unknown exit_behavior '{self.exit_behavior}'; known: {', '.join(get_args(ExitBehavior))}"
            )

    def behavior(self, decision: Decision) -> ExitBehavior:
        """What happens to a text that may not go on as it is. A policy's redact replaces, whatever is set."""
        return "replace" if decision.action is Action.redact else self.exit_behavior

    def raise_if_error(self, decision: Decision, index: int | None = None) -> None:
        if self.behavior(decision) == "error":
            raise MessageViolation(decision, index)

    def text(self, decision: Decision) -> str:
        """The violation message. It holds nothing of the text."""
        return self.text_of(summary(decision))

    def text_of(self, details: Mapping[str, Any]) -> str:
        """The violation message for a decision's summary."""
        severity = details["severity"] or "not judged"
        categories = ", ".join(Category(c).label for c in details["categories"])
        values = {"stage": details["stage"], "severity": severity, "categories": categories or severity}
        text = self.violation_message
        for key, value in values.items():
            text = text.replace(f"{{{key}}}", value)
        return text

    def refusal(self, details: Mapping[str, Any]) -> AIMessage:
        """The violation message as an answer of its own."""
        return AIMessage(content=self.text_of(details), response_metadata={METADATA_KEY: dict(details)})

    def scrubbed(self, message: _M, decision: Decision) -> _M | AIMessage:
        """A message in the place of a blocked one: its id, name and usage, and the violation message."""
        text = self.text(decision)
        metadata = {k: v for k, v in message.response_metadata.items() if k in _KEPT_METADATA}
        metadata[METADATA_KEY] = summary(decision)
        if isinstance(message, AIMessage):
            kind = AIMessageChunk if isinstance(message, AIMessageChunk) else AIMessage
            return kind(
                content=text,
                id=message.id,
                name=message.name,
                usage_metadata=message.usage_metadata,
                response_metadata=metadata,
            )
        update: dict[str, Any] = {"content": text, "additional_kwargs": {}, "response_metadata": metadata}
        if isinstance(message, ToolMessage):
            update |= {"artifact": None, "status": "error"}
        return message.model_copy(update=update)


def summary(decision: Decision) -> dict[str, Any]:
    """A decision as plain metadata, without any text of what was judged."""
    verdict = decision.verdict
    return {
        "action": decision.action.value,
        "judged": decision.judged,
        "stage": decision.stage.value,
        "severity": verdict.severity.value if verdict else None,
        "categories": [c.value for c in verdict.categories] if verdict else [],
        "rule": decision.rule,
    }


def worst(decisions: Sequence[Decision]) -> Decision:
    """The decision that counts for a whole: the strongest action, then the most severe."""
    return max(decisions, key=lambda d: (d.action, not d.judged, d.verdict is not None and d.verdict.severity))


def withheld(message: BaseMessage) -> dict[str, Any] | None:
    """Where a guard put its violation message in this message's place, or at its end in a stream: why."""
    found = message.response_metadata.get(METADATA_KEY)
    return found if isinstance(found, dict) and found.get("action") in ("block", "redact") else None


class Judged:
    """Which texts passed lately, so that none is judged twice: digests only, bounded, thread-safe.

    scope: what else the verdict depended on, such as the messages that an answer belongs to.
    """

    def __init__(self, size: int = 4096):
        self._size = size
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def fresh(self, message: Message, scope: str = "") -> Message | None:
        """The message with only the parts that are not known to pass; None where nothing is left."""
        known = {(p.stage, p.text) for p in message.parts() if p.text is not None and self._has(p.stage, p.text, scope)}
        content = "" if (message.stage, message.content) in known else message.content
        reasoning = "" if (Stage.reasoning, message.reasoning) in known else message.reasoning
        calls = tuple(call for call in message.tool_calls if (Stage.tool_call, call) not in known)
        if not (content or reasoning or calls or message.unjudgeable):
            return None
        return replace(message, content=content, reasoning=reasoning, tool_calls=calls)

    def passed(self, message: Message, scope: str = "") -> None:
        for part in message.parts():
            if part.text:
                self.add(part.stage, part.text, scope)

    def add(self, stage: Stage, text: str, scope: str = "") -> None:
        with self._lock:
            self._known[_digest(stage, text, scope)] = None
            while len(self._known) > self._size:
                self._known.popitem(last=False)

    def _has(self, stage: Stage, text: str, scope: str) -> bool:
        digest = _digest(stage, text, scope)
        with self._lock:
            if digest not in self._known:
                return False
            self._known.move_to_end(digest)
            return True


def _digest(stage: Stage, text: str, scope: str) -> bytes:
    return hashlib.sha256(repr((stage.value, text, scope)).encode("utf-8", "surrogatepass")).digest()


def scope_of(context: Sequence[Message]) -> str:
    """The scope of what is judged after `context`: the conversation, whatever system message comes with it."""
    conversation = [message for message in context if message.role != "system"]
    return hashlib.sha256(repr(conversation).encode("utf-8", "surrogatepass")).hexdigest()
