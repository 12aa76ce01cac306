"""What a client of the Responses API has seen of an answer, and how that is brought to an end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from guardkit_serve.errors import HttpError
from guardkit_serve.protocols.base import Violation
from guardkit_serve.sse import frame

_PARTS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text", "summary_text": "text"}


class Shown:
    """Told of each event that went out; makes those that end the answer, numbered after it."""

    def __init__(self, body: Mapping[str, Any], message: str):
        self._body, self._message = body, message
        self._response: dict[str, Any] = {}
        self._items: dict[int, dict[str, Any]] = {}  # as they were added, by output_index
        self._ended: dict[int, dict[str, Any]] = {}  # as they were done
        self._parts: dict[tuple[int, int], dict[str, Any]] = {}  # open parts of messages, as they were added
        self._texts: dict[tuple[int, int], list[str]] = {}
        self._number = 0
        self.done = False

    def add(self, data: Mapping[str, Any]) -> None:
        kind = data.get("type")
        number = data.get("sequence_number")
        self._number = number + 1 if isinstance(number, int) else self._number + 1
        at = data.get("output_index")
        if isinstance(data.get("response"), Mapping):
            self._response = dict(data["response"])
        if kind in ("response.completed", "response.incomplete", "response.failed", "error"):
            self.done = True
        if not isinstance(at, int):
            return
        inner = data.get("content_index", data.get("summary_index", 0))
        place = at, inner if isinstance(inner, int) else 0
        if kind == "response.output_item.added" and isinstance(data.get("item"), Mapping):
            self._items[at] = dict(data["item"])
        elif kind == "response.output_item.done" and isinstance(data.get("item"), Mapping):
            self._ended[at] = dict(data["item"])
        elif kind in ("response.content_part.added", "response.reasoning_summary_part.added"):
            self._parts[place] = dict(data.get("part") or {})
        elif kind in ("response.output_text.delta", "response.refusal.delta", "response.reasoning_summary_text.delta"):
            self._texts.setdefault(place, []).append(str(data.get("delta")))

    def cut(self, data: Mapping[str, Any], text: str) -> bytes:
        kept = ("type", "item_id", "output_index", "content_index", "summary_index", "sequence_number")
        new = {key: data[key] for key in kept if key in data} | {"delta": text}
        if data["type"] == "response.output_text.delta":
            new["logprobs"] = []
        self.add(new)
        return frame(new, data["type"])

    # -- whole objects

    def whole(self, data: Mapping[str, Any], violation: Violation, replace: bool) -> dict[str, Any]:
        output = [self._message_item()] if replace else []
        return {**self._base(), **data, "output": output, **_state(replace), "guardkit": violation.told()}

    def _base(self) -> dict[str, Any]:
        model = self._body.get("model")
        return {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": model if isinstance(model, str) else "",
            "output": [],
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": None,
        }

    def _message_item(self) -> dict[str, Any]:
        part = {"type": "output_text", "text": self._message, "annotations": []}
        return {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [part],
        }

    # -- streams

    def ended(self, violation: Violation, replace: bool) -> bytes:
        out = self._begun()
        for at in sorted(self._items.keys() - self._ended.keys()):
            out += self._end_item(at)
        if replace:
            out += self._replacement(max((*self._items, -1)) + 1)
        output = [self._ended[at] for at in sorted(self._ended)]
        response = {**self._response, **_state(replace), "output": output, "guardkit": violation.told()}
        kind = "response.completed" if replace else "response.incomplete"
        out.append(self._event({"type": kind, "response": response}))
        self.done = True
        return b"".join(out)

    def failed(self, error: HttpError) -> bytes:
        out = self._begun()
        out.append(self._event({"type": "error", "code": error.code, "message": error.message, "param": None}))
        told = {"code": error.code or "server_error", "message": error.message}
        response = {**self._response, "status": "failed", "error": told}
        response["output"] = [self._ended[at] for at in sorted(self._ended)]
        out.append(self._event({"type": "response.failed", "response": response}))
        self.done = True
        return b"".join(out)

    def _event(self, data: dict[str, Any]) -> bytes:
        data["sequence_number"] = self._number
        self._number += 1
        return frame(data, data["type"])

    def _begun(self) -> list[bytes]:
        if self._response:
            return []
        self._response = self._base()
        return [self._event({"type": "response.created", "response": dict(self._response)})]

    def _end_item(self, at: int) -> list[bytes]:
        """Of an item that is under way: the ends of its parts and its own. Calls that are not whole are left out, so
        that nobody makes them."""
        item, out = self._items[at], []
        kind = item.get("type")
        if kind not in ("message", "reasoning"):
            return []
        content = []
        for place in sorted(place for place in self._parts if place[0] == at):
            part = dict(self._parts[place])
            key = _PARTS.get(str(part.get("type")), "text")
            part[key] = "".join(self._texts.get(place, []))
            content.append(part)
            where = {"item_id": item.get("id"), "output_index": at}
            where["content_index" if kind == "message" else "summary_index"] = place[1]
            if kind == "message":
                name = "output_text" if key == "text" else "refusal"
                more: dict[str, Any] = {"logprobs": []} if key == "text" else {}
                out.append(self._event({"type": f"response.{name}.done", **where, key: part[key], **more}))
                out.append(self._event({"type": "response.content_part.done", **where, "part": part}))
            else:
                out.append(self._event({"type": "response.reasoning_summary_text.done", **where, "text": part[key]}))
                out.append(self._event({"type": "response.reasoning_summary_part.done", **where, "part": part}))
        ended = {**item, "status": "incomplete", ("content" if kind == "message" else "summary"): content}
        self._ended[at] = ended
        out.append(self._event({"type": "response.output_item.done", "output_index": at, "item": ended}))
        return out

    def _replacement(self, at: int) -> list[bytes]:
        item = self._message_item()
        (part,) = item["content"]
        where = {"item_id": item["id"], "output_index": at, "content_index": 0}
        begun = {**item, "status": "in_progress", "content": []}
        self._ended[at] = item
        text = part["text"]
        return [
            self._event({"type": "response.output_item.added", "output_index": at, "item": begun}),
            self._event({"type": "response.content_part.added", **where, "part": {**part, "text": ""}}),
            self._event({"type": "response.output_text.delta", **where, "delta": text, "logprobs": []}),
            self._event({"type": "response.output_text.done", **where, "text": text, "logprobs": []}),
            self._event({"type": "response.content_part.done", **where, "part": part}),
            self._event({"type": "response.output_item.done", "output_index": at, "item": item}),
        ]


def _state(replace: bool) -> dict[str, Any]:
    if replace:
        return {"status": "completed", "error": None, "incomplete_details": None}
    return {"status": "incomplete", "error": None, "incomplete_details": {"reason": "content_filter"}}
