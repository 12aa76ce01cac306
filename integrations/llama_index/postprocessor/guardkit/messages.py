"""LlamaIndex's chat messages, read as guardkit's: what is to be judged in them, at which stage."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    DocumentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.postprocessor.guardkit.marks import MARK, decision_of, mark_of
from pydantic import BaseModel

from guardkit import Action, Decision, Message, Stage
from guardkit.reading.values import decoded, is_name, texts_of

ASSISTANT = (MessageRole.ASSISTANT, MessageRole.CHATBOT, MessageRole.MODEL)
_ROLES = {MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant"}
CALL_KEYS = ("tool_calls", "function_call")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_delta")
# Keys of additional_kwargs that hold no text of the conversation as long as a name or a number stands there. Then they
# survive a rewriting, too.
SILENT_KEYS = frozenset((
    "tool_call_id", "name", "id", "type", "role", "index", "finish_reason", "stop_reason", "model", "status",
    "created", "is_error",
))  # fmt: skip
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.S)
_CUT_ESCAPE = re.compile(r"((?:^|[^\\])(?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?$")
# What providers keep beside reasoning and calls: opaque as long as no words stand there.
_OPAQUE_KEYS = SILENT_KEYS | {
    "images",
    "signature",
    "encrypted_content",
    "thought_signature",
    "logprobs",
    "call_id",
    "session_id",
}


def read(message: ChatMessage) -> Message:
    """All that a message holds, as a guardkit message."""
    reading = _Reading()
    reading.blocks(message.blocks)
    for key, value in message.additional_kwargs.items():
        if key in _REASONING_KEYS:
            reading.thoughts += texts_in(value)
        elif key not in CALL_KEYS and not (key == MARK and decision_of(value)):
            reading.aside({key: value})
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


def rewritten(message: ChatMessage, text: str, decision: Decision | None = None) -> ChatMessage:
    """The message with `text` as all that it holds, marked with the decision that withheld the rest."""
    kwargs = silent_part(message.additional_kwargs) | (mark_of(decision) if decision else {})
    return ChatMessage(role=message.role, blocks=[TextBlock(text=text)], additional_kwargs=kwargs)


def silent_part(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What of a message's additional_kwargs holds no text: ids and the like."""
    return {k: v for k, v in kwargs.items() if k in SILENT_KEYS and _is_opaque(v)}


def parts_of(message: Message) -> list[Message]:
    """The parts of an answer as messages of their own, so that each gets its own decision; never empty."""
    parts = [Message("assistant", reasoning=message.reasoning)] if message.reasoning else []
    parts += [Message("assistant", tool_calls=(call,)) for call in message.tool_calls]
    parts += [Message("assistant", unjudgeable=(kind,)) for kind in message.unjudgeable]
    if message.content or not parts:
        parts.append(Message("assistant", message.content))
    return parts


def without(message: ChatMessage, part: Message, text: str, decision: Decision) -> ChatMessage:
    """The message with `text` in the place of one part. Extras of the provider go: they may repeat that part."""
    kwargs = silent_part(message.additional_kwargs)
    if decision.action is Action.block:
        kwargs |= mark_of(decision)
    elif MARK in message.additional_kwargs:
        kwargs[MARK] = message.additional_kwargs[MARK]
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
    """Texts that a provider keeps beside the reasoning, such as summaries."""
    return [text for text in _beside(block.additional_information) if text.strip()]


def digest(message: Message) -> bytes:
    """The same for the same content, whatever the object."""
    return hashlib.sha256(repr(message).encode("utf-8", "backslashreplace")).digest()


def texts_in(value: Any) -> list[str]:
    """Every text in a value of any type, in order, keys that read as text with it."""
    return [f.text for f in texts_of(value, Stage.prompt) if f.text and f.text.strip()]


def _beside(value: Any) -> list[str]:
    """The texts of what a provider keeps beside a content: all but names and opaque data where those are known."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, list | tuple):
        return [text for item in value for text in _beside(item)]
    if not isinstance(value, Mapping):
        return texts_in(value)
    texts: list[str] = []
    for key, inner in value.items():
        if key in _OPAQUE_KEYS and _is_opaque(inner):
            continue
        texts += [*texts_in({key: None}), *_beside(inner)]
    return texts


def _is_opaque(value: Any) -> bool:
    return all(f.text is None or is_name(f.text) for f in texts_of(value, Stage.prompt))


def _call(call: Any) -> str:
    if isinstance(call, BaseModel):
        call = call.model_dump()
    if not isinstance(call, Mapping):
        return str(call) if call else ""
    holder = next((k for k in ("function", "custom") if isinstance(call.get(k), Mapping)), None)
    inner = call[holder] if holder else call
    place = next((k for k in ("arguments", "args", "input", "kwargs", "tool_kwargs") if inner.get(k)), None)
    if place is None and not inner.get("name"):
        return " ".join(_beside(call))  # of no known shape: all of it is judged
    text = call_text(str(inner.get("name") or ""), inner[place] if place else None)
    others = {k: v for k, v in inner.items() if k not in ("name", place)}
    if holder:
        others |= {k: v for k, v in call.items() if k != holder}
    return " ".join([text, *_beside(others)])


class _Reading:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.unknown: list[str] = []

    def aside(self, value: Mapping[str, Any]) -> None:
        """What stands beside the content, of any type; what cannot be read is listed."""
        for key, inner in value.items():
            if key in _OPAQUE_KEYS and _is_opaque(inner):
                continue
            found = texts_of(inner, Stage.prompt, names=True)
            if found and not is_name(str(key), 1):
                self.texts.append(str(key))
            self.texts += [f.text for f in found if f.text and f.text.strip()]
            self.unknown += [f.what for f in found if f.text is None]

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
                self.aside(block.additional_location_info)
                self.blocks([block.cited_content])
            elif isinstance(block, DocumentBlock):
                self._document(block)
            elif isinstance(block, ToolCallBlock):
                self.aside({"tool_call_id": block.tool_call_id})
            elif not isinstance(block, CachePoint):
                self.unknown.append(block.block_type)

    def _document(self, block: DocumentBlock) -> None:
        """A file: its words where its bytes are text, else something that cannot be judged."""
        if block.title and block.title != "input_document":
            self.texts.append(block.title)
        text = None
        if isinstance(block.data, bytes) and not (block.path or block.url):
            try:
                text = decoded(base64.b64decode(block.data, validate=True))
            except binascii.Error:
                text = decoded(block.data)
        if text is None:
            self.unknown.append(block.block_type)
        else:
            self.texts.append(text)
