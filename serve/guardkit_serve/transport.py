"""How upstreams are reached: httpx's requests over aiohttp's connections, whose parser is C.

An answer that streams is read in hundreds of small pieces, and httpx's own transport takes much longer for each.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx
from yarl import URL

IDLE_S = 30.0  # that a connection is kept for the next request
BODY = "guardkit.body"
"""The extension of a response under which its body stands without httpx's layers around it."""
MAX_HEAD_BYTES = 64 << 10
"""Of one header of an answer."""
_OWN = frozenset((b"connection", b"content-length", b"transfer-encoding"))
"""Headers of a request that its connection sets."""


class Transport(httpx.AsyncBaseTransport):
    """For one event loop. Follows nothing, keeps no cookies, undoes no encoding; takes nothing out of the
    environment: where requests go stands in the settings."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        given = request.extensions.get("timeout", {})
        connect, read = given.get("connect"), given.get("read")
        headers = [(name.decode(), _text(value)) for name, value in request.headers.raw if name.lower() not in _OWN]
        # Until the head is there at most; aiohttp knows no time for a body that is not taken.
        whole = None if None in (connect, read, given.get("write")) else connect + read + given["write"]
        with _told():
            async with asyncio.timeout(whole):
                answer = await self._opened().request(
                    request.method,
                    _url(request.url),
                    headers=headers,
                    data=body or None,
                    allow_redirects=False,
                    ssl=self._verified() if request.url.scheme == "https" else True,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=read),
                )
        coming = _Body(answer)
        return httpx.Response(answer.status, headers=list(answer.raw_headers), stream=coming, extensions={BODY: coming})

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
                auto_decompress=False,
                trust_env=False,
                max_line_size=MAX_HEAD_BYTES,
                max_field_size=MAX_HEAD_BYTES,
            )
        return self._session

    def _verified(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
        return self._tls

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


class _Body(httpx.AsyncByteStream):
    """What comes of an answer, as it comes. Closed before its end, it closes the connection."""

    def __init__(self, answer: aiohttp.ClientResponse):
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._answer.content
        with _told():
            while piece := await content.readany():
                yield piece

    async def aclose(self) -> None:
        self._answer.close()


@contextmanager
def _told() -> Iterator[None]:
    """aiohttp's errors as httpx's."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise _error(error, httpx.ConnectError) from error
    except TimeoutError as error:
        raise _error(error, httpx.ReadTimeout) from error
    except (aiohttp.ClientError, OSError) as error:
        raise _error(error, httpx.RemoteProtocolError) from error


def _error(error: BaseException, kind: Any) -> Exception:
    found: Exception = kind(f"{type(error).__name__}: {error}")
    return found


def _url(url: httpx.URL) -> URL:
    """Without a name and a password: httpx has made a header of them."""
    return URL(str(url.copy_with(username=None, password=None) if url.userinfo else url), encoded=True)


def _text(value: bytes) -> str:
    """A header's value, which aiohttp writes as UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
