"""How requests reach an OpenAI-compatible server: through an `AsyncOpenAI`, or plain HTTP."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from guardkit.errors import GuardkitError, MissingExtra
from guardkit.models.remote_client import API_KEYS, ServerError, Unreachable

_SHOWN = 200  # characters of a server's message that are shown


@dataclass(frozen=True)
class Delta:
    """reason: the finish reason, in the last one."""

    text: str
    reason: str | None = None


class Transport(Protocol):
    def deltas(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
        """The streamed answer to a request, "extra" being what OpenAI's API does not have. Raises `ServerError`."""

    async def models(self) -> list[tuple[str, str]]:
        """Name and owner of each model; empty where the server does not tell. Raises `Unreachable`."""

    async def close(self) -> None:
        """Free what was opened here; a client that was given stays open."""


def transport_of(client: Any) -> Transport:
    """Raises `GuardkitError` for what is no client."""
    if hasattr(client, "deltas"):
        return client  # type: ignore[no-any-return]
    if hasattr(client, "chat") and hasattr(client, "models"):
        if type(client).__name__ in ("OpenAI", "AzureOpenAI"):
            raise GuardkitError("Rollback.stream takes an AsyncOpenAI, not a synchronous client")
        return _OpenAI(client)
    if isinstance(client, str) or (hasattr(client, "stream") and hasattr(client, "get")):
        return _Http(client)
    raise GuardkitError(
        f"Rollback.stream takes an AsyncOpenAI, an httpx.AsyncClient or an address, not {type(client).__name__}"
    )


class _OpenAI:
    """An `openai.AsyncOpenAI`, or what looks like one."""

    def __init__(self, client: Any):
        self._client = client

    async def deltas(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
        own = dict(body)
        if extra := own.pop("extra", None):
            own["extra_body"] = {**extra, **own.get("extra_body", {})}
        place = self._client.completions if path == "completions" else self._client.chat.completions
        stream: Any = None
        came = False  # the client keeps to itself how the stream of events ended
        try:
            stream = await place.create(stream=True, **own)
            async for chunk in stream:
                if (delta := delta_of(chunk)) is not None:
                    came = True
                    yield delta
            if not came:
                raise ServerError("the server's answer broke off, or was no stream of events")
        except Exception as error:
            if (told := _told(error)) is None:
                raise
            raise told from error
        finally:
            close = getattr(stream, "close", None) or getattr(stream, "aclose", None)
            if close is not None and inspect.isawaitable(closing := close()):
                await closing

    async def models(self) -> list[tuple[str, str]]:
        try:
            page = await self._client.models.list()
        except Exception as error:  # not every server lists its models, and one that does not may well answer
            if isinstance(told := _told(error), Unreachable):
                raise told from error
            return []
        return [(str(_get(m, "id")), str(_get(m, "owned_by") or "")) for m in _get(page, "data") or ()]

    async def close(self) -> None:
        pass


class _Http:
    """An `httpx.AsyncClient` with a `base_url`, or an address; a key is taken from the environment."""

    def __init__(self, client: Any):
        self._own = isinstance(client, str)
        self._client = _client_of(client) if isinstance(client, str) else client

    async def deltas(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
        import httpx

        own = dict(body)
        sent = {**own, **own.pop("extra", {}), "stream": True}
        sent.pop("extra", None)
        try:
            async with self._client.stream("POST", path, json=sent) as response:
                if response.status_code >= 400:
                    told = (await response.aread()).decode(errors="replace")[:_SHOWN]
                    raise ServerError(f"{response.status_code}: {told}", response.status_code)
                ended = False
                async for line in response.aiter_lines():
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if data == "[DONE]":
                        return
                    if data and (delta := delta_of(_json(data))) is not None:
                        ended = ended or delta.reason is not None
                        yield delta
                if not ended:
                    raise ServerError("the server's answer broke off, or was no stream of events")
        except httpx.HTTPError as error:
            raise Unreachable(f"the server does not answer ({type(error).__name__}: {error})") from error

    async def models(self) -> list[tuple[str, str]]:
        import httpx

        try:
            rows = (await self._client.get("models")).json()["data"]
            return [(str(row["id"]), str(row.get("owned_by") or "")) for row in rows]
        except httpx.TransportError as error:
            raise Unreachable(f"the server does not answer ({type(error).__name__}: {error})") from error
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []

    async def close(self) -> None:
        if self._own:
            await self._client.aclose()


def _client_of(address: str) -> Any:
    try:
        import httpx
    except ImportError as error:
        raise MissingExtra("Rollback.stream with an address", "remote") from error
    key = next((value for name in API_KEYS if (value := os.environ.get(name))), None)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=address, headers=headers, timeout=httpx.Timeout(60.0, connect=10.0))


def _json(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ServerError(f"the server sent what is no JSON: {data[:_SHOWN]}") from error


def delta_of(chunk: Any) -> Delta | None:
    """What a chunk says; None where it says nothing. Thoughts in fields of their own are not shown, and left out; a
    refusal in one of its own is the answer. Raises `ServerError` for an error in a chunk, `GuardkitError` for a tool
    call or audio."""
    if (error := _get(chunk, "error")) is not None:
        raise ServerError(f"the server failed: {str(error)[:_SHOWN]}")
    choices = _get(chunk, "choices")
    if not choices:
        return None
    delta = _get(choices[0], "delta")
    if delta is None:
        return Delta(str(_get(choices[0], "text") or ""), _get(choices[0], "finish_reason"))
    if _get(delta, "tool_calls") or _get(delta, "function_call"):
        raise GuardkitError("the model calls a tool: Rollback takes back text alone; do not pass tools")
    if _get(delta, "audio"):
        raise GuardkitError("the model speaks: Rollback takes back text alone; do not ask for audio")
    text = _get(delta, "content") or _get(delta, "refusal")
    return Delta(str(text or ""), _get(choices[0], "finish_reason"))


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _told(error: Exception) -> ServerError | None:
    """A client's error as a `ServerError`, with the status where it has one; None for any other error."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return ServerError(f"{status}: {str(error)[:_SHOWN]}", status)
    if type(error).__module__.split(".")[0] in ("openai", "httpx"):
        return Unreachable(f"the server does not answer ({type(error).__name__}: {str(error)[:_SHOWN]})")
    return None
