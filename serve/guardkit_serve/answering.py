"""How an answer goes out: its bytes, its early end, and the client that may go away meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Any

import httpx
from starlette.responses import Response
from starlette.types import Receive, Send

from guardkit_serve.errors import HttpError
from guardkit_serve.patience import Patience

DRAIN_S = 0.5


class Early(Exception):
    """An end before the first byte: it can be told as an HTTP error."""

    def __init__(self, error: HttpError):
        self.error = error
        super().__init__(error.message)


class Out:
    """The answer's body; its head goes out with the first byte. seconds: that a client may take to read on."""

    def __init__(self, send: Send, headers: dict[str, str], seconds: float):
        self._send, self._headers, self._patience = send, headers, Patience(seconds)
        self.started = False

    async def write(self, data: bytes) -> None:
        with self._patience:
            if not self.started:
                self.started = True
                raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
                await self._send({"type": "http.response.start", "status": 200, "headers": raw})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self.write(b"")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def close(self) -> None:
        self._patience.close()


async def until_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Do the work, and drop it at once when the client goes away."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def drained(pieces: AsyncIterator[bytes]) -> None:
    """Read an answer that is complete to its end, so that its connection can be used again."""
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(DRAIN_S):
            async for _ in pieces:
                pass


def json_response(data: Any, headers: dict[str, str] | None = None) -> Response:
    raw = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(raw, headers={**(headers or {}), "content-type": "application/json"})


async def never() -> Any:
    return {"type": "http.disconnect"}
