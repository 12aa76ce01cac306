"""What every request passes: who calls, from where and how often, how many at once; and what is noted of its answer."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guardkit_serve.calls import Call, Serving
from guardkit_serve.errors import HttpError, overloaded
from guardkit_serve.faults import told
from guardkit_serve.settings import Key
from guardkit_serve.tracing import route_of

ACTION_HEADER = "x-guardkit-action"
PUBLIC = ("/", "/health", "/ready")
"""Paths that need no key."""
ACCESS = logging.getLogger("guardkit.access")


class BrokenOff(Exception):
    """Makes the server close a connection: a client must not take what came for all of an answer."""


class Gate:
    """The outermost layer. Whatever goes wrong inside becomes an error of the protocol; nothing is left unanswered."""

    def __init__(self, app: ASGIApp, state: MutableMapping[str, Any]):
        self._app, self._state = app, state
        self._buckets: dict[str, tuple[float, float]] = {}
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        serving: Serving = self._state["serving"]
        call = Call(serving)
        scope.setdefault("state", {})["call"] = call
        path, answer = scope["path"], _Answer(send, call)
        serving.observer.request_started(path)
        self._open += 1
        try:
            try:
                self._admit(scope, call)
                await self._app(scope, receive, answer)
            except HttpError as error:
                if not answer.started:
                    await error.response(path)(scope, receive, answer)
                elif not answer.ended:
                    raise BrokenOff from None
            except Exception as error:
                told(error, route_of(scope))
                if not answer.started:
                    await HttpError(500, "a fault in the server").response(path)(scope, receive, answer)
                elif not answer.ended:
                    raise BrokenOff from None
        finally:
            self._open -= 1
            took = time.perf_counter() - call.started
            serving.observer.request_ended(route_of(scope), answer.status, call.action, took)
            if serving.settings.access_log:
                _log(scope, call, answer, took)

    def _admit(self, scope: Scope, call: Call) -> None:
        headers, settings = Headers(scope=scope), call.serving.settings
        for given in headers.getlist("host"):
            if not settings.answers_to(_host(f"//{given}")):
                raise _not_for("host", given)
        for given in headers.getlist("origin") if settings.is_loopback or not settings.keys else ():
            is_own = given in (f"http://{headers.get('host')}", f"https://{headers.get('host')}")
            if not is_own and not settings.is_told(_host(given)):
                raise _not_for("origin", given)
        if "websocket" in headers.get("upgrade", "").lower():
            raise HttpError(501, "no WebSockets here: nothing passes that is not judged", "websocket_not_supported")
        path = scope["path"]
        if settings.keys and path not in PUBLIC and not path.startswith("/assets/"):
            call.key = settings.key_of(key_in(headers))
            if call.key is None:
                raise HttpError(401, "no valid API key", "invalid_api_key", headers={"www-authenticate": "Bearer"})
            self._limit(call.key)
        if path.startswith("/v1/") and self._open > settings.max_requests:
            raise overloaded("as many requests as may are under way; try again")

    def _limit(self, key: Key) -> None:
        """A token bucket a key, of a minute's requests."""
        if key.per_minute is None:
            return
        now = time.monotonic()
        left, since = self._buckets.get(key.name, (key.per_minute, now))
        left = min(key.per_minute, left + (now - since) * key.per_minute / 60)
        if left < 1:
            self._buckets[key.name] = left, now
            wait = int((1 - left) * 60 / key.per_minute) + 1
            raise HttpError(429, "too many requests for this key", "rate_limited", headers={"retry-after": str(wait)})
        self._buckets[key.name] = left - 1, now


class _Answer:
    """Sends, with the action in the headers, and counts."""

    def __init__(self, send: Send, call: Call):
        self._send, self._call = send, call
        self.started = self.ended = False
        self.status = 499  # nothing was answered: the client went away
        self.n_bytes = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            MutableHeaders(scope=message)[ACTION_HEADER] = self._call.action
        elif message["type"] == "http.response.body":
            self.n_bytes += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        await self._send(message)


def key_in(headers: Headers) -> str:
    """The key that a client gives, by OpenAI's or by Anthropic's header; "" where it gives none."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _not_for(name: str, given: str) -> HttpError:
    said = f"not for the {name} '{given[:80]}'; --allow-host (in a config file 'hosts') lets it"
    return HttpError(403, said, f"{name}_not_allowed")


def _log(scope: Scope, call: Call, answer: _Answer, took: float) -> None:
    line = {
        "time": round(time.time(), 3),
        "method": scope["method"],
        "path": route_of(scope),
        "status": answer.status,
        "action": call.action,
        "stage": call.stage,
        "model": call.model,
        "policy": call.policy,
        "key": call.key.name if call.key else None,
        "bytes": answer.n_bytes,
        "ms": round(took * 1e3, 1),
    }
    ACCESS.info(json.dumps(line))
