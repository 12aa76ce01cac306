"""One OpenAI-compatible server: connections, time limits, retries, and the fields that it does not know.

All requests run in one event loop (`LoopThread`), so that sync and async callers, from any thread, share one pool of
connections and one limit. No message, log line or repr holds a key or a password.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import re
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from guardkit.errors import MissingExtra, ModelError, ModelLoadError
from guardkit.models.loop_thread import LoopThread

API_KEYS = ("GUARDKIT_API_KEY", "OPENAI_API_KEY")  # environment variables, the first that is set
MAX_BODY = 1 << 24  # bytes of an answer that are read
MAX_WAIT = 30.0  # seconds that a server may ask to wait before the next attempt
MAX_BACKOFF = 8.0
_RETRIED = (429, 500, 502, 503, 504)
_SHOWN = 200  # characters of a server's message that are shown
_TOO_LONG = re.compile(r"context[ _](?:length|size|window)|maximum input length|max_model_len", re.I)
_T = TypeVar("_T")


class ServerError(ModelError):
    """Raised when a server does not answer as it should. status: of its answer, None where there was none."""

    def __init__(self, message: str, status: int | None = None):
        self.status = status
        super().__init__(message)


class ContextTooLong(ServerError):
    """Raised when a server says that a request is longer than its model's context."""


class Unreachable(ServerError):
    """Raised when there is no answer at all: no connection, or none that lasted."""


@dataclass(frozen=True)
class Limits:
    """concurrency: requests under way at once; connect_timeout, read_timeout: seconds, the second for a whole answer;
    retries: further attempts; backoff: seconds, the mean wait grows from half of it."""

    concurrency: int = 32
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    retries: int = 3
    backoff: float = 0.5

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or self.backoff < 0:
            raise ValueError("concurrency must be >= 1, retries and backoff >= 0")
        if min(self.connect_timeout, self.read_timeout) <= 0:
            raise ValueError("connect_timeout and read_timeout must be above 0 seconds")


class _Pool:
    """What lives in the event loop: the HTTP client, and the slots for requests under way."""

    def __init__(self, client: Any, concurrency: int):
        self.client, self.slots = client, asyncio.Semaphore(concurrency)

    async def aclose(self) -> None:
        await self.client.aclose()


class Server:
    """A server's address and how to talk to it. `where` is the address without credentials, for messages."""

    def __init__(self, url: str, limits: Limits | None = None):
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host:
            raise ModelLoadError("a server's address looks like http://HOST:PORT/v1")
        shown = f"[{host}]" if ":" in host else host
        self.where = f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
        if parts.query or parts.fragment:
            raise ModelLoadError(f"{self.where}: a server's address takes no '?' or '#'; give a key as {API_KEYS[0]}")
        self._http: Any = _http_package(self.where)
        self.limits = limits or Limits()
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        name, key = ("", "") if user else _key()
        if not (key.isascii() and key.isprintable()):
            raise ModelLoadError(f"{self.where}: the key in {name} holds characters that no key has")
        self._secrets = [s for s in (key, password or user) if s]
        self._refused: set[str] = set()
        self._thread = LoopThread("guardkit-remote", _pool_maker(self._http, self.limits, (user, password), key))

    def __repr__(self) -> str:
        return f"Server('{self.where}')"

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Start `work` in the server's own event loop, from any thread."""
        return self._thread.submit(work)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` there to its end; what interrupts the caller cancels it."""
        return self._thread.run(work)

    @property
    def closed(self) -> bool:
        return self._thread.closed

    def close(self) -> None:
        """End the thread and its connections; requests under way fail. Safe to call twice."""
        self._thread.close()

    # -- in the event loop

    async def get(self, path: str) -> Any:
        """An answer's JSON. Raises `ServerError`."""
        return await self._request("GET", path, None, self.limits.read_timeout, retries=min(1, self.limits.retries))

    async def chat(
        self, body: Mapping[str, Any], optional: Mapping[str, Mapping[str, Any]], patience: float | None = None
    ) -> Any:
        """A chat completion. optional: further fields by kind; a kind that the server refuses is left out, then and
        later. patience: seconds for the answer, where it may take longer than usual. Raises `ServerError`."""
        kinds = {name: fields for name, fields in optional.items() if name not in self._refused}
        dropped: list[str] = []
        seconds = patience or self.limits.read_timeout
        while True:
            sent = dict(body)
            for fields in kinds.values():
                sent |= fields
            try:
                found = await self._request("POST", "/chat/completions", sent, seconds, self.limits.retries)
            except ServerError as error:
                if error.status not in (400, 422) or isinstance(error, ContextTooLong) or not kinds:
                    raise
                named = [name for name, fields in kinds.items() if any(f in str(error) for f in fields)]
                for name in named or list(kinds)[:1]:
                    del kinds[name]
                    dropped.append(name)
            else:
                self._refused.update(dropped)
                return found

    async def _request(self, method: str, path: str, body: object, seconds: float, retries: int) -> Any:
        http, limits, pool = self._http, self.limits, self._thread.resource
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        error: ServerError | None = None
        async with pool.slots:
            for attempt in range(retries + 1):
                asked = 0.0
                try:
                    async with asyncio.timeout(limits.connect_timeout + seconds):
                        status, headers, raw = await self._send(pool.client, method, path, content, seconds)
                except (TimeoutError, http.ReadTimeout):
                    # Not tried again: a server that is too slow is not helped by more work.
                    raise Unreachable(f"{self.where}: no whole answer within {seconds:g} s") from None
                except (http.TransportError, http.DecodingError) as problem:
                    said = f"{type(problem).__name__}: {self._mask(str(problem))}".rstrip(": ")
                    # A status that came before says more: many servers close the connection after a fault.
                    error = error or Unreachable(f"{self.where}: the connection failed ({said})")
                else:
                    if status == 200:
                        return self._json(raw, headers)
                    error = self._refusal(status, headers, raw)
                    if status not in _RETRIED or isinstance(error, ContextTooLong):
                        raise error
                    asked = _asked_wait(headers.get("retry-after"))
                if attempt < retries:
                    jitter = random.uniform(0, min(MAX_BACKOFF, limits.backoff * 2**attempt))
                    await asyncio.sleep(asked + jitter)
        raise error or Unreachable(f"{self.where}: not asked")

    async def _send(
        self, client: Any, method: str, path: str, content: bytes | None, seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = None if content is None else {"Content-Type": "application/json"}
        timeout = self._http.Timeout(seconds, connect=self.limits.connect_timeout, pool=None)
        raw = bytearray()
        async with client.stream(
            method, self.where + path, content=content, headers=headers, timeout=timeout
        ) as response:
            async for chunk in response.aiter_bytes():
                raw += chunk
                if len(raw) > MAX_BODY:
                    raise ServerError(f"{self.where}: an answer of more than {MAX_BODY >> 20} MiB")
            return response.status_code, response.headers, bytes(raw)

    def _json(self, raw: bytes, headers: Mapping[str, str]) -> Any:
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            kind = headers.get("content-type", "no content type")
            hint = "does the address end in /v1?"
            raise ServerError(f"{self.where}: the answer is no JSON ({self._mask(kind)}); {hint}") from None

    def _refusal(self, status: int, headers: Mapping[str, str], raw: bytes) -> ServerError:
        if 300 <= status < 400:
            to = urlsplit(headers.get("location", ""))
            there = f"{to.scheme}://{to.hostname}"
            return ServerError(f"{self.where}: redirected to {there}, not followed; give that address itself", status)
        said, kind = _message(raw)
        too_long = bool(_TOO_LONG.search(f"{said} {kind}"))
        said = self._mask(said)
        text = f"{self.where}: status {status}" + (f" ({said})" if said else "")
        if status == 404 and not self.where.endswith("/v1"):
            return ServerError(f"{text}; the address usually ends in /v1", status)
        if status in (401, 403):
            return ServerError(f"{text}; is the key in {API_KEYS[0]} right?", status)
        if too_long and status in (400, 413, 422, 500):
            return ContextTooLong(text, status)
        return ServerError(text, status)

    def _mask(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _http_package(where: str) -> Any:
    for name in ("httpx", "httpx2"):  # the second is the first's successor, with the same interface
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtra(where, "remote")


def _pool_maker(http: Any, limits: Limits, login: tuple[str, str], key: str) -> Callable[[], _Pool]:
    def make() -> _Pool:
        client = http.AsyncClient(
            auth=http.BasicAuth(*login) if login[0] else None,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            limits=http.Limits(max_connections=limits.concurrency, max_keepalive_connections=limits.concurrency),
            follow_redirects=False,  # a key goes nowhere but where it was meant to go
        )
        return _Pool(client, limits.concurrency)

    return make


def _key() -> tuple[str, str]:
    """The name and the value of the first environment variable that holds a key."""
    return next(((name, key) for name in API_KEYS if (key := os.environ.get(name, "").strip())), ("", ""))


def _message(raw: bytes) -> tuple[str, str]:
    """What a server's error says, and its type and code; without the input, which some servers repeat."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return "", ""
    kind = ""
    for key in ("error", "detail", "message"):
        if isinstance(said, dict) and said.get(key):
            kind += f" {said.get('type', '')} {said.get('code', '')}"
            said = said[key]
    if isinstance(said, list):
        said = "; ".join(f"{e.get('loc', '')}: {e.get('msg', '')}" for e in said if isinstance(e, dict))
    return said if isinstance(said, str) else "", kind


def _asked_wait(retry_after: str | None) -> float:
    """The seconds of a Retry-After header (a number or a date), bounded."""
    if not retry_after:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), MAX_WAIT) if seconds == seconds else 0.0
