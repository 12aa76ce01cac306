"""Anthropic's messages."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from guardkit import Message, MessageError, Stage
from guardkit.messages import Part
from guardkit.reading.message import read_message
from guardkit.reading.positions import CALL_BLOCKS
from guardkit.reading.values import is_name, texts_of
from guardkit_serve.errors import HttpError
from guardkit_serve.protocols.base import (
    Answer,
    Asked,
    Piece,
    Protocol,
    Reading,
    Violation,
    asked_messages,
    asked_rest,
    asked_system,
    asked_tools,
    parts_of,
)
from guardkit_serve.sse import Frame, frame
from guardkit_serve.walking import is_opaque, part_of, without_opaque

_DELTAS = {  # type -> key of its text, stage, kind of text
    "text_delta": ("text", Stage.response, "text"),
    "thinking_delta": ("thinking", Stage.reasoning, "thinking"),
    "input_json_delta": ("partial_json", Stage.tool_call, "input"),
}
_BLOCKS = {"text": ("text", Stage.response, "text"), "thinking": ("thinking", Stage.reasoning, "thinking")}


class Messages(Protocol):
    path = "/v1/messages"

    def __init__(self, body: Mapping[str, Any], message: str):
        super().__init__(body, message)
        self._head: dict[str, Any] = {}  # id and model, once the message has begun
        self._open: tuple[int, str] | None = None  # the block that has begun, its index and type
        self._next = 0
        self._usage: dict[str, Any] = {}
        self._done = False

    def asked(self) -> list[Asked]:
        asked, system = asked_system(self.body.get("system"), "system")
        told, self.context = asked_messages(self.body.get("messages"), "messages", system)
        tools = asked_tools(self.body.get("tools"), "tools")
        return [*asked, *told, *tools, *asked_rest(self.body, frozenset(("system", "messages", "tools")), self.seen)]

    # -- whole answers

    def answers(self, data: Mapping[str, Any]) -> tuple[list[Answer], list[Part]]:
        if not isinstance(data.get("content"), list):
            raise MessageError("no 'content' in the answer")
        message = read_message(without_opaque({"role": "assistant", "content": data["content"]}))
        return [Answer(("content",), message)], parts_of(self.seen, data, frozenset(("content",)))

    def ended_whole(self, data: Mapping[str, Any], found: Mapping[int, Violation], replace: bool) -> dict[str, Any]:
        kept = {key: data[key] for key in ("id", "type", "role", "model", "usage") if key in data}
        return self._whole(found[0], replace) | kept

    def refused(self, violation: Violation, replace: bool) -> dict[str, Any]:
        return self._whole(violation, replace)

    def _whole(self, violation: Violation, replace: bool) -> dict[str, Any]:
        content = [{"type": "text", "text": self.message}] if replace else []
        return {**self._begin(), "content": content, **self._reason(violation, replace), "guardkit": violation.told()}

    def _begin(self) -> dict[str, Any]:
        model = self.body.get("model")
        return {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model if isinstance(model, str) else "",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }

    def _reason(self, violation: Violation, replace: bool) -> dict[str, Any]:
        if replace:
            return {"stop_reason": "end_turn", "stop_sequence": None}
        details = {"type": "refusal", "category": None, "explanation": violation.message}
        return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}

    # -- streams

    def read(self, frame: Frame, data: Any) -> Reading:
        reading = Reading()
        if frame.data is None:
            return reading
        if not isinstance(data, Mapping) or not isinstance(data.get("type"), str):
            raise HttpError(502, "the upstream sent an event without a type", "upstream_error")
        kind, index, rest = data["type"], data.get("index"), {"type", "index"}
        if kind == "content_block_start":
            rest.add("content_block")
            self._block(reading, index, data.get("content_block"))
        elif kind == "content_block_delta":
            rest.add("delta")
            self._delta(reading, index, data.get("delta"))
        elif kind == "content_block_stop":
            reading.ends.append((index,))
        elif kind == "message_stop":
            reading.ends.append(())
            reading.last = True
        elif kind == "message_start" and isinstance(data.get("message"), Mapping):
            rest.add("message")
            begun = data["message"]
            content = begun.get("content")
            if content:
                reading.wholes += self._parts(content if isinstance(content, list) else [content])
            reading.wholes += parts_of(self.seen, begun, frozenset(("content",)))
        reading.wholes += parts_of(self.seen, data, frozenset(rest))
        return reading

    def _block(self, reading: Reading, index: Any, block: Any) -> None:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if not isinstance(block, Mapping) or not isinstance(kind, str) or not isinstance(index, int):
            raise HttpError(502, "the upstream sent a content block without a type or an index", "upstream_error")
        read = {"type"}
        if kind in _BLOCKS:
            key, stage, name = _BLOCKS[kind]
            read.add(key)
            if block.get(key):
                reading.pieces.append(Piece((index, name), stage, str(block[key])))
        elif kind == "redacted_thinking":
            if isinstance(block.get("data"), str) and is_opaque(block["data"]):
                read.add("data")
        elif kind in CALL_BLOCKS and isinstance(block.get("name"), str):
            read |= {"name", "id"}
            reading.pieces.append(
                Piece((index, "input"), Stage.tool_call, f"{block['name']} ", arguments=True, added=1)
            )
        else:
            reading.wholes += self._parts([block])
            return
        if block.get("citations"):
            read.add("citations")
            reading.wholes += self._cited(block["citations"])
        stage = Stage.tool_call if kind in CALL_BLOCKS else Stage.response
        reading.wholes += parts_of(self.seen, block, frozenset(read), stage)

    def _delta(self, reading: Reading, index: Any, delta: Any) -> None:
        kind = delta.get("type") if isinstance(delta, Mapping) else None
        if not isinstance(delta, Mapping) or not isinstance(kind, str) or not isinstance(index, int):
            raise HttpError(502, "the upstream sent a delta without a type or an index", "upstream_error")
        key, stage, name = _DELTAS.get(kind, ("", Stage.response, ""))
        for other, value in delta.items():
            if not is_name(other):
                reading.wholes += map(part_of, self.seen.new(other, None))
            if other == key and isinstance(value, str):
                if value:
                    reading.pieces.append(Piece((index, name), stage, value, ("delta", key), stage is Stage.tool_call))
            elif other == "citation":
                reading.wholes += self._cited(value)
            elif other != "type" and not (other == "signature" and isinstance(value, str) and is_opaque(value)):
                for found in texts_of(value, Stage.response, path=(other,)):
                    if found.text is None:
                        reading.wholes.append(Part(Stage.response, None, found.what))
                    else:
                        reading.pieces.append(Piece((index, kind, *found.path), Stage.response, found.text))

    def _cited(self, value: Any) -> list[Part]:
        return list(map(part_of, self.seen.new("citation", value, Stage.document)))

    def _parts(self, blocks: list[Any]) -> list[Part]:
        try:
            message: Message = read_message(without_opaque({"role": "assistant", "content": blocks}))
        except (MessageError, RecursionError):
            raise HttpError(502, "the upstream sent a content block that cannot be read", "upstream_error") from None
        return [part for part in message.parts() if part.text is None or part.text.strip()]

    def sent(self, frame: Frame, data: Any) -> None:
        kind = data.get("type") if isinstance(data, Mapping) else None
        if kind == "message_start":
            self._head = dict(data.get("message") or {"role": "assistant"})
            self._usage |= self._head.get("usage") or {}
        elif kind == "content_block_start":
            self._open = (data["index"], data["content_block"]["type"])
            self._next = max(self._next, data["index"] + 1)
        elif kind == "content_block_stop":
            self._open = None
        elif kind == "message_delta":
            self._usage |= data.get("usage") or {}
        elif kind in ("message_stop", "error"):
            self._done = True

    def cut(self, frame: Frame, data: Any, piece: Piece, text: str) -> bytes:
        if piece.stage is Stage.tool_call:
            return b""
        assert piece.path is not None
        delta = {"type": data["delta"]["type"], piece.path[-1]: text}
        return _event({"type": "content_block_delta", "index": data["index"], "delta": delta})

    def ended(self, violation: Violation, replace: bool) -> bytes:
        out = []
        if not self._head:
            out.append(_event({"type": "message_start", "message": self._begin()}))
        if replace:
            text = self.message
            if self._open is not None and self._open[1] == "text":
                text = f"\n\n{text}" if self.shown else text
            else:
                if self._open is not None:
                    out.append(_event({"type": "content_block_stop", "index": self._open[0]}))
                block = {"type": "text", "text": ""}
                out.append(_event({"type": "content_block_start", "index": self._next, "content_block": block}))
                self._open = (self._next, "text")
            delta = {"type": "text_delta", "text": text}
            out.append(_event({"type": "content_block_delta", "index": self._open[0], "delta": delta}))
        if self._open is not None:
            out.append(_event({"type": "content_block_stop", "index": self._open[0]}))
        usage = {"output_tokens": self._usage.get("output_tokens", 0)}
        end = {"type": "message_delta", "delta": self._reason(violation, replace), "usage": usage}
        out += [_event({**end, "guardkit": violation.told()}), _event({"type": "message_stop"})]
        self._done = True
        return b"".join(out)

    def failed(self, error: HttpError) -> bytes:
        self._done = True
        return _event(error.anthropic())

    @property
    def is_complete(self) -> bool:
        return self._done


def _event(data: dict[str, Any]) -> bytes:
    return frame(data, data["type"])
