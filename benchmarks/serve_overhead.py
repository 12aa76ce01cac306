"""What `guard serve` adds: to the first token, to each token, and to a moderation.

    python benchmarks/serve_overhead.py [--rounds 40] [--seconds 10] [--skip-moderations] [--beside FOLDER] [--http h11]

Streams: a scripted upstream stamps each event with the time; a client reads it directly, through a plain pass-through
proxy (Starlette, httpx, uvicorn), through one that reads its upstream with aiohttp as the guard does, and through the
guard with a scripted model and no hold-back (what waits for what follows is no cost of the server). All run in
processes of their own on loopback, the four in turn.
Moderations: requests a second of one text each, with the embedded model, against `check_batch` on texts like them, in
rounds that take turns. The client sends requests that were made before over open connections, and its share of the
processor is told: server, model and client have the same cores. CPU times hardly change while a machine is busy with
something else; rates do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import aiohttp
import httpx
import uvicorn
from common import header
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

N_TOKENS, GAP_S = 60, 0.004
BATCH = 128  # texts of a call of `check_batch`
CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello there"}]}
PATH = "/v1/chat/completions"


def upstream() -> Any:
    async def events(_: Request) -> StreamingResponse:
        async def body() -> Any:
            for i in range(N_TOKENS):
                choice = {"index": 0, "delta": {"content": f"word{i} "}, "finish_reason": None}
                head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
                yield f"data: {json.dumps({**head, 'choices': [choice], 'sent': time.monotonic_ns()})}\n\n"
                await asyncio.sleep(GAP_S)
            yield "data: [DONE]\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    return Starlette(routes=[Route(PATH, events, methods=["POST"])])


def passing(behind: str) -> Any:
    client = httpx.AsyncClient(trust_env=False, timeout=60)

    async def forward(request: Request) -> StreamingResponse:
        asked = client.build_request("POST", behind + PATH, content=await request.body())
        answer = await client.send(asked, stream=True)

        async def body() -> Any:
            async for piece in answer.aiter_raw():
                yield piece
            await answer.aclose()

        return StreamingResponse(body(), media_type="text/event-stream")

    return Starlette(routes=[Route(PATH, forward, methods=["POST"])])


def lean(behind: str) -> Any:
    opened: list[aiohttp.ClientSession] = []

    async def forward(request: Request) -> StreamingResponse:
        if not opened:
            opened.append(aiohttp.ClientSession())
        answer = await opened[0].post(behind + PATH, data=await request.body())

        async def body() -> Any:
            async for piece in answer.content.iter_any():
                yield piece

        return StreamingResponse(body(), media_type="text/event-stream")

    return Starlette(routes=[Route(PATH, forward, methods=["POST"])])


def guarding(behind: str) -> Any:
    from guardkit.testing import FakeGuard
    from guardkit_serve import Settings, Upstream, create_app

    guard = FakeGuard({"forbidden words": "unsafe"})
    return create_app(guard, Settings(upstreams=(Upstream(behind),), holdback=0, access_log=False))


def guarding_as_in(behind: str, folder: str) -> Any:
    """The guard of another checkout."""
    sys.path[:0] = [folder, f"{folder}/serve"]
    import guardkit_serve

    assert str(guardkit_serve.__file__).startswith(folder), guardkit_serve.__file__
    return guarding(behind)


def judging() -> Any:
    from guardkit import Guard
    from guardkit_serve import Settings, create_app

    return create_app(Guard.load(timeout=30), Settings(access_log=False))


def _serve(make: Callable[..., Any], args: tuple[str, ...], port: int, parts: dict[str, str]) -> None:
    more: Any = parts
    uvicorn.run(make(*args), host="127.0.0.1", port=port, log_level="error", access_log=False, **more)


def start(make: Callable[..., Any], *args: str, **parts: str) -> tuple[multiprocessing.Process, str]:
    """parts: uvicorn's `http` and `loop`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = multiprocessing.Process(target=_serve, args=(make, args, port, parts), daemon=True)
    process.start()
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{address}/health", trust_env=False)
            return process, address
        except httpx.HTTPError:
            time.sleep(0.05)
    raise SystemExit("a server did not start")


async def read(client: httpx.AsyncClient, address: str) -> tuple[float, list[float]]:
    """Milliseconds from the request to the first token, and microseconds that each token took on its way."""
    start = time.monotonic_ns()
    first, taken = 0.0, []
    async with client.stream("POST", address + PATH, json=CHAT) as answer:
        async for line in answer.aiter_lines():
            now = time.monotonic_ns()
            if line.startswith("data: {"):
                first = first or (now - start) / 1e6
                taken.append((now - json.loads(line[6:])["sent"]) / 1e3)
    assert len(taken) == N_TOKENS
    return first, taken[1:]


async def streams(addresses: dict[str, str], rounds: int) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in addresses}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        for i in range(rounds + 2):
            for name, address in addresses.items():
                first, taken = await read(client, address)
                if i >= 2:  # warm
                    found[name][0].append(first)
                    found[name][1].extend(taken)
    return {name: (statistics.median(firsts), statistics.median(taken)) for name, (firsts, taken) in found.items()}


WORDS = "tomato bus letter radio bread walk garden window paper river music stone winter coffee bridge candle ladder"


def texts(seed: int) -> Iterator[str]:
    """Harmless texts of fourteen words, no two alike: nano judges what differs only in numbers once."""
    chance, words = random.Random(seed), WORDS.split()
    while True:
        yield " ".join(chance.choices(words, k=14))


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def moderate(address: str, given: Sequence[str], clients: int) -> float:
    """Judge each text with a request of its own; requests a second."""
    host, _, port = address.removeprefix("http://").partition(":")
    asked = iter([_request(f"{host}:{port}", text) for text in given])

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for raw in asked:
            writer.write(raw)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            size = head.lower().split(b"content-length: ", 1)[1].split(b"\r", 1)[0]
            assert b'"judged":true' in await reader.readexactly(int(size))
        writer.close()

    start = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(clients)))
    return len(given) / (time.monotonic() - start)


def _request(host: str, text: str) -> bytes:
    body = json.dumps({"input": text}).encode()
    head = f"POST /v1/moderations HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def batch(guard: Any, given: Sequence[str]) -> float:
    """Texts a second."""
    start = time.monotonic()
    for i in range(0, len(given), BATCH):
        guard.check_batch(given[i : i + BATCH], stage="prompt")
    return len(given) / (time.monotonic() - start)


def show_streams(rounds: int, beside: str | None, parts: dict[str, str]) -> None:
    behind, source = start(upstream, **parts)
    made = {"plain proxy": passing, "the same on aiohttp": lean, "guard": guarding}
    servers = {name: start(make, source, **parts) for name, make in made.items()}
    if beside is not None:
        servers["guard beside it"] = start(guarding_as_in, source, os.path.abspath(beside), **parts)
    before = {name: cpu_s(process.pid or 0) for name, (process, _) in servers.items()}
    addresses = {"direct": source, **{name: address for name, (_, address) in servers.items()}}
    found = asyncio.run(streams(addresses, rounds))
    n = (rounds + 2) * N_TOKENS
    used = {name: (cpu_s(process.pid or 0) - before[name]) / n * 1e6 for name, (process, _) in servers.items()}
    print(f"{'':20}  first token, ms   each token, us   CPU a token, us   (medians of {rounds} streams of {N_TOKENS})")
    for name, (first, taken) in found.items():
        print(f"{name:20}  {first:15.2f}   {taken:14.0f}   {used.get(name, 0.0):15.0f}")
    for guard in (name for name in found if name.startswith("guard")):
        one, many = found[guard]
        for name in ("plain proxy", "the same on aiohttp"):
            first, taken, more = one - found[name][0], many - found[name][1], used[guard] - used[name]
            print(f"{'added':20}  {first:15.2f}   {taken:14.0f}   {more:15.0f}   ({guard}, beside {name})")
    for process in (behind, *(process for process, _ in servers.values())):
        process.terminate()


def show_moderations(seconds: float, clients: int, parts: dict[str, str]) -> None:
    from guardkit import Guard

    server, address = start(judging, **parts)
    pid, given = server.pid or 0, texts(time.monotonic_ns())
    with Guard.load() as guard:
        size = BATCH * max(1, round(seconds / 3 * batch(guard, list(islice(given, BATCH))) / BATCH))
        asyncio.run(moderate(address, list(islice(given, 2 * clients)), clients))
        rates: dict[str, list[float]] = {"core": [], "served": []}
        used = {"core": 0.0, "server": 0.0, "client": 0.0}
        for _ in range(3):
            now, own = list(islice(given, size)), time.process_time()
            rates["core"].append(batch(guard, now))
            used["core"] += time.process_time() - own
            now, own, server_s = list(islice(given, size)), time.process_time(), cpu_s(pid)
            rates["served"].append(asyncio.run(moderate(address, now, clients)))
            used["client"] += time.process_time() - own
            used["server"] += cpu_s(pid) - server_s
    server.terminate()
    in_core, served = statistics.median(rates["core"]), statistics.median(rates["served"])
    core, serving, client = (used[name] / (3 * size) * 1e3 for name in ("core", "server", "client"))
    print(
        f"check_batch {in_core:.0f} texts/s, {core:.2f} ms of CPU a text\n"
        f"/v1/moderations {served:.0f} requests/s of {clients} clients, {served / in_core:.0%} of it; CPU a request "
        f"{serving:.2f} ms at the server ({core / serving:.0%} of it the core's), {client:.2f} ms at the client"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--skip-moderations", action="store_true")
    parser.add_argument("--skip-streams", action="store_true")
    parser.add_argument("--beside", metavar="FOLDER", help="another checkout, whose guard takes turns with this one's")
    parser.add_argument("--http", default="auto", help="uvicorn's parser: auto, h11, httptools")
    parser.add_argument("--loop", default="auto", help="uvicorn's event loop: auto, asyncio, uvloop")
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    header("What guard serve adds", "starlette", "uvicorn", "httpx", "aiohttp", "httptools", "uvloop")
    parts = {"http": given.http, "loop": given.loop}
    if not given.skip_streams:
        show_streams(given.rounds, given.beside, parts)
    if not given.skip_moderations:
        show_moderations(given.seconds, given.clients, parts)


if __name__ == "__main__":
    main()
