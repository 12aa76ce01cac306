"""The values that flow through a chain, a tool or a graph's state, and the texts in them that are judged."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue

from guardkit import Action, Decision, Message, MessageError, Severity, Stage, Verdict
from guardkit.reading.values import Key, Path, replaced, texts_of
from langchain_guardkit.enforcing import (
    Enforcement,
    digest,
    worst,
)
from langchain_guardkit.marks import METADATA_KEY, foreign, summary
from langchain_guardkit.messages import is_current, turn_start
from langchain_guardkit.reading import Item, as_context, joined_texts, read

_PLAIN = (bool, int, float, complex, type(None))
_PASSED = Decision(Action.allow, Verdict(Severity.safe), "judged before")


class _Keys:
    """The keys of a mapping that read as names, judged together: `{text: 1}` says as much as `{1: text}`."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def __repr__(self) -> str:
        return f"keys {self.names}"


@dataclass
class Leaf:
    """One text-bearing thing in a value, and what the core is asked about it: items, each with its stage.

    index: its place in the innermost list, for error messages; reason: why it cannot be judged at all; earlier: whether
    it is a message of an earlier turn; stage: of what cannot be judged; position: among all leaves of the value.
    """

    value: Any
    asked: list[tuple[Item, Stage | None]]
    index: int | None = None
    reason: str | None = None
    earlier: bool = False
    stage: Stage = Stage.prompt
    position: int = 0


def leaves_of(value: Any, stage: Stage | None) -> list[Leaf]:
    """The leaves that hold text, or that cannot be judged, in order."""
    found: list[Leaf] = []

    def visit(leaf: Any, index: int | None, context: Any) -> Any:
        messages = context or ()
        one = _leaf(leaf, index, messages[:index], stage)
        one.position = len(found)
        one.earlier = bool(messages) and index is not None and not is_current(messages, index, turn_start(messages))
        found.append(one)
        return leaf

    _walk(value, visit, None, ())
    return [leaf for leaf in found if leaf.asked or leaf.reason is not None]


def rebuilt(value: Any, leaves: Sequence[Leaf], replacements: Iterable[Any]) -> Any:
    """The value with each of its leaves replaced; types are kept."""
    new = {leaf.position: by for leaf, by in zip(leaves, replacements, strict=True)}
    position = itertools.count()
    return _walk(value, lambda leaf, index, context: new.get(next(position), leaf), None, ())


def decide_leaves(enforcement: Enforcement, groups: Sequence[Sequence[Leaf]]) -> list[list[Decision]]:
    """A decision for each leaf of each group. All questions about one stage share a batch."""
    questions: dict[Stage | None, list[tuple[Leaf, Item]]] = {}
    found: dict[int, list[Decision]] = {}
    for group in groups:
        for leaf in group:
            found[id(leaf)] = []
            if leaf.reason is not None:
                found[id(leaf)].append(enforcement.guard.not_judged(leaf.reason, leaf.stage, None))
            for item, stage in leaf.asked:
                if isinstance(leaf.value, _Keys) and enforcement.names.has(_names_key(enforcement, item, stage)):
                    found[id(leaf)].append(_PASSED)
                else:
                    questions.setdefault(stage, []).append((leaf, item))
    for stage, asked in questions.items():
        decisions = enforcement.guard.decide_batch([item for _, item in asked], stage=stage)
        for (leaf, item), decision in zip(asked, decisions, strict=True):
            found[id(leaf)].append(decision)
            if isinstance(leaf.value, _Keys) and decision.judged and decision.action is Action.allow:
                enforcement.names.add(_names_key(enforcement, item, stage))
    return [[worst(found[id(leaf)]) for leaf in group] for group in groups]


def _names_key(enforcement: Enforcement, item: Item, stage: Stage | None) -> str:
    return digest(enforcement.key, str(stage), str(item))


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
    clean = scrubbed(enforcement, value, leaves, decisions)
    return _ended(enforcement, value, clean, *ends[0]) if ends else clean


def scrubbed(enforcement: Enforcement, value: Any, leaves: Sequence[Leaf], decisions: Sequence[Decision]) -> Any:
    """The value with the violation message in the place of what is stopped."""
    pairs = zip(leaves, decisions, strict=True)
    return rebuilt(value, leaves, [scrub(enforcement, f, d) if d.action.stops else f.value for f, d in pairs])


def scrub(enforcement: Enforcement, leaf: Leaf, decision: Decision) -> Any:
    """The violation message in the shape of what it replaces."""
    value = leaf.value
    if isinstance(value, BaseMessage):
        return enforcement.scrubbed(value, decision, leaf.index)
    redacts = decision.action is Action.redact and decision.judged
    if isinstance(value, Document):
        content = (
            enforcement.redacted(value.page_content, decision, leaf.stage) if redacts and value.page_content else ""
        )
        if content and not joined_texts(about_document(value), leaf.stage)[0]:
            return value.model_copy(update={"page_content": content, "metadata": {METADATA_KEY: summary(decision)}})
        return Document(
            id=value.id if isinstance(value.id, str) and not texts_of(value.id, Stage.document) else None,
            page_content=enforcement.text(decision),
            metadata={METADATA_KEY: summary(decision)},
        )
    if isinstance(value, str):
        stages = [stage or decision.stage for _, stage in leaf.asked]
        return enforcement.redacted(value, decision, *stages) if redacts else enforcement.text(decision)
    if isinstance(value, _Keys):
        return _Keys(tuple(enforcement.text(decision) for _ in value.names))
    return _scrubbed_bundle(enforcement, value, decision)


def _scrubbed_bundle(enforcement: Enforcement, value: Any, decision: Decision) -> Any:
    """An object with the violation message in the place of the texts that are stopped by themselves, or of all, where
    it is what they say together; its type is kept where it can be copied with changes."""
    text = enforcement.text(decision)
    texts = [found for found in texts_of(value, decision.stage) if found.text]
    keys = any(isinstance(found.path[-1], Key) for found in texts_of(value, decision.stage, names=True) if found.path)
    decisions = enforcement.guard.decide_batch([found.text or "" for found in texts], stage=decision.stage)
    paths: list[Path] = [f.path for f, d in zip(texts, decisions, strict=True) if d.action.stops]
    if not paths and keys:
        return text  # the name of a key is at fault
    try:
        new = replaced(value, dict.fromkeys(paths or [found.path for found in texts], text))
    except (TypeError, KeyError, ValueError, AttributeError):
        return text
    left, unknown = joined_texts(new, decision.stage)
    still = enforcement.guard.decide(left, stage=decision.stage).action.stops if left else False
    return text if still or unknown is not None else new


def _ended(enforcement: Enforcement, value: Any, clean: Any, leaf: Leaf, decision: Decision) -> Any:
    """The violation message alone, in a shape that the next step of a chain can read. clean: the value, scrubbed."""
    if isinstance(value, ChatPromptValue) or (isinstance(value, list) and isinstance(leaf.value, BaseMessage)):
        messages = [scrub(enforcement, leaf, decision)]
        return ChatPromptValue(messages=messages) if isinstance(value, ChatPromptValue) else messages
    if isinstance(value, Mapping):
        text = enforcement.text(decision)
        return {key: text if leaves_of(item, None) else item for key, item in clean.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)([scrub(enforcement, leaf, decision)])
    leaves = leaves_of(clean, None)
    return rebuilt(clean, leaves, [scrub(enforcement, one, decision) for one in leaves])


def _leaf(value: Any, index: int | None, context: Sequence[BaseMessage], stage: Stage | None) -> Leaf:
    if isinstance(value, str | _Keys):
        text = value if isinstance(value, str) else "\n".join(value.names)
        if not text:
            return Leaf(value, [], index)
        if stage is not None:
            return Leaf(value, [(text, stage)], index)
        # A string does not say where it comes from: judged as what a user may have said and as what a model may have.
        return Leaf(value, [(text, Stage.prompt), (text, Stage.response)], index)
    if isinstance(value, Document):
        where = stage or Stage.document
        about, unknown = joined_texts(about_document(value), where)
        asked: list[tuple[Item, Stage | None]] = [(text, where) for text in (value.page_content, about) if text]
        return Leaf(value, asked, index, unknown, stage=where)
    if isinstance(value, BaseMessage):
        before: list[Message] = []
        if value.type == "remove":
            return Leaf(value, [], index)
        try:
            if isinstance(value, AIMessage):  # what it answers; other messages stand for themselves
                before = [as_context(m) for m in context]
            return Leaf(value, [([*before, read(value, index or 0)], stage)], index)
        except MessageError as error:
            return Leaf(value, [], index, str(error))
    where = stage or Stage.response
    text, unknown = joined_texts(value, where)
    return Leaf(value, [(text, where)] if text else [], index, unknown, stage=where)


def about_document(document: Document) -> dict[str, Any]:
    """What a document carries beside its content."""
    about = {key: value for key, value in document.metadata.items() if key != METADATA_KEY}
    if left := foreign(document.metadata.get(METADATA_KEY), document.page_content):
        about[METADATA_KEY] = left
    return {**about, "id": document.id} if document.id else about


def _walk(value: Any, visit: Callable[[Any, int | None, Any], Any], index: int | None, context: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, StringPromptValue):
        text = visit(value.text, index, ())
        return value if text is value.text else StringPromptValue(text=text)
    if isinstance(value, PromptValue):
        messages = value.to_messages()
        new = _walk(messages, visit, None, ())
        return value if all(a is b for a, b in zip(new, messages, strict=True)) else ChatPromptValue(messages=new)
    if type(value) in (list, tuple) or hasattr(value, "_fields"):
        before: Sequence[Any] = value if all(isinstance(v, BaseMessage) for v in value) else ()
        items = [_walk(item, visit, i, before) for i, item in enumerate(value)]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return value._make(items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        return _walk_mapping(value, visit, index)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and _holds_messages(value):
        changed = {}
        for field in dataclasses.fields(value):
            old = getattr(value, field.name, None)
            if (new := _walk(old, visit, index, ())) is not old:
                changed[field.name] = new
        return _with(value, changed)
    return visit(value, index, context)


def _walk_mapping(value: Mapping[Any, Any], visit: Callable[[Any, int | None, Any], Any], index: int | None) -> Any:
    names = tuple(key for key in value if isinstance(key, str) and key)
    after = visit(_Keys(names), index, ()) if names else _Keys(())
    renamed = dict(zip(names, after.names, strict=True))
    items = {}
    same = True
    for key, item in value.items():
        new_key = renamed.get(key, key) if isinstance(key, str) else _walk(key, visit, index, ())
        while new_key in items:
            new_key = f"{new_key} "
        items[new_key] = _walk(item, visit, index, ())
        same = same and new_key is key and items[new_key] is item
    if same:
        return value
    if type(value) is dict:
        return items
    try:
        new = copy.copy(value)
        cast(Any, new).clear()
        cast(Any, new).update(items)
    except (AttributeError, TypeError):
        return items
    return new


def _holds_messages(value: Any, depth: int = 0) -> bool:
    """Whether messages or documents stand in a dataclass, such as a graph's command: then its fields are walked."""
    if isinstance(value, BaseMessage | Document):
        return True
    if depth > 8 or isinstance(value, (str, bytes, *_PLAIN)):
        return False
    if isinstance(value, Mapping):
        return any(_holds_messages(item, depth + 1) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(_holds_messages(item, depth + 1) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_holds_messages(getattr(value, f.name, None), depth + 1) for f in dataclasses.fields(value))
    return False


def _with(value: Any, changed: Mapping[str, Any]) -> Any:
    if not changed:
        return value
    new = copy.copy(value)
    for name, item in changed.items():
        object.__setattr__(new, name, item)  # frozen ones too: it is a copy
    return new
