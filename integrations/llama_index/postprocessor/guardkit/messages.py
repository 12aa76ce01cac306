"""LlamaIndex's chat messages, read as guardkit's: what is to be judged in them, at which stage."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from pydantic import BaseModel

from guardkit import Message

ASSISTANT = (MessageRole.ASSISTANT, MessageRole.CHATBOT, MessageRole.MODEL)
_ROLES = {MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant"}
CALL_KEYS = ("tool_calls", "function_call")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_delta")
# Keys of additional_kwargs that hold no text of the conversation, and so survive a rewriting.
SILENT_KEYS = frozenset((
    "tool_call_id", "name", "id", "type", "role", "index", "finish_reason", "stop_reason", "model", "status",
    "created", "is_error",
))  # fmt: skip
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.S)
_CUT_ESCAPE = re.compile(r"((?:^|[^\\])(?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?$")
_READ_APART = {*SILENT_KEYS, *CALL_KEYS, "images"}  # images stand in the blocks, too


def read(message: ChatMessage) -> Message:
    """All that a message holds, as a guardkit message."""
    reading = _Reading()
    reading.blocks(message.blocks)
    for key, value in message.additional_kwargs.items():
        if key in _REASONING_KEYS:
            reading.thoughts += texts_in(value)
        elif key not in _READ_APART:
            reading.texts += texts_in(value)
    return Message(
        _ROLES.get(message.role, message.role.value),
        "\n".join(filter(None, reading.texts)),
        "\n".join(filter(None, reading.thoughts)),
        tuple(calls_of(message)),
        tuple(reading.unknown),
    )


def question(messages: Sequence[ChatMessage]) -> list[Message]:
    """What an answer answers: the last thing that a user said. The context of its judgement."""
    for message in reversed(messages):
        if message.role is MessageRole.USER:
            return [Message("user", read(message).content)]
    return []


def calls_in(value: Any) -> list[str]:
    """Tool calls of any provider's shape as text: name and arguments."""
    listed = value if isinstance(value, list | tuple) else [value]
    return [call for call in map(_call, listed) if call]


def calls_of(message: ChatMessage) -> list[str]:
    """Every tool call of a message, as text, in order; one that stands there twice comes once."""
    calls = [call_text(b.tool_name, b.tool_kwargs) for b in message.blocks if isinstance(b, ToolCallBlock)]
    for key in CALL_KEYS:
        calls += calls_in(message.additional_kwargs.get(key) or [])
    return [*dict.fromkeys(calls)]


def call_text(name: str, arguments: Any) -> str:
    """A call as text. Arguments may be a JSON string that is still growing; the text grows with it."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return f"{name} {_unescaped(arguments)}".strip()
    if arguments in (None, {}, ""):
        return name
    return f"{name} {_unescaped(json.dumps(arguments, ensure_ascii=False, default=str))}".strip()


def _unescaped(source: str) -> str:
    """JSON source with its escapes read, so that none hides a word; an escape that is cut off is left out."""
    return _ESCAPE.sub(_read_escape, _CUT_ESCAPE.sub(r"\1", source))


def _read_escape(match: re.Match[str]) -> str:
    code = match[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES.get(code, code)


def rewritten(message: ChatMessage, text: str) -> ChatMessage:
    """The message with `text` as all that it holds."""
    kwargs = {k: v for k, v in message.additional_kwargs.items() if k in SILENT_KEYS}
    return ChatMessage(role=message.role, blocks=[TextBlock(text=text)], additional_kwargs=kwargs)


def parts_of(message: Message) -> list[Message]:
    """The parts of an answer as messages of their own, so that each gets its own decision; never empty."""
    parts = [Message("assistant", reasoning=message.reasoning)] if message.reasoning else []
    parts += [Message("assistant", tool_calls=(call,)) for call in message.tool_calls]
    parts += [Message("assistant", unjudgeable=(kind,)) for kind in message.unjudgeable]
    if message.content or not parts:
        parts.append(Message("assistant", message.content))
    return parts


def without(message: ChatMessage, part: Message, text: str) -> ChatMessage:
    """The message with `text` in the place of one part. Extras of the provider go: they may repeat that part."""
    kwargs = rewritten(message, "").additional_kwargs
    blocks: list[ContentBlock]
    if part.tool_calls:  # a call without its siblings may not be what was meant: none is made
        blocks = [b for b in message.blocks if not isinstance(b, ToolCallBlock)]
        return ChatMessage(role=message.role, blocks=[*blocks, TextBlock(text=text)], additional_kwargs=kwargs)
    kwargs |= {k: v for k, v in message.additional_kwargs.items() if k in CALL_KEYS}
    if part.reasoning:
        blocks = [b for b in message.blocks if not isinstance(b, ThinkingBlock)]
    elif part.unjudgeable:
        blocks = [b for b in message.blocks if b.block_type not in part.unjudgeable]
    else:
        known = (ThinkingBlock, ToolCallBlock)
        blocks = [TextBlock(text=text), *(b for b in message.blocks if isinstance(b, known))]
    return ChatMessage(role=message.role, blocks=blocks, additional_kwargs=kwargs)


def said_aside(block: ThinkingBlock) -> list[str]:
    """Texts that a provider keeps beside the reasoning, such as summaries. Signatures have no blanks."""
    return [text for text in texts_in(block.additional_information) if " " in text]


def digest(message: Message) -> bytes:
    """The same for the same content, whatever the object."""
    return hashlib.sha256(repr(message).encode("utf-8", "backslashreplace")).digest()


def texts_in(value: Any) -> list[str]:
    """Every text in a value, in order: keys and values of mappings, items of sequences, fields of models."""
    return [text for text in _leaves(value) if text.strip()]


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, BaseModel):
        yield from _leaves(value.model_dump())
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(key)
            yield from _leaves(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _leaves(inner)


def _call(call: Any) -> str:
    if isinstance(call, BaseModel):
        call = call.model_dump()
    if not isinstance(call, Mapping):
        return str(call) if call else ""
    inner = next((call[k] for k in ("function", "custom") if isinstance(call.get(k), Mapping)), call)
    arguments = next((inner[k] for k in ("arguments", "args", "input", "kwargs") if inner.get(k)), None)
    if arguments is None and not inner.get("name"):
        return " ".join(texts_in(call))  # of no known shape: all of it is judged
    return call_text(str(inner.get("name") or ""), arguments)


class _Reading:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.unknown: list[str] = []

    def blocks(self, blocks: Iterable[ContentBlock]) -> None:
        for block in blocks:
            if isinstance(block, TextBlock):
                self.texts.append(block.text)
            elif isinstance(block, ThinkingBlock):
                self.thoughts += [block.content or "", *said_aside(block)]
            elif isinstance(block, CitableBlock):
                self.texts += [block.title, block.source]
                self.blocks(block.content)
            elif isinstance(block, CitationBlock):
                self.texts += [block.title, block.source]
                self.blocks([block.cited_content])
            elif not isinstance(block, CachePoint | ToolCallBlock):
                self.unknown.append(block.block_type)
