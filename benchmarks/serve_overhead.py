"""What `guard serve` adds: to the first token, to each token, and to a moderation.

    python benchmarks/serve_overhead.py [--rounds 40] [--seconds 10] [--skip-moderations]

Streams: a scripted upstream stamps each event with the time; a client reads it directly, through a plain pass-through
proxy of the same parts (Starlette, httpx, uvicorn), and through the guard with a scripted model and no hold-back (what
waits for what follows is no cost of the server). All run in processes of their own on loopback, the three in turn.
Moderations: requests a second of one text each, with the embedded model, against `check_batch` on the same texts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import httpx
import uvicorn
from common import header
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

N_TOKENS, GAP_S = 60, 0.004
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


def guarding(behind: str) -> Any:
    from guardkit.testing import FakeGuard
    from guardkit_serve import Settings, Upstream, create_app

    guard = FakeGuard({"forbidden words": "unsafe"})
    return create_app(guard, Settings(upstreams=(Upstream(behind),), holdback=0, access_log=False))


def judging() -> Any:
    from guardkit import Guard
    from guardkit_serve import Settings, create_app

    return create_app(Guard.load(timeout=30), Settings(access_log=False))


def _serve(make: Callable[..., Any], args: tuple[str, ...], port: int) -> None:
    uvicorn.run(make(*args), host="127.0.0.1", port=port, log_level="error", access_log=False)


def start(make: Callable[..., Any], *args: str) -> tuple[multiprocessing.Process, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = multiprocessing.Process(target=_serve, args=(make, args, port), daemon=True)
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


async def moderate(address: str, seconds: float, clients: int) -> float:
    """Requests a second."""
    limits, done, given = httpx.Limits(max_connections=clients), 0, texts(time.monotonic_ns())
    end = time.monotonic() + seconds

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal done
        while time.monotonic() < end:
            answer = await client.post(f"{address}/v1/moderations", json={"input": next(given)})
            assert answer.status_code == 200
            done += 1

    async with httpx.AsyncClient(trust_env=False, limits=limits, timeout=60) as client:
        start = time.monotonic()
        await asyncio.gather(*(ask(client) for _ in range(clients)))
        return done / (time.monotonic() - start)


def batch(seconds: float) -> float:
    from guardkit import Guard

    with Guard.load() as guard:
        guard.check("warm up")
        start, done, size = time.monotonic(), 0, 128
        given = texts(0)
        while time.monotonic() < start + seconds:
            guard.check_batch(list(islice(given, size)), stage="prompt")
            done += size
        return done / (time.monotonic() - start)


def show_streams(rounds: int) -> None:
    behind, source = start(upstream)
    plain, through = start(passing, source)
    guarded, judged = start(guarding, source)
    found = asyncio.run(streams({"direct": source, "plain proxy": through, "guard": judged}, rounds))
    print(f"{'':12}  first token, ms   each token, us   (medians of {rounds} streams of {N_TOKENS} tokens)")
    for name, (first, taken) in found.items():
        print(f"{name:12}  {first:15.2f}   {taken:14.0f}")
    (one, many), (base_one, base_many) = found["guard"], found["plain proxy"]
    print(f"{'added':12}  {one - base_one:15.2f}   {many - base_many:14.0f}   (guard beside the plain proxy)")
    for process in (behind, plain, guarded):
        process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--skip-moderations", action="store_true")
    parser.add_argument("--skip-streams", action="store_true")
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    header("What guard serve adds", "starlette", "uvicorn", "httpx")
    if not given.skip_streams:
        show_streams(given.rounds)
    if not given.skip_moderations:
        in_core = batch(given.seconds)
        server, address = start(judging)
        asyncio.run(moderate(address, 2, given.clients))
        served = asyncio.run(moderate(address, given.seconds, given.clients))
        server.terminate()
        print(
            f"check_batch {in_core:.0f} texts/s; /v1/moderations {served:.0f} requests/s, {served / in_core:.0%} of it"
        )


if __name__ == "__main__":
    main()
