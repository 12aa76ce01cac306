"""``POST /v1/check``: texts and messages in, decisions out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from guardkit import Message, Stage
from guardkit.batch import Item
from guardkit.messages import Part
from guardkit_serve.calls import body_of, call_of
from guardkit_serve.errors import HttpError
from guardkit_serve.judging import action_of, decide, item_of, messages_of, told

_KEYS = ("text", "messages", "items", "stage", "model", "policy")
MAX_ITEMS = 4096


async def check(request: Request) -> Response:
    body = await body_of(request)
    if not isinstance(body, Mapping):
        raise HttpError(400, "the body must be a JSON object")
    for key in body:
        if key not in _KEYS:
            raise HttpError(400, f"unknown key '{str(key)[:80]}'; known: {', '.join(_KEYS)}", param=str(key)[:80])
    given = [key for key in ("text", "messages", "items") if key in body]
    if len(given) != 1:
        raise HttpError(400, "give one of 'text', 'messages' and 'items'")
    stage = _stage(body.get("stage"))
    if given == ["items"]:
        listed = body["items"]
        if not isinstance(listed, list) or len(listed) > MAX_ITEMS:
            raise HttpError(400, f"'items' must be a list of at most {MAX_ITEMS:,}", param="items")
        items = [_item(item, stage, f"items[{i}]") for i, item in enumerate(listed)]
    else:
        items = [_item({given[0]: body[given[0]]}, stage, "")]
    call = call_of(request)
    guard = call.pick(_name(body, "model"), _name(body, "policy"))
    decisions = await decide(guard, items, call.serving.observer, call.serving.settings.judge_s) if items else []
    call.action = action_of(decisions)
    answer = [told(decision) for decision in decisions]
    return JSONResponse(answer if given == ["items"] else answer[0])


def _item(value: Any, stage: Stage | None, where: str) -> Item:
    """A text, a list of messages, or an object with either and its own stage."""
    if isinstance(value, Mapping):
        stage = _stage(value.get("stage")) or stage
        given = [key for key in ("text", "messages") if key in value]
        if len(given) != 1 or set(value) - {"text", "messages", "stage"}:
            raise HttpError(400, f"'{where}' must hold 'text' or 'messages', and 'stage'", param=where)
        value, where = value[given[0]], f"{where}.{given[0]}".lstrip(".")
    if isinstance(value, str):
        return item_of(value, stage or Stage.prompt)
    messages = messages_of(value, where)
    return [*messages[:-1], _at(messages[-1], stage)]


def _at(message: Message, stage: Stage | None) -> Message:
    """The message with its own content at `stage`."""
    if stage is None or stage is message.stage or not message.content:
        return message
    parts = (Part(stage, message.content), *message.attached)
    return Message(message.role, "", message.reasoning, message.tool_calls, message.unjudgeable, parts)


def _stage(value: object) -> Stage | None:
    if value is None:
        return None
    if isinstance(value, str) and value in {stage.value for stage in Stage}:
        return Stage(value)
    raise HttpError(400, f"'stage' must be one of {', '.join(s.value for s in Stage)}", param="stage")


def _name(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise HttpError(400, f"'{key}' must be a string", param=key)
    return value
