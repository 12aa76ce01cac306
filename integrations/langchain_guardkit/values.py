"""The values that flow through a chain, and the texts in them that are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue

from guardkit import Decision, Message, MessageError, Stage
from langchain_guardkit.enforcing import METADATA_KEY, Enforcement, summary, worst
from langchain_guardkit.messages import is_current, turn_start
from langchain_guardkit.reading import Item, read, texts_in

_PLAIN = (bool, int, float, complex, type(None))


@dataclass
class Leaf:
    """One text-bearing thing in a value, and what the core is asked about it: items, each with its stage.

    index: its place in the innermost list, for error messages; reason: why it cannot be judged at all; earlier: whether
    it is a message of an earlier turn.
    """

    value: Any
    asked: list[tuple[Item, Stage | None]]
    index: int | None = None
    reason: str | None = None
    earlier: bool = False


def leaves_of(value: Any, stage: Stage | None) -> list[Leaf]:
    found: list[Leaf] = []

    def visit(leaf: Any, index: int | None, context: Any) -> Any:
        messages = context or ()
        one = _leaf(leaf, index, messages[:index], stage)
        one.earlier = bool(messages) and index is not None and not is_current(messages, index, turn_start(messages))
        found.append(one)
        return leaf

    _walk(value, visit, None, ())
    return found


def rebuilt(value: Any, replacements: Iterable[Any]) -> Any:
    """The value with each leaf, in the order of `leaves_of`, replaced."""
    source = iter(replacements)
    return _walk(value, lambda leaf, index, context: next(source), None, ())


def decide_leaves(enforcement: Enforcement, groups: Sequence[Sequence[Leaf]]) -> list[list[Decision]]:
    """A decision for each leaf of each group. All questions about one stage share a batch."""
    questions: dict[Stage | None, list[tuple[Leaf, Item]]] = {}
    found: dict[int, list[Decision]] = {}
    for group in groups:
        for leaf in group:
            found[id(leaf)] = []
            if leaf.reason is not None:
                found[id(leaf)].append(enforcement.guard.not_judged(leaf.reason, Stage.prompt, None))
            for item, stage in leaf.asked:
                questions.setdefault(stage, []).append((leaf, item))
    for stage, asked in questions.items():
        decisions = enforcement.guard.decide_batch([item for _, item in asked], stage=stage)
        for (leaf, _), decision in zip(asked, decisions, strict=True):
            found[id(leaf)].append(decision)
    return [[worst(found[id(leaf)]) for leaf in group] for group in groups]


def settle(enforcement: Enforcement, value: Any, leaves: Sequence[Leaf], decisions: Sequence[Decision]) -> Any:
    """What goes on in the place of `value`: itself, when nothing in it is stopped. Raises `GuardViolation`."""
    stopped = [(leaf, d) for leaf, d in zip(leaves, decisions, strict=True) if d.action.stops]
    if not stopped:
        return value
    current = [(leaf, d) for leaf, d in stopped if not leaf.earlier]
    for _, decision in current:
        enforcement.report(decision)
    for leaf, decision in current:
        enforcement.raise_if_error(decision, leaf.index)
    ends = [(leaf, d) for leaf, d in current if enforcement.behavior(d) == "end"]
    if ends:
        return _ended(enforcement, value, *ends[0])
    return rebuilt(
        value,
        [
            scrub(enforcement, leaf, d) if d.action.stops else leaf.value
            for leaf, d in zip(leaves, decisions, strict=True)
        ],
    )


def scrub(enforcement: Enforcement, leaf: Leaf, decision: Decision) -> Any:
    """The violation message in the shape of what it replaces."""
    value = leaf.value
    if isinstance(value, BaseMessage):
        return enforcement.scrubbed(value, decision, leaf.index)
    if isinstance(value, Document):
        return Document(
            id=value.id, page_content=enforcement.text(decision), metadata={METADATA_KEY: summary(decision)}
        )
    return enforcement.text(decision)


def _ended(enforcement: Enforcement, value: Any, leaf: Leaf, decision: Decision) -> Any:
    """The violation message alone, in a shape that the next step of a chain can read."""
    if isinstance(value, ChatPromptValue) or (isinstance(value, list) and isinstance(leaf.value, BaseMessage)):
        messages = [scrub(enforcement, leaf, decision)]
        return ChatPromptValue(messages=messages) if isinstance(value, ChatPromptValue) else messages
    if isinstance(value, list | tuple):
        return type(value)([scrub(enforcement, leaf, decision)])
    if isinstance(value, Mapping):
        return {key: enforcement.text(decision) if leaves_of(item, None) else item for key, item in value.items()}
    return rebuilt(value, [scrub(enforcement, leaf, decision)])


def _leaf(value: Any, index: int | None, context: Sequence[BaseMessage], stage: Stage | None) -> Leaf:
    if isinstance(value, str):
        if stage is not None:
            return Leaf(value, [(value, stage)], index)
        # A string does not say where it comes from: judged as what a user may have said and as what a model may have.
        return Leaf(value, [(value, Stage.prompt), (value, Stage.response)], index)
    if isinstance(value, Document):
        where = stage or Stage.document
        about = "\n".join(texts_in(value.metadata))
        return Leaf(value, [(value.page_content, where), *([(about, where)] if about else [])], index)
    if isinstance(value, BaseMessage):
        before: list[Message] = []
        try:
            if isinstance(value, AIMessage):  # what it answers; other messages stand for themselves
                before = [read(m) for m in context]
            return Leaf(value, [([*before, read(value, index or 0)], stage)], index)
        except MessageError as error:
            return Leaf(value, [], index, str(error))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value_texts = texts_in(dataclasses.asdict(value))
    elif hasattr(value, "model_dump"):
        value_texts = texts_in(value)
    else:
        return Leaf(value, [], index, f"a {type(value).__name__} cannot be judged: give text, messages or documents")
    return Leaf(value, [("\n".join(value_texts), stage or Stage.response)], index)


def _walk(
    value: Any, visit: Callable[[Any, int | None, Sequence[BaseMessage]], Any], index: int | None, context: Any
) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, StringPromptValue):
        return StringPromptValue(text=visit(value.text, index, ()))
    if isinstance(value, PromptValue):
        return ChatPromptValue(messages=_walk(value.to_messages(), visit, None, ()))
    if isinstance(value, list | tuple):
        before: Sequence[Any] = value if all(isinstance(v, BaseMessage) for v in value) else ()
        return type(value)([_walk(item, visit, i, before) for i, item in enumerate(value)])
    if isinstance(value, Mapping):
        return {key: _walk(item, visit, index, ()) for key, item in value.items()}
    return visit(value, index, context)
