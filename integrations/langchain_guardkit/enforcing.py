"""What a decision does to LangChain's values: the three exit behaviours, and the messages that they leave."""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

import langchain_core.exceptions
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables.config import var_child_runnable_config
from pydantic import ValidationError

from guardkit import (
    Action,
    Decision,
    Guard,
    GuardkitError,
    GuardViolation,
    Message,
    MessageError,
    Policy,
    Stage,
)
from guardkit.locate import parts_of
from langchain_guardkit.marks import METADATA_KEY, RECENT, decision_of, summary
from langchain_guardkit.reading import as_context, is_id, read

ExitBehavior = Literal["error", "end", "replace"]
VIOLATION_MESSAGE = "This content was withheld by a safety guard ({stage}: {categories})."
POLICY_KEY = "guard_policy"
ViolationMessage = str | Mapping[str, str] | Callable[[Decision], str]
OnViolation = Callable[[Decision], object]
Policies = Mapping[str, Any]  # a name for each: a built-in's name, a Policy, a mapping, a YAML file, or another Guard
# Newer releases of LangChain ask a model's error whether a retry may help.
_ModelError: Any = getattr(langchain_core.exceptions, "ModelError", langchain_core.exceptions.LangChainException)
# What a blocked message keeps of its metadata: nothing in it may repeat the text, as log-probabilities do.
KEPT_METADATA = ("model_name", "model_provider", "model", "ls_provider")
_KINDS = (HumanMessage, SystemMessage, ToolMessage, FunctionMessage, ChatMessage)
_M = TypeVar("_M", bound=BaseMessage)


class MessageViolation(GuardViolation, _ModelError, RuntimeError):  # type: ignore[misc]
    """A `GuardViolation` in LangChain. message_index: 0-based in the list of messages; None where there is no list.

    It says of itself what retries ask about an error: LangChain's retry middlewares find that it is not retryable, and
    LangGraph's default retry policy leaves a RuntimeError alone.
    """

    is_retryable = False

    def __init__(self, decision: Decision, message_index: int | None = None):
        self.message_index = message_index
        where = "" if message_index is None else f"message {message_index}: "
        super().__init__(decision, f"{where}{decision}")


@dataclass(frozen=True)
class Enforcement:
    """A guard and what to do about its decisions.

    exit_behavior: "error" raises `GuardViolation`; "end" lets only the violation message go on; "replace" puts it where
    the offending text stood. violation_message: a text, a text for each stage, or a function of the decision; a text
    may hold ``{stage}``, ``{severity}`` and ``{categories}``. on_violation: is told each decision that withholds a
    text, once; what it raises is logged. policies: what a run may choose from by name, see `for_run`.
    """

    guard: Guard
    exit_behavior: ExitBehavior = "error"
    violation_message: ViolationMessage = VIOLATION_MESSAGE
    on_violation: OnViolation | None = None
    policies: Policies = field(default_factory=dict)
    chosen: bool = False  # whether the run's policy is chosen already

    def __post_init__(self) -> None:
        if not isinstance(self.guard, Guard):
            raise TypeError(f"expected a guardkit.Guard (Guard.load()), got {type(self.guard).__name__}")
        if self.exit_behavior not in get_args(ExitBehavior):
            raise GuardkitError(
                f"unknown exit_behavior '{self.exit_behavior}'; known: {', '.join(get_args(ExitBehavior))}"
            )
        if isinstance(self.violation_message, Mapping):
            for stage in self.violation_message:
                if stage not in {s.value for s in Stage} | set(Stage):
                    known = ", ".join(s.value for s in Stage)
                    raise GuardkitError(f"violation_message: unknown stage '{stage}'; known: {known}")
        runs = {}
        for name, source in self.policies.items():
            runs[name] = replace(self, guard=_under(self.guard, source), policies={}, chosen=True)
        object.__setattr__(self, "_runs", runs)
        guard, policy = self.guard, self.guard.policy
        models = [(type(m).__qualname__, m.name) for m in (guard.model, guard.then) if m is not None]
        settings = (guard.when, guard.normalize, guard.exact, guard.categories)
        key = repr((models, settings, policy.name, policy.extends, policy.on_error, policy.rules))
        object.__setattr__(self, "key", hashlib.sha256(key.encode()).hexdigest()[:16])

    marked: Judged = field(default_factory=lambda: Judged(4096), compare=False, repr=False)  # ids of its marks
    names: Judged = field(default_factory=lambda: Judged(1024), init=False, compare=False, repr=False)
    key: str = field(init=False, compare=False, repr=False)  # who judges and by which rules: the scope of a memory
    _runs: dict[str, Enforcement] = field(init=False, compare=False, repr=False)

    def for_run(self, config: Any = None, context: Any = None) -> Enforcement:
        """This under the policy that a run names: ``config["configurable"]["guard_policy"]``, or else `guard_policy` of
        the graph's runtime context. Raises `GuardkitError` for a name that was not given at construction."""
        if self.chosen or (name := policy_name(config, context)) is None:
            return self
        if name not in self._runs:
            known = ", ".join(map(repr, self._runs)) or "none: give the guard `policies`"
            raise GuardkitError(f"the run names the guard policy '{name}'; known: {known}")
        return self._runs[name]

    def behavior(self, decision: Decision) -> ExitBehavior:
        """What happens to a text that may not go on as it is. A policy's redact replaces, whatever is set."""
        return "replace" if decision.action is Action.redact else self.exit_behavior

    def violated(self, decision: Decision, index: int | None = None) -> None:
        """Report a violation, and raise it where that is the exit behaviour."""
        self.report(decision)
        self.raise_if_error(decision, index)

    def report(self, decision: Decision) -> None:
        if self.on_violation is not None:
            try:
                self.on_violation(decision)
            except Exception:
                logging.getLogger("guardkit").exception("on_violation failed")

    def raise_if_error(self, decision: Decision, index: int | None = None) -> None:
        if self.behavior(decision) == "error":
            raise MessageViolation(decision, index)

    def text(self, decision: Decision) -> str:
        """The violation message. It holds nothing of the text."""
        template = self.violation_message
        if callable(template):
            return str(template(decision))
        if isinstance(template, Mapping):
            of_stage = template.get(decision.stage.value, template.get(decision.stage))  # type: ignore[call-overload]
            template = VIOLATION_MESSAGE if of_stage is None else of_stage
        verdict = decision.verdict
        severity = verdict.severity.value if verdict else "not judged"
        categories = ", ".join(c.label for c in verdict.categories) if verdict else ""
        values = {"stage": decision.stage.value, "severity": severity, "categories": categories or severity}
        for key, value in values.items():
            template = template.replace(f"{{{key}}}", value)
        return template

    def mark(self, decision: Decision, index: int | None = None) -> dict[str, Any]:
        """What stands in a violation message's metadata: the decision, without any text of what was judged."""
        message = self.text(decision)
        key = RECENT.keep(decision, message)
        self.marked.add(key)
        found = {**summary(decision), "id": key, "message": message}
        return found if index is None else {**found, "index": index}

    def refusal(self, mark: Mapping[str, Any]) -> AIMessage:
        """The violation message as an answer of its own."""
        return AIMessage(
            content=str(mark.get("message", VIOLATION_MESSAGE)), response_metadata={METADATA_KEY: {**mark}}
        )

    def violation(self, mark: Mapping[str, Any]) -> MessageViolation:
        """The violation that a mark stands for. In another process than that which wrote it: without its scores."""
        index = mark.get("index")
        return MessageViolation(decision_of(mark), index if isinstance(index, int) else None)

    def scrubbed(self, message: _M, decision: Decision, index: int | None = None) -> _M | AIMessage:
        """A message in the place of a blocked one: its id, name and usage, and the violation message."""
        mark = self.mark(decision, index)
        if decision.action is Action.redact and decision.judged:
            redacted = self._redacted(message, decision, {**mark, "spans": True})
            if redacted is not None:
                return redacted
        text = mark["message"]
        metadata = {k: v for k, v in message.response_metadata.items() if k in KEPT_METADATA and is_id(v)}
        metadata[METADATA_KEY] = mark
        kept: dict[str, Any] = {"content": text, "response_metadata": metadata}
        kept |= {"id": message.id if is_id(message.id) else None, "name": message.name if is_id(message.name) else None}
        if isinstance(message, AIMessage):
            kind = AIMessageChunk if isinstance(message, AIMessageChunk) else AIMessage
            return kind(**kept, usage_metadata=cast(Any, counts(message.usage_metadata)))
        if isinstance(message, ToolMessage):
            id_ = message.tool_call_id
            kept |= {"status": "error", "tool_call_id": id_ if is_id(id_) else f"call_{digest(id_)}"}
        elif isinstance(message, FunctionMessage):
            kept["name"] = kept["name"] or "function"
        elif isinstance(message, ChatMessage):
            kept["role"] = message.role if is_id(message.role) else "user"
        try:  # of its own kind, so that a prompt and a tool's caller take it
            return type(message)(**kept)
        except ValidationError:  # a kind with required fields of its own
            return cast(_M, next(kind for kind in _KINDS if isinstance(message, kind))(**kept))

    def redacted(self, text: str, decision: Decision, *stages: Stage) -> str:
        """A text with the violation message in the place of each sentence that a stage's policy stops; in the place of
        all where what is left does not pass. Whole sentences: what follows a flagged place belongs to it."""
        mark = self.text(decision)
        for stage in stages:
            spans = parts_of(text, 0, len(text))
            found = self.guard.decide_batch([text[a:b] for a, b in spans], stage=stage, audit=False)
            for (a, b), sentence in reversed(list(zip(spans, found, strict=True))):
                if sentence.action.stops:
                    text = text[:a] + mark + text[b:]
        left = [self.guard.decide_batch([text], stage=stage, audit=False)[0] for stage in stages]
        return mark if any(d.action.stops for d in left) else text

    def _redacted(self, message: _M, decision: Decision, mark: Mapping[str, Any]) -> _M | None:
        """A message with its flagged places replaced and all else kept; None where that does not pass."""

        def clean(block: Any) -> Any:
            if isinstance(block, str):
                return self.redacted(block, decision, decision.stage)
            if isinstance(block, Mapping) and isinstance(block.get("text"), str):
                return {**block, "text": self.redacted(block["text"], decision, decision.stage)}
            return block

        content: Any = message.content
        content = clean(content) if isinstance(content, str) else [clean(block) for block in content]
        metadata = {**message.response_metadata, METADATA_KEY: mark}
        new = message.model_copy(update={"content": content, "response_metadata": metadata})
        return None if self.guard.decide([read(new)]).action.stops else new


def counts(output: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a blocked answer keeps of a provider's output: its numbers and the model's name."""
    if output is None:
        return None
    kept: dict[str, Any] = {}
    for key, value in output.items():
        if isinstance(value, Mapping):
            kept[key] = counts(value)
        elif isinstance(value, int | float) or (key in KEPT_METADATA and is_id(value)):
            kept[key] = value
    return {key: value for key, value in kept.items() if is_id(key)}


def policy_name(config: Any = None, context: Any = None) -> str | None:
    """The policy that a run names, see `Enforcement.for_run`. config: the run's, or else the surrounding one."""
    configurable = ((config if config else var_child_runnable_config.get()) or {}).get("configurable") or {}
    name = configurable.get(POLICY_KEY)
    if name is None:
        if context is None:
            context = getattr(configurable.get("__pregel_runtime"), "context", None)
        name = context.get(POLICY_KEY) if isinstance(context, Mapping) else getattr(context, POLICY_KEY, None)
    if name is not None and not isinstance(name, str):
        raise GuardkitError(f"{POLICY_KEY} names a policy, it is no {type(name).__name__}")
    return name


def _under(guard: Guard, source: Any) -> Guard:
    """The same guard, with another policy. Both share the model."""
    if isinstance(source, Guard):
        return source
    other = copy.copy(guard)
    other.policy = Policy.load(source, categories=guard.categories)
    return other


def worst(decisions: Sequence[Decision]) -> Decision:
    """The decision that counts for a whole: the strongest action, then the most severe."""
    return max(decisions, key=lambda d: (d.action, not d.judged, d.verdict is not None and d.verdict.severity))


class Judged:
    """Which texts passed lately, so that none is judged twice: digests only, bounded, thread-safe.

    scope: what else the verdict depended on: who judged, and the messages that an answer belongs to.
    """

    def __init__(self, size: int = 8192):
        self._size = size
        self._known: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self.conversations = Conversations()

    def __getstate__(self) -> dict[str, Any]:
        return {"_size": self._size}  # a copy in another process starts anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_size"])  # type: ignore[misc]

    def __deepcopy__(self, memo: Any) -> Judged:
        return self

    def fresh(self, message: Message, scope: str = "") -> Message | None:
        """The message with only the parts that are not known to pass; None where nothing is left."""
        known = {
            (p.stage, p.text)
            for p in message.parts()
            if p.text is not None and self.has(digest(p.stage.value, p.text, scope))
        }
        content = "" if (message.stage, message.content) in known else message.content
        reasoning = "" if (Stage.reasoning, message.reasoning) in known else message.reasoning
        calls = tuple(call for call in message.tool_calls if (Stage.tool_call, call) not in known)
        attached = tuple(part for part in message.attached if (part.stage, part.text) not in known)
        if not (content or reasoning or calls or attached or message.unjudgeable):
            return None
        return replace(message, content=content, reasoning=reasoning, tool_calls=calls, attached=attached)

    def passed(self, message: Message, scope: str = "") -> None:
        for part in message.parts():
            if part.text:
                self.add(digest(part.stage.value, part.text, scope))

    def add(self, key: str) -> None:
        with self._lock:
            self._known[key] = None
            while len(self._known) > self._size:
                self._known.popitem(last=False)

    def has(self, key: str) -> bool:
        with self._lock:
            if key not in self._known:
                return False
            self._known.move_to_end(key)
            return True


def digest(*what: str) -> str:
    return hashlib.sha256(repr(what).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Conversation(NamedTuple):
    """What an answer answers. scope: of what is judged after it: the conversation, whatever its system message is."""

    context: list[Message]
    scope: str


class Conversations:
    """The newest conversation, read: what is sent again with each call is read once."""

    def __init__(self) -> None:
        self._newest: tuple[list[tuple[BaseMessage, Any]], list[Message], Any] = ([], [], hashlib.sha256())

    def of(self, messages: Sequence[BaseMessage]) -> Conversation:
        """Messages as the context of an answer; those that cannot be read are left out, since context only helps."""
        seen, context, hashed = self._newest
        n_known = len(seen)
        if n_known > len(messages) or any(
            new is not old or new.content is not content for new, (old, content) in zip(messages, seen, strict=False)
        ):
            seen, context, hashed, n_known = [], [], hashlib.sha256(), 0
        fresh = messages[n_known:]
        if fresh:
            seen, context, hashed = [*seen], [*context], hashed.copy()
            for i, message in enumerate(fresh, n_known):
                seen.append((message, message.content))
                try:
                    read = as_context(message, i)
                except MessageError:
                    continue
                context.append(read)
                if read.role != "system":
                    about = (read.role, read.content, read.reasoning, read.tool_calls, read.attached)
                    hashed.update(repr(about).encode("utf-8", "surrogatepass"))
            self._newest = (seen, context, hashed)
        return Conversation(context, hashed.hexdigest()[:32])
