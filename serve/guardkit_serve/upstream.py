"""The servers that answer: one client for all of them, with what a request and an answer may carry across."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import AsyncIterator, Mapping
from functools import cache
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import unquote_plus

import httpx
from starlette.datastructures import Headers
from starlette.requests import Request

from guardkit.reading.values import is_name
from guardkit_serve.errors import HttpError
from guardkit_serve.settings import Upstream
from guardkit_serve.tracing import carry
from guardkit_serve.transport import BODY, Transport

PASSED_ON = frozenset((
    "anthropic-version", "anthropic-beta", "openai-organization", "openai-project", "openai-beta", "idempotency-key",
    "x-request-id", "x-client-request-id", "traceparent", "tracestate", "user-agent",
))  # fmt: skip
"""Headers of a request that the upstream gets; all else is the client's matter, or this server's."""
PASSED_BACK = frozenset((
    "content-type", "x-request-id", "request-id", "retry-after", "retry-after-ms", "x-should-retry",
    "openai-organization", "openai-processing-ms", "openai-version", "openai-project", "anthropic-organization-id",
))  # fmt: skip
_LIMITS = ("x-ratelimit-", "anthropic-ratelimit-")
_DATE = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
_TYPE = re.compile(r"[a-z]{1,12}/[a-z.+-]{1,24}; ?charset=\"?[A-Za-z0-9-]{1,12}\"?", re.I)
_AGAIN = frozenset((502, 503, 504))
BACKOFF_S = 0.2
_NO_COOKIES = DefaultCookiePolicy(allowed_domains=())
"""What an upstream sets for one client must not go out with the request of another."""


class Upstreams:
    """client: for tests; made when it is first needed."""

    def __init__(self, client: httpx.AsyncClient | None = None):
        self._client = client
        if client is not None:
            client.cookies.jar.set_policy(_NO_COOKIES)
        self._served: dict[str, list[tuple[str, str]]] = {}

    @property
    def client(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(transport=Transport(), trust_env=False, follow_redirects=False)
            self._client.cookies.jar.set_policy(_NO_COOKIES)
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def send(
        self, upstream: Upstream, method: str, path: str, query: bytes, headers: Mapping[str, str], body: bytes
    ) -> httpx.Response:
        """The answer, of which nothing but the head has been read; the caller closes it. A call that failed before
        that is tried again. Raises `HttpError` (502, 504)."""
        url = _url(url_of(upstream, path))
        if query:
            url = url.copy_with(query=query)
        timeout = httpx.Timeout(upstream.read_s, connect=upstream.connect_s, pool=upstream.connect_s)
        request = self.client.build_request(method, url, headers=headers, content=body or None, timeout=timeout)
        for left in range(upstream.retries, -1, -1):
            try:
                response = await self.client.send(request, stream=True)
            except (httpx.ReadTimeout, httpx.WriteTimeout):
                raise HttpError(504, "the upstream did not answer in time", "upstream_timeout") from None
            except httpx.HTTPError:
                if not left:
                    raise HttpError(502, "the upstream cannot be reached", "upstream_error") from None
            else:
                if response.status_code not in _AGAIN or not left:
                    return response
                await response.aclose()
            await asyncio.sleep(BACKOFF_S * 2 ** (upstream.retries - left) * (0.5 + random.random()))
        raise AssertionError("not reached")

    async def served(self, upstream: Upstream, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        """The upstream's models, each with its owner; asked for until it tells, then remembered. Empty where it does
        not tell."""
        if upstream.url not in self._served:
            try:
                response = await self.send(upstream, "GET", "/v1/models", b"", headers, b"")
                try:
                    rows = json.loads(await response.aread())["data"]
                finally:
                    await response.aclose()
                found = [(str(row["id"]), str(row.get("owned_by") or "")) for row in rows]
            except (HttpError, httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
                found = []
            if not found:
                return []
            self._served[upstream.url] = found
        return self._served[upstream.url]


_url = cache(httpx.URL)
"""Only of what stands in the settings."""


def url_of(upstream: Upstream, path: str) -> str:
    """`path` (``/v1/...``) at the upstream. A base URL with a path stands for ``/v1``, as SDKs take it, but for
    Anthropic's messages, whose SDK adds that itself."""
    base = upstream.url.rstrip("/")
    if base.endswith("/v1"):
        return base + path.removeprefix("/v1")
    if path == "/v1/messages" or not _url(base).path.strip("/"):
        return base + path
    return base + path.removeprefix("/v1")


def query_of(request: Request) -> bytes:
    """What stands behind the path, which nobody judges: names and numbers (``api-version=2026-01-01``), no text. Raises
    `HttpError` (400)."""
    query: bytes = request.scope.get("query_string", b"")
    if query and not all(is_name(unquote_plus(text), 6) for text in re.split("[&=]", query.decode("latin-1"))):
        raise HttpError(400, "what stands behind the '?' is text, which is not passed on", "query_not_allowed")
    return query


def headers_for(upstream: Upstream, path: str, given: Headers, keys: bool) -> dict[str, str]:
    """What the upstream is sent. keys: whether this server asks for keys of its own; then a client's credential is
    meant for it alone."""
    out = {name: value for name, value in given.items() if name in PASSED_ON}
    out |= {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    out["accept-encoding"] = "identity"
    if upstream.key_env is not None:
        key = os.environ.get(upstream.key_env, "").strip()
        if not key:
            raise HttpError(500, "the upstream's key is not set on this server", "upstream_key_missing")
        of_anthropic = _url(upstream.url).host.endswith("anthropic.com")
        if path == "/v1/messages" or of_anthropic:
            out["x-api-key"] = key
        if not of_anthropic:  # where it would be taken for another kind of token
            out["authorization"] = f"Bearer {key}"
    elif not keys:
        out |= {name: given[name] for name in ("authorization", "x-api-key") if name in given}
    carry(out)
    return out


def pieces_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """The bytes of an answer, as they come."""
    as_sent = not response.is_stream_consumed and "content-encoding" not in response.headers
    if as_sent and BODY in response.extensions:
        return aiter(response.extensions[BODY])
    return response.aiter_raw() if as_sent else response.aiter_bytes()


def failure(problem: httpx.HTTPError) -> HttpError:
    """What is told of an answer that does not come to its end."""
    if isinstance(problem, httpx.TimeoutException):
        return HttpError(504, "the upstream fell silent", "upstream_timeout")
    return HttpError(502, "the upstream broke off", "upstream_error")


def headers_back(response: httpx.Response) -> dict[str, str]:
    """Those that a client may see, where they are what they should be and no text."""
    found = {name.lower(): value for name, value in response.headers.items()}
    return {
        name: value
        for name, value in found.items()
        if (name in PASSED_BACK or (name.startswith(_LIMITS) and is_name(name, 6)))
        and (is_name(value, 6) or _DATE.fullmatch(value) or (name == "content-type" and _TYPE.fullmatch(value)))
    }
