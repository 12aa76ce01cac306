"""``POST /v1/moderations``: OpenAI's request and answer, with the guard's verdict beside OpenAI's categories."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from guardkit import Action, Category, Decision, Message, Severity, Stage
from guardkit.batch import Item
from guardkit.reading.message import read_message
from guardkit_serve.calls import body_of, call_of
from guardkit_serve.errors import HttpError
from guardkit_serve.judging import action_of, decide, item_of

CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
MAPPING: dict[Category, tuple[str, ...]] = {
    Category.violent: ("violence",),
    Category.non_violent_illegal: ("illicit",),
    Category.sexual: ("sexual",),
    Category.self_harm: ("self-harm",),
    Category.unethical: ("harassment", "hate"),
    Category.pii: (),
    Category.political: (),
    Category.copyright: (),
    Category.jailbreak: (),
}
"""From the guard's nine categories to OpenAI's. Four have no like there: such a text is `flagged` without a category.
A model's own categories have none either: `guardkit.categories` names them. What OpenAI tells apart and the guard does
not (``violence/graphic``, ``sexual/minors``, ...) is never set."""


async def moderations(request: Request) -> Response:
    body = await body_of(request)
    if not isinstance(body, Mapping) or "input" not in body:
        raise HttpError(400, "'input' is missing", param="input")
    items = _items(body["input"])
    call = call_of(request)
    asked, policy = body.get("model"), body.get("policy")
    model = asked if isinstance(asked, str) and asked in call.serving.guards.models else None
    guard = call.pick(model, policy if isinstance(policy, str) else None)
    decisions = await decide(guard, items, call.serving.observer, call.serving.settings.judge_s) if items else []
    call.action = action_of(decisions)
    results = [result(decision) for decision in decisions]
    return JSONResponse({"id": f"modr-{random.getrandbits(128):032x}", "model": guard.model.name, "results": results})


def _items(given: Any) -> list[Item]:
    """A text; a list of texts, each judged; or the parts of one input, judged together."""
    if isinstance(given, str):
        return [item_of(given, Stage.prompt)]
    if isinstance(given, list) and given and all(isinstance(part, str) for part in given):
        return [item_of(text, Stage.prompt) for text in given]
    if (
        isinstance(given, list)
        and given
        and all(isinstance(p, Mapping) and isinstance(p.get("type"), str) for p in given)
    ):
        message: Message = read_message({"role": "user", "content": given})
        return [[message]]
    raise HttpError(400, "'input' must be a string, a list of strings, or a list of parts with a 'type'", param="input")


_NONE_FOUND = dict.fromkeys(CATEGORIES, False)
_NO_SCORES = dict.fromkeys(CATEGORIES, 0.0)
_TEXT = dict.fromkeys(CATEGORIES, ("text",))


def result(decision: Decision) -> dict[str, Any]:
    verdict = decision.verdict
    found = {name for category in (verdict.categories if verdict else ()) for name in MAPPING.get(category, ())}
    scores = dict.fromkeys(found, verdict.risk) if verdict else {}
    harmful = verdict is not None and verdict.severity is not Severity.safe
    beside: dict[str, Any] = verdict.to_dict() if verdict else {"severity": None, "error": decision.error}
    return {
        "flagged": decision.action.stops or (harmful and decision.action is Action.flag),
        "categories": _NONE_FOUND | dict.fromkeys(found, True),
        "category_scores": _NO_SCORES | scores,
        "category_applied_input_types": _TEXT,
        "guardkit": beside | {"action": decision.action.value, "judged": decision.judged, "rule": decision.rule},
    }
