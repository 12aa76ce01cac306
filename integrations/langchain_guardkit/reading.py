"""From LangChain's messages to guardkit's. What is text where is the core's to know: `guardkit.reading`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from guardkit import Message, MessageError, Stage
from guardkit.reading.payloads import ArgumentsReader
from guardkit.reading.positions import ROLE_OF_TYPE, ROLES
from guardkit.reading.values import is_name, texts_of
from langchain_guardkit.marks import METADATA_KEY, foreign

_TYPES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"} | ROLE_OF_TYPE
_SILENT = frozenset(("content", "type", "status", "tool_call_chunks", "chunk_position"))
_READ = frozenset((
    "additional_kwargs", "response_metadata", "name", "tool_calls", "invalid_tool_calls", "usage_metadata", "artifact",
))  # fmt: skip
_IDS = frozenset(("id", "tool_call_id"))
_BARE = frozenset((HumanMessage, SystemMessage))  # most of a history: they carry nothing but their content
_BARE_BESIDE = ("additional_kwargs", "response_metadata", "name")
_BARE_FIELDS = {*_BARE_BESIDE, "content", "type", "id"}
_OPENERS = ("{", "[", '"', "`")
Item = str | list[Message]


def role_of(message: BaseMessage, index: int = 0) -> str:
    """The role of a message. Raises `MessageError` that names `index` for a kind of message without one."""
    role = _TYPES.get(message.type)
    if role is not None:
        return role
    if message.type not in ("chat", "ChatMessageChunk"):
        raise MessageError(f"message {index}: a {type(message).__name__} cannot be judged")
    given = str(getattr(message, "role", ""))
    return given if given in ROLES else "user"  # an unknown role says nothing: judged like a prompt


def read(message: BaseMessage, index: int = 0) -> Message:
    """The core's view of a message: every text that it carries. Raises `MessageError` that names `index`."""
    found = beside(message)
    if isinstance(message, AIMessage) and (said := unescaped(message.content)) is not None:
        found["extra"] = {**found.get("extra", {}), "unescaped": said}
    if (ranked := message.response_metadata.get("logprobs")) and (said := _spelled(ranked)) not in message.text:
        found["extra"] = {**found.get("extra", {}), "tokens": said}
    return Message.of({"role": role_of(message, index), "content": message.content, **found}, index)


def unescaped(content: Any) -> str | None:
    """What an answer in JSON says to a parser, where that is not what stands there: it is read with its escapes, so
    that none hides a word of an object. None where nothing is escaped, or the answer is none in JSON."""
    if not isinstance(content, str):
        blocks = [block if isinstance(block, str) else block.get("text") for block in content]
        content = "".join(block for block in blocks if isinstance(block, str))
    if "\\" not in content or not begins_json(content):
        return None
    said = ArgumentsReader().push(content)
    return None if said == content else said


def _spelled(logprobs: Any) -> str:
    """What log-probabilities spell, token by token, without the alternatives."""
    tokens = [f for f in texts_of(logprobs, Stage.response) if f.text and f.path and f.path[-1] == "token"]
    return "".join(f.text or "" for f in tokens if "top_logprobs" not in f.path)


def begins_json(text: str) -> bool:
    """Whether a text may be JSON, perhaps in a fence; False for one that has not begun."""
    return text.lstrip()[:1] in _OPENERS if text and not text.isspace() else False


def beside(message: BaseMessage) -> dict[str, Any]:
    """What a message carries beside its content that may hold text, `extra` being the fields of its own kind and those
    that nobody declared. Ids are there only where they are none."""
    fields = vars(message)
    bare = type(message) in _BARE and fields.keys() == _BARE_FIELDS and not message.model_extra
    if bare and not any(map(fields.get, _BARE_BESIDE)):
        return {} if is_id(fields["id"]) else {"id": fields["id"]}
    found: dict[str, Any] = {}
    extra = dict(message.model_extra or {})
    for key, value in fields.items():
        if key in _SILENT or is_empty(value):
            continue
        if key in _IDS:
            if not is_id(value):
                found[key] = value
        elif key == "role":
            if value not in ROLES:
                extra[key] = value
        elif key == "response_metadata" and METADATA_KEY in value:
            found[key] = {**value, METADATA_KEY: foreign(value[METADATA_KEY], message.content)}
            if not found[key][METADATA_KEY]:
                del found[key][METADATA_KEY]
        elif key in _READ:
            found[key] = value
        else:
            extra[key] = value
    if extra:
        found["extra"] = extra
    return found


def is_empty(value: Any) -> bool:
    """Whether there is nothing; tables and arrays, which artifacts often are, do not answer that by themselves."""
    return value is None or (isinstance(value, str | bytes | int | Mapping | list | tuple) and not value)


def is_id(value: Any) -> bool:
    """Whether a value is an id rather than words in the place of one; so is none at all."""
    return not value or (isinstance(value, str) and (_reads_as_id if len(value) <= 64 else is_name)(value, 6))


_reads_as_id = functools.lru_cache(maxsize=4096)(is_name)  # a conversation is sent again with each call


def as_context(message: BaseMessage, index: int = 0) -> Message:
    """A message as the context of another: what is plain text is taken as it is, since a history is long."""
    fields = vars(message)
    plain = not (fields["additional_kwargs"] or fields.get("tool_calls")) and fields.get("artifact") is None
    if plain and isinstance(fields["content"], str):
        return Message(role_of(message, index), str(fields["content"]))
    return read(message, index)


def select(message: Message, stages: frozenset[Stage]) -> Message | None:
    """The message with only the parts whose stage is asked for; None where that leaves nothing. What it carries of
    other stages, such as the pages that an answer cites, belongs to the message too."""
    own = message.stage in stages
    content = message.content if own else ""
    unjudgeable = message.unjudgeable if own else ()
    reasoning = message.reasoning if Stage.reasoning in stages else ""
    calls = message.tool_calls if Stage.tool_call in stages else ()
    attached = tuple(part for part in message.attached if own or part.stage in stages)
    if not (content or reasoning or calls or unjudgeable or attached):
        return None
    return replace(
        message, content=content, reasoning=reasoning, tool_calls=calls, unjudgeable=unjudgeable, attached=attached
    )


def call_text(name: str, args: Any) -> str:
    """A tool call as the core judges it."""
    return Message.of({"role": "assistant", "content": "", "tool_calls": [{"name": name, "args": args}]}).tool_calls[0]


def joined_texts(value: Any, stage: Stage) -> tuple[str, str | None]:
    """All texts of a value in one, keys included, and what in it cannot be judged."""
    found = texts_of(value, stage, names=True)
    unknown = next((f for f in found if f.text is None), None)
    text = "\n".join(f.text for f in found if f.text)
    if unknown is None:
        return text, None
    return text, f"a {unknown.what} cannot be judged{f' (at {unknown.where})' if unknown.path else ''}"
