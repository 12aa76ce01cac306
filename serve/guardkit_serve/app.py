"""The application: routes, and what lives as long as the server."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from guardkit import Guard, NotJudged, Policy, Stage
from guardkit_serve.calls import Serving, call_of
from guardkit_serve.check import check
from guardkit_serve.direct import Direct, Endpoint
from guardkit_serve.errors import HttpError
from guardkit_serve.gate import Gate
from guardkit_serve.guards import Guards
from guardkit_serve.litellm import litellm
from guardkit_serve.moderations import moderations
from guardkit_serve.observe import Observer
from guardkit_serve.protocols.chat import Chat
from guardkit_serve.protocols.completions import Completions
from guardkit_serve.protocols.messages import Messages
from guardkit_serve.protocols.responses import Responses
from guardkit_serve.proxy import Proxy, models
from guardkit_serve.settings import Settings
from guardkit_serve.tracing import Traced
from guardkit_serve.upstream import Upstreams


def create_app(
    guards: Guard | Mapping[str, Guard],
    settings: Settings | None = None,
    *,
    policies: Mapping[str, Policy] | None = None,
    observer: Observer | None = None,
    client: httpx.AsyncClient | None = None,
) -> Starlette:
    """The server as an ASGI application. guards: by name, the first is the default; they stay the caller's to close.
    policies: more than the default guard's own, by name, for requests and keys to choose from. client: reaches
    the upstreams."""
    named = {guards.model.name: guards} if isinstance(guards, Guard) else guards
    serving = Serving(
        settings or Settings(),
        Guards(named, policies),
        observer or Observer(settings is not None and settings.page_texts),
        Upstreams(client),
    )
    state: dict[str, Any] = {"serving": serving}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await warm_up(serving.guards)
        serving.ready = True
        yield
        state["serving"].ready = False
        await serving.upstreams.close()

    judging = _judging()
    app = Starlette(
        routes=[*judging, *_routes(), *_page()],
        lifespan=lifespan,
        middleware=[Middleware(Traced), Middleware(Gate, state=state), Middleware(Direct, routes=judging)],
        exception_handlers={HTTPException: _http_exception, HttpError: _http_error},
    )
    app.router.redirect_slashes = False
    app.state.serving = serving
    app.state.shared = state
    return app


def _judging() -> list[Route]:
    return [
        Route("/v1/check", Endpoint(check), methods=["POST"]),
        Route("/v1/moderations", Endpoint(moderations), methods=["POST"]),
        Route("/beta/litellm_basic_guardrail_api", Endpoint(litellm), methods=["POST"]),
        *(Route(kind.path, Proxy(kind), methods=["POST"]) for kind in (Chat, Completions, Responses, Messages)),
    ]


def _routes() -> list[BaseRoute]:
    return [
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/v1/models", models),
    ]


def _page() -> list[BaseRoute]:
    try:
        page = importlib.import_module("guardkit_serve.page")
    except ModuleNotFoundError as error:
        if error.name != "guardkit_serve.page":
            raise
        return []
    return list(page.routes)


async def warm_up(guards: Guards) -> None:
    """Have each model judge a text and a stream, so that the first request does not wait for what loads lazily."""
    for name in guards.models:
        guard = guards.pick(name)
        with suppress(NotJudged):  # requests will say so themselves
            await guard.acheck("hello", stage=Stage.prompt)  # checks are not audited: nobody asked
            await guard.acheck("hello there", stage=Stage.response)


async def health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    is_ready = call_of(request).serving.ready
    return JSONResponse({"status": "ready" if is_ready else "starting"}, 200 if is_ready else 503)


async def metrics(request: Request) -> Response:
    body, content_type = call_of(request).serving.observer.exposition()
    return Response(body, headers={"content-type": content_type})


async def _http_exception(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)
    found = {404: "no such path here: what is not judged is not passed on", 405: "not by this method"}
    said = found.get(error.status_code, str(error.detail))
    return HttpError(error.status_code, said, headers=error.headers).response(request.url.path)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error.response(request.url.path)
