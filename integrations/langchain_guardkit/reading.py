"""From LangChain's messages to guardkit's: what must be judged in a message, wherever a provider puts it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, ToolMessage

from guardkit import Message, MessageError, Stage

_ROLES = {
    "human": "user",
    "HumanMessageChunk": "user",
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "system": "system",
    "SystemMessageChunk": "system",
    "tool": "tool",
    "ToolMessageChunk": "tool",
    "function": "tool",
    "FunctionMessageChunk": "tool",
}
_CHAT_ROLES = frozenset(("user", "assistant", "system", "developer", "tool", "model"))
# Parts of `additional_kwargs` that the core reads itself, each at its own stage.
CORE_KEYS = frozenset((
    "reasoning_content", "reasoning", "thinking", "reasoning_details", "tool_calls", "function_call", "refusal",
    "audio",
))  # fmt: skip
# Identifiers and encrypted state: no text of the conversation.
_SILENT_KEYS = frozenset(("id", "index", "type", "role", "signature", "thought_signature", "encrypted_content"))
_CALL_BLOCKS = frozenset((
    "tool_call", "tool_call_chunk", "invalid_tool_call", "server_tool_call", "server_tool_call_chunk",
    "input_json_delta", "tool_use", "server_tool_use", "function_call", "custom_tool_call",
))  # fmt: skip
Item = str | list[Message]


def read(message: BaseMessage, index: int = 0) -> Message:
    """The core's view of a message. Raises `MessageError` that names `index` for a kind of message without a role."""
    role = _ROLES.get(message.type)
    if role is None:
        given = str(getattr(message, "role", ""))
        if message.type not in ("chat", "ChatMessageChunk"):
            raise MessageError(f"message {index}: a {type(message).__name__} cannot be judged")
        role = given if given in _CHAT_ROLES else "user"  # an unknown role says nothing: judged like a prompt
    source: dict[str, Any] = {"role": role, "content": _content(message.content)}
    extra: list[str] = []
    for key, value in message.additional_kwargs.items():
        if key in CORE_KEYS:
            source[key] = value
        elif key not in _SILENT_KEYS:
            extra += texts_in(value)
    if isinstance(message, ToolMessage):
        extra += texts_in(message.artifact)
    calls = [*getattr(message, "tool_calls", ()), *getattr(message, "invalid_tool_calls", ())]
    if calls:
        source["tool_calls"] = [*(source.get("tool_calls") or ()), *calls]
    found = Message.of(source, index)
    # Providers repeat a call in several fields; each is judged once.
    return replace(
        found,
        content="\n".join([found.content, *extra]) if extra else found.content,
        tool_calls=tuple(dict.fromkeys(found.tool_calls)),
    )


def select(message: Message, stages: frozenset[Stage]) -> Message | None:
    """The message with only the parts whose stage is asked for; None where that leaves nothing."""
    content = message.content if message.stage in stages else ""
    unjudgeable = message.unjudgeable if message.stage in stages else ()
    reasoning = message.reasoning if Stage.reasoning in stages else ""
    calls = message.tool_calls if Stage.tool_call in stages else ()
    if not (content or reasoning or calls or unjudgeable):
        return None
    return replace(message, content=content, reasoning=reasoning, tool_calls=calls, unjudgeable=unjudgeable)


def block_of(block: Any) -> Any:
    """A content block in a form that the core reads."""
    if not isinstance(block, Mapping):
        return block
    kind = block.get("type")
    if kind in _CALL_BLOCKS:
        given = next((block[k] for k in ("args", "arguments", "input", "partial_json") if block.get(k)), "")
        return {"type": "tool_call", "name": block.get("name") or "", "args": given}
    if kind == "text-plain":
        return {"type": "text", "text": "\n".join(texts_in(dict(block)))}
    if kind in ("server_tool_result", "tool_result"):
        return {"type": "tool_result", "content": "\n".join(texts_in(block.get("output", block.get("content"))))}
    if kind == "non_standard" and isinstance(block.get("value"), Mapping):
        return block_of(block["value"])
    return block


def _content(content: str | Sequence[Any]) -> Any:
    return content if isinstance(content, str) else [block_of(block) for block in content]


def call_text(name: str, args: Any) -> str:
    """A tool call as the core judges it."""
    return Message.of({"role": "assistant", "content": "", "tool_calls": [{"name": name, "args": args}]}).tool_calls[0]


def texts_in(value: Any) -> list[str]:
    """The texts of plain data: strings, and what mappings, sequences, documents and models hold."""
    return list(_texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, Document):
        yield value.page_content
        yield from _texts(value.metadata)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _SILENT_KEYS:
                yield from _texts(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, BaseMessage):
        yield from _texts(value.content)
    elif hasattr(value, "model_dump"):
        yield from _texts(value.model_dump())


def as_text(value: Any) -> str:
    """Plain data as one text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
