"""The short way to the endpoints that judge: past routing and its layers, which cost as much as a small text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send


class Endpoint:
    """A function of a request as an ASGI application of its own."""

    def __init__(self, function: Callable[[Request], Awaitable[Response]]):
        self._function = function

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._function(Request(scope, receive, send))
        await response(scope, receive, send)


class Direct:
    """Innermost of the layers around the router. routes: those that are found by their path alone, for POST."""

    def __init__(self, app: ASGIApp, routes: Iterable[Route]):
        self._app = app
        self._routes = {route.path: route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = None
        if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
            route = self._routes.get(scope["path"])
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"], scope["endpoint"] = route, route.endpoint
        await route.app(scope, receive, send)
