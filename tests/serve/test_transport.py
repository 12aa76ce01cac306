"""Upstreams on real sockets: how their answers are read, what ends them, and what is left behind."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from guardkit_serve import Upstream
from guardkit_serve.errors import HttpError
from guardkit_serve.upstream import Upstreams, failure, pieces_of
from tests.serve.scripted import run

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"


class Server:
    """Reads requests and answers each by `answer`. heads: what was asked; connections: how many there were; gone: set
    once a client has closed one."""

    def __init__(self, answer: Answer):
        self._answer = answer
        self.heads: list[bytes] = []
        self.connections = 0
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                size = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
                await reader.readexactly(min(size, 1000))
                await self._answer(reader, writer)
                if await reader.read(0) and reader.at_eof():
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


async def with_server(
    answer: Answer, use: Callable[[Server, Upstreams, Upstream], Awaitable[Any]], seconds: float = 60
) -> Any:
    """seconds: how long the server may be silent."""
    server = Server(answer)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        upstreams = Upstreams()
        try:
            return await use(
                server, upstreams, Upstream(f"http://127.0.0.1:{port}", retries=0, read_s=seconds, connect_s=seconds)
            )
        finally:
            await upstreams.close()


async def read(upstreams: Upstreams, upstream: Upstream, body: bytes = b"{}") -> list[bytes]:
    response = await upstreams.send(upstream, "POST", "/v1/chat/completions", b"", {"x-request-id": "1"}, body)
    try:
        return [piece async for piece in pieces_of(response)]
    finally:
        await response.aclose()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"set-cookie: who=first\r\n\r\n")
    for piece in (b"data: one\n\n", b"data: two\n\n"):
        writer.write(chunk(piece))
        await asyncio.sleep(0.02)
    writer.write(b"0\r\n\r\n")


def test_pieces_come_as_they_are_sent_over_one_connection_and_without_cookies() -> None:
    async def use(server: Server, upstreams: Upstreams, upstream: Upstream) -> None:
        for _ in range(3):
            assert await read(upstreams, upstream) == [b"data: one\n\n", b"data: two\n\n"]
        assert server.connections == 1
        assert all(b"who=first" not in head and b"x-request-id: 1" in head.lower() for head in server.heads)
        assert all(head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n") for head in server.heads)

    run(with_server(slow, use))


def test_an_answer_that_is_left_closes_its_connection() -> None:
    async def use(server: Server, upstreams: Upstreams, upstream: Upstream) -> None:
        response = await upstreams.send(upstream, "POST", "/v1/chat/completions", b"", {}, b"{}")
        assert await anext(pieces_of(response)) == b"data: one\n\n"
        await response.aclose()
        await asyncio.wait_for(server.gone.wait(), 50)

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + chunk(b"data: one\n\n"))
        await reader.readexactly(1)

    run(with_server(endless, use))


def sent(*pieces: bytes, then: bool = True) -> Answer:
    """Answers with these bytes; then: hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
        await writer.drain()
        if then:
            raise ConnectionError
        await reader.readexactly(1)

    return answer


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (sent(HEAD + b"\r\n" + chunk(b"data: one\n\n")), 502),  # broken off
        (sent(HEAD + b"\r\n" + chunk(b"data: one\n\n") + b"no chunk\r\n"), 502),
        (sent(HEAD + b"\r\n" + chunk(b"data: one\n\n"), then=False), 504),  # fell silent
    ],
)
def test_what_ends_an_answer_too_early(answer: Answer, status: int) -> None:
    async def use(server: Server, upstreams: Upstreams, upstream: Upstream) -> None:
        with pytest.raises((HttpError, httpx.HTTPError)) as broken:
            await read(upstreams, upstream)
        error = broken.value  # told as `HttpError` where it came with the head, in one read
        assert (failure(error) if isinstance(error, httpx.HTTPError) else error).status == status

    run(with_server(answer, use, 0.2 if status == 504 else 60))


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (sent(b"what is this\r\n\r\n"), 502),
        (sent(b"HTTP/1.1 200 OK\r\ncontent-le"), 502),
        (sent(), 502),
        (sent(then=False), 504),
        (sent(HEAD + b"x: " + b"a" * 200_000), 502),
    ],
)
def test_an_answer_without_a_head(answer: Answer, status: int) -> None:
    async def use(server: Server, upstreams: Upstreams, upstream: Upstream) -> None:
        with pytest.raises(HttpError) as failed:
            await read(upstreams, upstream)
        assert failed.value.status == status

    run(with_server(answer, use, 0.2 if status == 504 else 60))


def test_a_request_that_is_not_taken_ends_in_time() -> None:
    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(30)

    async def use(server: Server, upstreams: Upstreams, upstream: Upstream) -> None:
        with pytest.raises(HttpError) as failed:
            await read(upstreams, upstream, b" " * (16 << 20))
        assert failed.value.status == 504

    run(with_server(stuck, use, 0.5))


def test_nobody_there() -> None:
    async def call() -> None:
        upstreams = Upstreams()
        with pytest.raises(HttpError) as failed:
            await read(upstreams, Upstream("http://127.0.0.1:1", retries=0))
        assert failed.value.status == 502
        await upstreams.close()

    run(call())


def test_gzip_is_undone_and_names_in_an_address_become_a_header() -> None:
    async def zipped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = gzip.compress(b"data: one\n\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(data) + data)

    async def use(server: Server, upstreams: Upstreams, upstream: Upstream) -> None:
        named = Upstream(upstream.url.replace("//", "//me:secret@"), retries=0)
        assert b"".join(await read(upstreams, named)) == b"data: one\n\n"
        (head,) = server.heads
        assert b"authorization: basic " in head.lower()
        assert b"secret" not in head

    run(with_server(zipped, use))
