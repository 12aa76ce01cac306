"""Many streams at once through `guard serve` with the embedded model: every event once, in order; memory; what is left.

    python benchmarks/serve_soak.py [--streams 500] [--seconds 300]

A scripted upstream sends answers of 120 events at 20 a second; some clients hang up half-way. Each answer that was read
to its end must be, byte for byte, what the upstream sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from typing import Any

import httpx
from common import header, median, mib
from serve_overhead import PATH, start
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

N_EVENTS, GAP_S = 120, 0.05
TEXT = "dark soil and sun for the tomatoes and water in the morning when the air is cool so that leaves stay dry"


def events(number: int) -> list[bytes]:
    words = TEXT.split()
    head = {"id": f"c{number}", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    out = []
    for i in range(N_EVENTS):
        delta = {"content": f"{words[(number + i) % len(words)]} "} if i < N_EVENTS - 1 else {}
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        out.append(f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode())
    return [*out, b"data: [DONE]\n\n"]


def upstream() -> Any:
    async def answer(request: Request) -> StreamingResponse:
        number = (await request.json())["seed"]

        async def body() -> Any:
            for event in events(number):
                yield event
                await asyncio.sleep(GAP_S)

        return StreamingResponse(body(), media_type="text/event-stream")

    return Starlette(routes=[Route(PATH, answer, methods=["POST"])])


def guarding(behind: str) -> Any:
    from guardkit import Guard
    from guardkit_serve import Settings, Upstream, create_app

    return create_app(Guard.load(timeout=60), Settings(upstreams=(Upstream(behind),), access_log=False, judge_s=60))


def rss(pid: int) -> float:
    """MiB in memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 / (1 << 20)


async def soak(address: str, pid: int, streams: int, seconds: float) -> None:
    end, numbers = time.monotonic() + seconds, iter(range(10**9))
    counts = {"whole": 0, "left": 0, "wrong": 0, "failed": 0}
    firsts: list[float] = []

    async def one(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            number = next(numbers)
            body = {
                "model": "m",
                "stream": True,
                "seed": number,
                "messages": [{"role": "user", "content": f"part {number}"}],
            }
            begun, got = time.monotonic(), b""
            try:
                async with client.stream("POST", address + PATH, json=body) as answer:
                    async for piece in answer.aiter_raw():
                        firsts.extend([time.monotonic() - begun] if not got else [])
                        got += piece
                        if number % 7 == 3 and len(got) > 5000:
                            break
                sent = b"".join(events(number))
                kind = "whole" if got == sent else "left" if number % 7 == 3 and sent.startswith(got) else "wrong"
                counts[kind] += 1
            except httpx.HTTPError as error:
                counts["failed"] += 1
                print(f"{type(error).__name__}: {error}")

    async def watch() -> None:
        while time.monotonic() < end:
            print(f"{end - time.monotonic():5.0f} s left, {mib(rss(pid))} MiB, {counts}", flush=True)
            await asyncio.sleep(max(seconds / 10, 1))

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=120, limits=limits) as client:
        await asyncio.gather(watch(), *(one(client) for _ in range(streams)))
        await asyncio.sleep(1)
        left = (await client.get(f"{address}/metrics")).text
    print(f"at the end {mib(rss(pid))} MiB, {counts}; first byte {median(firsts) * 1e3:.0f} ms")
    print("\n".join(line for line in left.splitlines() if "open" in line and not line.startswith("#")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=300.0)
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    header("guard serve under many streams", "starlette", "uvicorn", "httpx")
    behind, source = start(upstream)
    guarded, address = start(guarding, source)
    assert guarded.pid is not None
    asyncio.run(soak(address, guarded.pid, given.streams, given.seconds))
    for process in (behind, guarded):
        process.terminate()


if __name__ == "__main__":
    main()
