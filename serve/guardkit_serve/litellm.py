"""``POST /beta/litellm_basic_guardrail_api``: LiteLLM's Generic Guardrail API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from guardkit import Action, Decision, Guard, Message, MessageError, Stage
from guardkit.batch import Item
from guardkit.messages import Part
from guardkit.reading.message import read_message
from guardkit.response import ResponseReader
from guardkit_serve.calls import body_of, call_of
from guardkit_serve.errors import HttpError
from guardkit_serve.judging import action_of, decide, item_of
from guardkit_serve.protocols.base import Violation, asked_tools
from guardkit_serve.walking import without_opaque


async def litellm(request: Request) -> Response:
    """Judges `texts` (of a request at the stages that `structured_messages` gives them), tools, tool calls and
    images. For an answer `stream_holdback_chars` says how many characters at the end of each text are not judged for
    good yet, since what follows may still change it."""
    body = await body_of(request)
    if not isinstance(body, Mapping):
        raise HttpError(400, "the body must be a JSON object")
    call = call_of(request)
    more = body.get("additional_provider_specific_params")
    policy = more.get("policy") if isinstance(more, Mapping) else None
    guard = call.pick(None, policy if isinstance(policy, str) else None)
    is_answer = body.get("input_type") == "response"
    texts = _texts(body)
    stages, others = _others(body, texts, is_answer)
    own = Stage.response if is_answer else Stage.prompt
    items: list[Item] = [item_of(text, stages.get(text, own)) for text in texts]
    decisions = await decide(guard, [*items, *others], call.serving.observer, call.serving.settings.judge_s)
    call.action = action_of(decisions)
    answer: dict[str, Any] = {"action": "NONE"}
    if is_answer:
        answer["stream_holdback_chars"] = [_holdback(guard, text, call.serving.settings.holdback) for text in texts]
    stopped = [d for d in decisions if d.action.stops]
    if stopped and all(d.action is Action.redact and d.judged for d in stopped) and not _stops(decisions[len(texts) :]):
        redacted = [await _redacted(guard, text, d) for text, d in zip(texts, decisions, strict=False)]
        return JSONResponse({**answer, "action": "GUARDRAIL_INTERVENED", "texts": redacted})
    if stopped:
        worst = max(stopped, key=lambda d: d.action)
        reason = Violation(worst, "answer" if is_answer else "request").message
        return JSONResponse({**answer, "action": "BLOCKED", "blocked_reason": reason})
    return JSONResponse(answer)


def _texts(body: Mapping[str, Any]) -> list[str]:
    texts = body.get("texts") or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise HttpError(400, "'texts' must be a list of strings", param="texts")
    return texts


def _others(body: Mapping[str, Any], texts: list[str], is_answer: bool) -> tuple[dict[str, Stage], list[Item]]:
    """At which stage each text stands, and what is to be judged beside them."""
    stages: dict[str, Stage] = {}
    parts: list[Part] = []
    for i, raw in enumerate(body.get("structured_messages") or ()):
        try:
            message = read_message(without_opaque(raw), i)
        except (MessageError, RecursionError):
            raise HttpError(
                400, "'structured_messages' holds what is no message", param="structured_messages"
            ) from None
        for part in message.parts():
            if part.text is not None and part.text in texts:
                stages.setdefault(part.text, part.stage)
            else:
                parts.append(part)
    for asked in asked_tools(body.get("tools"), "tools"):
        parts += asked.item[-1].attached  # type: ignore[union-attr]
    calls = body.get("tool_calls")
    if calls:
        try:
            message = read_message({"role": "assistant", "content": None, "tool_calls": calls})
        except (MessageError, RecursionError):
            raise HttpError(400, "'tool_calls' holds what is no tool call", param="tool_calls") from None
        parts += [part for part in message.parts() if part.text is None or part.text]
    if body.get("images"):
        stage = Stage.response if is_answer else Stage.prompt
        parts.append(Part(stage, None, "image"))
    items: list[Item] = [
        [Message("user", unjudgeable=(part.what,))] if part.text is None else item_of(part.text, part.stage)
        for part in parts
        if part.text is None or part.text
    ]
    return stages, items


def _stops(decisions: list[Decision]) -> bool:
    return any(d.action.stops for d in decisions)


def _holdback(guard: Guard, text: str, holdback: int | None) -> int:
    """How many characters at the end of a growing text a stream of the guard would keep back."""
    count = guard.holdback if holdback is None else holdback
    starts = [start for tokens in ResponseReader(guard.model, Stage.response).push(text)[1] for start in tokens.starts]
    if not count:
        return 0
    return len(text) - (starts[-count] if len(starts) >= count else 0)


async def _redacted(guard: Guard, text: str, decision: Decision) -> str:
    return await asyncio.to_thread(guard.redact, text, stage=decision.stage) if decision.action.stops else text
