"""A request as a span of OpenTelemetry, where the application has set a provider: the guard's spans lie under it, and
it lies under the client's, whose trace the upstream goes on with."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guardkit import telemetry

if TYPE_CHECKING:
    from guardkit.telemetry.otel import Otel

QUIET = ("/health", "/ready", "/metrics", "/assets/", "/page/recent")
"""Paths that are asked for all the time and judge nothing."""


class Traced:
    """Outside of everything else. An instrumentation of ASGI that is there already is not doubled."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        otel = _otel()
        if scope["type"] != "http" or otel is None or scope["path"].startswith(QUIET):
            await self._app(scope, receive, send)
            return
        await self._trace(otel, scope, receive, send)

    async def _trace(self, otel: Otel, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry import context, propagate, trace

        if trace.get_current_span().get_span_context().is_valid:
            await self._app(scope, receive, send)
            return
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method = scope["method"]
        span = otel.tracer.start_span(
            method, propagate.extract(Headers(scope=scope)), trace.SpanKind.SERVER, {"http.request.method": method},
            record_exception=False, set_status_on_exception=False,
        )  # fmt: skip
        token = context.attach(trace.set_span_in_context(span))
        try:
            await self._app(scope, receive, noting)
        finally:
            context.detach(token)
            route = route_of(scope)
            if route:
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("guardkit.action", scope["state"]["call"].action)
            if status >= 500 or not status:
                span.set_status(trace.Status(trace.StatusCode.ERROR))
            span.end()


def route_of(scope: Scope) -> str:
    """The path of the route that answered; a path that leads nowhere could hold anything."""
    route = scope.get("route")
    return getattr(route, "path", "") or ("" if "endpoint" not in scope else scope["path"])


def carry(headers: MutableMapping[str, str]) -> None:
    """Let whoever is sent `headers` go on with the trace under way."""
    if _otel() is not None:
        from opentelemetry import propagate

        propagate.inject(headers)


def is_traced() -> bool:
    """Whether the guard's spans are to lie under those of their requests."""
    return _otel() is not None


def _otel() -> Otel | None:
    emitter = telemetry.active()
    return None if emitter is None else emitter.otel
