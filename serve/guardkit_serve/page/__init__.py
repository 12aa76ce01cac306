"""The page for people, at ``/``: files of this package and what they ask the server for. Nothing from elsewhere.

A content policy holds the browser to that, and makes it refuse any text that would become HTML. Files are served out of
a table that is read once, so that a path leads to one of them or nowhere.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from guardkit import Stage, __version__, pages
from guardkit.pages.text import UNSEEN
from guardkit_serve.calls import call_of
from guardkit_serve.errors import HttpError
from guardkit_serve.page.streaming import stream

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@cache
def _files() -> dict[str, bytes]:
    """Name to content. The style sheet is the one that all pages share, and this page's own rules."""
    here = Path(__file__).parent
    found = {path.name: path.read_bytes() for path in sorted(here.iterdir()) if path.suffix in _TYPES}
    found["page.css"] = pages.STYLE.encode() + found["page.css"]
    return found


async def index(request: Request) -> Response:
    return _file("index.html")


async def asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _files():
        raise HttpError(404, "no such file here")
    return _file(name)


def _file(name: str) -> Response:
    kind = _TYPES["." + name.rpartition(".")[2]]
    return Response(_files()[name], media_type=f"{kind}; charset=utf-8", headers=HEADERS)


async def state(request: Request) -> Response:
    """What there is to choose from for whoever asks, and how this server is set."""
    call = call_of(request)
    guards, settings, key = call.serving.guards, call.serving.settings, call.key
    default = guards.pick(key=key)
    own = key.policy if key is not None and key.policy is not None else guards.default_policy
    allowed = list(guards.policies) if key is None else list(dict.fromkeys((own, *key.policies)))
    answer: dict[str, Any] = {
        "version": __version__,
        "models": list(guards.models),
        "model": (key.model if key is not None and key.model is not None else None) or guards.default,
        "policies": {
            name: {"on_error": policy.on_error.value, "rules": [str(rule) for rule in policy.rules]}
            for name, policy in guards.policies.items()
            if name in allowed
        },
        "policy": own,
        "stages": {"in": [s.value for s in Stage if s.is_query], "out": [s.value for s in Stage if not s.is_query]},
        "holdback": default.holdback if settings.holdback is None else settings.holdback,
        "texts": settings.page_texts,
        "shades": pages.SHADES,
        "unseen": UNSEEN,
    }
    return JSONResponse(answer, headers=HEADERS)


async def recent(request: Request) -> Response:
    """The newest decisions. Their texts only where they are asked for, and the settings allow it."""
    call = call_of(request)
    after = request.query_params.get("after", "0")
    if not after.isdecimal() or len(after) > 15:
        raise HttpError(400, "'after' must be a number", param="after")
    with_text = request.query_params.get("texts") == "1" and call.serving.settings.page_texts
    observer = call.serving.observer
    answer = {"recent": observer.recent(int(after), with_text), "totals": observer.totals()}
    return JSONResponse(answer, headers=HEADERS)


async def judge(request: Request) -> Response:
    return await stream(request, call_of(request))


routes = [
    Route("/", index),
    Route("/assets/{name}", asset),
    Route("/page/state", state),
    Route("/page/recent", recent),
    Route("/page/stream", judge, methods=["POST"]),
]
