"""LlamaIndex's chat messages, read as guardkit's: what is to be judged in them, at which stage.

What is text where is the core's to know (`guardkit.reading`). Here is what LlamaIndex alone has: its blocks as objects,
files as base64, calls that grow while they are streamed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.postprocessor.guardkit.marks import MARK, decision_of, mark_of
from pydantic import BaseModel

from guardkit import Action, Decision, Message, Stage
from guardkit.messages import Part
from guardkit.reading.jsontext import parse
from guardkit.reading.message import read_message
from guardkit.reading.positions import CALL_ARGUMENTS, CALL_NAMES
from guardkit.reading.values import decoded, is_name, texts_of

ASSISTANT = (MessageRole.ASSISTANT, MessageRole.CHATBOT, MessageRole.MODEL)
_ROLES = {MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant"}
CALL_KEYS = ("tool_calls", "function_call")
# Keys of additional_kwargs that hold no text of the conversation as long as a name or a number stands there. Then they
# survive a rewriting, too.
SILENT_KEYS = frozenset((
    "tool_call_id", "name", "id", "type", "role", "index", "finish_reason", "stop_reason", "model", "status",
    "created", "is_error",
))  # fmt: skip
_UNESCAPED = "unescaped"
_JSON_OPENERS = ("{", "[", '"', "`")  # the last: of a fence
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.S)
_CUT_ESCAPE = re.compile(r"((?:^|[^\\])(?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?$")


def read(message: ChatMessage) -> Message:
    """All that a message holds, as a guardkit message."""
    kwargs = {
        key: value
        for key, value in message.additional_kwargs.items()
        if key not in CALL_KEYS and not (key == MARK and decision_of(value))
    }
    ids = [block.tool_call_id for block in message.blocks if isinstance(block, ToolCallBlock)]
    if any(ids):
        kwargs["tool_call_id"] = [kwargs.get("tool_call_id"), *ids]
    blocks = [_source(block) for block in message.blocks if not isinstance(block, ToolCallBlock)]
    role = _ROLES.get(message.role, message.role.value)
    found = read_message({"role": role, "content": blocks, "additional_kwargs": kwargs})
    if role == "assistant" and (said := unescaped(message.content or "")) is not None:
        found = replace(found, attached=(*found.attached, Part(Stage.response, said, _UNESCAPED)))
    return replace(found, tool_calls=tuple(dict.fromkeys((*calls_of(message), *found.tool_calls))))


def unescaped(text: str) -> str | None:
    """What an answer in JSON says to a parser: without its escapes, so that none hides a word of an object. None where
    nothing is escaped, or the answer is none in JSON."""
    if "\\" not in text or not begins_json(text):
        return None
    said = _unescaped(text)
    return None if said == text else said


def _source(block: Any) -> Any:
    """A content block as a mapping. Of a file its words, where its bytes are text; else something not judgeable."""
    if isinstance(block, DocumentBlock):
        title = {"title": block.title} if block.title and block.title != "input_document" else {}
        text = _file_text(block)
        source = {"url": str(block.url or block.path or "")} if text is None else {"source": {"text": text}}
        return {"block_type": block.block_type, "media_type": block.document_mimetype, **title, **source}
    if isinstance(block, CachePoint):
        return {"block_type": "text", "text": "", "cache_control": block.cache_control.model_dump()}
    if isinstance(block, BaseModel):
        fields = {name: _source(value) for name, value in block}
        is_media = isinstance(block, ImageBlock | AudioBlock | VideoBlock)
        return {k: v for k, v in fields.items() if v is not None and not (is_media and not isinstance(v, str))}
    return [_source(item) for item in block] if isinstance(block, list) else block


def _file_text(block: DocumentBlock) -> str | None:
    if not isinstance(block.data, bytes) or block.path or block.url:
        return None
    try:
        return decoded(base64.b64decode(block.data, validate=True))
    except binascii.Error:
        return decoded(block.data)


def begins_json(text: str) -> bool:
    """Whether a text may be JSON, perhaps in a fence."""
    return text.lstrip()[:1] in _JSON_OPENERS and not text.isspace()


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
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    calls = [f"{_odd_id(block)}{call_text(block.tool_name, block.tool_kwargs)}" for block in blocks]
    for key in CALL_KEYS:
        calls += calls_in(message.additional_kwargs.get(key) or [])
    return [*dict.fromkeys(calls)]


def _odd_id(block: ToolCallBlock) -> str:
    """What stands where a call's id belongs and is none."""
    id_ = block.tool_call_id
    return f"{id_} " if id_ and not is_name(id_, 6) else ""


def call_text(name: str, arguments: Any) -> str:
    """A call as text. Arguments may be a JSON string that is still growing; the text grows with it."""
    if isinstance(arguments, str):
        try:
            arguments = parse(arguments)
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
    parts += [Message("assistant", attached=(part,)) for part in message.attached]
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
    elif part.attached and part.attached[0].what != _UNESCAPED:  # what is cited, and what of it stands where
        blocks = [b for b in message.blocks if isinstance(b, TextBlock | ThinkingBlock | ToolCallBlock)]
        blocks.append(TextBlock(text=text))
    else:
        known = (ThinkingBlock, ToolCallBlock)
        blocks = [TextBlock(text=text), *(b for b in message.blocks if isinstance(b, known))]
    return ChatMessage(role=message.role, blocks=blocks, additional_kwargs=kwargs)


def said_aside(block: ThinkingBlock) -> str:
    """What a provider keeps beside the reasoning, such as summaries."""
    return read(ChatMessage(role="assistant", blocks=[block.model_copy(update={"content": ""})])).reasoning


def digest(message: Message) -> bytes:
    """The same for the same content, whatever the object."""
    return hashlib.sha256(repr(message).encode("utf-8", "backslashreplace")).digest()


def texts_in(value: Any) -> list[str]:
    """Every text in a value of any type, in order, keys that read as text with it."""
    return [f.text for f in texts_of(value, Stage.prompt) if f.text and f.text.strip()]


def _is_opaque(value: Any) -> bool:
    return all(f.text is None or is_name(f.text) for f in texts_of(value, Stage.prompt))


def _call(call: Any) -> str:
    if isinstance(call, BaseModel):
        call = call.model_dump()
    if not isinstance(call, Mapping):
        return str(call) if call else ""
    holder = next((k for k in ("function", "custom") if isinstance(call.get(k), Mapping)), None)
    inner = call[holder] if holder else call
    name = next((k for k in CALL_NAMES if inner.get(k)), None)
    place = next((k for k in CALL_ARGUMENTS if inner.get(k)), None)
    text = call_text(str(inner[name]) if name else "", inner[place] if place else None)
    others = {k: v for k, v in inner.items() if k not in (name, place)}
    if name or place or holder:
        others["function"] = {}  # a call without a name and arguments of its own
    if holder:
        others |= {k: v for k, v in call.items() if k != holder}
    beside = read_message({"role": "assistant", "content": None, "tool_calls": [others]})
    return "\n".join(filter(None, (text, *beside.tool_calls, *(part.text for part in beside.attached))))
